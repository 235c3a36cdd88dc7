"""Guidance: which rows run when, and what they make together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vkrt.engines.guidance import COND, SKIP, UNCOND, Guidance, guide, split_rows
from vkrt.errors import GenerationError

LAYERS = (7, 8, 9)


def velocities(rows: int, images: int = 2) -> np.ndarray:
    """Return (rows * images, 16, 2, 4) float32."""
    return np.random.default_rng(rows).standard_normal((rows * images, 16, 2, 4)).astype(np.float32)


def skipping(guidance: Guidance, steps: int) -> list[int]:
    """Return the steps at which layers are skipped."""
    return [index for index in range(steps) if SKIP in guidance.rows(index, steps)]


@pytest.mark.parametrize("scale", [0, 0.5, 1, 1.0])
def test_one_row_without_guidance(scale: float) -> None:
    guidance = Guidance(scale)
    assert guidance.rows(0, 4) == (COND,)
    alone = velocities(1)
    np.testing.assert_array_equal(guidance.combine((COND,), alone), alone)


def test_guidance_goes_from_uncond_beyond_cond() -> None:
    guidance = Guidance(4.5)
    rows = guidance.rows(0, 4)
    assert rows == (UNCOND, COND)
    both = velocities(2)
    guided = guidance.combine(rows, both)
    assert guided.dtype == np.float32
    np.testing.assert_allclose(guided, both[:2] + 4.5 * (both[2:] - both[:2]), rtol=1e-6)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (50, range(1, 10)),  # 10 = 0.2 * 50 is out
        (28, range(1, 6)),  # below 5.6
        (4, range(0)),  # 0.8 leaves step 0, which is out
        (100, range(2, 20)),  # 1 = 0.01 * 100 is out
    ],
)
def test_layers_are_skipped_strictly_between_the_shares(steps: int, expected: range) -> None:
    for profile in ("reference", "diffusers"):
        guidance = Guidance(4.0, LAYERS, 2.5, profile=profile)
        assert skipping(guidance, steps) == list(expected)


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1))
def test_skipped_steps_are_those_of_diffusers(steps: int, a: float, b: float) -> None:
    start, stop = sorted((a, b))
    guidance = Guidance(5.0, LAYERS, 2.8, start, stop, "diffusers")
    # The condition in StableDiffusion3Pipeline's loop.
    theirs = [i for i in range(steps) if i > steps * start and i < steps * stop]
    assert skipping(guidance, steps) == theirs


def test_skip_layer_guidance_adds_what_the_layers_change() -> None:
    guidance = Guidance(4.0, LAYERS, 2.5)
    rows = guidance.rows(3, 50)
    assert rows == (UNCOND, COND, SKIP)
    three = velocities(3)
    uncond, cond, skip = three[:2], three[2:4], three[4:]
    expected = uncond + 4.0 * (cond - uncond) + 2.5 * (cond - skip)
    np.testing.assert_allclose(guidance.combine(rows, three), expected, rtol=1e-5, atol=1e-5)


def test_only_the_reference_skips_without_classifier_free_guidance() -> None:
    assert Guidance(1.0, LAYERS, 2.5).rows(3, 50) == (COND, SKIP)
    assert Guidance(1.0, LAYERS, 2.5, profile="diffusers").rows(3, 50) == (COND,)
    both = velocities(2)
    guided = Guidance(1.0, LAYERS, 2.5).combine((COND, SKIP), both)
    np.testing.assert_allclose(guided, both[:2] + 2.5 * (both[:2] - both[2:]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("guidance", [Guidance(4.0, (), 2.5), Guidance(4.0, LAYERS, 0.0)])
def test_nothing_is_skipped_without_layers_or_scale(guidance: Guidance) -> None:
    assert not guidance.skips
    assert skipping(guidance, 50) == []


def test_image_of_a_batch_equals_its_solo_run() -> None:
    guidance = Guidance(4.0, LAYERS, 2.5)
    rows, three = (UNCOND, COND, SKIP), velocities(3)
    np.testing.assert_array_equal(
        guidance.combine(rows, three)[1:], guidance.combine(rows, three[1::2])
    )


def test_rows_are_split_without_a_copy() -> None:
    three = velocities(3)
    parts = split_rows((UNCOND, COND, SKIP), three)
    assert list(parts) == [UNCOND, COND, SKIP]
    assert all(np.shares_memory(part, three) for part in parts.values())
    np.testing.assert_array_equal(parts[COND], three[2:4])


def test_rows_may_be_given_one_by_one() -> None:
    both = velocities(2)
    np.testing.assert_array_equal(
        guide({COND: both[2:], UNCOND: both[:2]}, 4.5),
        Guidance(4.5).combine((UNCOND, COND), both),
    )


@pytest.mark.parametrize("scale", [-1, float("nan"), float("inf"), "5", True, None])
def test_impossible_scales_are_refused(scale: Any) -> None:
    with pytest.raises(GenerationError, match="guidance must be a number from 0 to 1000"):
        Guidance(scale)
    with pytest.raises(GenerationError, match="skip_scale must be a number from 0 to 1000"):
        Guidance(4.0, LAYERS, scale)


@pytest.mark.parametrize("shares", [(0.5, 0.2), (-0.1, 0.2), (0.1, 1.2), (float("nan"), 0.5)])
def test_impossible_shares_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(GenerationError, match="shares of the steps"):
        Guidance(4.0, LAYERS, 2.5, *shares)


def test_unknown_profile_is_refused() -> None:
    with pytest.raises(GenerationError, match='"reference" or "diffusers"'):
        Guidance(4.0, profile="other")
