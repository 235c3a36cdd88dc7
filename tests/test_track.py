"""The clip engine: prompts anywhere, corrections, both directions; against plain references."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tracking import eager, fake, frames

from vkrt import Prompt, PromptError
from vkrt.engines.sam2_image import Segmenter
from vkrt.engines.sam2_track import Track
from vkrt.engines.story import joined, nearest

__all__ = ["eager", "frames"]

CLICK = {"points": [[20, 30]]}
POINT = Prompt(1, **CLICK)
FIX = {"points": [[35, 30], [70, 5]], "labels": [1, 0]}


def close(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_clip_equals_a_stream(eager: Segmenter, frames: np.ndarray) -> None:
    """Where pointers are measured alike: upstream divides their distance by the clip's length."""
    long = np.concatenate((frames, frames[:6]))
    stream = eager.stream()
    with eager.track(long) as track:
        track.prompt(0, 1, **CLICK)
        track.prompt(0, 2, box=[10, 10, 50, 50])
        for found in track.propagate():
            prompts = [POINT, Prompt(2, box=[10, 10, 50, 50])] if found.frame == 0 else []
            wanted = stream.step(long[found.frame], prompts)
            assert found.obj_ids == wanted.obj_ids == (1, 2)
            close(found.logits, wanted.logits)
            np.testing.assert_array_equal(found.masks, wanted.masks)
    assert stream.frame == len(long)


def test_each_frame_is_encoded_once(frames: np.ndarray) -> None:
    sam, backend = fake()
    track = sam.track(frames)
    for obj in range(3):
        track.prompt(0, obj, **CLICK)
    assert backend.calls["image_encoder"] == 1
    assert [found.frame for found in track.propagate()] == list(range(12))
    assert backend.calls["image_encoder"] == 12
    assert backend.calls["memory_attention"] == 11


def test_prompted_frames_keep_their_answer(eager: Segmenter, frames: np.ndarray) -> None:
    track = eager.track(frames)
    first = track.prompt(5, 1, **CLICK)
    seen = {found.frame: found for found in track.propagate()}
    assert sorted(seen) == list(range(5, 12))
    np.testing.assert_array_equal(seen[5].logits, first.logits)
    back = [found.frame for found in track.propagate(reverse=True)]
    assert back == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("start", "reverse", "count", "wanted"),
    [
        (2, False, 3, [2, 3, 4]),
        (4, True, 2, [4, 3]),
        (10, False, 9, [10, 11]),
        (None, False, 0, []),
        (0, True, None, [0]),
    ],
)
def test_where_it_goes(
    frames: np.ndarray, start: int | None, reverse: bool, count: int | None, wanted: list[int]
) -> None:
    track = fake()[0].track(frames)
    track.prompt(3, 1, **CLICK)
    assert [f.frame for f in track.propagate(start, reverse=reverse, frames=count)] == wanted


def test_a_correction_survives_when_the_clip_is_tracked_again(
    eager: Segmenter, frames: np.ndarray
) -> None:
    kept, lost = eager.track(frames), eager.track(frames, corrections_condition=False)
    for track, survives in ((kept, True), (lost, False)):
        track.prompt(0, 1, **CLICK)
        before = {found.frame: found.logits for found in track.propagate()}
        corrected = track.prompt(6, 1, **FIX).logits
        assert np.abs(corrected - before[6]).max() > 1e-3
        again = {found.frame: found.logits for found in track.propagate()}
        assert (np.abs(again[6] - corrected).max() < 1e-6) == survives
        changed = np.abs(again[8] - before[8]).max() > 1e-4
        assert changed == survives


def test_points_refine_what_was_there(eager: Segmenter, frames: np.ndarray) -> None:
    refining, alone = eager.track(frames), eager.track(frames, refine=False)
    answers = []
    for track in (refining, alone):
        track.prompt(0, 1, **CLICK)
        answers.append(track.prompt(0, 1, points=[[35, 30]], labels=[0], keep=True).logits)
    assert np.abs(answers[0] - answers[1]).max() > 1e-3
    whole = eager.track(frames, refine=False)
    both = whole.prompt(0, 1, points=[[20, 30], [35, 30]], labels=[1, 0])
    close(answers[1], both.logits)


def test_the_way_back_sees_what_the_way_there_left(eager: Segmenter, frames: np.ndarray) -> None:
    """Only what the history kept is there to be remembered."""
    answers = {}
    for history in (64, 1):
        track = eager.track(frames, history=history)
        track.prompt(0, 1, **CLICK)
        for _ in track.propagate():
            pass
        track.prompt(11, 1, **FIX)
        (found,) = track.propagate(10, reverse=True, frames=1)
        answers[history] = found.logits
        held = len(track._stories[1].past)
        assert held == (12 if history == 64 else 3)
    assert np.abs(answers[64] - answers[1]).max() > 1e-6


def test_clearing_around_prompts(eager: Segmenter, frames: np.ndarray) -> None:
    track = eager.track(frames, clear_around_prompts=True)
    track.prompt(0, 1, **CLICK)
    for _ in track.propagate():
        pass
    track.prompt(9, 1, **FIX)
    past = track._stories[1].past
    assert list(past) == [0, 1, 9]
    assert [found.frame for found in track.propagate(9)] == [9, 10, 11]


def test_objects_are_added_and_removed_on_the_way(eager: Segmenter, frames: np.ndarray) -> None:
    track, alone = eager.track(frames), eager.track(frames)
    track.prompt(0, 1, **CLICK)
    track.prompt(0, 2, box=[10, 10, 50, 50])
    for found in track.propagate():
        if found.frame == 3:
            break
    track.remove(1)
    track.prompt(5, 7, **FIX)
    alone.prompt(0, 2, box=[10, 10, 50, 50])
    for _ in alone.propagate(frames=4):
        pass
    for found, wanted in zip(track.propagate(4), alone.propagate(4), strict=True):
        assert found.obj_ids == (2, 7)
        close(found.logits[0], wanted.logits[0])
    track.reset()
    assert track.objects == ()


def test_taking_a_prompt_back(frames: np.ndarray) -> None:
    track = fake()[0].track(frames)
    track.prompt(0, 1, **CLICK)
    with pytest.raises(PromptError, match="no prompt on frame 3"):
        track.clear(3, 1)
    track.clear(0, 1)
    with pytest.raises(PromptError, match="object 1 has no prompt left"):
        track.propagate()
    track.remove(1)
    with pytest.raises(PromptError, match="no object to track"):
        track.propagate()


BAD: list[tuple[Callable[[Track], object], str]] = [
    (lambda t: t.prompt(12, 2, **CLICK), "frame 12 is beyond the clip, which has 12 frames"),
    (lambda t: t.prompt(-1, 2, **CLICK), "beyond the clip"),
    (lambda t: t.prompt(0, 2, points=[[900, 1]]), "outside the photo"),
    (lambda t: t.propagate(40), "frame 40 is beyond the clip"),
    (lambda t: t.remove(5), "object 5 is not tracked"),
    (lambda t: t.prompt(0, 1, box=[1, 1, 9, 9], keep=True), "only points can be added"),
    (lambda t: t.prompt(0, True, **CLICK), "whole number"),
    (lambda t: t.prompt(0, 2, box=np.zeros((0, 4))), "object 2 has an empty prompt"),
    (lambda t: t.prompt(0, 2, points=[], labels=[]), "object 2 has an empty prompt"),
    (lambda t: t.prompt(0, 1, points=object(), keep=True), "must be numbers"),
    (lambda t: t.propagate(frames=-1), "frames must be a whole number from 0"),
    (lambda t: t.clear(10**5000, 1), "frame must be a whole number"),
    (lambda t: t.prompt(0.5, 1, **CLICK), "frame must be a whole number"),
]


@pytest.mark.parametrize(("act", "message"), BAD, ids=[message for _, message in BAD])
def test_after_bad_input_it_goes_on(
    frames: np.ndarray, act: Callable[[Track], object], message: str
) -> None:
    track = fake()[0].track(frames)
    track.prompt(0, 1, **CLICK)
    with pytest.raises(PromptError, match=message) as caught:
        act(track)
    assert "\n" not in str(caught.value)
    assert track.objects == (1,) and track._tracker.bank.rows == 1
    assert len(list(track.propagate())) == 12


def test_numpy_integers_and_empty_lists_are_taken(frames: np.ndarray) -> None:
    track = fake()[0].track(frames, history=np.int16(3), conditioning=np.uint8(2))
    found = track.prompt(np.int64(2), np.int32(7), points=[], labels=[], box=[1, 1, 30, 30])
    assert found.obj_ids == (7,) and track.objects == (7,)
    again = track.prompt(2, 7, points=np.array([[20, 30]]), labels=np.zeros(1), keep=np.bool_(True))
    assert again.obj_ids == (7,)
    seen = [found.frame for found in track.propagate(np.int64(2), frames=np.int64(4))]
    assert seen == [2, 3, 4, 5]
    track.clear(np.int64(2), np.uint64(7))
    track.remove(np.int8(7))
    assert track.objects == ()


def test_the_nearest_conditioning_frames() -> None:
    frames = [0, 10, 20, 30, 40]
    assert nearest(frames, 21, 2) == [20, 30]
    assert nearest(frames, 20, 3) == [10, 20, 30]
    assert nearest(frames, 99, 2) == [40, 30]
    assert nearest(frames, -5, 1) == [0]
    assert sorted(nearest(frames, 15, 9)) == frames


def test_what_joined_prompts_say() -> None:
    box = Prompt(1, box=[1, 2, 3, 4])
    both = joined(box, Prompt(1, points=[[5, 6]], labels=[0]))
    assert (both.box, both.points, both.labels) == ([1, 2, 3, 4], [[5, 6]], [0])
    assert joined(both, Prompt(1, points=np.array([[7, 8]]))).labels == [0, 1]
