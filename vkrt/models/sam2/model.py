"""The whole SAM 2 model: its parameters carry the names of the official checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vkrt.models.sam2.config import Sam2Config
from vkrt.models.sam2.layers import MLP
from vkrt.models.sam2.mask_decoder import MaskDecoder
from vkrt.models.sam2.memory_attention import MemoryAttention
from vkrt.models.sam2.memory_encoder import MemoryEncoder
from vkrt.models.sam2.neck import ImageEncoder
from vkrt.models.sam2.prompt_encoder import PromptEncoder

__all__ = ["Sam2"]


class Sam2(nn.Module):
    """Hold every module of SAM 2 or 2.1 (https://arxiv.org/abs/2408.00714).

    What runs are the stages made from it (vkrt.models.sam2.stages); the module itself only
    owns the parameters and the two computations that stages share.
    """

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.config = config
        # Loading image-only weights (transformers' Sam2Model) clears it.
        self.has_memory = True
        dim, mem_dim = config.hidden_dim, config.memory.mem_dim
        self.image_encoder = ImageEncoder(config)
        self.sam_prompt_encoder = PromptEncoder(dim, config.image_size)
        self.sam_mask_decoder = MaskDecoder(dim, config.decoder_heads, config.decoder_mlp_dim)
        self.memory_attention = MemoryAttention(config)
        self.memory_encoder = MemoryEncoder(config)
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.obj_ptr_proj = MLP(dim, dim, dim, num_layers=3)
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(config.memory.num_maskmem, 1, 1, mem_dim))
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, dim))
        self.no_mem_pos_enc = nn.Parameter(torch.zeros(1, 1, dim))
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, dim))
        if config.version == "2.1":
            self.no_obj_embed_spatial = nn.Parameter(torch.zeros(1, mem_dim))
            self.obj_ptr_tpos_proj = nn.Linear(dim, mem_dim)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode normalized pixels (B, 3, S, S) into what the mask decoder reads.

        Returns:
            image embedding (B, C, S/16, S/16) without any memory, and the decoder's lateral
            features of stride 4 (B, C/8, S/4, S/4) and stride 8 (B, C/4, S/8, S/8).
        """
        stride4, stride8, stride16 = self.image_encoder(pixels)
        decoder = self.sam_mask_decoder
        return stride16, decoder.conv_s0(stride4), decoder.conv_s1(stride8)

    def decode(
        self,
        image: Tensor,
        high_res: tuple[Tensor, Tensor],
        points: Tensor,
        labels: Tensor,
        masks: Tensor,
        has_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decode N prompts; shapes as in PromptEncoder and MaskDecoder.

        Returns:
            logits (N, 4, S/4, S/4), predicted IoU (N, 4), mask tokens (N, 4, C), object score
            logits (N, 1).
        """
        prompts = self.sam_prompt_encoder
        return self.sam_mask_decoder(
            image=image,
            image_pe=prompts.pe_layer.grid(image.shape[-1]),
            sparse=prompts.embed_points(points, labels),
            dense=prompts.embed_masks(masks, has_mask),
            high_res=high_res,
        )
