"""What a tracked frame starts from: its picture, seen with what each object left in its bank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vkrt.models.sam2.memory_attention import MemoryTokens
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.positions import encode_distances, encode_grid
from vkrt.models.sam2.rotary import Rotary

__all__ = ["ConditionFrame"]

# The share of a pixel's position encoding that memory attention starts with.
POSITION_SHARE = 0.1
# The bias of a token that is absent: its weight underflows to 0, and kernels may leave out all of
# this size (vkrt.kernels.host_attention). Finite, as infinity would make NaN of none left.
ABSENT = -1e9


class ConditionFrame(nn.Module):
    """Condition a frame on the memories and pointers of each object."""

    place: Tensor
    memory_place: Tensor

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        config = model.config
        side, mem_dim = config.embed_size, config.memory.mem_dim
        self.model = model
        self.rotary = Rotary(side, config.hidden_dim)
        place = POSITION_SHARE * encode_grid(side, config.hidden_dim)
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("memory_place", encode_grid(side, mem_dim), persistent=False)
        self.to(model.no_mem_embed.device)

    def forward(
        self,
        image: Tensor,
        memories: Tensor,
        ages: Tensor,
        pointers: Tensor,
        offsets: Tensor,
        present: Tensor,
    ) -> tuple[Tensor]:
        held, there = ages >= 0, present > 0
        # What an empty slot happens to hold must not count, NaN included.
        memories = memories.masked_fill(~held[..., None, None], 0.0)
        pointers = pointers.masked_fill(~there[..., None], 0.0)
        parts = pointers.unflatten(2, (-1, memories.shape[3]))
        pixels, split = memories.shape[2], parts.shape[2]
        times = self.pointer_times(offsets.masked_fill(~there, 0.0)).unsqueeze(2)
        absent = ~torch.cat((repeat(held, pixels), repeat(there, split)), dim=1)
        memory = MemoryTokens(
            values=torch.cat((memories.flatten(1, 2), parts.flatten(1, 2)), dim=1),
            pixels=memories + self.memory_place + self.memory_times(ages).unsqueeze(2),
            pointers=(parts + times).flatten(1, 2),
            bias=absent.to(memories.dtype) * max(ABSENT, torch.finfo(memories.dtype).min),
        )
        raw = image - self.model.no_mem_embed
        return (self.model.memory_attention(raw + self.place, memory, self.rotary),)

    def memory_times(self, ages: Tensor) -> Tensor:
        """Return the encodings (N, slots, M) of memories of these ages (N, slots)."""
        # A conditioning frame, of age 0, has the last row, and a frame k ago has row k - 1.
        rows = self.model.maskmem_tpos_enc.flatten(1).roll(1, 0)
        return rows[ages.clamp(min=0).long()]

    def pointer_times(self, offsets: Tensor) -> Tensor:
        """Return the encodings (N, pointers, M) of distances in time (N, pointers)."""
        config = self.model.config
        if config.version == "2.0":
            return self.model.no_mem_embed.new_zeros(1, 1, config.memory.mem_dim)
        projection = self.model.obj_ptr_tpos_proj
        return projection(encode_distances(offsets, config.hidden_dim).to(projection.weight.dtype))


def repeat(flags: Tensor, count: int) -> Tensor:
    """Repeat each flag of (N, T): (N, T * count)."""
    return flags.unsqueeze(2).expand(-1, -1, count).flatten(1)
