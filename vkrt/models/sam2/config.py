"""The shape of a SAM 2 model, as plain numbers: imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["MAX_IMAGE_SIZE", "HieraConfig", "MemoryConfig", "Sam2Config"]


# Four times the side that SAM 2 was trained at; what a photo takes grows with its square and more.
MAX_IMAGE_SIZE = 4096


@dataclass(frozen=True)
class HieraConfig:
    """Describe the Hiera trunk (https://arxiv.org/abs/2306.00989), stage by stage.

    Attributes:
        embed_dim: channels of the first stage; each later stage doubles them.
        num_heads: attention heads of the first stage; each later stage doubles them.
        stages: blocks in each of the four stages.
        global_blocks: indices (over all blocks) whose attention sees the whole picture.
        window_spec: side of the attention windows of each stage, in tokens.
        pos_embed_bkg: side of the stored, later interpolated position embedding, in tokens.
    """

    embed_dim: int
    num_heads: int
    stages: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    window_spec: tuple[int, int, int, int] = (8, 4, 14, 7)
    pos_embed_bkg: int = 7

    @property
    def dims(self) -> tuple[int, ...]:
        """Return the channels of each stage, finest first."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.stages)))


@dataclass(frozen=True)
class MemoryConfig:
    """Describe the memory modules (SAM 2 paper, section 4 and appendix D).

    Attributes:
        mem_dim: channels of a stored memory.
        num_maskmem: frames that a memory bank holds (one conditioning, the rest recent).
        num_layers: layers of the memory attention.
        ffn_dim: width of their feed-forward part.
        max_obj_ptrs: object pointers that take part in attention.
    """

    mem_dim: int = 64
    num_maskmem: int = 7
    num_layers: int = 4
    ffn_dim: int = 2048
    max_obj_ptrs: int = 16


@dataclass(frozen=True)
class Sam2Config:
    """Describe a whole SAM 2 model.

    Attributes:
        version: "2.0" or "2.1"; 2.1 adds the no-object spatial embedding and the projected
            temporal encoding of object pointers.
        trunk: the Hiera trunk.
        memory: the memory modules.
        image_size: side of the square input, in pixels; a multiple of 32, at most MAX_IMAGE_SIZE.
        hidden_dim: channels of the neck, the prompts and the mask decoder.
        decoder_heads: attention heads of the mask decoder.
        decoder_mlp_dim: width of its feed-forward part.
    """

    version: str
    trunk: HieraConfig
    memory: MemoryConfig = MemoryConfig()
    image_size: int = 1024
    hidden_dim: int = 256
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048

    def __post_init__(self) -> None:
        if self.image_size % 32 or not 32 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(
                f"image_size must be a multiple of 32 from 32 to {MAX_IMAGE_SIZE}, not "
                f"{self.image_size}"
            )
        if self.version not in ("2.0", "2.1"):
            raise ValueError(f'version must be "2.0" or "2.1", not {self.version!r}')

    @property
    def embed_size(self) -> int:
        """Return the side of the image embedding, in tokens (stride 16)."""
        return self.image_size // 16

    @property
    def mask_size(self) -> int:
        """Return the side of the low-resolution mask logits (stride 4)."""
        return self.image_size // 4

    def at(self, image_size: int) -> Sam2Config:
        """Return the same model at another input size."""
        return replace(self, image_size=image_size)
