"""The encoder of T5 1.1: a prompt as one embedding for each token."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.models.sd35.config import T5Config

__all__ = ["T5Encoder"]

EPSILON = 1e-6
# In fp16 the last product of a feed-forward part may exceed 65504, the largest number there is:
# it is computed for a sixteenth of its input, a power of two, and so without a rounding more.
HEADROOM = 16.0


def widened(x: Tensor) -> Tensor:
    """Return x in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RmsNorm(nn.Module):
    """Compute weight * x / sqrt(mean(x**2) + 1e-6), in float32 at least."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        # (..., C) of any dtype -> (..., C) of the weight's
        wide = widened(x)
        scale = (wide.square().mean(dim=-1, keepdim=True) + EPSILON).rsqrt()
        return (wide * scale * self.weight).to(self.weight.dtype)


def bucket_starts(buckets: int, max_distance: int) -> tuple[int, ...]:
    """Return the distances at which the wider buckets of one direction begin, but the first.

    Half of the `buckets` hold one distance each, from 0 on; from there to `max_distance` the
    others grow by the same factor. In whole numbers, so that no runtime rounds a border away.
    """
    single = buckets // 2
    wide = buckets - single
    starts, distance = [], single
    for index in range(1, wide):
        # The smallest distance with distance >= single * (max_distance / single)**(index / wide)
        border = max_distance**index * single ** (wide - index)
        while distance**wide < border:
            distance += 1
        starts.append(distance)
    return tuple(starts)


class RelativeBias(nn.Embedding):
    """Add to each attention logit what depends on how far the key is from the query."""

    def __init__(self, config: T5Config) -> None:
        super().__init__(config.buckets, config.heads)
        self.direction = config.buckets // 2
        self.single = self.direction // 2
        self.starts = bucket_starts(self.direction, config.max_distance)

    def bucket(self, offset: Tensor) -> Tensor:
        """Return the bucket of each offset, key position - query position, as int64."""
        distance = offset.abs()
        found = distance.clamp(max=self.single)
        for start in self.starts:
            found = found + (distance >= start)
        return found + (offset > 0) * self.direction

    def table(self, length: int) -> Tensor:
        """Return the bias of each pair of tokens, (1, heads, length, length)."""
        place = torch.arange(length, device=self.weight.device)
        values = self(self.bucket(place[None, :] - place[:, None]))
        return values.permute(2, 0, 1).unsqueeze(0).contiguous()


class SelfAttention(nn.Module):
    """Let all tokens attend to one another; the logits are not scaled."""

    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads = config.heads
        self.q = nn.Linear(config.dim, inner, bias=False)
        self.k = nn.Linear(config.dim, inner, bias=False)
        self.v = nn.Linear(config.dim, inner, bias=False)
        self.o = nn.Linear(inner, config.dim, bias=False)
        if has_bias:
            self.relative_attention_bias = RelativeBias(config)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        # x: (B, L, C), bias: (1, heads, L, L) -> (B, L, C)
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        # A copy of its own: whether the heads lie side by side is up to each backend's attention,
        # and an exported graph must not take it for granted.
        apart = read.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        return self.o(apart.flatten(2))


class GatedFeedForward(nn.Module):
    """Compute wo(gelu(wi_0 x) * wi_1 x)."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.dim, config.mlp_dim, bias=False)
        self.wi_1 = nn.Linear(config.dim, config.mlp_dim, bias=False)
        self.wo = nn.Linear(config.mlp_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # (B, L, C) -> (B, L, C) in float32 at least
        gate, value = F.gelu(self.wi_0(x), approximate="tanh"), self.wi_1(x)
        if value.dtype != torch.float16:
            return widened(self.wo(gate * value))
        return widened(self.wo(gate * (value / HEADROOM))) * HEADROOM


class AttentionPart(nn.Module):
    """Add a self-attention to what comes in."""

    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config, has_bias)
        self.layer_norm = RmsNorm(config.dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias)


class FeedForwardPart(nn.Module):
    """Add a feed-forward to what comes in."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = GatedFeedForward(config)
        self.layer_norm = RmsNorm(config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nn.Module):
    """Run one layer of the transformer: attention, then feed-forward."""

    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList((AttentionPart(config, has_bias), FeedForwardPart(config)))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        attention, feed_forward = self.layer
        return feed_forward(attention(x, bias))


class Stack(nn.Module):
    """Run all layers; the first one's position bias is everyone's."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(config, index == 0) for index in range(config.layers))
        self.final_layer_norm = RmsNorm(config.dim)

    def forward(self, x: Tensor) -> Tensor:
        # (B, L, C) in float32 at least -> (B, L, C) of the weights' dtype
        shared = self.get_submodule("block.0.layer.0.SelfAttention.relative_attention_bias")
        bias = cast(RelativeBias, shared).table(x.shape[1])
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


class T5Encoder(nn.Module):
    """Encode prompts as T5 1.1 does (https://arxiv.org/abs/1910.10683), without a mask.

    What the layers add up is kept in float32 in every precision: it grows beyond what fp16 holds,
    and it is small beside the weights. Parameters are named as in transformers' T5EncoderModel.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocabulary, config.dim)
        self.encoder = Stack(config)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        """Return the embeddings (B, L, dim) of tokens (B, L) int64; padding counts as they do."""
        return (self.encoder(widened(self.shared(tokens))),)
