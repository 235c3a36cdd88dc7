"""The stages of SAM 2 that track objects; what each takes and gives is in video_stages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.models.sam2.choice import choose_mask, take
from vkrt.models.sam2.conditioning import ConditionFrame
from vkrt.models.sam2.config import Sam2Config
from vkrt.models.sam2.model import MASK_BIAS, MASK_SCALE, Sam2
from vkrt.models.sam2.prompt_encoder import PAD
from vkrt.models.sam2.shrinking import shrinking_matrix
from vkrt.models.sam2.stages import ImageStage, embedding_ports
from vkrt.stage import Port, Stage

__all__ = ["NO_OBJECT", "PADS", "video_stages"]

# The logit of every pixel where the object is not there.
NO_OBJECT = -1024.0
# Earlier logits are cut to this either way.
LOGIT_LIMIT = 32.0
# Points of a prompt that has none.
PADS = 2

Decoded = tuple[Tensor, Tensor, Tensor, Tensor]


class TrackStage(ImageStage):
    """Choose among the masks that are decoded for each object."""

    def choose(self, decoded: Decoded, multimask: Tensor) -> Decoded:
        """Return logits (N, 1, h, w), IoU (N, 1), pointers (N, C) and object scores (N, 1)."""
        logits, iou, tokens, object_score = decoded
        shown, speaking = choose_mask(logits, iou, multimask)
        there = object_score > 0
        logits = take(logits, shown).unsqueeze(1)
        return (
            torch.where(there[..., None, None], logits, NO_OBJECT),
            take(iou, shown).unsqueeze(1),
            self.model.pointer(take(tokens, speaking), there),
            object_score,
        )


class DecodeTrack(TrackStage):
    """Decode a frame conditioned for each object, with points and boxes or without."""

    def forward(
        self,
        conditioned: Tensor,
        high_res_s0: Tensor,
        high_res_s1: Tensor,
        points: Tensor,
        labels: Tensor,
        multimask: Tensor,
    ) -> Decoded:
        high_res = high_res_s0, high_res_s1
        decoded = self.model.decode(conditioned, high_res, points, labels, position=self.position)
        return self.choose(decoded, multimask)


class RefineTrack(TrackStage):
    """Decode as DecodeTrack, where objects have earlier logits too."""

    def forward(
        self,
        conditioned: Tensor,
        high_res_s0: Tensor,
        high_res_s1: Tensor,
        points: Tensor,
        labels: Tensor,
        masks: Tensor,
        multimask: Tensor,
    ) -> Decoded:
        high_res = high_res_s0, high_res_s1
        # Beyond this, as an object's that is not there, logits are none that training has seen.
        masks = masks.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        decoded = self.model.decode(
            conditioned, high_res, points, labels, masks, position=self.position
        )
        return self.choose(decoded, multimask)


class EncodeMemory(nn.Module):
    """Remember what was decoded on a frame."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, image: Tensor, logits: Tensor, object_score: Tensor, binary: Tensor
    ) -> tuple[Tensor]:
        size = self.model.config.image_size
        large = F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)
        hard = (large > 0).to(large.dtype)
        masks = torch.where(binary[:, None, None, None] > 0, hard, large.sigmoid())
        raw = image - self.model.no_mem_embed
        return (self.model.remember(raw, masks, object_score > 0),)


class PromptMasks(ImageStage):
    """Take masks that the user gives for what was decoded."""

    shrink: Tensor

    def __init__(self, model: Sam2) -> None:
        super().__init__(model)
        config = model.config
        shrink = shrinking_matrix(config.image_size, config.image_size // config.mask_size)
        self.register_buffer("shrink", shrink.to(self.position.device), persistent=False)

    def forward(
        self, image: Tensor, high_res_s0: Tensor, high_res_s1: Tensor, masks: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        raw = image - self.model.no_mem_embed
        there = masks.flatten(1).amax(dim=1, keepdim=True) > 0
        logits = self.shrink @ (masks * MASK_SCALE + MASK_BIAS) @ self.shrink.transpose(0, 1)
        return (
            logits,
            self.pointer(raw, (high_res_s0, high_res_s1), masks, there),
            there * MASK_SCALE + MASK_BIAS,
        )

    def pointer(
        self, raw: Tensor, high_res: tuple[Tensor, Tensor], masks: Tensor, there: Tensor
    ) -> Tensor:
        """Return the pointers (N, C) that the decoder gives for masks (N, 1, S, S)."""
        points = masks.new_zeros(masks.shape[0], PADS, 2)
        labels = torch.full_like(points[..., 0], PAD, dtype=torch.int32)
        prompts = self.model.mask_downsample(masks)
        _, _, tokens, object_score = self.model.decode(
            raw, high_res, points, labels, prompts, position=self.position
        )
        # The token of the single mask, as upstream; transformers takes the best of three.
        return self.model.pointer(tokens[:, 0], there & (object_score > 0))


def video_stages(model: Sam2) -> dict[str, Stage]:
    """Return the stages by name; dimensions that vary are symbols.

    N objects, L pixels of stride 16, C = hidden_dim, M = mem_dim, S = image_size, h = S / 4.
    `image`, (1, L, C), and high_res_s0 and high_res_s1 are outputs of the stage image_encoder.

    memory_attention takes for each object memories (N, slots, L, M), their ages (N, slots), being
    0 of a conditioning frame, k of one tracked k frames ago and -1 of an empty slot, pointers
    (N, pointers, C), their offsets (N, pointers), frames in time over the most there may be, and
    whether they are present. It gives the conditioned picture (N, L, C).

    track_decoder takes that and prompts, padded with label -1, to decode all objects at once.
    Where multimask is 1 an object shows the best of three masks, where it is 0 only if the single
    one is unstable, where it is -1 never. It gives logits (N, 1, h, h), -1024 where the object is
    not there, predicted IoU (N, 1), object pointers (N, C) and object scores (N, 1), positive
    where the object is there. track_refiner takes earlier logits too.

    memory_encoder takes these logits and scores and gives memories (N, L, M); where binary is 1,
    the mask counts and not its logits, as for prompts.

    mask_prompter takes masks (N, 1, S, S) of 0 and 1 and gives what a decoder would, but for the
    predicted IoU. (Bundles made before it left remembering to memory_encoder give memories too.)
    """
    features = embedding_ports(model.config, 1)
    high_res = features["high_res_s0"], features["high_res_s1"]
    stages = (
        *memory_stages(model, features["image"]),
        *track_stages(model, high_res),
        prompter_stage(model, (features["image"], *high_res)),
    )
    return {stage.name: stage for stage in stages}


def memory_stages(model: Sam2, image: Port) -> tuple[Stage, Stage]:
    """Return the stages memory_attention and memory_encoder."""
    ports, oldest = object_ports(model.config), model.config.memory.num_maskmem - 1
    conditioning = (
        image,
        Port("memories", ("objects", "slots", *ports["memory"].shape[1:])),
        Port("ages", ("objects", "slots"), "int32", bounds=(-1, oldest)),
        Port("pointers", ("objects", "pointers", model.config.hidden_dim)),
        Port("offsets", ("objects", "pointers"), bounds=(0, 1), exact=True),
        Port("present", ("objects", "pointers"), "int32"),
    )
    binary = Port("binary", ("objects",), "int32")
    encoding = image, ports["logits"], ports["object_score"], binary
    return (
        Stage("memory_attention", ConditionFrame(model), conditioning, (ports["conditioned"],)),
        Stage("memory_encoder", EncodeMemory(model), encoding, (ports["memory"],)),
    )


def track_stages(model: Sam2, high_res: tuple[Port, Port]) -> tuple[Stage, Stage]:
    """Return the stages track_decoder and track_refiner."""
    config, ports = model.config, object_ports(model.config)
    prompted = (
        ports["conditioned"],
        *high_res,
        Port("points", ("objects", "points", 2), bounds=(0, config.image_size), exact=True),
        Port("labels", ("objects", "points"), "int32", bounds=(-1, 3)),
    )
    masks = Port("masks", ports["logits"].shape)
    multimask = Port("multimask", ("objects",), "int32", bounds=(-1, 1))
    given = tuple(ports[name] for name in ("logits", "iou", "pointer", "object_score"))
    return (
        Stage("track_decoder", DecodeTrack(model), (*prompted, multimask), given),
        Stage("track_refiner", RefineTrack(model), (*prompted, masks, multimask), given),
    )


def prompter_stage(model: Sam2, features: tuple[Port, ...]) -> Stage:
    """Return the stage mask_prompter."""
    ports, size = object_ports(model.config), model.config.image_size
    masks = Port("masks", ("objects", 1, size, size), bounds=(0, 1))
    given = tuple(ports[name] for name in ("logits", "pointer", "object_score"))
    return Stage("mask_prompter", PromptMasks(model), (*features, masks), given)


def object_ports(config: Sam2Config) -> dict[str, Port]:
    """Return the ports of what there is once for each object, by name."""
    pixels, dim, low = config.embed_size**2, config.hidden_dim, config.mask_size
    shapes: dict[str, tuple[int, ...]] = {
        "conditioned": (pixels, dim),
        "logits": (1, low, low),
        "iou": (1,),
        "pointer": (dim,),
        "object_score": (1,),
        "memory": (pixels, config.memory.mem_dim),
    }
    return {name: Port(name, ("objects", *shape)) for name, shape in shapes.items()}
