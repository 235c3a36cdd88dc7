"""An image predictor's features as upstream's code holds them, and the way back from them.

What the mask decoder reads holds more than these maps, so that of maps alone there is no way back:
they are recognised by their content, for as long as the embedding they came from is there. The
dict that a predictor gives keeps its embeddings alive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from vkrt.compat.errors import StateError
from vkrt.engines.sam2_image import ImageEmbedding

__all__ = ["Features", "find_embeddings", "tell_features"]

# By the digest of the image map.
_known: WeakValueDictionary[str, ImageEmbedding] = WeakValueDictionary()


class Features(dict[str, Any]):
    """Hold maps under upstream's keys: image_embed and high_res_feats.

    Attributes:
        embeddings: what they were made of, picture by picture.
    """

    def __init__(self, embeddings: Sequence[ImageEmbedding], **maps: Any) -> None:
        super().__init__(**maps)
        self.embeddings = list(embeddings)


def tell_features(
    embeddings: Sequence[ImageEmbedding], maps: Sequence[Mapping[str, np.ndarray]], device: Any
) -> Features:
    """Return the features of embeddings, given the maps of each on the host."""
    import torch

    for embedding, own in zip(embeddings, maps, strict=True):
        _known[digest(own["image"])] = embedding
    image, s0, s1 = (
        torch.from_numpy(np.concatenate([own[name] for own in maps])).to(device)
        for name in ("image", "high_res_s0", "high_res_s1")
    )
    return Features(embeddings, image_embed=image, high_res_feats=[s0, s1])


def find_embeddings(features: Mapping[str, Any] | None) -> list[ImageEmbedding]:
    """Return the embeddings of features that a predictor gave, whole or picture by picture.

    Raises:
        StateError: they are of no embedding that is still there.
    """
    if features is None:
        return []
    maps = features["image_embed"]
    rows = np.asarray(maps.detach().cpu() if hasattr(maps, "detach") else maps)
    # What a caller made of the dict counts, not where it came from.
    found = [_known.get(digest(row[None])) for row in rows]
    known = [embedding for embedding in found if embedding is not None]
    if len(known) < len(found):
        raise StateError(
            "these features are of no picture that vkrt still has: keep the dict that _features "
            "gave, or save and load embeddings (embedding.save, segmenter.load_embedding)"
        )
    return known


def digest(image: np.ndarray) -> str:
    """Return a digest of an image map (1, C, G, G)."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).hexdigest()
