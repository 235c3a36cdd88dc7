"""The stages of SAM 2 that segment pictures: image_encoder, mask_decoder and mask_refiner."""

from __future__ import annotations

from torch import Tensor, nn

from vkrt.models.sam2.config import Sam2Config
from vkrt.models.sam2.mask_decoder import NUM_MASKS
from vkrt.models.sam2.model import Sam2
from vkrt.stage import Port, Stage

__all__ = ["image_stages"]


class ImageStage(nn.Module):
    """Hold the model and the position encoding of its pixels, which never changes."""

    position: Tensor

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("position", model.position().detach(), persistent=False)


class EncodeImage(ImageStage):
    """Encode pictures that belong to no clip, as far as no prompt counts."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        image, high_res_s0, high_res_s1 = self.model.encode(pixels)
        # A picture has no past: SAM 2 adds this in place of memory attention.
        image = image + self.model.no_mem_embed
        keys, values = self.model.project_pixels(image, self.position)
        return image, high_res_s0, high_res_s1, keys, values

    def fold_constants(self) -> None:
        """Compute for good what pictures of one size share."""
        self.model.image_encoder.trunk.fold_position(self.model.config.image_size)


class DecodeMasks(ImageStage):
    """Decode points and boxes on one encoded picture into all four masks; the caller chooses."""

    def forward(
        self,
        image: Tensor,
        high_res_s0: Tensor,
        high_res_s1: Tensor,
        keys: Tensor,
        values: Tensor,
        points: Tensor,
        labels: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits, iou, _, object_score = self.model.decode(
            image,
            (high_res_s0, high_res_s1),
            points,
            labels,
            projected=(keys, values),
            position=self.position,
        )
        return logits, iou, object_score


class RefineMasks(ImageStage):
    """Decode as DecodeMasks, where prompts have earlier logits too."""

    def forward(
        self,
        image: Tensor,
        high_res_s0: Tensor,
        high_res_s1: Tensor,
        points: Tensor,
        labels: Tensor,
        masks: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits, iou, _, object_score = self.model.decode(
            image,
            (high_res_s0, high_res_s1),
            points,
            labels,
            masks,
            position=self.position,
        )
        return logits, iou, object_score


def embedding_ports(config: Sam2Config, images: int | str) -> dict[str, Port]:
    """Return the ports of what the encoder keeps of a picture, by name."""
    dim, pixels, heads = config.hidden_dim, config.embed_size**2, config.decoder_heads
    # The attention between tokens and pixels works at half of the width.
    head_dim = dim // 2 // heads
    shapes: dict[str, tuple[int | str, ...]] = {
        "image": (images, pixels, dim),
        "high_res_s0": (images, pixels, 16, dim // 8),
        "high_res_s1": (images, pixels, 4, dim // 4),
        "keys": (images, heads, head_dim, pixels),
        "values": (images, heads, pixels, head_dim),
    }
    return {name: Port(name, shape) for name, shape in shapes.items()}


def image_stages(model: Sam2) -> dict[str, Stage]:
    """Return the stages by name; dimensions that vary are symbols."""
    config = model.config
    size, low = config.image_size, config.mask_size
    one = embedding_ports(config, 1)
    features = one["image"], one["high_res_s0"], one["high_res_s1"]
    prompts = (
        Port("points", ("prompts", "points", 2), bounds=(0, size), exact=True),
        Port("labels", ("prompts", "points"), "int32", bounds=(-1, 3)),
    )
    earlier = Port("masks", ("prompts", 1, low, low))
    decoded = (
        Port("logits", ("prompts", NUM_MASKS, low, low)),
        Port("iou", ("prompts", NUM_MASKS)),
        Port("object_score", ("prompts", 1)),
    )
    stages = (
        Stage(
            "image_encoder",
            EncodeImage(model),
            (Port("pixels", ("images", 3, size, size)),),
            tuple(embedding_ports(config, "images").values()),
        ),
        Stage("mask_decoder", DecodeMasks(model), (*one.values(), *prompts), decoded),
        Stage("mask_refiner", RefineMasks(model), (*features, *prompts, earlier), decoded),
    )
    return {stage.name: stage for stage in stages}
