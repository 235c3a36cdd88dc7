"""The smallest SAM 2 that has every kind of block: its export takes seconds, its runs nothing."""

from __future__ import annotations

from pathlib import Path

from vkrt import catalog
from vkrt.models.sam2.config import HieraConfig, MemoryConfig, Sam2Config

__all__ = ["NAME", "PICO", "write_checkpoint"]

NAME = "sam2.1-pico"
PICO = catalog.Model(
    name=NAME,
    config=Sam2Config(
        version="2.1",
        trunk=HieraConfig(8, 1, (1, 1, 1, 1), (2,), window_spec=(8, 4, 6, 8), pos_embed_bkg=8),
        memory=MemoryConfig(mem_dim=8, num_layers=1, ffn_dim=16),
        image_size=64,
        hidden_dim=16,
        decoder_heads=2,
        decoder_mlp_dim=32,
    ),
)


def write_checkpoint(path: Path, seed: int = 0) -> None:
    """Write random weights of which none is zero, as safetensors."""
    import torch
    from safetensors.torch import save_file

    from vkrt.models.sam2.model import Sam2

    torch.manual_seed(seed)
    tensors = Sam2(PICO.config).state_dict()
    for tensor in tensors.values():
        if not tensor.any():
            tensor.normal_(std=0.1)
    save_file(tensors, path)
