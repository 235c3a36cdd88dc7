"""Upstream's image predictor, over the image engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from vkrt.compat.builders import build_sam2_hf
from vkrt.compat.handle import Sam2Handle
from vkrt.engines.sam2_image import ImageEmbedding
from vkrt.errors import PromptError
from vkrt.media.masks import binarize, clean_logits, upsample
from vkrt.media.prompts import prepare

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
        self.max_hole_area = max_hole_area
        self.max_sprinkle_area = max_sprinkle_area
        self._embeddings: list[ImageEmbedding] = []
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
    def _is_image_set(self) -> bool:
        return bool(self._embeddings)

    @property
    def _orig_hw(self) -> list[tuple[int, int]]:
        return [embedding.size for embedding in self._embeddings]

    @property
    def _features(self) -> dict[str, Any] | None:
        if not self._embeddings:
            return None
        import torch

        maps = [self.model.segmenter.feature_maps(e) for e in self._embeddings]
        image, s0, s1 = (
            torch.from_numpy(np.concatenate([m[name] for m in maps])).to(self.device)
            for name in ("image", "high_res_s0", "high_res_s1")
        )
        return {"image_embed": image, "high_res_feats": [s0, s1]}

    def set_image(self, image: Any) -> None:
        """Encode a picture: (H, W, 3) uint8 RGB or a PIL image.

        Raises:
            ImageError: it is neither.
        """
        self.reset_predictor()
        self._embeddings = [self.model.segmenter.encode(image)]

    def set_image_batch(self, image_list: list[Any]) -> None:
        """Encode several pictures, of any sizes, for predict_batch.

        Raises:
            ImageError: one of them is no picture.
        """
        self.reset_predictor()
        self._embeddings = self.model.segmenter.encode(list(image_list))
        self._is_batch = True

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
            point_labels: (P,) or (B, P), 1 on the object and 0 not on it.
            box: (4,) or (B, 4) x0, y0, x1, y1.
            mask_input: (1, h, w) low-resolution logits of an earlier answer.
            multimask_output: give three masks, else one.
            return_logits: give logits at the picture's size instead of masks.
            normalize_coords: coordinates are in pixels of the picture; else in [0, 1].

        Returns:
            masks (C, H, W) float32, scores (C,) and low-resolution logits (C, h, w); with a
            batch of B > 1 prompts an axis of B in front of each.

        Raises:
            RuntimeError: no picture was set, or several were.
            PromptError: the prompts do not fit together.
        """
        self._check_set(batch=False)
        return self._predict_one(
            0,
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

        Raises:
            RuntimeError: no batch of pictures was set.
            PromptError: a list has not one entry a picture, or prompts do not fit together.
        """
        self._check_set(batch=True)
        count = len(self._embeddings)
        prompts = (point_coords_batch, point_labels_batch, box_batch, mask_input_batch)
        for given in prompts:
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
        embedding = self._embeddings[index]
        if given[0] is not None and given[1] is None:
            raise PromptError("point_labels must be given where point_coords are")
        # Coordinates in [0, 1] are pixels of a picture of 1 by 1. Upstream takes points outside
        # the picture, and code that relies on it exists.
        size = embedding.size if normalize_coords else (1, 1)
        points, labels, box, mask = given
        prompts = prepare(size, self.model.image_size, points, labels, box, mask, strict=False)
        logits, scores, _ = self.model.segmenter.decode_low_res(
            embedding, prompts, multimask, self.model.dynamic_multimask_via_stability
        )
        shown = self._full_size(logits, embedding.size, return_logits)
        logits = np.clip(logits, -LOGIT_LIMIT, LOGIT_LIMIT)
        if len(logits) == 1:
            return shown[0], scores[0], logits[0]
        return shown, scores, logits

    def _full_size(
        self, logits: np.ndarray, size: tuple[int, int], return_logits: bool
    ) -> np.ndarray:
        flat = logits.reshape(-1, *logits.shape[2:])
        if self.max_hole_area > 0 or self.max_sprinkle_area > 0:
            flat = clean_logits(
                flat, self.mask_threshold, int(self.max_hole_area), int(self.max_sprinkle_area)
            )
        threads = self.model.segmenter.threads
        if return_logits:
            full = upsample(flat, *size, threads=threads)
        else:
            found = binarize(flat, *size, threshold=self.mask_threshold, threads=threads)
            full = found.masks.astype(np.float32)
        return full.reshape(*logits.shape[:2], *size)

    def get_image_embedding(self) -> Any:
        """Return the image embedding (1, C, S/16, S/16) of the picture that was set.

        Raises:
            RuntimeError: no picture was set.
        """
        features = self._features
        if features is None:
            raise RuntimeError("no picture is set: call set_image(...) first")
        return features["image_embed"]

    def reset_predictor(self) -> None:
        """Forget the picture."""
        self._embeddings = []
        self._is_batch = False

    def _check_set(self, batch: bool) -> None:
        if not self._embeddings:
            call = "set_image_batch" if batch else "set_image"
            raise RuntimeError(f"no picture is set: call {call}(...) before predicting")
        if self._is_batch != batch:
            wanted = "predict_batch" if self._is_batch else "predict"
            raise RuntimeError(f"use {wanted}(...) with what was set")
