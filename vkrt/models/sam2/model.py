"""The whole SAM 2 model: its parameters carry the names of the official checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vkrt.models.sam2.blocks import in_blocks
from vkrt.models.sam2.config import Sam2Config
from vkrt.models.sam2.layers import MLP
from vkrt.models.sam2.mask_decoder import MaskDecoder
from vkrt.models.sam2.memory_attention import MemoryAttention
from vkrt.models.sam2.memory_encoder import MemoryEncoder
from vkrt.models.sam2.neck import ImageEncoder
from vkrt.models.sam2.prompt_encoder import PromptEncoder

__all__ = ["MASK_BIAS", "MASK_SCALE", "Sam2"]

# Masks in [0, 1] become logits so, for memories and where a mask is the prompt.
MASK_SCALE = 20.0
MASK_BIAS = -10.0


class Sam2(nn.Module):
    """Hold every module of SAM 2 or 2.1 (https://arxiv.org/abs/2408.00714).

    What runs are the stages made from it (vkrt.models.sam2.stages and video_stages); the module
    itself only owns the parameters and the computations that stages share.
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
            image embedding (B, L, C) of the L = (S/16)**2 pixels of stride 16, without any
            memory, and the decoder's lateral features of stride 4, (B, L, 16, C/8), and of
            stride 8, (B, L, 4, C/4), in block order (vkrt.models.sam2.blocks).
        """
        neck, decoder = self.image_encoder.neck, self.sam_mask_decoder
        features = self.image_encoder.trunk(pixels)
        image = neck(features)
        grid = image.shape[1]
        high_res_s0 = neck.lateral(0).then(features[0], decoder.conv_s0)
        high_res_s1 = neck.lateral(1).then(features[1], decoder.conv_s1)
        return image.flatten(1, 2), in_blocks(high_res_s0, grid), in_blocks(high_res_s1, grid)

    def position(self) -> Tensor:
        """Return the position encoding (1, L, C) of the pixels of stride 16."""
        return self.sam_prompt_encoder.pe_layer.grid(self.config.embed_size)

    def decode(
        self,
        image: Tensor,
        high_res: tuple[Tensor, Tensor],
        points: Tensor,
        labels: Tensor,
        masks: Tensor | None = None,
        projected: tuple[Tensor, Tensor] | None = None,
        position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decode N prompts; shapes as in PromptEncoder and MaskDecoder.

        Args:
            image, high_res: what encode gives, of one picture or of N.
            points, labels: (N, P, 2) and (N, P).
            masks: (N, 1, S/4, S/4) earlier logits; None where the prompts have none.
            projected: what project_pixels gives, where masks is None.
            position: what position gives; None computes it.

        Returns:
            logits (N, 4, S/4, S/4), predicted IoU (N, 4), mask tokens (N, 4, C), object score
            logits (N, 1).
        """
        prompts = self.sam_prompt_encoder
        dense = prompts.no_mask_embed.weight if masks is None else prompts.embed_masks(masks)
        return self.sam_mask_decoder(
            image=image + dense,
            image_pe=self.position() if position is None else position,
            sparse=prompts.embed_points(points, labels),
            high_res=high_res,
            projected=projected,
        )

    def pointer(self, tokens: Tensor, there: Tensor) -> Tensor:
        """Return the object pointers (N, C) of mask tokens (N, C).

        Args:
            there: (N, 1) bool; an object that is not there has the pointer of none.
        """
        return torch.where(there, self.obj_ptr_proj(tokens), self.no_obj_ptr)

    def remember(self, image: Tensor, masks: Tensor, there: Tensor) -> Tensor:
        """Encode the masks of N objects in a picture as memories (N, L, M).

        Args:
            image: (1, L, C) raw embedding, without any memory.
            masks: (N, 1, S, S) in [0, 1].
            there: (N, 1) bool, whether the object is in the picture at all.
        """
        memory = self.memory_encoder(image, masks * MASK_SCALE + MASK_BIAS)
        if self.config.version == "2.1":
            memory = torch.where(there.unsqueeze(2), memory, memory + self.no_obj_embed_spatial)
        return memory

    def project_pixels(self, image: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Project an image embedding (B, L, C) for the mask decoder, as far as no prompt counts.

        Returns:
            keys (B, H, d, L) and values (B, H, L, d) of its first attention to the picture.
        """
        image = image + self.sam_prompt_encoder.no_mask_embed.weight
        return self.sam_mask_decoder.transformer.project_pixels(image, position)
