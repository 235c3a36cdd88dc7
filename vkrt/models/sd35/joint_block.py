"""A block of the transformer: image and context attend jointly, each by weights of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.kernels.qk_norm_attention import EPS, Norms, qk_norm_attention
from vkrt.models.sd35.config import MmditConfig
from vkrt.models.sd35.modulation import modulate, normalize, split_parts

__all__ = ["Attention", "FeedForward", "JointBlock", "feed_forward"]


class Attention(nn.Module):
    """Hold the projections and the norms of an attention of one stream of tokens.

    Args:
        dim: channels of a token.
        head_dim: channels of a head.
        with_norms: whether queries and keys are normalized.
        with_proj: whether what is read is projected and used.
    """

    def __init__(
        self, dim: int, head_dim: int, with_norms: bool = True, with_proj: bool = True
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim) if with_proj else nn.Identity()
        self.ln_q = nn.RMSNorm(head_dim, eps=EPS) if with_norms else None
        self.ln_k = nn.RMSNorm(head_dim, eps=EPS) if with_norms else None

    @property
    def norms(self) -> Norms:
        """Return the weights of the norms of queries and of keys, None where there are none."""
        if self.ln_q is None or self.ln_k is None:
            return None
        return self.ln_q.weight, self.ln_k.weight

    def pack(self, x: Tensor) -> Tensor:
        """Return the queries, keys and values (B, T, 3, heads, head_dim) of tokens (B, T, D)."""
        return self.qkv(x).unflatten(-1, (3, -1, self.head_dim))

    def attend(self, x: Tensor) -> Tensor:
        """Let tokens (B, T, D) attend to one another alone."""
        return qk_norm_attention(self.pack(x), None, self.norms, None)[0]


class FeedForward(nn.Module):
    """Map each token (B, T, D) by itself, through a wider layer."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, width)
        self.fc2 = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def feed_forward(x: Tensor, mlp: nn.Module, parts: tuple[Tensor, ...]) -> Tensor:
    """Add to tokens (B, T, D) what a feed-forward makes of them, by its shift, scale and gate."""
    shift, scale, gate = parts
    return torch.addcmul(x, gate, mlp(modulate(normalize(x), shift, scale)))


class Stream(nn.Module):
    """Hold what one kind of tokens has of a block.

    Args:
        config: of the transformer.
        is_dual: whether its tokens attend to one another once more.
        is_written: whether the block changes them, and does not only read them.
    """

    def __init__(self, config: MmditConfig, is_dual: bool = False, is_written: bool = True) -> None:
        super().__init__()
        dim = config.dim
        self.attn = Attention(dim, config.head_dim, with_proj=is_written)
        self.attn2 = Attention(dim, config.head_dim) if is_dual else None
        self.mlp = FeedForward(dim, config.mlp_ratio * dim) if is_written else nn.Identity()


class JointBlock(nn.Module):
    """Run one block; the last one leaves the context as it is."""

    def __init__(self, config: MmditConfig, index: int) -> None:
        super().__init__()
        self.dim = config.dim
        self.is_last = index == config.depth - 1
        self.x_block = Stream(config, is_dual=index in config.dual_blocks)
        self.context_block = Stream(config, is_written=not self.is_last)

    def forward(
        self, x: Tensor, context: Tensor, image_columns: Tensor, context_columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return image (B, P, D) and context (B, L, D) after this block.

        Args:
            x: (B, P, D) the image.
            context: (B, L, D).
            image_columns: (B, 6 * D), or 9 * D of a dual block: what modulates the image.
            context_columns: (B, 6 * D), or 2 * D of the last block: what modulates the context.
        """
        image = split_parts(image_columns, self.dim)
        words = split_parts(context_columns, self.dim)
        x, context = self.attend(x, context, image, words)
        x = feed_forward(x, self.x_block.mlp, image[3:6])
        if not self.is_last:
            context = feed_forward(context, self.context_block.mlp, words[3:6])
        return x, context

    def attend(
        self,
        x: Tensor,
        context: Tensor,
        image: tuple[Tensor, ...],
        words: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor]:
        """Return image and context with what their attentions read added."""
        own, other = self.x_block.attn, self.context_block.attn
        normed = normalize(x)
        read, told = qk_norm_attention(
            own.pack(modulate(normed, *image[:2])),
            other.pack(modulate(normalize(context), *words[:2])),
            own.norms,
            other.norms,
            context_out=not self.is_last,
        )
        x = torch.addcmul(x, image[2], own.proj(read))
        if self.x_block.attn2 is not None:
            shift, scale, gate = image[6:]
            again = self.x_block.attn2.attend(modulate(normed, shift, scale))
            x = torch.addcmul(x, gate, self.x_block.attn2.proj(again))
        if told is not None:
            context = torch.addcmul(context, words[2], other.proj(told))
        return x, context
