"""The embedding of one photo: what its encoder made of it, for any number of prompts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vkrt.engines.mask_result import Masks
from vkrt.engines.runtime import DeviceArrays
from vkrt.media.prompts import prepare

if TYPE_CHECKING:
    from vkrt.engines.sam2_image import Segmenter

__all__ = ["ImageEmbedding"]


class ImageEmbedding:
    """Keep what the encoder made of one photo; prompts on it never encode again.

    Attributes:
        size: height and width of the photo, in pixels.
        key: digest of the photo's content.
        arrays: the device arrays that the mask decoder reads.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        arrays: DeviceArrays,
        size: tuple[int, int],
        key: str,
    ) -> None:
        self._segmenter = segmenter
        self.arrays = arrays
        self.size = size
        self.key = key

    @property
    def features(self) -> tuple[Any, ...]:
        """Return the arrays as those of the backend that holds them now."""
        return self.arrays.now

    def predict(
        self,
        points: Any = None,
        labels: Any = None,
        box: Any = None,
        mask: Any = None,
        multimask: bool = True,
        dynamic_multimask: bool = True,
    ) -> Masks:
        """Return the masks that the prompts name.

        Args:
            points: (P, 2) x, y in pixels of the photo; (B, P, 2) for B objects at once.
            labels: (P,) or (B, P): 1 on the object, 0 not on it, 2 and 3 the top left and bottom
                right corner of a box, -1 padding; None means all 1.
            box: (4,) or (B, 4) x0, y0, x1, y1 in pixels of the photo; boxes of shape (0, 4), of
                which nothing was found, give masks of shape (0, N, H, W).
            mask: (h, w) or (B, h, w) logits of an earlier answer, to refine it; or a mask of the
                photo's own size, (H, W) or (B, H, W): bool, grey of 0 to 1 or 255, or logits.
            multimask: give three candidates (for a single, ambiguous click); else one.
            dynamic_multimask: where one is asked for and it is unstable, give the best of the
                three instead.

        Raises:
            PromptError: there is no prompt, or one does not fit the photo or the others.
        """
        return self._segmenter.decode(
            self,
            prepare(self.size, self._segmenter.config.image_size, points, labels, box, mask),
            multimask,
            dynamic_multimask,
        )

    def __reduce__(self) -> Any:
        arrays = self._segmenter.host_features(self)
        return restore, (self._segmenter, arrays, self.size, self.key)

    def __copy__(self) -> ImageEmbedding:
        """Return the embedding itself: it does not change."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ImageEmbedding:
        """Return the embedding itself: it does not change."""
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the embedding as safetensors, whole or not at all.

        Raises:
            OutputError: the file can't be written.
        """
        self._segmenter.save_embedding(self, path)


def restore(
    segmenter: Segmenter, arrays: Mapping[str, np.ndarray], size: tuple[int, int], key: str
) -> ImageEmbedding:
    """Return a pickled embedding."""
    return segmenter._hold(arrays, size, key)
