"""The stages of SAM 2 that segment pictures: image_encoder and mask_decoder."""

from __future__ import annotations

from torch import Tensor, nn

from vkrt.models.sam2.mask_decoder import NUM_MASKS
from vkrt.models.sam2.model import Sam2
from vkrt.stage import Port, Stage

__all__ = ["image_stages"]


class EncodeImage(nn.Module):
    """Encode pictures that belong to no clip."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image, high_res_s0, high_res_s1 = self.model.encode(pixels)
        # A picture has no past: SAM 2 adds this in place of memory attention.
        return image + self.model.no_mem_embed.view(1, -1, 1, 1), high_res_s0, high_res_s1


class DecodeMasks(nn.Module):
    """Decode prompts on an encoded picture into all four masks; the caller chooses."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        image: Tensor,
        high_res_s0: Tensor,
        high_res_s1: Tensor,
        points: Tensor,
        labels: Tensor,
        masks: Tensor,
        has_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits, iou, _, object_score = self.model.decode(
            image, (high_res_s0, high_res_s1), points, labels, masks, has_mask
        )
        return logits, iou, object_score


def image_stages(model: Sam2) -> dict[str, Stage]:
    """Return the stages by name; dimensions that vary are symbols.

    The decoder's "images" is 1 (every prompt on one picture) or equals "prompts".
    """
    config = model.config
    size, dim, grid, low = (
        config.image_size,
        config.hidden_dim,
        config.embed_size,
        config.mask_size,
    )
    embedding = (
        Port("image", ("images", dim, grid, grid)),
        Port("high_res_s0", ("images", dim // 8, 4 * grid, 4 * grid)),
        Port("high_res_s1", ("images", dim // 4, 2 * grid, 2 * grid)),
    )
    prompts = (
        Port("points", ("prompts", "points", 2)),
        Port("labels", ("prompts", "points"), "int32"),
        Port("masks", ("prompts", 1, low, low)),
        Port("has_mask", ("prompts",)),
    )
    decoded = (
        Port("logits", ("prompts", NUM_MASKS, low, low)),
        Port("iou", ("prompts", NUM_MASKS)),
        Port("object_score", ("prompts", 1)),
    )
    pixels = (Port("pixels", ("images", 3, size, size)),)
    return {
        "image_encoder": Stage("image_encoder", EncodeImage(model), pixels, embedding),
        "mask_decoder": Stage("mask_decoder", DecodeMasks(model), embedding + prompts, decoded),
    }
