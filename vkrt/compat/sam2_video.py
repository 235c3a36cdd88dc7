"""Upstream's video predictor, over the clip engine: the same calls, arguments and return values.

What differs from upstream, beside what vkrt.compat.sam2 says: frames are read when they are needed
and objects run as one batch, so that neither the clip's length nor the objects' number costs what
it does there. Objects may be added while a clip is tracked. Memories are kept in float32, where
upstream rounds them to bfloat16. Ids are whole numbers, and points lie on the frame.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from vkrt.arguments import instance, shown
from vkrt.compat.builders import build_video_hf
from vkrt.compat.errors import StateError, raising
from vkrt.compat.handle import Sam2Handle
from vkrt.compat.video_masks import apart, full_size
from vkrt.compat.video_prompts import frame_number, read_box, read_mask, read_points
from vkrt.compat.video_state import VideoState, open_clip
from vkrt.engines.sam2_image import Segmenter
from vkrt.engines.tracker import TrackerOptions
from vkrt.errors import PromptError

__all__ = ["SAM2VideoPredictor", "SAM2VideoPredictorVOS"]

# Upstream has no bound for these: prompted frames that condition others, frames whose answers and
# memories are kept for corrections (1.3 MB an object and frame at an input of 1024).
CONDITIONING = 16
HISTORY = 256


class SAM2VideoPredictor(Sam2Handle):
    """Track objects through clips with upstream's calls.

    Args:
        segmenter: the vkrt model; build_sam2_video_predictor loads it.
        fill_hole_area: fill holes of at most this many low-resolution pixels.
        non_overlap_masks: push the logits of all but the surest object of a pixel to -10 or less.
        clear_non_cond_mem_around_input: a prompt drops what was tracked around it.
        add_all_frames_to_correct_as_cond: later frames are conditioned on corrected frames too, so
            that a correction survives when the clip is tracked again.
        max_cond_frames_in_attn: prompted frames that an object remembers at once, those nearest
            in time; -1 is 16 (upstream has no bound then).
        history: frames of each object, besides the prompted ones, of which answers are kept.
        dynamic_multimask_via_stability: where a single mask is unstable, take the best of three.
        binarize_mask_from_pts_for_mem_enc: remember prompted frames as the masks that are shown,
            not as their logits.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        fill_hole_area: int = 0,
        non_overlap_masks: bool = False,
        clear_non_cond_mem_around_input: bool = False,
        add_all_frames_to_correct_as_cond: bool = False,
        max_cond_frames_in_attn: int = -1,
        history: int = HISTORY,
        dynamic_multimask_via_stability: bool = True,
        binarize_mask_from_pts_for_mem_enc: bool = True,
    ) -> None:
        super().__init__(segmenter, dynamic_multimask_via_stability)
        self.fill_hole_area = fill_hole_area
        self.non_overlap_masks = non_overlap_masks
        self.clear_non_cond_mem_around_input = clear_non_cond_mem_around_input
        self.add_all_frames_to_correct_as_cond = add_all_frames_to_correct_as_cond
        self.max_cond_frames_in_attn = max_cond_frames_in_attn
        self.binarize_mask_from_pts_for_mem_enc = binarize_mask_from_pts_for_mem_enc
        self.history = history

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
        """Build a predictor from a hub id; see build_sam2_video_predictor_hf."""
        return build_video_hf(cls, model_id, **kwargs)

    def init_state(
        self,
        video_path: Any,
        offload_video_to_cpu: bool = False,
        offload_state_to_cpu: bool = False,
        async_loading_frames: bool = False,
    ) -> VideoState:
        """Open a clip and return its state, for the other calls.

        Args:
            video_path: a folder of JPEG files, a video file or its bytes; whatever else
                vkrt.media.video.open_video takes and has a known length.
            offload_video_to_cpu: changes nothing: only a few frames are held, on the host.
            offload_state_to_cpu: changes nothing: what is kept of past frames is on the host.
            async_loading_frames: changes nothing: a thread always reads ahead while tracking.

        Raises:
            VideoError: the clip can't be read; it is a RuntimeError too, as upstream's.
            CheckpointError: the weights or the bundle have no memory modules.
        """
        import torch

        frames = open_clip(video_path)
        try:
            count, limit = frames.length(), self.max_cond_frames_in_attn
            track = self.segmenter.track(
                frames,
                conditioning=min(CONDITIONING if limit < 1 else limit, count),
                history=min(self.history, count),
                strict=False,
            )
            return VideoState(
                track,
                frames,
                self.image_size,
                device=self.device,
                storage_device=torch.device("cpu") if offload_state_to_cpu else self.device,
                offload_video_to_cpu=offload_video_to_cpu,
                offload_state_to_cpu=offload_state_to_cpu,
            )
        except BaseException:
            frames.close()
            raise

    def add_new_points_or_box(
        self,
        inference_state: VideoState,
        frame_idx: int,
        obj_id: Hashable,
        points: Any = None,
        labels: Any = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
        box: Any = None,
    ) -> tuple[int, list[Any], Any]:
        """Say by points or a box what an object is on a frame, or what is wrong with it there.

        Args:
            inference_state: what init_state gave.
            frame_idx: the frame's number.
            obj_id: anything that can be the key of a dict; a new one begins an object.
            points: (P, 2) x, y.
            labels: (P,) 1 on the object and 0 not on it; 2 and 3 are the corners of a box.
            clear_old_points: forget the points that were given on this frame before.
            normalize_coords: coordinates are in pixels of the frame; else in [0, 1].
            box: (4,) x0, y0, x1, y1.

        Returns:
            frame_idx, the N ids of all objects, and logits (N, 1, H, W) at the clip's size;
            -1024 everywhere for an object that has no answer on this frame.

        Raises:
            PromptError: the prompt does not fit the frame or the clip.
        """
        check_state(inference_state)
        if (points is None) != (labels is None):
            raise PromptError("points and labels must be given together, one label a point")
        if points is None and box is None:
            raise PromptError("no prompt was given: pass points with labels, or a box")
        if box is not None and not clear_old_points:
            raise PromptError("a box comes before points: give it with clear_old_points=True")
        height, width = (1, 1) if normalize_coords else inference_state.size
        scale = np.array([width, height], np.float32)
        spots = read_points(points, labels, box is not None)
        corners = None if box is None else read_box(box) * np.tile(scale, 2)
        return self._prompt(
            inference_state,
            frame_idx,
            obj_id,
            join=not clear_old_points,
            points=None if spots is None else spots[0] * scale,
            labels=None if spots is None else spots[1],
            box=corners,
        )

    def add_new_points(self, *args: Any, **kwargs: Any) -> tuple[int, list[Any], Any]:
        """Do as add_new_points_or_box, under its old name."""
        return self.add_new_points_or_box(*args, **kwargs)

    def add_new_mask(
        self, inference_state: VideoState, frame_idx: int, obj_id: Hashable, mask: Any
    ) -> tuple[int, list[Any], Any]:
        """Say by a mask what an object is on a frame.

        Args:
            inference_state, frame_idx, obj_id: as in add_new_points_or_box.
            mask: (h, w) bool, or numbers of which those above 0 are the object; stretched to the
                frame where it is of another size.

        Returns:
            as add_new_points_or_box.

        Raises:
            PromptError: it is no mask, or the frame is beyond the clip.
        """
        check_state(inference_state)
        stretched = read_mask(mask, inference_state.size)
        return self._prompt(inference_state, frame_idx, obj_id, mask=stretched)

    def _prompt(
        self, state: VideoState, frame_idx: int, obj: Hashable, join: bool = False, **said: Any
    ) -> tuple[int, list[Any], Any]:
        """Hand a prompt to the engine, joined to the points before it if asked; show the frame."""
        frame, story = frame_number(frame_idx), state.story(obj)
        before = None if story is None else story.said.get(frame)
        keep = join and before is not None and before.mask is None
        self._apply_options(state)
        with inference():
            state.track.prompt(frame, state.number(obj), keep=keep, **said)
        state.register(obj)
        return self._show(state, frame)

    def _apply_options(self, state: VideoState) -> None:
        """Bring the options to the engine: user code sets them after it opened a clip, too."""
        state.track.settings = replace(
            state.track.settings,
            corrections_condition=self.add_all_frames_to_correct_as_cond,
            clear_around_prompts=self.clear_non_cond_mem_around_input,
        )
        state.track.options = self._tracker_options()

    def _tracker_options(self) -> TrackerOptions:
        """Return what of the options later frames depend on."""
        return TrackerOptions(
            dynamic_multimask=bool(self.dynamic_multimask_via_stability),
            binarize_prompts=bool(self.binarize_mask_from_pts_for_mem_enc),
            fill_holes=self.fill_hole_area,
            threads=self.segmenter.threads,
        )

    def propagate_in_video_preflight(self, inference_state: VideoState) -> None:
        """Let frames remember the prompts given so far, and check that there is one of each object.

        Raises:
            PromptError: there is no object, or one has no prompt left; it is a RuntimeError too, as
                upstream's.
        """
        check_state(inference_state)
        inference_state.check_prompted()
        self._apply_options(inference_state)
        with raising(StateError):
            inference_state.track.propagate(frames=0)

    def propagate_in_video(
        self,
        inference_state: VideoState,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[int, list[Any], Any]]:
        """Track all objects, and give frame after frame.

        Args:
            inference_state: what init_state gave.
            start_frame_idx: the first frame; None is the first prompted one, in either direction.
            max_frame_num_to_track: how many frames to go on after the first one; None goes to the
                end of the clip.
            reverse: go back in time; from frame 0 that gives nothing, not even this frame.

        Returns:
            an iterator over what add_new_points_or_box returns.

        Raises:
            PromptError: there is no object, one has no prompt left, or the first frame is beyond
                the clip.
        """
        self.propagate_in_video_preflight(inference_state)
        if start_frame_idx is None:
            start = inference_state.first_prompted()
        else:
            start = frame_number(start_frame_idx)
        count = None
        if max_frame_num_to_track is not None:
            count = min(max(frame_number(max_frame_num_to_track), -1) + 1, sys.maxsize)
        if reverse and start == 0:
            count = 0
        found = inference_state.track.propagate(start, reverse, count)
        return self._go(inference_state, (tracked.frame for tracked in found))

    def _go(self, state: VideoState, frames: Iterator[int]) -> Iterator[tuple[int, list[Any], Any]]:
        """Show each frame once it is tracked."""
        while True:
            # Around each step alone: between them runs the code of whoever takes the frames.
            with inference():
                frame = next(frames, None)
            if frame is None:
                return
            yield self._show(state, frame)

    def clear_all_prompts_in_frame(
        self,
        inference_state: VideoState,
        frame_idx: int,
        obj_id: Hashable,
        need_output: bool = True,
    ) -> tuple[int, list[Any], Any] | None:
        """Take back what was said of an object on a frame, and what it led to there.

        Args:
            inference_state, frame_idx, obj_id: as in add_new_points_or_box.
            need_output: give the frame as it is then.

        Returns:
            as add_new_points_or_box, or None.

        Raises:
            PromptError: there is no such object.
        """
        check_state(inference_state)
        frame, story = frame_number(frame_idx), inference_state.story(obj_id)
        # Like upstream, it is content where nothing was said.
        if story is None:
            raise StateError(no_object(inference_state, obj_id))
        if frame in story.said:
            inference_state.track.clear(frame, inference_state.number(obj_id), keep_answer=True)
        return self._show(inference_state, frame) if need_output else None

    def remove_object(
        self,
        inference_state: VideoState,
        obj_id: Hashable,
        strict: bool = False,
        need_output: bool = True,
    ) -> tuple[list[Any], list[tuple[int, Any]]]:
        """Remove an object and all that is known of it.

        Args:
            inference_state, obj_id: as in add_new_points_or_box.
            strict: an object that is not there is an error.
            need_output: give the frames on which it was prompted as they are then.

        Returns:
            the ids that are left, and pairs of a frame's number and its logits (N, 1, H, W).

        Raises:
            PromptError: strict, and there is no such object; it is a RuntimeError too.
        """
        check_state(inference_state)
        story = inference_state.story(obj_id)
        if strict and obj_id not in inference_state["obj_id_to_idx"]:
            raise StateError(no_object(inference_state, obj_id))
        if story is not None:
            with inference():
                inference_state.track.remove(inference_state.number(obj_id))
        inference_state.drop(obj_id)
        left: list[Any] = inference_state["obj_ids"]
        if story is None or not left or not need_output:
            return list(left), []
        frames = sorted(story.said)
        return list(left), [(frame, self._masks(inference_state, frame)) for frame in frames]

    def reset_state(self, inference_state: VideoState) -> None:
        """Forget every object of a clip."""
        check_state(inference_state)
        inference_state.clear_objects()

    def _obj_id_to_idx(self, inference_state: VideoState, obj_id: Hashable) -> int:
        """Return an object's index; a new one is there from now on, to be prompted."""
        return inference_state.register(obj_id)

    def _obj_idx_to_id(self, inference_state: VideoState, obj_idx: int) -> Hashable:
        found: Hashable = inference_state["obj_idx_to_id"][obj_idx]
        return found

    def _get_obj_num(self, inference_state: VideoState) -> int:
        return len(inference_state["obj_ids"])

    def _show(self, state: VideoState, frame: int) -> tuple[int, list[Any], Any]:
        """Return a frame as upstream gives it."""
        return frame, list(state["obj_ids"]), self._masks(state, frame)

    def _masks(self, state: VideoState, frame: int) -> Any:
        """Return logits (N, 1, H, W) of all objects on a frame."""
        import torch

        known, threads = state.logits(frame), self.segmenter.threads
        full = full_size(known, state["obj_ids"], state.size, self.fill_hole_area, threads)
        masks = torch.from_numpy(full).to(self.device)
        return apart(masks) if self.non_overlap_masks else masks

    def _apply_non_overlapping_constraints(self, pred_masks: Any) -> Any:
        """Do as vkrt.compat.video_masks.apart: upstream's scripts call it by this name."""
        return apart(pred_masks)


class SAM2VideoPredictorVOS(SAM2VideoPredictor):
    """Do as SAM2VideoPredictor: upstream's variant that is compiled, which here all are."""


def check_state(state: Any) -> None:
    """Refuse what init_state did not give."""
    instance("inference_state", state, VideoState, kind=PromptError)


def no_object(state: VideoState, obj: Hashable) -> str:
    """Return what to say of an object that is not there."""
    return f"object {shown(obj)} is not tracked; there are {state['obj_ids']}"


def inference() -> AbstractContextManager[Any]:
    """Return torch's inference mode.

    Without it an engine could not go on, outside of a caller's own, with what it made inside.
    """
    import torch

    return torch.inference_mode()
