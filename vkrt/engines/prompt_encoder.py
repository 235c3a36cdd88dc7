"""Prompts as the transformer reads them: CLIP twice and T5, joined, and kept for the next time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vkrt.engines.calls import Calls
from vkrt.media.text import Tokenizers
from vkrt.memory.cache import ByteCache
from vkrt.models.sd35.config import ClipConfig, Sd35Config

__all__ = ["PromptEmbedding", "PromptEncoder", "usual_length"]

# Tokens of T5: what the reference pads to at least, and what diffusers pads to and cuts at.
LENGTHS = {"reference": 77, "diffusers": 256}
DIFFUSERS = "diffusers"


@dataclass(frozen=True)
class PromptEmbedding:
    """Hold what the text encoders made of a prompt.

    Attributes:
        context: (L, context_dim) float32: CLIP's 77 tokens, then T5's.
        pooled: (pooled_dim,) float32.
    """

    context: np.ndarray
    pooled: np.ndarray

    @property
    def nbytes(self) -> int:
        """Return the bytes that it takes."""
        return self.context.nbytes + self.pooled.nbytes


class PromptEncoder:
    """Encode prompts; one that was seen before comes from a cache.

    Args:
        config: of the model.
        tokenizers: of its text encoders.
        cache_bytes: bound of the cache; 0 turns it off.
    """

    def __init__(self, config: Sd35Config, tokenizers: Tokenizers, cache_bytes: int = 0) -> None:
        self._config = config
        self._tokenizers = tokenizers
        self._cache: ByteCache[PromptEmbedding] = ByteCache(cache_bytes)

    def length(self, texts: Sequence[str], profile: str, wanted: int | None, with_t5: bool) -> int:
        """Return the tokens of T5 that texts of one call are padded to and cut at.

        The "diffusers" profile has 256; "reference" has what the longest text needs, from 77 to
        512. T5 attends to its padding, so the length changes the picture a little.

        Args:
            texts: all of the call, whose rows must be of one length.
            profile: "reference" or "diffusers".
            wanted: the length that the caller asks for, or None.
            with_t5: whether the model has T5; zeros stand for it if not.
        """
        if wanted is not None:
            return wanted
        usual = usual_length(profile)
        if profile == DIFFUSERS or not with_t5:
            return usual
        return max(len(self._tokenizers.t5(text, least=usual)) for text in texts)

    def encode(
        self,
        calls: Calls,
        texts: Sequence[str],
        length: int,
        profile: str = "reference",
        variant: str = "",
    ) -> list[PromptEmbedding]:
        """Return the embedding of each text.

        Args:
            calls: run the stages clip_l, clip_g and, where there is one, t5.
            texts: each once.
            length: tokens of T5.
            profile: "reference" or "diffusers"; the latter takes the text of CLIP's padding in a
                prompt for padding, as transformers does.
            variant: of the encoders' weights, such as which LoRAs are on them.
        """
        keys = {text: f"{profile}\0{length}\0{variant}\0{text}" for text in texts}
        known = {text: self._cache.get(key) for text, key in keys.items()}
        missing = [text for text in texts if known[text] is None]
        if missing:
            made = self._run(calls, missing, length, profile == DIFFUSERS)
            for text, fresh in zip(missing, made, strict=True):
                known[text] = fresh
                self._cache.put(keys[text], fresh, fresh.nbytes)
        return [embedding for text in texts if (embedding := known[text]) is not None]

    def _run(
        self, calls: Calls, texts: Sequence[str], length: int, match_pad: bool
    ) -> list[PromptEmbedding]:
        clip_l, clip_g = self._config.clip_l, self._config.clip_g
        context_dim = self._config.mmdit.context_dim
        context = np.zeros((len(texts), clip_l.length + length, context_dim), np.float32)
        calls.enter("text")
        pooled, column = [], 0
        for name, config in (("clip_l", clip_l), ("clip_g", clip_g)):
            tokens = self._clip_tokens(texts, name, config, match_pad)
            hidden, summary = (calls.to_host(name, array) for array in calls(name, tokens))
            context[:, : config.length, column : column + config.dim] = hidden
            pooled.append(summary)
            column += config.dim
        if calls.has("t5"):
            pieces = np.stack([self._tokenizers.t5(text, length) for text in texts])
            calls.enter("t5")
            (hidden,) = calls("t5", pieces)
            context[:, clip_l.length :] = calls.to_host("t5", hidden)
        calls.enter("")
        joined = np.concatenate(pooled, axis=1)
        # Copies: a view would keep the whole batch in the cache for one of its texts.
        return [PromptEmbedding(c.copy(), p.copy()) for c, p in zip(context, joined, strict=True)]

    def _clip_tokens(
        self, texts: Sequence[str], part: str, config: ClipConfig, match_pad: bool
    ) -> np.ndarray:
        """Return (texts, 77) int64 for "clip_l" or "clip_g"."""
        read, pad, length = self._tokenizers.clip, config.pad, config.length
        return np.stack(
            [read(text, pad, part=part, length=length, match_pad=match_pad) for text in texts]
        )

    def clear(self) -> None:
        """Forget every embedding."""
        self._cache.clear()


def usual_length(profile: str) -> int:
    """Return the tokens of T5 that a prompt of a few words is padded to."""
    return LENGTHS[profile]
