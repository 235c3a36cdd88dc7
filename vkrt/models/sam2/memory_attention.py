"""The memory attention of SAM 2: a frame is conditioned on what was remembered of earlier ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.kernels.memory_attention import memory_attention
from vkrt.models.sam2.config import Sam2Config
from vkrt.models.sam2.rotary import Rotary, project_apart

__all__ = ["MemoryAttention", "MemoryTokens"]


@dataclass(frozen=True)
class MemoryTokens:
    """Hold what N objects remember, as tokens that pixels attend to.

    K = slots * L + P tokens: the L pixels of each memory, then P that have no place in a picture,
    the parts of object pointers.

    Attributes:
        values: (N, K, M) what is read.
        pixels: (N, slots, L, M) the memories with their encodings in place and time.
        pointers: (N, P, M) the others with theirs in time.
        bias: (N, K) added to the logits: 0, or large and negative where a token is absent.
    """

    values: Tensor
    pixels: Tensor
    pointers: Tensor
    bias: Tensor


class RotaryAttention(nn.Module):
    """Hold the projections of an attention with one head."""

    def __init__(self, dim: int, kv_dim: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(kv_dim, dim)
        self.v_proj = nn.Linear(kv_dim, dim)
        self.out_proj = nn.Linear(dim, dim)


class SelfAttention(RotaryAttention):
    """Let the pixels of a frame attend to one another, by content and by place."""

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        # x: (N, L, C) -> (N, L, C), one head for the attention that backends know
        query, key = rotary(self.q_proj, x), rotary(self.k_proj, x)
        heads = (part.unsqueeze(1) for part in (query, key, self.v_proj(x)))
        return self.out_proj(F.scaled_dot_product_attention(*heads).squeeze(1))


class CrossAttention(RotaryAttention):
    """Let the pixels of a frame attend to memories."""

    def forward(self, x: Tensor, memory: MemoryTokens, rotary: Rotary) -> Tensor:
        # x: (1 or N, L, C) -> (N, L, C)
        query = rotary(self.q_proj, x).expand(memory.bias.shape[0], -1, -1)
        read = memory_attention(query, self.keys(memory, rotary), memory.values, memory.bias)
        # As rows of a softmax sum to 1, what it mixes may be projected afterwards, and so by the
        # two projections that follow in one product.
        weight = self.out_proj.weight @ self.v_proj.weight
        bias = F.linear(self.v_proj.bias, self.out_proj.weight, self.out_proj.bias)
        return F.linear(read, weight, bias)

    def keys(self, memory: MemoryTokens, rotary: Rotary) -> Tensor:
        """Return the keys (N, K, C) of all tokens, pairs apart."""
        pointers = torch.cat(project_apart(self.k_proj, memory.pointers), dim=-1)
        return torch.cat((self.pixel_keys(memory.pixels, rotary).flatten(1, 2), pointers), dim=1)

    def pixel_keys(self, pixels: Tensor, rotary: Rotary) -> Tensor:
        """Return the keys (N, slots, L, C) of memories (N, slots, L, M), pairs apart.

        A linear map and a bias: the keys of a memory with its place may be kept, and the turned
        projection of an encoding in time, without the bias, be added when they are read. They are
        C / M times as large as the memory, though, for each layer, and to add the encoding here
        before the projection costs M additions a pixel instead of C.
        """
        return rotary(self.k_proj, pixels)


class MemoryAttentionLayer(nn.Module):
    """Run one layer: self-attention, cross-attention to the memories, feed-forward."""

    def __init__(self, dim: int, mem_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, dim)
        self.cross_attn_image = CrossAttention(dim, mem_dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, memory: MemoryTokens, rotary: Rotary) -> Tensor:
        x = x + self.self_attn(self.norm1(x), rotary)
        x = x + self.cross_attn_image(self.norm2(x), memory, rotary)
        return x + self.linear2(self.linear1(self.norm3(x)).relu())


class MemoryAttention(nn.Module):
    """Condition a frame on what was remembered of earlier ones."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        memory = config.memory
        self.layers = nn.ModuleList(
            MemoryAttentionLayer(config.hidden_dim, memory.mem_dim, memory.ffn_dim)
            for _ in range(memory.num_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_dim)

    def forward(self, x: Tensor, memory: MemoryTokens, rotary: Rotary) -> Tensor:
        """Condition one picture on the memories of N objects.

        All that comes before the first cross-attention is the same for every object and is
        computed once.

        Args:
            x: (1, L, C) the picture's embedding with its position encoding.
            memory: of N objects.
            rotary: of the picture's grid.

        Returns:
            (N, L, C)
        """
        for layer in self.layers:
            x = layer(x, memory, rotary)
        return self.norm(x)
