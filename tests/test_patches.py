"""Patches: raster order outside, channel, row, column inside; the way back is exact."""

from __future__ import annotations

import numpy as np
import torch

from vkrt.engines.patches import from_patches, to_patches


def test_the_order() -> None:
    latent = np.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = to_patches(latent)
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            square = latent[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(patches[:, 3 * row + column], square.reshape(2, 12))


def test_there_and_back() -> None:
    latent = np.random.default_rng(0).standard_normal((2, 16, 6, 10), np.float32)
    np.testing.assert_array_equal(from_patches(to_patches(latent), 6, 10), latent)


def test_tensors_are_taken_too() -> None:
    latent = np.random.default_rng(0).standard_normal((1, 16, 4, 6), np.float32)
    patches = to_patches(torch.from_numpy(latent))
    np.testing.assert_array_equal(patches.numpy(), to_patches(latent))
    np.testing.assert_array_equal(from_patches(patches, 4, 6).numpy(), latent)


def test_a_patch_is_what_the_embedding_of_the_model_takes() -> None:
    latent = torch.randn(2, 16, 6, 4, generator=torch.Generator().manual_seed(0))
    conv = torch.nn.Conv2d(16, 5, 2, stride=2)
    wanted = conv(latent).flatten(2).transpose(1, 2)
    found = torch.nn.functional.linear(to_patches(latent), conv.weight.flatten(1), conv.bias)
    torch.testing.assert_close(found, wanted)
