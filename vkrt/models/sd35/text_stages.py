"""The stages that encode prompts: clip_l, clip_g and t5."""

from __future__ import annotations

from torch import nn

from vkrt.models.sd35.config import ClipConfig, T5Config
from vkrt.stage import Port, Stage

__all__ = ["clip_stage", "t5_stage"]


def tokens_port(length: int | str, vocabulary: int) -> Port:
    """Return the port of prompts as token ids."""
    return Port("tokens", ("batch", length), "int64", bounds=(0, vocabulary - 1))


def clip_stage(name: str, module: nn.Module, config: ClipConfig) -> Stage:
    """Return a stage that encodes prompts with CLIP.

    Args:
        name: "clip_l" or "clip_g".
        module: a ClipText.
        config: the one it was made with.
    """
    hidden = Port("hidden", ("batch", config.length, config.dim))
    pooled = Port("pooled", ("batch", config.projection_dim))
    return Stage(name, module, (tokens_port(config.length, config.vocabulary),), (hidden, pooled))


def t5_stage(module: nn.Module, config: T5Config) -> Stage:
    """Return the stage that encodes prompts with a T5Encoder of this config."""
    hidden = Port("hidden", ("batch", "length", config.dim))
    return Stage("t5", module, (tokens_port("length", config.vocabulary),), (hidden,))
