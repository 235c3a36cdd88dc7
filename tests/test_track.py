"""The clip engine: prompts anywhere, corrections, both directions; against plain references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tracking import CONFIG, eager, fake, frames

from vkrt import CheckpointError, Prompt, PromptError
from vkrt.engines.remembered import nearest
from vkrt.engines.sam2_image import Segmenter
from vkrt.engines.sam2_track import Track
from vkrt.engines.story import joined
from vkrt.engines.tracker import Tracker, TrackerOptions, bank_shape

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


def test_prompts_do_not_see_one_another_before_tracking_goes_on(
    eager: Segmenter, frames: np.ndarray
) -> None:
    """As upstream: what is said counts for other frames once frames are tracked again."""
    both, alone = eager.track(frames), eager.track(frames)
    for track in (both, alone):
        track.prompt(0, 1, **CLICK)
        for _ in track.propagate():
            pass
    both.prompt(5, 1, **FIX)
    corrected = both.prompt(6, 1, **FIX).logits
    close(corrected, alone.prompt(6, 1, **FIX).logits)
    tracked = [next(track.propagate(7)).logits for track in (both, alone)]
    assert np.abs(tracked[0] - tracked[1]).max() > 1e-4


def test_a_second_prompt_where_tracking_went_over_the_first(
    eager: Segmenter, frames: np.ndarray
) -> None:
    """It is decoded with the memories, and is lost where corrections condition nothing."""
    again = {}
    for survives in (True, False):
        track = eager.track(frames, corrections_condition=survives)
        first = track.prompt(0, 1, **CLICK).logits
        before = track.prompt(0, 1, **FIX).logits
        track.prompt(0, 1, **CLICK)
        first = next(track.propagate(0)).logits
        second = track.prompt(0, 1, **FIX).logits
        assert np.abs(second - before).max() > 1e-3
        again[survives] = next(track.propagate(0)).logits
        close(again[survives], second if survives else first)
    assert np.abs(again[True] - again[False]).max() > 1e-3


def test_a_prompt_beyond_the_nearest_counts_as_a_recent_frame(
    eager: Segmenter, frames: np.ndarray
) -> None:
    answers = {}
    for limit in (1, 2):
        track = eager.track(frames, conditioning=limit)
        for index in (0, 2):
            track.prompt(index, 1, points=[[20 + 3 * index, 30]])
        answers[limit] = [next(track.propagate(3)).logits]
        bank = track._tracker.bank
        slots = bank._memory_slots[0]
        kinds = {f: bool(c) for f, c in zip(slots.frames, slots.conditioning, strict=True)}
        assert kinds[2] and kinds[0] == (limit == 2) and bank.holds_pointer(0, 0)
    assert np.abs(answers[1][0] - answers[2][0]).max() > 1e-5


def test_a_prompt_that_is_taken_back_may_leave_its_answer(
    eager: Segmenter, frames: np.ndarray
) -> None:
    track = eager.track(frames)
    for index in (0, 4):
        track.prompt(index, 1, **CLICK)
    for _ in track.propagate(0, frames=6):
        pass
    kept = track.stories[1].past.get(4)
    assert kept is not None and kept.conditioning
    track.clear(4, 1, keep_answer=True)
    left = track.stories[1].past.get(4)
    assert left is not None and not left.conditioning
    np.testing.assert_array_equal(left.memory, kept.memory)
    track.clear(0, 1)
    assert track.stories[1].past.get(0) is None


def test_what_is_remembered_of_prompted_frames(eager: Segmenter, frames: np.ndarray) -> None:
    """Their answers are the same either way, what they leave is not."""
    seen: dict[str, list[np.ndarray]] = {}
    options = {"plain": {"binarize_prompts": False}, "filled": {"fill_holes": 50}, "default": {}}
    for name, option in options.items():
        with eager.track(frames, **option) as track:
            track.prompt(0, 1, **CLICK)
            seen[name] = [frame.logits for frame in track.propagate(frames=2)]
    for name in ("plain", "filled"):
        np.testing.assert_array_equal(seen[name][0], seen["default"][0])
        assert np.abs(seen[name][1] - seen["default"][1]).max() > 1e-5


def test_a_given_mask_is_remembered_by_its_low_resolution(
    eager: Segmenter, frames: np.ndarray
) -> None:
    """Single pixels that it does not show leave nothing."""
    speckled = np.zeros(frames.shape[1:3], bool)
    speckled[20:40, 10:30] = True
    clean = speckled.copy()
    speckled[5::12, 45::12] = True
    answers = []
    for mask in (clean, speckled):
        with eager.track(frames) as track:
            shown = track.prompt(0, 1, mask=mask)
            answers.append(track.stories[1].past.get(0))
            assert shown.masks[0].sum() > 300
    one, other = answers
    assert one is not None and other is not None
    assert not np.array_equal(one.logits, other.logits)
    np.testing.assert_array_equal(one.logits > 0, other.logits > 0)
    np.testing.assert_allclose(one.memory, other.memory, atol=1e-6)


def test_a_bundle_that_always_chooses_says_so() -> None:
    runtime = fake()[0].runtimes.now
    decoder = runtime.stages["track_decoder"]
    ports = tuple(replace(p, bounds=None) if p.name == "multimask" else p for p in decoder.inputs)
    stages = {**runtime.stages, "track_decoder": replace(decoder, inputs=ports)}
    parts = stages, runtime.programs, runtime.backend, bank_shape(CONFIG, 1)
    tracker = Tracker(*parts, TrackerOptions(binarize_prompts=False))
    plain = TrackerOptions(dynamic_multimask=False)
    for act in (lambda: Tracker(*parts, plain), lambda: setattr(tracker, "options", plain)):
        with pytest.raises(CheckpointError, match="export it again to track without") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert Tracker(runtime.stages, *parts[1:], plain).options == plain


def test_a_misspelt_setting_is_named(eager: Segmenter, frames: np.ndarray) -> None:
    with pytest.raises(PromptError, match=r"track has no argument 'histroy'; give history$"):
        eager.track(frames, histroy=3)
