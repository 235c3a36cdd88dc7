"""Upstream's image predictor, over the image engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vkrt.arguments import shown
from vkrt.compat.builders import build_sam2_hf
from vkrt.compat.errors import PictureError, StateError, raising
from vkrt.compat.features import Features, find_embeddings, tell_features
from vkrt.compat.handle import Sam2Handle
from vkrt.compat.transforms import SAM2Transforms
from vkrt.engines.sam2_image import ImageEmbedding
from vkrt.errors import PromptError
from vkrt.media.image import Photo, read_image
from vkrt.media.masks import binarize, upsample
from vkrt.media.prompts import PromptBatch, prepare

__all__ = ["SAM2ImagePredictor"]

# Upstream returns low-resolution logits clamped to this.
LOGIT_LIMIT = 32.0


class SAM2ImagePredictor:
    """Segment one picture, or several at once, with upstream's calls.

    Args:
        sam_model: what build_sam2 returned.
        mask_threshold: logit above which a pixel is in a mask.
        max_hole_area: fill holes of at most this many low-resolution pixels.
        max_sprinkle_area: remove islands of at most this many low-resolution pixels.
    """

    def __init__(
        self,
        sam_model: Sam2Handle,
        mask_threshold: float = 0.0,
        max_hole_area: float = 0.0,
        max_sprinkle_area: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.model = sam_model
        self.mask_threshold = mask_threshold
        self._transforms = SAM2Transforms(
            sam_model.image_size, mask_threshold, max_hole_area, max_sprinkle_area
        )
        self._embeddings: list[ImageEmbedding] = []
        # As upstream's, for code that sets them.
        self._orig_hw: list[tuple[int, int]] | None = None
        self._is_image_set = False
        self._is_batch = False

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2ImagePredictor:
        """Build a predictor from a hub id; see build_sam2_hf."""
        return cls(build_sam2_hf(model_id, **kwargs))

    @property
    def device(self) -> Any:
        """Return the torch device that the model runs on."""
        return self.model.device

    @property
    def max_hole_area(self) -> float:
        """Return the largest hole that is filled, in low-resolution pixels."""
        return self._transforms.max_hole_area

    @property
    def max_sprinkle_area(self) -> float:
        """Return the largest island that is removed, in low-resolution pixels."""
        return self._transforms.max_sprinkle_area

    @property
    def _features(self) -> Features | None:
        """Return the encoded pictures as upstream holds them; code keeps them, to set them again.

        Raises:
            StateError: on setting, features that vkrt did not make or has no more.
        """
        if not self._embeddings:
            return None
        maps = [self.model.segmenter.feature_maps(e) for e in self._embeddings]
        return tell_features(self._embeddings, maps, self.device)

    @_features.setter
    def _features(self, features: Mapping[str, Any] | None) -> None:
        self._embeddings = find_embeddings(features)
        self._orig_hw = [embedding.size for embedding in self._embeddings]
        self._is_image_set = bool(self._embeddings)

    @property
    def _bb_feat_sizes(self) -> list[tuple[int, int]]:
        side = self.model.image_size
        return [(side // stride, side // stride) for stride in (4, 8, 16)]

    def set_image(self, image: Any) -> None:
        """Encode a picture: (H, W, 3) uint8 RGB, or float in [0, 1], or a PIL image.

        As upstream does, it takes the pixels as they are stored: an EXIF rotation turns nothing,
        so that points and masks are those of `numpy.asarray(image)`. (Segmenter.encode turns.)

        Raises:
            ImageError: it is no picture.
        """
        self.reset_predictor()
        self._set([image])

    def set_image_batch(self, image_list: list[Any]) -> None:
        """Encode several pictures, of any sizes, for predict_batch; see set_image.

        Raises:
            ImageError: one of them is no picture.
        """
        self.reset_predictor()
        if not isinstance(image_list, Sequence) or isinstance(image_list, str | bytes):
            raise PictureError(f"image_list must be a list of pictures, not {shown(image_list)}")
        self._set(image_list)
        self._is_batch = True

    def _set(self, images: Sequence[Any]) -> None:
        """Encode pictures in place of those before."""
        with raising(PictureError):
            photos: list[Photo] = [read_image(image, upright=False) for image in images]
        self._embeddings = self.model.segmenter.encode(photos)
        self._orig_hw = [embedding.size for embedding in self._embeddings]
        self._is_image_set = True

    def predict(
        self,
        point_coords: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict masks on the picture that was set.

        Args:
            point_coords: (P, 2) or (B, P, 2) x, y.
            point_labels: (P,) or (B, P), 1 on the object and 0 not on it; 2 and 3 are the top left
                and the bottom right corner of a box.
            box: (4,) or (B, 4) x0, y0, x1, y1.
            mask_input: (1, h, w) low-resolution logits of an earlier answer.
            multimask_output: give three masks, else one.
            return_logits: give logits at the picture's size instead of masks.
            normalize_coords: coordinates are in pixels of the picture; else in [0, 1].

        Returns:
            masks (C, H, W) float32, scores (C,) and low-resolution logits (C, h, w); with a
            batch of B prompts other than one an axis of B in front of each. Without prompts the
            masks are of whatever the model sees first.

        Raises:
            RuntimeError: no picture was set.
            PromptError: the prompts do not fit together.
        """
        self._check_set("set_image")
        return self._predict_one(
            -1,
            [point_coords, point_labels, box, mask_input],
            multimask_output,
            return_logits,
            normalize_coords,
        )

    def predict_batch(
        self,
        point_coords_batch: list[Any] | None = None,
        point_labels_batch: list[Any] | None = None,
        box_batch: list[Any] | None = None,
        mask_input_batch: list[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Predict masks on each picture that set_image_batch was given: lists of predict's.

        None in a list says nothing of that picture.

        Raises:
            RuntimeError: no batch of pictures was set.
            PromptError: a list has not one entry a picture, or prompts do not fit together.
        """
        self._check_set("set_image_batch")
        if not self._is_batch:
            raise StateError("one picture was set: use predict(...), or set_image_batch(...) first")
        count = len(self._embeddings)
        prompts = (point_coords_batch, point_labels_batch, box_batch, mask_input_batch)
        for given in prompts:
            if given is not None and not hasattr(type(given), "__len__"):
                raise PromptError(f"prompts must be a list, one a picture, not {shown(given)}")
            if given is not None and len(given) != count:
                raise PromptError(f"{count} pictures were set, but prompts for {len(given)} given")
        results = [
            self._predict_one(
                index,
                [None if given is None else given[index] for given in prompts],
                multimask_output,
                return_logits,
                normalize_coords,
            )
            for index in range(count)
        ]
        masks, scores, logits = (list(column) for column in zip(*results, strict=True))
        return masks, scores, logits

    def _predict_one(
        self,
        index: int,
        given: list[Any],
        multimask: bool,
        return_logits: bool,
        normalize_coords: bool,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if given[0] is not None and given[1] is None:
            raise PromptError("point_labels must be given where point_coords are")
        # Coordinates in [0, 1] are pixels of a picture of 1 by 1. Upstream takes points outside
        # the picture and boxes with swapped corners, and code that relies on it exists.
        size = self._size(index) if normalize_coords else (1, 1)
        points, labels, box, mask = given
        prompts = prepare(size, self.model.image_size, points, labels, box, mask, strict=False)
        shown, scores, logits = self._answer(index, prompts, multimask, return_logits)
        shown = shown.astype(np.float32, copy=False)
        if len(logits) == 1:
            return shown[0], scores[0], logits[0]
        return shown, scores, logits

    def _prep_prompts(
        self,
        point_coords: Any,
        point_labels: Any,
        box: Any,
        mask_logits: Any,
        normalize_coords: bool,
        img_idx: int = -1,
    ) -> tuple[Any, Any, Any, Any]:
        """Return mask logits, points, labels and boxes as tensors, for _predict.

        Points (B, P, 2) and the corners of boxes (B, 2, 2) are in pixels of the model's input.
        """
        import torch

        def tensor(value: Any, dtype: Any) -> Any:
            return None if value is None else torch.as_tensor(value, dtype=dtype).to(self.device)

        points, labels = tensor(point_coords, torch.float32), tensor(point_labels, torch.int32)
        boxes, mask = tensor(box, torch.float32), tensor(mask_logits, torch.float32)
        if points is not None:
            if labels is None:
                raise PromptError("point_labels must be given where point_coords are")
            points = self._transforms.transform_coords(
                points, normalize_coords, self._size(img_idx)
            )
            points, labels = (t[None] if points.ndim == 2 else t for t in (points, labels))
        if boxes is not None:
            boxes = self._transforms.transform_boxes(boxes, normalize_coords, self._size(img_idx))
        if mask is not None and mask.ndim == 3:
            mask = mask[None]
        return mask, points, labels, boxes

    def _predict(
        self,
        point_coords: Any,
        point_labels: Any,
        boxes: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        img_idx: int = -1,
    ) -> tuple[Any, Any, Any]:
        """Predict as predict does, of what _prep_prompts gave: tensors in and out.

        Returns:
            masks (B, C, H, W) bool, or logits if asked for, scores (B, C) and low-resolution
            logits (B, C, h, w).
        """
        import torch

        self._check_set("set_image")
        side = self.model.image_size
        corners = None if boxes is None else boxes.reshape(-1, 4)
        prompts = prepare(
            (side, side), side, point_coords, point_labels, corners, mask_input, strict=False
        )
        made = self._answer(img_idx, prompts, multimask_output, return_logits)
        masks, scores, logits = (torch.from_numpy(array).to(self.device) for array in made)
        return masks, scores, logits

    def _answer(
        self, index: int, prompts: PromptBatch, multimask: bool, return_logits: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return masks (B, C, H, W) or their logits, scores and low-resolution logits."""
        logits, scores, _ = self.model.segmenter.decode_low_res(
            self._embeddings[index],
            prompts,
            multimask,
            self.model.dynamic_multimask_via_stability,
        )
        shown = self._full_size(logits, self._size(index), return_logits)
        return shown, scores, np.clip(logits, -LOGIT_LIMIT, LOGIT_LIMIT)

    def _full_size(
        self, logits: np.ndarray, size: tuple[int, int], return_logits: bool
    ) -> np.ndarray:
        flat = self._transforms.clean_array(logits.reshape(-1, *logits.shape[2:]))
        threads = self.model.segmenter.threads
        if return_logits:
            full = upsample(flat, *size, threads=threads)
        else:
            full = binarize(flat, *size, threshold=self.mask_threshold, threads=threads).masks
        return full.reshape(*logits.shape[:2], *size)

    def _size(self, index: int) -> tuple[int, int]:
        """Return height and width of a picture, which user code may have set."""
        assert self._orig_hw is not None
        height, width = self._orig_hw[index]
        return int(height), int(width)

    def get_image_embedding(self) -> Any:
        """Return the image embedding (1, C, S/16, S/16) of the picture that was set.

        Raises:
            RuntimeError: no picture was set.
        """
        self._check_set("set_image")
        features = self._features
        assert features is not None
        return features["image_embed"]

    def reset_predictor(self) -> None:
        """Forget the picture."""
        self._embeddings = []
        self._orig_hw = None
        self._is_image_set = False
        self._is_batch = False

    def _check_set(self, call: str) -> None:
        if not (self._is_image_set and self._embeddings):
            raise StateError(f"no picture is set: call {call}(...) before predicting")
