"""Procedural scenes: determinism, label contract and variety."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vkrt.demo.scenes import MIN_AREA, Scene, make_scene, tidy_labels


def check_contract(scene: Scene, size: int) -> None:
    """Assert what every scene promises."""
    assert scene.image.shape == (size, size, 3) and scene.image.dtype == np.uint8
    assert scene.labels.shape == (size, size) and scene.labels.dtype == np.int16
    assert scene.count >= 1
    present = set(np.unique(scene.labels).tolist())
    assert present | {0} == set(range(scene.count + 1))
    areas = scene.areas()
    assert areas.shape == (scene.count,)
    assert areas.sum() == (scene.labels > 0).sum()
    assert areas.min() >= MIN_AREA * size * size


@pytest.mark.parametrize("size", [256, 160, 101])
def test_contract(size: int) -> None:
    for seed in range(12):
        check_contract(make_scene(seed, size), size)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**63 - 1), st.sampled_from([96, 160]))
def test_any_seed(seed: int, size: int) -> None:
    first, second = make_scene(seed, size), make_scene(seed, size)
    check_contract(first, size)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.labels, second.labels)


def test_default_size_is_deterministic() -> None:
    for seed in (0, 7, 2024):
        first, second = make_scene(seed), make_scene(seed)
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.labels, second.labels)


def test_seeds_differ() -> None:
    pictures = {make_scene(seed, 64).image.tobytes() for seed in range(40)}
    assert len(pictures) == 40


def test_areas_match_the_masks() -> None:
    scene = make_scene(3)
    masks = [(scene.labels == k).sum() for k in range(1, scene.count + 1)]
    assert scene.areas().tolist() == masks


def test_scenes_vary_in_clutter() -> None:
    counts = [make_scene(seed, 96).count for seed in range(60)]
    assert min(counts) <= 2 and max(counts) >= 10


def test_objects_stand_out() -> None:
    """The mean colour or the contrast of most objects differs from their surroundings."""
    close = total = 0
    for seed in range(40):
        scene = make_scene(seed, 128)
        image = scene.image.astype(np.float32)
        for k in range(1, scene.count + 1):
            mask = scene.labels == k
            near = mask.copy()
            for axis in (0, 1):
                for step in (-3, 3):
                    near |= np.roll(mask, step, axis)
            ring = near & ~mask
            total += 1
            close += float(np.abs(image[mask].mean(0) - image[ring].mean(0)).max()) < 8
    assert close < 0.08 * total


def test_tidy_labels_drops_slivers() -> None:
    labels = np.zeros((100, 100), np.int16)
    labels[0, :3], labels[10:20, 10:20], labels[50:60] = 1, 2, 4
    tidy, count = tidy_labels(labels)
    assert count == 2
    assert np.unique(tidy).tolist() == [0, 1, 2]
    assert (tidy == 1).sum() == 100 and (tidy == 2).sum() == 1000
