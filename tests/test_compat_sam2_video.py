"""The video half of vkrt.compat.sam2 behaves as upstream's does, and equals the engine under it."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pico import NAME
from PIL import Image
from reels import moving, write_clip
from tracking import eager, fake, frames

import vkrt
from vkrt.compat.sam2 import (
    Sam2Handle,
    SAM2ImagePredictor,
    SAM2VideoPredictor,
    SAM2VideoPredictorVOS,
    build_sam2_video_predictor,
    build_sam2_video_predictor_hf,
)
from vkrt.compat.video_masks import apart
from vkrt.compat.video_state import VideoState
from vkrt.engines.sam2_image import Segmenter
from vkrt.media.image import to_input
from vkrt.media.masks import fill_small_holes, upsample

__all__ = ["eager", "frames"]

SIZE = 60, 80
SPOT = np.array([[20, 30]], np.float32)
ON = np.array([1], np.int32)
BOX = np.array([10, 10, 50, 50], np.float32)
FIX = np.array([[35, 30], [70, 5]], np.float32), np.array([1, 0], np.int32)


@pytest.fixture
def predictor(eager: Segmenter) -> SAM2VideoPredictor:
    return SAM2VideoPredictor(eager)


@pytest.fixture
def state(predictor: SAM2VideoPredictor, frames: np.ndarray) -> VideoState:
    return predictor.init_state(frames)


@pytest.fixture
def folder(frames: np.ndarray, tmp_path: Path) -> Path:
    """Return a folder of the frames as JPEG files, and one picture that is none of them."""
    place = tmp_path / "clip"
    place.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(place / f"{index:05d}.jpg", quality=95)
    Image.fromarray(frames[0, :20]).save(place / "00000.png")
    return place


def quick(frames: np.ndarray, **options: Any) -> tuple[SAM2VideoPredictor, VideoState]:
    """Return a predictor that computes nothing, and a clip with a click on frame 3."""
    predictor = SAM2VideoPredictor(fake()[0], **options)
    state = predictor.init_state(frames)
    predictor.add_new_points_or_box(state, 3, 1, SPOT, ON)
    return predictor, state


def shown(logits: np.ndarray) -> torch.Tensor:
    """Return low-resolution logits (N, h, w) as upstream shows them: (N, 1, H, W)."""
    return torch.from_numpy(upsample(logits, *SIZE)[:, None])


def is_absent(mask: torch.Tensor) -> bool:
    return bool((mask == -1024).all())


def disc(index: int) -> np.ndarray:
    """Return (H, W) bool of the disc that the frames show."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return (x - 20 - 3 * index) ** 2 + (y - 30) ** 2 < 150


def test_upstream_arguments_are_there() -> None:
    prompted = "self inference_state frame_idx obj_id"
    wanted = {
        build_sam2_video_predictor: "config_file ckpt_path device mode hydra_overrides_extra "
        "apply_postprocessing vos_optimized",
        build_sam2_video_predictor_hf: "model_id",
        SAM2VideoPredictor.from_pretrained: "model_id",
        SAM2VideoPredictor.init_state: "self video_path offload_video_to_cpu offload_state_to_cpu "
        "async_loading_frames",
        SAM2VideoPredictor.add_new_points_or_box: f"{prompted} points labels clear_old_points "
        "normalize_coords box",
        SAM2VideoPredictor.add_new_mask: f"{prompted} mask",
        SAM2VideoPredictor.propagate_in_video_preflight: "self inference_state",
        SAM2VideoPredictor.propagate_in_video: "self inference_state start_frame_idx "
        "max_frame_num_to_track reverse",
        SAM2VideoPredictor.clear_all_prompts_in_frame: f"{prompted} need_output",
        SAM2VideoPredictor.remove_object: "self inference_state obj_id strict need_output",
        SAM2VideoPredictor.reset_state: "self inference_state",
    }
    for function, names in wanted.items():
        given = [p for p in inspect.signature(function).parameters if p != "kwargs"]
        assert given == names.split()
    defaults = inspect.signature(SAM2VideoPredictor).parameters
    for option in ("non_overlap_masks", "clear_non_cond_mem_around_input"):
        assert defaults[option].default is False
    assert defaults["add_all_frames_to_correct_as_cond"].default is False
    assert defaults["fill_hole_area"].default == 0


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, vkrt.compat.sam2; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_of_frames(
    predictor: SAM2VideoPredictor, folder: Path, frames: np.ndarray
) -> None:
    state = predictor.init_state(str(folder), offload_state_to_cpu=True, async_loading_frames=True)
    assert (state["num_frames"], state["video_height"], state["video_width"]) == (12, *SIZE)
    assert state["device"] == state["storage_device"] == torch.device("cpu")
    assert state["offload_state_to_cpu"] and not state["offload_video_to_cpu"]
    assert (state["obj_ids"], dict(state["obj_id_to_idx"])) == ([], {})
    assert len(state["images"]) == 12 and len(list(state["images"])) == 12
    last = np.asarray(Image.open(folder / "00011.jpg").convert("RGB"))
    for index in (11, -1):
        wanted = to_input(last, 64, filter="bicubic")
        np.testing.assert_array_equal(state["images"][index].numpy(), wanted)
    with pytest.raises(KeyError, match="no 'output_dict': it has images"):
        state["output_dict"]
    state.close()
    assert state["obj_ids"] == []


def test_a_video_file_and_its_bytes(predictor: SAM2VideoPredictor, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", moving(7))
    for source in (path, str(path), path.read_bytes()):
        state = predictor.init_state(source)
        assert (state["num_frames"], state["video_height"], state["video_width"]) == (7, 48, 64)
        predictor.add_new_points_or_box(state, 2, 1, points=[[20, 20]], labels=[1])
        found = [masks.shape for _, _, masks in predictor.propagate_in_video(state)]
        assert found == [(1, 1, 48, 64)] * 5
        state.close()


def test_what_a_prompt_returns(
    predictor: SAM2VideoPredictor, state: VideoState, eager: Segmenter, frames: np.ndarray
) -> None:
    track = eager.track(frames)
    frame, ids, masks = predictor.add_new_points_or_box(state, 0, 5, SPOT, ON)
    assert (frame, ids, masks.shape, masks.dtype) == (0, [5], (1, 1, *SIZE), torch.float32)
    one = shown(track.prompt(0, 5, points=SPOT, labels=ON).logits)
    torch.testing.assert_close(masks, one)
    _, ids, masks = predictor.add_new_points_or_box(state, 4, 2, box=BOX)
    other = shown(track.prompt(4, 2, box=BOX).logits)
    assert ids == state["obj_ids"] == [5, 2]
    assert is_absent(masks[0])
    torch.testing.assert_close(masks[1:], other)
    _, _, masks = predictor.add_new_points_or_box(state, 0, 9, points=SPOT, labels=ON, box=BOX)
    track = eager.track(frames)
    both = shown(track.prompt(0, 9, points=SPOT, labels=ON, box=BOX).logits)
    torch.testing.assert_close(masks, torch.cat((one, torch.full_like(one, -1024), both)))
    assert state["obj_id_to_idx"] == {5: 0, 2: 1, 9: 2}
    assert state["obj_idx_to_id"] == {0: 5, 1: 2, 2: 9}


@pytest.mark.parametrize(
    ("said", "same"),
    [
        (
            {"points": SPOT / (80, 60), "labels": ON, "normalize_coords": False},
            {"points": SPOT, "labels": ON},
        ),
        ({"box": BOX / (80, 60, 80, 60), "normalize_coords": False}, {"box": BOX}),
        (
            {"points": torch.from_numpy(SPOT[None]), "labels": torch.from_numpy(ON[None])},
            {"points": SPOT, "labels": ON},
        ),
        ({"box": torch.from_numpy(BOX).view(2, 2)}, {"box": BOX}),
        ({"box": [BOX.tolist()], "points": np.zeros((0, 2)), "labels": []}, {"box": BOX}),
    ],
)
def test_forms_of_a_prompt(
    predictor: SAM2VideoPredictor, state: VideoState, said: dict[str, Any], same: dict[str, Any]
) -> None:
    _, _, masks = predictor.add_new_points_or_box(state, 0, 1, **said)
    predictor.reset_state(state)
    _, _, wanted = predictor.add_new_points_or_box(state, 0, 1, **same)
    torch.testing.assert_close(masks, wanted)


def test_points_one_after_the_other(
    predictor: SAM2VideoPredictor, state: VideoState, eager: Segmenter, frames: np.ndarray
) -> None:
    off = np.array([[70, 5]]), np.array([0])
    predictor.add_new_points(state, 0, 1, SPOT, ON)
    joined = predictor.add_new_points(state, 0, 1, *off, clear_old_points=False)[2]
    track = eager.track(frames)
    track.prompt(0, 1, points=SPOT, labels=ON)
    wanted = track.prompt(0, 1, points=off[0], labels=off[1], keep=True)
    torch.testing.assert_close(joined, shown(wanted.logits))
    # Those of a mask there are none to add to, and it is refined.
    predictor.add_new_mask(state, 1, 1, disc(1))
    refined = predictor.add_new_points(state, 1, 1, *off, clear_old_points=False)[2]
    track.prompt(1, 1, mask=disc(1))
    wanted = track.prompt(1, 1, points=off[0], labels=off[1])
    torch.testing.assert_close(refined, shown(wanted.logits))


def test_masks_as_prompts(
    predictor: SAM2VideoPredictor, state: VideoState, eager: Segmenter, frames: np.ndarray
) -> None:
    frame, ids, masks = predictor.add_new_mask(state, 0, 1, disc(0))
    assert (frame, ids, masks.shape) == (0, [1], (1, 1, *SIZE))
    torch.testing.assert_close(masks, shown(eager.track(frames).prompt(0, 1, mask=disc(0)).logits))
    overlap = (masks[0, 0].numpy() > 0) & disc(0)
    assert overlap.sum() > 0.8 * disc(0).sum()
    for again in (torch.from_numpy(disc(0)), disc(0).astype(np.uint8)):
        torch.testing.assert_close(predictor.add_new_mask(state, 0, 1, again)[2], masks)
    small = predictor.add_new_mask(state, 0, 2, disc(0)[::2, ::2])[2][1] > 0
    agree = small.numpy() == (masks[0].numpy() > 0)
    assert agree.mean() > 0.95


def test_tracking_equals_the_engine(
    predictor: SAM2VideoPredictor, state: VideoState, eager: Segmenter, frames: np.ndarray
) -> None:
    track = eager.track(frames, corrections_condition=False)
    predictor.add_new_points_or_box(state, 0, 1, SPOT, ON)
    predictor.add_new_mask(state, 2, 7, disc(2))
    track.prompt(0, 1, points=SPOT, labels=ON)
    track.prompt(2, 7, mask=disc(2))
    for reverse in (False, True):
        ours = predictor.propagate_in_video(state, 11 if reverse else None, reverse=reverse)
        engine = track.propagate(11 if reverse else None, reverse=reverse)
        for (frame, ids, masks), wanted in zip(ours, engine, strict=True):
            assert (frame, ids) == (wanted.frame, list(wanted.obj_ids))
            assert masks.shape == (2, 1, *SIZE) and masks.dtype == torch.float32
            torch.testing.assert_close(masks, shown(wanted.logits))


@pytest.mark.parametrize(
    ("start", "count", "reverse", "wanted"),
    [
        (None, None, False, range(3, 12)),
        (0, 3, False, [0, 1, 2, 3]),
        (5, 0, False, [5]),
        (10, 99, False, [10, 11]),
        (None, None, True, [3, 2, 1, 0]),
        (4, 2, True, [4, 3, 2]),
        (0, None, True, []),
        (np.int64(2), 1, False, [2, 3]),
    ],
)
def test_the_last_frame_is_included(
    frames: np.ndarray, start: int | None, count: int | None, reverse: bool, wanted: list[int]
) -> None:
    predictor, state = quick(frames)
    found = predictor.propagate_in_video(state, start, count, reverse)
    assert [frame for frame, _, _ in found] == list(wanted)


def test_going_back_starts_at_the_first_prompted_frame(frames: np.ndarray) -> None:
    predictor, state = quick(frames)
    predictor.add_new_points_or_box(state, 8, 2, SPOT, ON)
    found = predictor.propagate_in_video(state, reverse=True)
    assert [frame for frame, _, _ in found] == [3, 2, 1, 0]


def test_objects_keep_to_their_pixels(eager: Segmenter, frames: np.ndarray) -> None:
    rows = {}
    for apart_ in (False, True):
        predictor = SAM2VideoPredictor(eager, non_overlap_masks=apart_)
        state = predictor.init_state(frames)
        predictor.add_new_mask(state, 0, 1, disc(0))
        rows[apart_] = predictor.add_new_mask(state, 0, 2, disc(2))[2]
    plain, masks = rows[False], rows[True]
    owner = plain.argmax(dim=0)
    assert ((plain > 0).sum(dim=0) > 1).any() and not ((masks > 0).sum(dim=0) > 1).any()
    for row in range(2):
        owned = owner == row
        assert torch.equal(masks[row][owned], plain[row][owned])
        assert torch.equal(masks[row][~owned], plain[row][~owned].clamp(max=-10))
    assert torch.equal(predictor._apply_non_overlapping_constraints(plain), masks)
    assert torch.equal(apart(plain[:1]), plain[:1])


def test_small_holes_are_filled() -> None:
    logits = np.full((2, 16, 16), 5, np.float32)
    logits[:, 2:4, 2:4] = -3
    logits[0, 8:12, 8:12] = -3
    filled = fill_small_holes(logits, 8)
    assert (filled[:, 2:4, 2:4] == np.float32(0.1)).all()
    filled[:, 2:4, 2:4] = -3
    np.testing.assert_array_equal(filled, logits)
    np.testing.assert_array_equal(fill_small_holes(logits, 0), logits)


def test_holes_of_shown_masks(eager: Segmenter, frames: np.ndarray) -> None:
    mask = np.zeros(SIZE, bool)
    mask[10:50, 10:70] = True
    mask[22:38, 30:50] = False
    centres = []
    for area in (0, 30):
        predictor = SAM2VideoPredictor(eager, fill_hole_area=area)
        centres.append(predictor.add_new_mask(predictor.init_state(frames), 0, 1, mask)[2])
    assert centres[0][0, 0, 30, 40] < -5
    assert abs(centres[1][0, 0, 30, 40] - 0.1) < 1e-3
    assert torch.equal(centres[0][0, 0, :5], centres[1][0, 0, :5])


@pytest.mark.parametrize("clears", [False, True])
def test_corrections(eager: Segmenter, frames: np.ndarray, clears: bool) -> None:
    """They survive tracking again with the option that upstream has for it, and that alone."""
    for survives in (True, False):
        predictor = SAM2VideoPredictor(eager, clear_non_cond_mem_around_input=clears)
        state = predictor.init_state(frames)
        predictor.add_all_frames_to_correct_as_cond = survives
        predictor.add_new_points_or_box(state, 0, 1, SPOT, ON)
        before = {frame: masks for frame, _, masks in predictor.propagate_in_video(state)}
        corrected = predictor.add_new_points_or_box(state, 6, 1, *FIX)[2]
        assert (corrected - before[6]).abs().max() > 1e-3
        known = state.logits(9)
        assert (1 in known) != clears
        again = {frame: masks for frame, _, masks in predictor.propagate_in_video(state)}
        assert sorted(again) == list(range(12))
        assert torch.equal(again[6], corrected) == survives


def test_taking_prompts_back(predictor: SAM2VideoPredictor, state: VideoState) -> None:
    predictor.add_new_points_or_box(state, 0, 1, SPOT, ON)
    kept = predictor.add_new_points_or_box(state, 0, 2, box=BOX)[2]
    frame, ids, masks = predictor.clear_all_prompts_in_frame(state, 0, 1)
    assert (frame, ids) == (0, [1, 2])
    assert is_absent(masks[0]) and torch.equal(masks[1], kept[1])
    assert predictor.clear_all_prompts_in_frame(state, 0, 1, need_output=False) is None
    assert predictor.clear_all_prompts_in_frame(state, 7, 2)[0] == 7
    with pytest.raises(vkrt.PromptError, match="object 1 has no prompt left"):
        predictor.propagate_in_video(state)
    with pytest.raises(vkrt.PromptError, match="object 4 is not tracked"):
        predictor.clear_all_prompts_in_frame(state, 0, 4)
    predictor.add_new_points_or_box(state, 3, 1, SPOT, ON)
    assert len(list(predictor.propagate_in_video(state))) == 12


def test_removing_objects(predictor: SAM2VideoPredictor, state: VideoState) -> None:
    for obj, frame in ((1, 0), (2, 0), (3, 4), (1, 4)):
        last = predictor.add_new_points_or_box(state, frame, obj, SPOT, ON)[2]
    assert predictor.remove_object(state, 9) == ([1, 2, 3], [])
    with pytest.raises(vkrt.PromptError, match="object 9 is not tracked"):
        predictor.remove_object(state, 9, strict=True)
    ids, updated = predictor.remove_object(state, 1)
    assert ids == state["obj_ids"] == [2, 3]
    assert [frame for frame, _ in updated] == [0, 4]
    assert is_absent(updated[0][1][1]) and is_absent(updated[1][1][0])
    assert torch.equal(updated[1][1][1], last[2])
    assert [ids for _, ids, _ in predictor.propagate_in_video(state, 0, 1)] == [[2, 3]] * 2
    assert predictor.remove_object(state, 2, need_output=False) == ([3], [])
    assert predictor.remove_object(state, 3) == ([], [])


def test_starting_again(predictor: SAM2VideoPredictor, state: VideoState) -> None:
    first = predictor.add_new_points_or_box(state, 0, 1, SPOT, ON)[2]
    tracked = [masks for _, _, masks in predictor.propagate_in_video(state)]
    predictor.reset_state(state)
    assert state["obj_ids"] == [] and state["obj_idx_to_id"] == {}
    assert torch.equal(predictor.add_new_points_or_box(state, 0, 1, SPOT, ON)[2], first)
    for (_, _, masks), before in zip(predictor.propagate_in_video(state), tracked, strict=True):
        torch.testing.assert_close(masks, before)


def test_objects_that_come_and_go_while_tracking(frames: np.ndarray) -> None:
    predictor, state = quick(frames)
    rows = {}
    for frame, ids, masks in predictor.propagate_in_video(state, 3):
        assert len(masks) == len(ids)
        rows[frame] = ids
        if frame == 5:
            predictor.add_new_points_or_box(state, 6, 2, SPOT, ON)
        if frame == 8:
            predictor.remove_object(state, 1)
    assert [rows[frame] for frame in range(3, 12)] == [[1]] * 3 + [[1, 2]] * 3 + [[2]] * 3


def test_a_state_outlives_a_caller_s_inference_mode(
    predictor: SAM2VideoPredictor, frames: np.ndarray
) -> None:
    with torch.inference_mode():
        state = predictor.init_state(frames)
        predictor.add_new_points_or_box(state, 0, 1, SPOT, ON)
        begun = [masks for _, _, masks in predictor.propagate_in_video(state, 0, 4)]
    masks = predictor.add_new_points_or_box(state, 0, 2, box=BOX)[2]
    masks += 1  # a tensor like any other
    for frame, _, masks in predictor.propagate_in_video(state, 0, 4):
        torch.testing.assert_close(masks[:1], begun[frame])
    predictor.remove_object(state, 1)
    assert len(list(predictor.propagate_in_video(state))) == 12


def test_numbers_of_numpy(frames: np.ndarray) -> None:
    predictor, state = quick(np.concatenate([frames] * 7))
    for _ in predictor.propagate_in_video(state):
        pass
    predictor.add_new_points_or_box(state, np.int64(75), np.int64(1), SPOT, ON)
    correction = state.track.stories[1].past.get(75)
    assert correction is not None and not correction.conditioning
    assert state["obj_ids"] == [1]


BAD: list[tuple[Callable[[SAM2VideoPredictor, VideoState], object], str]] = [
    (lambda p, s: p.add_new_points(s, 12, 1, SPOT, ON), "frame 12 is beyond the clip"),
    (lambda p, s: p.add_new_points(s, 1.5, 1, SPOT, ON), "must be a whole number .*, not 1.5"),
    (lambda p, s: p.add_new_mask(s, 0, [1], disc(0)), "must be hashable"),
    (lambda p, s: p.add_new_points_or_box(s, 0, 1, SPOT), "labels must be given together"),
    (lambda p, s: p.add_new_points_or_box(s, 0, 1), "no prompt was given"),
    (lambda p, s: p.add_new_points(s, 0, 1, [1, 2], [1]), r"points must have shape \(P, 2\)"),
    (lambda p, s: p.add_new_points(s, 0, 1, SPOT, [1, 1]), "one per point"),
    (lambda p, s: p.add_new_points(s, 0, 1, [["a", "b"]], [1]), "point must be numbers"),
    (lambda p, s: p.add_new_points_or_box(s, 0, 1, box=[1, 2, 3]), "box must be x0, y0, x1, y1"),
    (
        lambda p, s: p.add_new_points_or_box(s, 3, 1, box=BOX, clear_old_points=False),
        "clear_old_points=True",
    ),
    (lambda p, s: p.add_new_mask(s, 0, 1, disc(0)[None]), r"mask must be \(H, W\)"),
    (lambda p, s: p.propagate_in_video(s, 40), "frame 40 is beyond the clip"),
    (lambda p, s: (p.reset_state(s), p.propagate_in_video(s)), "no object to track"),
    (lambda p, s: (p.reset_state(s), p.propagate_in_video_preflight(s)), "no object to track"),
    (lambda p, s: p.init_state("/nowhere/at/all.mp4"), "does not exist"),
    (lambda p, s: p.init_state(iter(())), "tells its length only at its end"),
]


@pytest.mark.parametrize(("act", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_told_in_a_line(
    frames: np.ndarray, act: Callable[[SAM2VideoPredictor, VideoState], object], message: str
) -> None:
    predictor, state = quick(frames)
    with pytest.raises(vkrt.VkrtError, match=message) as caught:
        act(predictor, state)
    assert "\n" not in str(caught.value)
    predictor.add_new_points_or_box(state, 3, 1, SPOT, ON)
    assert len(list(predictor.propagate_in_video(state))) == 9


def test_the_builder(pico: str, pico_checkpoint: Path, photo: np.ndarray) -> None:
    built = build_sam2_video_predictor(NAME, pico_checkpoint, "cpu", vos_optimized=True)
    assert isinstance(built, Sam2Handle) and built.eval().to("cpu") is built
    assert (built.fill_hole_area, built.image_size, built.device.type) == (8, 64, "cpu")
    assert (
        build_sam2_video_predictor(NAME, pico_checkpoint, apply_postprocessing=False).fill_hole_area
        == 0
    )
    said = (
        "++model.non_overlap_masks=true",
        "++model.image_size=96",
        "++model.fill_hole_area=3",
        "++model.add_all_frames_to_correct_as_cond=true",
        "++model.clear_non_cond_mem_around_input=True",
        "++model.max_cond_frames_in_attn=2",
        "++model.binarize_mask_from_pts_for_mem_enc=true",
    )
    changed = build_sam2_video_predictor(NAME, pico_checkpoint, hydra_overrides_extra=list(said))
    assert changed.non_overlap_masks and changed.add_all_frames_to_correct_as_cond
    assert changed.clear_non_cond_mem_around_input
    assert (changed.image_size, changed.fill_hole_area) == (96, 3)
    tracked = changed.init_state(np.stack([photo] * 4))
    assert tracked.track._tracker.bank.shape.conditioning == 2
    still = SAM2ImagePredictor(built)
    still.set_image(photo)
    assert still.predict(np.array([[70, 40]]), np.array([1]))[0].shape == (3, 90, 120)
    for wrong in ("++model.memory_attention=x", "++model.fill_hole_area=few"):
        with pytest.raises(vkrt.UnknownModelError, match="override"):
            build_sam2_video_predictor(NAME, hydra_overrides_extra=[wrong])
    with pytest.raises(ValueError, match="only infers"):
        build_sam2_video_predictor(NAME, mode="train")


def test_unreachable_hub_names_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path))
    with pytest.raises(vkrt.DownloadError, match=r"sam2\.1_hiera_tiny\.pt"):
        SAM2VideoPredictor.from_pretrained("facebook/sam2.1-hiera-tiny")


def test_a_script_like_the_notebook(predictor: SAM2VideoPredictor, folder: Path) -> None:
    """One object by clicks, a second by a box, all of the clip, from scratch again."""
    inference_state = predictor.init_state(video_path=str(folder))
    predictor.reset_state(inference_state)
    points, labels = np.array([[20, 30]], np.float32), np.array([1], np.int32)
    _, out_obj_ids, out_mask_logits = predictor.add_new_points_or_box(
        inference_state=inference_state, frame_idx=0, obj_id=1, points=points, labels=labels
    )
    assert (out_mask_logits[0] > 0.0).cpu().numpy().shape == (1, *SIZE)
    predictor.add_new_points_or_box(
        inference_state=inference_state,
        frame_idx=0,
        obj_id=1,
        points=np.concatenate((points, [[70, 5]])),
        labels=np.array([1, 0], np.int32),
    )
    predictor.add_new_points_or_box(
        inference_state=inference_state, frame_idx=0, obj_id=4, box=np.array([10, 10, 50, 50])
    )
    video_segments = {}
    for out_frame_idx, out_obj_ids, out_mask_logits in predictor.propagate_in_video(
        inference_state
    ):
        video_segments[out_frame_idx] = {
            out_obj_id: (out_mask_logits[i] > 0.0).cpu().numpy()
            for i, out_obj_id in enumerate(out_obj_ids)
        }
    assert sorted(video_segments) == list(range(12))
    assert all(sorted(masks) == [1, 4] for masks in video_segments.values())
    assert any(mask.any() for masks in video_segments.values() for mask in masks.values())


@torch.inference_mode()
def test_a_script_from_masks_to_files(
    predictor: SAM2VideoPredictor, folder: Path, tmp_path: Path
) -> None:
    """Objects of one palette picture, tracked together, a file for each object and frame."""
    labelled = np.zeros(SIZE, np.uint8)
    labelled[disc(0)] = 1
    labelled[45:58, 60:78] = 2
    state = predictor.init_state(video_path=str(folder), async_loading_frames=False)
    for obj in (1, 2):
        predictor.add_new_mask(inference_state=state, frame_idx=0, obj_id=obj, mask=labelled == obj)
    for frame, ids, logits in predictor.propagate_in_video(state):
        for row, obj in enumerate(ids):
            (tmp_path / f"{obj:03d}").mkdir(exist_ok=True)
            mask = (logits[row] > 0.0).cpu().numpy()
            picture = mask.reshape(state["video_height"], state["video_width"]).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / f"{obj:03d}" / f"{frame:05d}.png")
    for obj in (1, 2):
        written = sorted((tmp_path / f"{obj:03d}").iterdir())
        assert [path.stem for path in written] == [f"{frame:05d}" for frame in range(12)]
        first = np.asarray(Image.open(written[0])) > 0
        assert ((labelled == obj) & first).sum() > 0.8 * (labelled == obj).sum()


def test_a_script_with_an_object_that_appears_later(
    predictor: SAM2VideoPredictor, folder: Path
) -> None:
    """Each object alone from its first mask on, then one picture of all."""
    state = predictor.init_state(video_path=str(folder))
    given = {3: {0: disc(0)}, 8: {5: disc(9), 7: disc(10)}}
    scores: dict[int, dict[int, np.ndarray]] = {}
    for obj, masks in given.items():
        predictor.reset_state(state)
        for frame, mask in masks.items():
            predictor.add_new_mask(inference_state=state, frame_idx=frame, obj_id=obj, mask=mask)
        scores[obj] = {
            frame: logits.cpu().numpy()
            for frame, _, logits in predictor.propagate_in_video(
                state, start_frame_idx=min(masks), reverse=False
            )
        }
    assert [sorted(found)[0] for found in scores.values()] == [0, 5]
    for frame in range(12):
        joined = torch.full((2, 1, *SIZE), -1024.0)
        for row, found in enumerate(scores.values()):
            if frame in found:
                joined[row] = torch.from_numpy(found[frame])
        joined = predictor._apply_non_overlapping_constraints(joined)
        claims = (joined > 0).sum(dim=0)
        assert claims.max() <= 1 and claims.any() == any(
            (found[frame] > 0).any() for found in scores.values() if frame in found
        )


def of_one(predictor: SAM2VideoPredictor, frames: np.ndarray, **said: Any) -> torch.Tensor:
    """Return the logits of a prompt on frame 0, which are not all the same."""
    state = predictor.init_state(frames)
    masks = predictor.add_new_points_or_box(state, 0, 1, **said)[2]
    assert masks.std() > 1e-3
    return masks


def test_forms_of_one_prompt(predictor: SAM2VideoPredictor, frames: np.ndarray) -> None:
    expected = of_one(predictor, frames, box=BOX)
    box = torch.tensor(BOX)
    for same in (
        {"box": box.bfloat16()},
        {"box": box.clone().requires_grad_()},
        {"box": BOX[None]},
        {"box": BOX, "points": np.zeros((0, 2)), "labels": np.zeros(0)},
        {"box": BOX, "points": [], "labels": []},
        {"points": BOX.reshape(2, 2), "labels": np.array([2, 3], np.int32)},
        {"points": box.reshape(1, 2, 2).half(), "labels": torch.tensor([[2, 3]])},
    ):
        torch.testing.assert_close(of_one(predictor, frames, **same), expected)


def test_prompts_that_upstream_takes(predictor: SAM2VideoPredictor, frames: np.ndarray) -> None:
    inside = of_one(predictor, frames, points=SPOT, labels=ON)
    for odd in (
        {"points": SPOT - 40, "labels": ON},
        {"points": [[900, 1]], "labels": [1]},
        {"box": BOX[[2, 3, 0, 1]]},
        {"box": BOX[[0, 1, 0, 3]]},
        {"box": [-5, -5, 85, 65]},
    ):
        assert (of_one(predictor, frames, **odd) - inside).abs().max() > 1e-3


def test_ids_of_any_kind(predictor: SAM2VideoPredictor, frames: np.ndarray) -> None:
    ids: list[Any] = ["cat", ("left", 2), None, 7, 1.5]
    state, other = predictor.init_state(frames), predictor.init_state(frames)
    for number, obj in enumerate(ids):
        spot = SPOT + np.array([5 * number, 0])
        _, told, masks = predictor.add_new_points_or_box(state, 0, obj, spot, ON)
        expected = predictor.add_new_points_or_box(other, 0, number, spot, ON)[2]
        assert told == ids[: number + 1]
        assert torch.equal(masks, expected)
    assert state["obj_ids"] == ids and state["obj_id_to_idx"]["cat"] == 0
    assert state["obj_idx_to_id"][1] == predictor._obj_idx_to_id(state, 1) == ("left", 2)
    assert predictor._obj_id_to_idx(state, 7) == 3 and predictor._get_obj_num(state) == 5
    for (_, told, masks), (_, _, expected) in zip(
        predictor.propagate_in_video(state, 0, 3),
        predictor.propagate_in_video(other, 0, 3),
        strict=True,
    ):
        assert told == ids and torch.equal(masks, expected)
    left, updated = predictor.remove_object(state, "cat")
    assert left == state["obj_ids"] == ids[1:] and [frame for frame, _ in updated] == [0]
    assert predictor.clear_all_prompts_in_frame(state, 0, None)[1] == ids[1:]
    with pytest.raises(RuntimeError, match="'dog' is not tracked") as caught:
        predictor.remove_object(state, "dog", strict=True)
    assert isinstance(caught.value, vkrt.VkrtError)


def test_an_object_may_be_named_before_its_prompt(frames: np.ndarray) -> None:
    predictor, state = quick(frames)
    assert [predictor._obj_id_to_idx(state, obj) for obj in (1, "later")] == [0, 1]
    assert state["obj_ids"] == [1, "later"]
    with pytest.raises(RuntimeError, match="'later' has no prompt"):
        predictor.propagate_in_video(state)
    _, told, masks = predictor.add_new_points_or_box(state, 3, 2, SPOT, ON)
    assert told == [1, "later", 2] and is_absent(masks[1])
    predictor.remove_object(state, "later")
    assert [told for _, told, _ in predictor.propagate_in_video(state, 3, 1)] == [[1, 2]] * 2


def test_errors_are_upstream_s_too(frames: np.ndarray, tmp_path: Path) -> None:
    predictor, state = quick(frames)
    predictor.reset_state(state)
    calls: list[Callable[[], object]] = [
        lambda: predictor.propagate_in_video(state),
        lambda: predictor.propagate_in_video_preflight(state),
        lambda: predictor.remove_object(state, 1, strict=True),
        lambda: predictor.init_state(tmp_path),
    ]
    for call in calls:
        with pytest.raises(RuntimeError) as caught:
            call()
        assert isinstance(caught.value, vkrt.VkrtError)


def test_frames_are_taken_as_they_are_stored(
    predictor: SAM2VideoPredictor, frames: np.ndarray, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    for index, frame in enumerate(frames[:2]):
        Image.fromarray(frame).save(tmp_path / f"{index}.jpg", quality=95, exif=exif)
    state = predictor.init_state(str(tmp_path))
    assert (state["video_height"], state["video_width"]) == SIZE
    stored = np.asarray(Image.open(tmp_path / "0.jpg"))
    np.testing.assert_array_equal(state.track._clip.frame(0), stored)


def test_a_copied_state_goes_its_own_way(predictor: SAM2VideoPredictor, frames: np.ndarray) -> None:
    def prompted() -> VideoState:
        state = predictor.init_state(frames)
        predictor.add_new_points_or_box(state, 4, "one", SPOT + np.array([12, 0]), ON)
        return state

    def track(state: VideoState, reverse: bool) -> list[torch.Tensor]:
        found = predictor.propagate_in_video(state, reverse=reverse)
        return [masks for _, _, masks in found]

    forward, backward = track(prompted(), False), track(prompted(), True)
    assert len(forward) == 8 and len(backward) == 5
    state = prompted()
    twin = copy.deepcopy(state)
    steps = zip(
        predictor.propagate_in_video(state),
        predictor.propagate_in_video(twin, reverse=True),
        strict=False,
    )
    for step, ((_, _, ahead), (_, _, back)) in enumerate(steps):
        torch.testing.assert_close(ahead, forward[step])
        torch.testing.assert_close(back, backward[step])
    assert set(twin["frames_tracked_per_obj"][0]) <= set(range(5))
    predictor.add_new_points_or_box(twin, 0, "two", SPOT, ON)
    assert (state["obj_ids"], twin["obj_ids"]) == (["one"], ["one", "two"])
    late = copy.deepcopy(state)
    predictor.reset_state(state)
    assert late["obj_ids"] == ["one"] and len(late["output_dict_per_obj"]) == 1
    for found, expected in zip(track(late, False), forward, strict=True):
        torch.testing.assert_close(found, expected)
    state.close()
    assert len(track(late, True)) == 5
    with pytest.raises(vkrt.BackendError, match="state of a clip can't be pickled"):
        pickle.dumps(late)


def test_what_the_state_tells(predictor: SAM2VideoPredictor, frames: np.ndarray) -> None:
    state = predictor.init_state(frames)
    predictor.add_new_points_or_box(state, 2, "a", points=SPOT, labels=ON, box=BOX)
    predictor.add_new_mask(state, 0, "b", disc(0))
    shown_masks = {f: m for f, _, m in predictor.propagate_in_video(state, 0, 4)}
    points = state["point_inputs_per_obj"]
    assert [sorted(points[row]) for row in (0, 1)] == [[2], []]
    said = points[0][2]
    assert said["point_labels"].tolist() == [[2, 3, 1]]
    corners = torch.tensor([[8.0, 32 / 3], [40, 160 / 3], [16, 32]])
    torch.testing.assert_close(said["point_coords"][0], corners)
    assert [sorted(state["mask_inputs_per_obj"][row]) for row in (0, 1)] == [[], [0]]
    assert state["mask_inputs_per_obj"][1][0].shape == (1, 1, 64, 64)
    outputs = state["output_dict_per_obj"]
    assert sorted(outputs[0]["cond_frame_outputs"]) == [2]
    assert sorted(outputs[1]["non_cond_frame_outputs"]) == [1, 2, 3, 4]
    left = outputs[1]["non_cond_frame_outputs"][3]
    torch.testing.assert_close(
        torch.from_numpy(upsample(left["pred_masks"][0].numpy(), *SIZE)), shown_masks[3][1]
    )
    assert left["maskmem_features"].shape == (1, 8, 4, 4)
    assert left["obj_ptr"].shape == (1, 16) and left["object_score_logits"].shape == (1, 1)
    assert state["frames_tracked_per_obj"][1][4] == {"reverse": False}
    # Scripts delete old frames to save memory.
    del outputs[1]["non_cond_frame_outputs"][1]
    assert outputs[1]["non_cond_frame_outputs"].pop(3, None) is not None
    assert outputs[1]["non_cond_frame_outputs"].pop(3, None) is None
    assert sorted(outputs[1]["non_cond_frame_outputs"]) == [2, 4]
    with pytest.raises(RuntimeError, match="can't be set"):
        outputs[0]["cond_frame_outputs"][5] = left
    with pytest.raises(KeyError):
        outputs[2]
    assert state["num_frames"] == 12 and state["cached_features"] == {}


def test_the_compiled_variant(pico: str, pico_checkpoint: Path) -> None:
    built = build_sam2_video_predictor(NAME, pico_checkpoint, vos_optimized=True)
    assert type(built) is SAM2VideoPredictorVOS
    plain = build_sam2_video_predictor(
        NAME, pico_checkpoint, hydra_overrides_extra=["++model.compile_all_components=true"]
    )
    assert type(plain) is SAM2VideoPredictor


@torch.inference_mode()
def test_a_script_like_the_benchmark_s(
    pico: str, pico_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    """Palette pictures in and out, without postprocessing, at a threshold of one's own."""
    predictor = build_sam2_video_predictor(
        config_file=NAME,
        ckpt_path=str(pico_checkpoint),
        apply_postprocessing=False,
        hydra_overrides_extra=["++model.non_overlap_masks=true"],
        vos_optimized=False,
    )
    labelled = Image.fromarray(disc(0).astype(np.uint8) * 3)
    labelled.putpalette([0, 0, 0, 0, 0, 0, 0, 0, 0, 200, 0, 0])
    labelled.save(tmp_path / "given.png")
    given = np.array(Image.open(tmp_path / "given.png")).astype(np.uint8)
    ids = [int(label) for label in np.unique(given) if label > 0]
    assert ids == [3]
    state = predictor.init_state(video_path=str(folder), async_loading_frames=False)
    for obj in [*ids, 5]:
        mask = given == obj if obj in ids else np.roll(given == 3, 40, axis=1)
        predictor.add_new_mask(inference_state=state, frame_idx=0, obj_id=obj, mask=mask)
    threshold = 0.0
    for frame, told, logits in predictor.propagate_in_video(state):
        claims = torch.zeros(SIZE, dtype=torch.int64)
        joined = np.zeros(SIZE, np.uint8)
        for row, obj in enumerate(told):
            inside = (logits[row] > threshold).cpu().numpy().reshape(SIZE)
            claims += torch.from_numpy(inside)
            joined[inside] = obj
        assert claims.max() <= 1
        picture = Image.fromarray(joined)
        picture.putpalette(labelled.getpalette())
        picture.save(tmp_path / f"{frame:05d}.png")
    written = [np.array(Image.open(path)) for path in sorted(tmp_path.glob("0*.png"))]
    assert len(written) == 12
    assert (written[0][disc(0)] == 3).mean() > 0.8
