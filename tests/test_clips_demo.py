"""Procedural clips: determinism, labels that last, and what moves, hides, leaves and returns."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vkrt.demo.clips import (
    TARGET_SHARE,
    TARGET_STAYS,
    Cast,
    Clip,
    ClipSource,
    Part,
    choose_target,
    make_clip,
    mean_colour,
)
from vkrt.demo.motion import make_bend, make_camera, make_motion, make_wave

SIZE = 64


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Return clips of 32 frames."""
    return [make_clip(seed, SIZE) for seed in range(16)]


def check_contract(clip: Clip, size: int, frames: int) -> None:
    """Assert what every clip promises."""
    assert clip.frames.shape == (frames, size, size, 3) and clip.frames.dtype == np.uint8
    assert clip.labels.shape == (frames, size, size) and clip.labels.dtype == np.uint8
    assert clip.count >= 1 and clip.labels.max() <= clip.count
    areas = clip.areas()
    assert areas.shape == (frames, clip.count)
    assert np.array_equal(areas.sum(1), (clip.labels > 0).sum((1, 2)))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**62), st.sampled_from([48, 101]))
def test_any_seed(seed: int, size: int) -> None:
    first, second = make_clip(seed, size, 3), make_clip(seed, size, 3)
    check_contract(first, size, 3)
    assert np.array_equal(first.frames, second.frames)
    assert np.array_equal(first.labels, second.labels)


def test_any_frame_is_the_same_whatever_was_drawn_before() -> None:
    for seed in range(6):
        whole, source = make_clip(seed, SIZE, 12), ClipSource(seed, SIZE)
        part = make_clip(seed, SIZE, 3, start=4, stride=3)
        assert np.array_equal(part.frames, whole.frames[4:11:3])
        for time in (10, 0, 4):
            image, labels = source.frame(time)
            assert np.array_equal(image, whole.frames[time])
            assert np.array_equal(labels, whole.labels[time])


def test_clips_of_other_seeds_differ(clips: list[Clip]) -> None:
    assert len({clip.frames[0].tobytes() for clip in clips}) == len(clips)
    counts = [clip.count for clip in clips]
    assert min(counts) <= 3 and max(counts) >= 6


def test_objects_move_and_overlap_themselves_from_frame_to_frame(clips: list[Clip]) -> None:
    """Slow enough to follow: what is well visible covers part of where it was."""
    overlaps, moved = [], 0
    for clip in clips:
        for label in range(1, clip.count + 1):
            masks = clip.labels == label
            for before, after in pairwise(masks):
                if min(before.sum(), after.sum()) >= 0.01 * SIZE**2:
                    overlaps.append((before & after).sum() / (before | after).sum())
        moved += int((clip.labels[0] != clip.labels[16]).mean() > 0.02)
    assert np.median(overlaps) > 0.7
    assert np.percentile(overlaps, 3) > 0.25
    assert np.median(overlaps) < 0.98 and moved >= 0.9 * len(clips)


def test_objects_hide_one_another_leave_and_return(clips: list[Clip]) -> None:
    hidden = returned = 0
    for clip in clips:
        areas = clip.areas()
        hidden += int((areas.min(0) < 0.5 * areas.max(0)).sum())
        for area in areas.T:
            seen = np.flatnonzero(area >= 0.002 * SIZE**2)
            gone = np.flatnonzero(area == 0)
            returned += len(seen) > 0 and bool(((gone > seen[0]) & (gone < seen[-1])).any())
    assert hidden >= len(clips) and returned >= 2


def test_a_distractor_has_the_colours_of_its_model_and_others_have_not() -> None:
    rng = np.random.default_rng(0)
    alike, apart = [], []
    for _ in range(12):
        cast = Cast(rng, SIZE, False, np.full((36, 3), 0.5, np.float32), None)
        part = Part(np.array([0.5, 0.5]), 0.2)
        model = cast.invent(part, 1)
        colour = mean_colour(model[0].sheet.picture)
        cast.around = np.concatenate([cast.around, colour.repeat(8, axis=0)])
        other, twin = cast.invent(part, 2)[0], cast.copy(replace(part, twin=0), 3, model)
        alike.append(np.abs(mean_colour(twin.sheet.picture) - colour).max())
        apart.append(np.abs(mean_colour(other.sheet.picture) - colour).max())
        assert not np.array_equal(twin.motion.matrix(5), model[0].motion.matrix(5))
    assert np.median(alike) < 0.12 and np.median(apart) > 2 * np.median(alike)


def test_light_changes_gradually(clips: list[Clip]) -> None:
    levels = np.stack([clip.frames.mean((1, 2, 3)) for clip in clips])
    steps = np.abs(np.diff(levels, axis=1))
    assert np.percentile(steps, 90) < 4
    assert (levels.max(1) - levels.min(1) > 8).any()


def test_the_target_is_clear_at_first_and_stays(clips: list[Clip]) -> None:
    found = 0
    for seed, clip in enumerate(clips):
        target = choose_target(clip, seed)
        assert target == choose_target(clip, seed)
        if target is None:
            continue
        found += 1
        share = clip.areas()[:, target - 1] / SIZE**2
        assert share[0] >= TARGET_SHARE and (share >= TARGET_STAYS).mean() >= 0.6
    assert found >= 0.8 * len(clips)


def test_no_target_where_nothing_fits() -> None:
    labels = np.zeros((4, 20, 20), np.uint8)
    frames = np.zeros((4, 20, 20, 3), np.uint8)
    assert choose_target(Clip(frames, labels, 1), 0) is None
    labels[0, :10] = 1  # there on the first frame alone
    assert choose_target(Clip(frames, labels, 1), 0) is None
    labels[:, 12:18] = 2
    assert {choose_target(Clip(frames, labels, 2), seed) for seed in range(8)} == {2}
    labels[0, 12:18] = 0
    labels[0, 12] = 2  # a small part of what it shows later
    assert choose_target(Clip(frames, labels, 2), 0) is None


def test_waves_stay_within_their_reach() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        wave = make_wave(rng, 0.3, (10, 40), width=2)
        values = np.stack([wave.at(time) for time in range(100)])
        assert np.abs(values).max() <= 0.3 and np.ptp(values, axis=0).min() > 0.05


def test_a_bend_can_be_undone() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(-1.2, 1.2, (200, 2))
    for time in (0.0, 7.5):
        bend = make_bend(rng, 0.25)
        moved = points + bend.shift(points, time)
        assert np.abs(moved - points).max() > 0.02
        assert np.abs(bend.undo(moved, time) - points).max() < 0.06
    rigid = make_bend(rng, 0.0)
    assert np.array_equal(rigid.shift(points, 3.0), np.zeros_like(points))


def test_a_still_thing_stands_still_and_the_camera_keeps_the_middle_in_view() -> None:
    rng = np.random.default_rng(2)
    motion = make_motion(rng, np.array([0.4, 0.6]), 0.1, upright=True, pace=0.0)
    for time in (0, 9, 31):
        assert np.allclose(motion.matrix(time)[:2, 2], [0.4, 0.6])
        assert np.allclose(motion.matrix(time)[:2, :2], 0.1 * np.eye(2))
    for _ in range(10):
        camera = make_camera(rng, 0.12)
        places = np.stack([camera.matrix(t) @ [0.5, 0.5, 1] for t in range(60)])[:, :2]
        assert np.abs(places - 0.5).max() <= 0.12 + 1e-9
