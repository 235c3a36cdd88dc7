"""The first values of the demo model's parameters."""

from __future__ import annotations

from torch import nn

from vkrt.models.sam2.mask_decoder import Attention
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.neck import Lateral

__all__ = ["initialize"]

POSITION_MATCH_STD = 0.13
CONTENT_SCALE = 0.4


def initialize(model: Sam2) -> None:
    """Fill the parameters so that a click finds its own place in the picture from the start."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    for name, parameter in model.named_parameters():
        if "pos_embed" in name or "tpos_enc" in name or name.startswith("no_"):
            nn.init.trunc_normal_(parameter, std=0.02)
    for name, attention in model.sam_mask_decoder.named_modules():
        if isinstance(attention, Attention) and "self_attn" not in name:
            # Queries and keys carry the same position encoding: with one projection for both,
            # their product is a kernel that peaks where the positions agree. Learning that
            # match from independent projections takes thousands of steps.
            nn.init.normal_(attention.k_proj.weight, std=POSITION_MATCH_STD)
            attention.q_proj.weight.data.copy_(attention.k_proj.weight)
    # Content well below the position encoding (0.7), or it drowns that match.
    for module in model.modules():
        if isinstance(module, Lateral):
            module.conv.weight.data.mul_(CONTENT_SCALE)
    nn.init.normal_(model.sam_prompt_encoder.no_mask_embed.weight, std=0.1)
