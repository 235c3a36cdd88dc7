"""The memory attention of SAM 2: parameters, so that every official checkpoint loads whole."""

from __future__ import annotations

from torch import nn

from vkrt.models.sam2.config import Sam2Config

__all__ = ["MemoryAttention"]


class RotaryAttention(nn.Module):
    """Hold the projections of an attention with 2-D rotary positions, one head."""

    def __init__(self, dim: int, kv_dim: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(kv_dim, dim)
        self.v_proj = nn.Linear(kv_dim, dim)
        self.out_proj = nn.Linear(dim, dim)


class MemoryAttentionLayer(nn.Module):
    """Hold one layer: self-attention, cross-attention to the memories, feed-forward."""

    def __init__(self, dim: int, mem_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = RotaryAttention(dim, dim)
        self.cross_attn_image = RotaryAttention(dim, mem_dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)


class MemoryAttention(nn.Module):
    """Hold the layers that condition a frame on what was remembered of earlier ones."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        memory = config.memory
        self.layers = nn.ModuleList(
            MemoryAttentionLayer(config.hidden_dim, memory.mem_dim, memory.ffn_dim)
            for _ in range(memory.num_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_dim)
