"""Previews of latents."""

from __future__ import annotations

import numpy as np
import pytest

from vkrt.media.preview import BIAS, FACTORS, to_preview


def test_colours_follow_the_published_factors() -> None:
    latent = np.zeros((16, 2, 3), np.float32)
    latent[2, 0, 1] = 3.0
    latent[15, 1, 2] = 2.0
    pixels = np.asarray(to_preview(latent))
    assert pixels.shape == (2, 3, 3)
    for place, colour in (
        ((0, 0), (0.2394, 0.2135, 0.1925)),
        ((0, 1), (0.2394 + 3 * 0.1994, 0.2135 + 3 * 0.0927, 0.1925 + 3 * 0.0458)),
        ((1, 2), (0.2394 - 2 * 0.1448, 0.2135 - 2 * 0.1463, 0.1925 - 2 * 0.1189)),
    ):
        wanted = [round((value / 2 + 0.5) * 255) for value in colour]
        assert pixels[place].tolist() == wanted


def test_colours_are_cut_off_and_noise_does_not_matter() -> None:
    latent = np.full((16, 1, 2), 500.0, np.float32)
    latent[:, 0, 1] = np.nan
    pixels = np.asarray(to_preview(latent))
    bright = FACTORS.sum(0) * 500 + BIAS > 0
    assert pixels[0, 0].tolist() == np.where(bright, 255, 0).tolist()
    assert pixels[0, 1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_any_float_gives_the_same(dtype: type) -> None:
    latent = np.random.default_rng(0).integers(-3, 4, (16, 4, 5))
    assert to_preview(latent.astype(dtype)).tobytes() == to_preview(latent).tobytes()


def test_latents_of_another_model_are_grey() -> None:
    assert np.unique(np.asarray(to_preview(np.ones((4, 3, 2), np.float32)))).tolist() == [128]
