"""Which family of models a name or a checkpoint is of, by its headers alone: imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vkrt.errors import CheckpointError
from vkrt.models.sd35.known import FILES, HUB_IDS, KNOWN
from vkrt.weights.bounded_json import parse_json
from vkrt.weights.safety_limits import MAX_INDEX_BYTES, shown

__all__ = ["NOT_RUN", "family_by_name", "family_of", "find_sd35", "holds_sd35", "named_pipeline"]

CUSTOM = "custom"
# What a file of the transformer has, under official names and those of diffusers.
MARKS = ("joint_blocks.", "transformer_blocks.0.attn.add_q_proj")
FOLDERS = ("model_index.json", "transformer")
OURS = "StableDiffusion3"

# What follows the name of a family that vkrt does not run.
NOT_RUN = "which vkrt does not run: give a checkpoint of SAM 2 or of Stable Diffusion 3.5"
SDXL = f"Stable Diffusion XL, {NOT_RUN}"
UNET = f"Stable Diffusion 1 or another model with its U-Net, {NOT_RUN}"
# Longer ones are no names of tensors, and are not searched.
MAX_NAME = 300


class Family(NamedTuple):
    """Say by what a family of models is known.

    Attributes:
        name: what a message calls it, and what to do instead.
        marks: patterns; each is found at the start of a tensor's name, or behind a dot in it.
    """

    name: str
    marks: tuple[str, ...]


# The first whose marks are all there is it: those that others resemble stand behind them.
FAMILIES = (
    Family(
        "a LoRA, which changes a model and is none: load the model that it was trained on, and "
        "give this file to load_lora() or --lora",
        (r"(?:lora_[AB]\.|lora_(?:up|down)\.|lora\.(?:up|down)\.|hada_w1_|lokr_w[12])",),
    ),
    Family(
        "a textual inversion, which is not supported",
        (r"(?:emb_params|clip_[lg]|string_to_param\.\*)(?:\n|\Z)",),
    ),
    Family(
        "SAM 2: load it without the name of a diffusion model, or as the SAM 2 that it is",
        (
            r"(?:image_encoder\.trunk|vision_encoder\.backbone)\.blocks\.0\.",
            r"(?:sam_)?mask_decoder\.",
        ),
    ),
    Family(f"SAM 3, {NOT_RUN}", (r"(?:vision_backbone\.trunk|detector_model\.)",)),
    Family(f"EdgeTAM, {NOT_RUN}", (r"image_encoder\.trunk\.body\.",)),
    Family(
        f"MobileSAM, {NOT_RUN}",
        (r"image_encoder\.layers\.0\.blocks\.0\.conv1\.", r"mask_decoder\."),
    ),
    Family(f"HQ-SAM, {NOT_RUN}", (r"mask_decoder\.hf_token\.",)),
    Family(
        f"EfficientViT-SAM, {NOT_RUN}",
        (r"image_encoder\.backbone\.", r"(?:prompt_encoder|mask_decoder)\."),
    ),
    Family(
        f"EfficientSAM, {NOT_RUN}",
        (r"image_encoder\.blocks\.0\.", r"mask_decoder\.final_output_upscaling_layers\."),
    ),
    Family(
        f"SAM 1, {NOT_RUN}",
        (r"(?:image_encoder\.blocks|vision_encoder\.layers)\.0\.attn\.qkv\.", r"mask_decoder\."),
    ),
    Family(
        "a ControlNet alone: load the model that it leads, and give this file as control_model= "
        "or --control-model",
        (r"(?:controlnet_blocks|control_model|controlnet_cond_embedding|zero_convs)\.",),
    ),
    Family(SDXL, (r"(?:conditioner\.embedders|label_emb)\.", r"input_blocks\.0\.")),
    Family(SDXL, (r"add_embedding\.linear_1\.", r"down_blocks\.0\.")),
    Family(
        f"Stable Diffusion 2, {NOT_RUN}",
        (r"cond_stage_model\.model\.transformer\.", r"input_blocks\.0\."),
    ),
    Family(UNET, (r"input_blocks\.0\.",)),
    Family(UNET, (r"time_embedding\.linear_1\.", r"down_blocks\.0\.")),
    Family(f"FLUX, {NOT_RUN}", (r"double_blocks\.0\.img_attn\.", r"single_blocks\.0\.")),
    Family(
        f"FLUX, {NOT_RUN}",
        (r"single_transformer_blocks\.0\.attn\.", r"transformer_blocks\.0\.attn\.add_q_proj"),
    ),
    Family(f"Qwen-Image, {NOT_RUN}", (r"transformer_blocks\.0\.img_mod\.",)),
    Family(f"AuraFlow, {NOT_RUN}", (r"(?:double_layers|joint_transformer_blocks)\.0\.",)),
    Family(f"Wan, {NOT_RUN}", (r"blocks\.0\.self_attn\.", r"blocks\.0\.cross_attn\.")),
    Family(f"PixArt, {NOT_RUN}", (r"(?:blocks\.0\.cross_attn\.q_linear|adaln_single)\.",)),
)
# Those of Stable Diffusion 3.5 and its parts, alone.
PARTS = (
    Family(
        "Stable Diffusion 3.5: load it without the name of another model",
        (r"(?:joint_blocks\.0\.x_block|transformer_blocks\.0)\.attn\.(?:ln_q|norm_q)\.",),
    ),
    Family(f"Stable Diffusion 3, not 3.5, {NOT_RUN}", (r"joint_blocks\.0\.x_block\.",)),
    Family(
        'an autoencoder alone: load a transformer, and give this file as encoders={"vae": PATH}',
        (r"encoder\.conv_in\.", r"decoder\.conv_in\."),
    ),
    Family(
        'a T5 encoder alone: load a transformer, and give this file as encoders={"t5": PATH}',
        (r"encoder\.block\.0\.layer\.0\.SelfAttention\.",),
    ),
    Family(
        "a CLIP text encoder alone: load a transformer, and give this file as "
        'encoders={"clip_l": PATH} or "clip_g"',
        (r"text_model\.encoder\.layers\.0\.",),
    ),
)

# What names of other families contain, in lower case, and the family.
BY_NAME = {
    "flux": "FLUX",
    "stable-diffusion-3-": "Stable Diffusion 3",
    "sd3-medium": "Stable Diffusion 3",
    "stable-diffusion-xl": "Stable Diffusion XL",
    "sdxl": "Stable Diffusion XL",
    "stable-diffusion-2": "Stable Diffusion 2",
    "stable-diffusion-v1": "Stable Diffusion 1",
    "sam-vit-": "SAM 1",
    "sam_vit_": "SAM 1",
    "mobilesam": "MobileSAM",
    "mobile-sam": "MobileSAM",
    "sam3": "SAM 3",
    "sam-3": "SAM 3",
    "qwen-image": "Qwen-Image",
}


def family_of(names: Iterable[str], parts: bool = True) -> str | None:
    """Return what family tensors of these names are of, and what to do with it.

    Args:
        names: of a checkpoint, with any prefix.
        parts: whether Stable Diffusion 3.5 and its components count as well.

    Returns:
        None where no known family is.
    """
    text = "\n".join(name[:MAX_NAME] for name in names)
    for family in (*FAMILIES, *PARTS) if parts else FAMILIES:
        if all(re.search(rf"(?:^|\.){mark}", text, re.MULTILINE) for mark in family.marks):
            return family.name
    return None


def family_by_name(name: str) -> str | None:
    """Return which family that vkrt does not run a hub id is of, None for any other name."""
    key = name.strip().lower()
    if "/" not in key:
        return None
    return next((family for part, family in BY_NAME.items() if part in key), None)


def find_sd35(name: str) -> str | None:
    """Return the catalog name of Stable Diffusion 3.5 for that name, a hub id or a file name.

    Case, "_" and "-" make no difference; "custom" is one too. None is for any other.
    """
    key = plain(name)
    for known in KNOWN:
        aliases = (known, HUB_IDS[known], FILES[known], FILES[known].removesuffix(".safetensors"))
        if key in map(plain, aliases):
            return known
    return CUSTOM if key == CUSTOM else None


def plain(name: str) -> str:
    """Return a name so that case, "_" and "-" make no difference."""
    return name.strip().lower().replace("_", "-")


def holds_sd35(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file or folder looks like Stable Diffusion 3.5; nothing else is checked."""
    place = Path(path)
    if place.is_dir():
        return any((place / name).exists() for name in FOLDERS)
    try:
        names = names_of(place)
    except Exception:
        # Whoever reads it for good says what is wrong with it.
        return False
    return any(mark in name for name in names for mark in MARKS)


def names_of(path: Path) -> list[str]:
    """Return the names of the tensors of a safetensors file, or those that an index promises.

    Raises:
        CheckpointError, OSError, ...: it is neither, or damaged.
    """
    # They take a while, and whoever gives a name needs none of them.
    from vkrt.weights.folder import find_parts
    from vkrt.weights.safetensors_file import open_checked

    parts = find_parts(path)
    if parts.promised:
        return sorted(parts.promised)
    with open_checked(path, "numpy") as file:
        return list(file.keys())


def named_pipeline(folder: Path) -> str | None:
    """Return the class of pipeline that a folder of diffusers is of, None where it does not say.

    Raises:
        CheckpointError: it is of another model than Stable Diffusion 3.
    """
    index = folder / "model_index.json"
    if not index.is_file() or index.stat().st_size > MAX_INDEX_BYTES:
        return None
    try:
        content = parse_json(index.read_bytes())
    except (OSError, ValueError):
        return None
    name = content.get("_class_name") if isinstance(content, dict) else None
    if isinstance(name, str) and not name.startswith(OURS):
        raise CheckpointError(f"{shown(folder, 1000)} is a folder of {shown(name)}, {NOT_RUN}")
    return name if isinstance(name, str) else None
