"""The streaming engine: on a fake backend what it moves, on the eager one what comes out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pico import NAME
from tracking import CONFIG, eager, fake, frames

import vkrt
from vkrt import Prompt, PromptError, VideoError
from vkrt.backends.fake import FakeBackend
from vkrt.engines.sam2_image import Segmenter
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.stages import image_stages

__all__ = ["eager", "frames"]

POINT = Prompt(1, points=[[20, 30]])
BOX = Prompt(2, box=[10, 10, 50, 50])


def test_what_a_step_gives(frames: np.ndarray) -> None:
    sam, backend = fake()
    stream = sam.stream()
    found = stream.step(frames[0], [POINT, BOX])
    assert (found.frame, found.obj_ids, found.masks.shape) == (0, (1, 2), (2, 60, 80))
    assert found.masks.dtype == bool and found.logits.shape == (2, 16, 16)
    assert found.scores.shape == found.object_scores.shape == (2,)
    assert stream.frame == 1 and stream.size == (60, 80) and stream.objects == (1, 2)
    assert backend.calls["memory_attention"] == 0


def test_a_prompt_of_empty_lists_says_nothing(frames: np.ndarray) -> None:
    sam, _ = fake()
    stream = sam.stream()
    nothing = [Prompt(3, box=np.zeros((0, 4))), Prompt(4, points=[], labels=[])]
    found = stream.step(frames[0], [POINT, *nothing])
    assert found.obj_ids == (1,)
    assert stream.step(frames[1], nothing).obj_ids == (1,)
    both = Prompt(5, points=[], labels=[], box=[10, 10, 50, 50])
    assert stream.step(frames[2], [both]).obj_ids == (1, 5)


def test_ids_of_numpy_are_the_same_as_pythons(frames: np.ndarray) -> None:
    sam, _ = fake()
    stream = sam.stream()
    found = stream.step(frames[0], [Prompt(np.int64(7), points=[[20, 30]])])
    assert found.obj_ids == (7,) and type(found.obj_ids[0]) is int
    assert stream.step(frames[1], [Prompt(7, points=[[21, 30]])]).obj_ids == (7,)
    stream.remove(np.uint8(7))
    assert stream.objects == ()


def test_objects_run_as_one_batch_and_the_frame_is_encoded_once(frames: np.ndarray) -> None:
    sam, backend = fake()
    stream = sam.stream()
    stream.step(frames[0], [Prompt(obj, points=[[20, 30]]) for obj in range(5)])
    before = backend.calls.copy()
    stream.step(frames[1])
    names = ("image_encoder", "memory_attention", "track_decoder", "memory_encoder")
    assert backend.calls - before == dict.fromkeys(names, 1)
    assert backend.received["memory_attention"][1].shape[:2] == (5, 1)
    assert backend.received["track_decoder"][4].tolist() == [[-1, -1]] * 5


def test_memory_is_that_of_the_objects_alone(frames: np.ndarray) -> None:
    sam, backend = fake()
    stream = sam.stream(conditioning=3)
    stream.step(frames[0], [POINT, BOX])
    wanted = 2 * stream._tracker.bank.shape.bytes_per_object
    slots = []
    for _ in range(30):
        stream.step(frames[1])
        slots.append(backend.received["memory_attention"][1].shape[1])
        assert stream.nbytes == wanted
    assert slots == [*range(1, 7), *[7] * 24]


def test_groups_of_objects_that_are_asked_alike(frames: np.ndarray) -> None:
    sam, backend = fake()
    stream = sam.stream()
    stream.step(frames[0], [POINT, BOX, Prompt(7, mask=np.ones((60, 80), bool))])
    assert backend.calls["mask_prompter"] == 1 and backend.calls["track_decoder"] == 2
    fix = Prompt(2, points=[[30, 30], [5, 5]], labels=[1, 0])
    found = stream.step(frames[1], [fix, Prompt(9, points=[[1, 1]])])
    assert found.obj_ids == (1, 2, 7, 9)
    assert backend.calls["track_decoder"] == 5


def test_one_object_or_several_give_the_same(eager: Segmenter, frames: np.ndarray) -> None:
    """Batched objects equal runs of one object each."""
    prompts = [POINT, BOX, Prompt(3, points=[[60, 40]]), Prompt(4, mask=frames[0, :, :, 0] > 200)]
    together = eager.stream()
    alone = {prompt.obj: eager.stream() for prompt in prompts}
    for index, frame in enumerate(frames):
        found = together.step(frame, prompts if index == 0 else [])
        for place, prompt in enumerate(prompts):
            wanted = alone[prompt.obj].step(frame, [prompt] if index == 0 else [])
            np.testing.assert_allclose(found.logits[place], wanted.logits[0], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(found.scores[place], wanted.scores[0], atol=1e-4)
    assert 0 < together.step(frames[-1]).masks.mean() < 1


def test_objects_come_and_go(eager: Segmenter, frames: np.ndarray) -> None:
    """An object's answers do not depend on which others were there."""
    stream, alone = eager.stream(), eager.stream()
    late = Prompt(8, points=[[40, 30]])
    for index, frame in enumerate(frames):
        prompts = {0: [POINT, BOX], 4: [late]}.get(index, [])
        if index == 6:
            stream.remove(1)
        found = stream.step(frame, prompts)
        if index >= 4:
            wanted = alone.step(frame, [late] if index == 4 else [])
            place = found.obj_ids.index(8)
            np.testing.assert_allclose(found.logits[place], wanted.logits[0], rtol=1e-4, atol=1e-4)
    assert found.obj_ids == (2, 8)


def test_a_correction_uses_what_is_remembered(eager: Segmenter, frames: np.ndarray) -> None:
    fix = Prompt(1, points=[[35, 30], [70, 5]], labels=[1, 0])
    tracked, fresh = eager.stream(), eager.stream()
    for frame in frames[:4]:
        tracked.step(frame, [POINT] if tracked.frame == 0 else [])
    corrected = tracked.step(frames[4], [fix])
    begun = fresh.step(frames[4], [fix])
    assert np.abs(corrected.logits - begun.logits).max() > 1e-3
    slots = tracked._tracker.bank._memory_slots[0]
    assert sorted(slots.frames[slots.conditioning]) == [0, 4]


def test_a_pixel_belongs_to_one_object(eager: Segmenter, frames: np.ndarray) -> None:
    prompts = [Prompt(obj, points=[[20 + obj, 30]]) for obj in range(3)]
    shared = eager.stream().step(frames[0], prompts).masks
    apart = eager.stream(non_overlapping=True).step(frames[0], prompts).masks
    assert shared.sum(axis=0).max() > 1 and apart.sum(axis=0).max() == 1
    np.testing.assert_array_equal(shared.any(axis=0), apart.any(axis=0))


BAD: list[tuple[Callable[[np.ndarray], list[Prompt]], str]] = [
    (lambda _: [Prompt(1, points=[[500, 5]])], "outside the photo"),
    (lambda _: [Prompt(1)], "no prompt was given"),
    (lambda _: [Prompt(1, points=[[5, 5]]), Prompt(1, box=[1, 1, 5, 5])], "two prompts"),
    (lambda f: [Prompt(1, points=[[5, 5]], mask=f[..., 0] > 9)], "a mask and points"),
    (lambda _: [Prompt(1, mask=np.ones((5, 5), bool))], "as large as the frame"),
    (lambda _: [Prompt("one", points=[[5, 5]])], "whole number"),  # type: ignore[arg-type]
    (lambda _: [Prompt(1, points=[[[5, 5]], [[6, 6]]])], "one Prompt an object"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_prompt_changes_nothing(
    make: Callable[[np.ndarray], list[Prompt]], message: str, frames: np.ndarray
) -> None:
    sam, _ = fake()
    stream = sam.stream()
    for index in (0, 1):
        with pytest.raises(PromptError, match=message) as caught:
            stream.step(frames[0], [Prompt(5, points=[[9, 9]]), *make(frames[0])])
        assert "\n" not in str(caught.value)
        assert stream.objects == ((1,) if index else ()) and stream.frame == index
        if index == 0:
            stream.step(frames[0], [POINT])


def test_nothing_to_track(frames: np.ndarray) -> None:
    stream = fake()[0].stream()
    with pytest.raises(PromptError, match="no object to track"):
        stream.step(frames[0])
    stream.step(frames[0], [POINT])
    stream.remove(1)
    with pytest.raises(PromptError, match="no object to track"):
        stream.step(frames[1])
    with pytest.raises(PromptError, match="object 1 is not tracked"):
        stream.remove(1)


def test_a_frame_of_another_size(frames: np.ndarray) -> None:
    stream = fake()[0].stream()
    stream.step(frames[0], [POINT])
    with pytest.raises(VideoError, match="frame 1 is 40x60, but the stream is 80x60"):
        stream.step(frames[1][:, :40])
    assert stream.step(frames[1]).frame == 1
    stream.reset()
    assert stream.objects == () and stream.step(frames[0][:, :40], [POINT]).frame == 0


def test_a_failing_stage_leaves_no_half_object(
    frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam, _ = fake()
    stream = sam.stream()
    stream.step(frames[0], [POINT])

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(stream._tracker, "_run", fail)
        with pytest.raises(RuntimeError):
            stream.step(frames[1], [BOX])
    assert stream.objects == (1,) and stream._tracker.bank.rows == 1
    assert stream.step(frames[1], [BOX]).obj_ids == (1, 2)


def test_weights_without_memory_modules_can_not_track() -> None:
    with torch.device("meta"):
        stages = image_stages(Sam2(CONFIG))
    sam = Segmenter(NAME, CONFIG, stages, FakeBackend())
    with pytest.raises(vkrt.CheckpointError, match="without memory modules"):
        sam.stream()
