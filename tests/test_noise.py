"""Noise: what torch's CPU generator draws, for many seeds, sizes, dtypes and draws in a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vkrt.engines.noise import DTYPES, NoiseStream, noise, round_to
from vkrt.errors import GenerationError

TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A last bit, as a share of a number: a number next to a tie may round to either side.
LAST_BIT = {"fp32": 0.0, "bf16": 2.0**-7, "fp16": 2.0**-10}
SEEDS = st.integers(-(2**63), 2**64 - 1) | st.integers(0, 100)
SIZES = st.integers(0, 70) | st.sampled_from([128, 1000, 1023, 4096])


def generator(seed: int) -> torch.Generator:
    """Return torch's generator at a seed."""
    return torch.Generator("cpu").manual_seed(seed)


def drawn(source: torch.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return what torch draws, as float32."""
    return torch.randn(shape, generator=source, dtype=TORCH[dtype]).float().numpy()


def assert_drawn(ours: np.ndarray, theirs: np.ndarray, dtype: str) -> None:
    """Compare to 1e-6, or to one last bit of a half-precision dtype."""
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=LAST_BIT[dtype], atol=1e-6)


@settings(max_examples=300, deadline=None)
@given(SEEDS, SIZES, st.sampled_from(DTYPES))
def test_draw_is_torch_s(seed: int, size: int, dtype: str) -> None:
    ours = NoiseStream(seed).normal((size,), dtype)
    assert_drawn(ours, drawn(generator(seed), (size,), dtype), dtype)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.lists(st.tuples(SIZES, st.sampled_from(DTYPES)), min_size=2, max_size=5))
def test_draws_in_a_row_are_torch_s(seed: int, draws: list[tuple[int, str]]) -> None:
    stream, source = NoiseStream(seed), generator(seed)
    for size, dtype in draws:
        assert_drawn(stream.normal((size,), dtype), drawn(source, (size,), dtype), dtype)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**64 - 1])
def test_latent_of_a_large_picture_is_torch_s(seed: int) -> None:
    shape = (16, 128, 128)
    assert_drawn(noise(shape, seed), drawn(generator(seed), shape, "fp32"), "fp32")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_almost_always_torch_s_to_the_bit(dtype: str) -> None:
    shape = (16, 64, 64)
    ours, theirs = noise(shape, 5, "diffusers", dtype), drawn(generator(5), shape, dtype)
    assert (ours != theirs).mean() < 1e-3


def test_first_numbers_are_those_that_everyone_knows() -> None:
    np.testing.assert_allclose(noise((3,), 0), [1.5410, -0.2934, -2.1788], atol=5e-5)
    np.testing.assert_allclose(noise((4, 4), 0)[0], [-1.1258, -1.1524, -0.2506, -0.4339], atol=5e-5)


def test_image_has_the_noise_of_its_own_seed() -> None:
    """One generator an image, as diffusers has a list of them."""
    sources = [generator(seed) for seed in (3, 4)]
    theirs = np.concatenate([drawn(source, (1, 16, 6, 4), "fp32") for source in sources])
    ours = np.stack([noise((16, 6, 4), 3 + i) for i in range(2)])
    assert_drawn(ours, theirs, "fp32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_draws_float32_and_rounds(dtype: str) -> None:
    shape = (5, 7)
    ours = noise(shape, 11, "reference", dtype)
    np.testing.assert_array_equal(ours, round_to(noise(shape, 11), dtype))
    theirs = torch.randn(shape, generator=generator(11)).to(TORCH[dtype]).float().numpy()
    assert_drawn(ours, theirs, dtype)


def test_profiles_differ_where_torch_fills_otherwise() -> None:
    """35 numbers are two blocks and a rest, which half precision does not draw beforehand."""
    ours, theirs = (noise((5, 7), 11, profile, "bf16") for profile in ("reference", "diffusers"))
    np.testing.assert_array_equal(ours.ravel()[:19], theirs.ravel()[:19])
    assert (ours.ravel()[19:] != theirs.ravel()[19:]).all()


@given(st.lists(st.floats(-70000, 70000, width=32), min_size=1), st.sampled_from(DTYPES))
def test_rounding_is_torch_s(values: list[float], dtype: str) -> None:
    array = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        ours = round_to(array, dtype)
    np.testing.assert_array_equal(ours, torch.from_numpy(array).to(TORCH[dtype]).float().numpy())


def test_shape_does_not_matter() -> None:
    np.testing.assert_array_equal(noise((16, 4, 6), 1).ravel(), noise((16 * 4 * 6,), 1))
    assert noise((16, 4, 6), 1).shape == (16, 4, 6)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "7", None, True])
def test_impossible_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(GenerationError, match="a seed must be"):
        NoiseStream(seed)


def test_unknown_dtypes_and_profiles_are_refused() -> None:
    with pytest.raises(GenerationError, match='"fp32", "bf16", "fp16", not \'int8\''):
        noise((4,), 0, dtype="int8")
    with pytest.raises(GenerationError, match='"reference" or "diffusers"'):
        noise((4,), 0, profile="other")
