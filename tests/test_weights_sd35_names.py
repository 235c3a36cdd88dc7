"""Names of Stable Diffusion 3.5: the official ones and those of diffusers say the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sd35_files import CONTROL, TINY, component_shapes, controlnet_shapes, random_state
from torch import Tensor

from vkrt.models.sd35.known import KNOWN
from vkrt.weights.sd35_fit import PARTS_OF
from vkrt.weights.sd35_modules import shapes_of_part
from vkrt.weights.sd35_names import diffusers_pieces, is_diffusers, to_diffusers

State = dict[str, Tensor]
DEPTH = TINY.mmdit.depth
LEVELS = len(TINY.vae.multipliers)


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return pytest.importorskip("diffusers")


def converted(state: State, name: str, *args: Any) -> State:
    """Return what the converter of diffusers makes of official tensors."""
    from diffusers.loaders import single_file_utils

    return getattr(single_file_utils, name)(dict(state), *args)


def assert_same(ours: State, theirs: State) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_the_transformer_is_renamed_as_diffusers_does(diffusers: Any) -> None:
    state = random_state(component_shapes(TINY)["transformer"])
    theirs = converted(state, "convert_sd3_transformer_checkpoint_to_diffusers")
    assert_same(to_diffusers("transformer", state, DEPTH), theirs)


def test_the_autoencoder_is_renamed_as_diffusers_does(diffusers: Any) -> None:
    state = random_state(component_shapes(TINY)["vae"])
    blocks = {"down_block_types": [""] * LEVELS, "up_block_types": [""] * LEVELS}
    theirs = converted(state, "convert_ldm_vae_checkpoint", blocks)
    assert_same(to_diffusers("vae", state, LEVELS), theirs)


def test_a_controlnet_has_the_names_of_diffusers(diffusers: Any) -> None:
    model = diffusers.SD3ControlNetModel(
        num_layers=CONTROL.depth,
        attention_head_dim=CONTROL.head_dim,
        num_attention_heads=CONTROL.heads,
        joint_attention_dim=None,
        pooled_projection_dim=CONTROL.pooled_dim,
        pos_embed_type=None,
        use_pos_embed=False,
    )
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ours = to_diffusers("controlnet", random_state(controlnet_shapes(CONTROL)), 0)
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == theirs


@pytest.mark.parametrize("kind", ["transformer", "vae", "controlnet", "t5", "clip_g"])
def test_pieces_put_together_are_the_official_tensor(kind: str) -> None:
    shapes = {**component_shapes(TINY), "controlnet": controlnet_shapes(CONTROL)}[kind]
    count = {"transformer": DEPTH, "vae": LEVELS}.get(kind, 0)
    official = random_state(shapes)
    theirs = to_diffusers(kind, official, count)
    assert is_diffusers(kind, theirs) == (kind in ("transformer", "vae", "controlnet"))
    assert not is_diffusers(kind, official)
    for name, tensor in official.items():
        parts = [
            theirs[piece.name] if piece.half is None else theirs[piece.name].chunk(2)[piece.half]
            for piece in diffusers_pieces(kind, name, count)
        ]
        assert torch.equal(torch.cat(parts).flatten(), tensor.flatten()), name


@pytest.mark.parametrize("depth", [3, 24])
def test_shift_and_scale_are_exchanged_in_two_places_only(depth: int) -> None:
    names = [
        f"joint_blocks.{i}.{s}_block.adaLN_modulation.1.bias" for i in range(depth) for s in "x"
    ]
    names += [f"joint_blocks.{i}.context_block.adaLN_modulation.1.bias" for i in range(depth)]
    names += ["final_layer.adaLN_modulation.1.weight"]
    halves = {
        name: [p.half for p in diffusers_pieces("transformer", name, depth)] for name in names
    }
    swapped = [name for name, found in halves.items() if found == [1, 0]]
    last = f"joint_blocks.{depth - 1}.context_block.adaLN_modulation.1.bias"
    assert swapped == [last, "final_layer.adaLN_modulation.1.weight"]
    assert all(found == [None] for name, found in halves.items() if name not in swapped)


@pytest.mark.parametrize("name", ["sd3.5-large", "sd3.5-medium"])
def test_modules_have_the_full_size_key_sets(name: str) -> None:
    shapes = component_shapes(KNOWN[name])
    for kind, official in shapes.items():
        ours = {
            k: v for part in PARTS_OF[kind] for k, v in shapes_of_part(part, KNOWN[name]).items()
        }
        if kind == "clip_l":
            del ours["text_projection.weight"]
        assert ours == official
    # Billions of numbers, the position table among them.
    total = sum(map(math.prod, shapes["transformer"].values())) / 1e9
    assert total == pytest.approx({"sd3.5-large": 8.14, "sd3.5-medium": 2.47}[name], abs=0.01)
    assert sum(map(math.prod, shapes["t5"].values())) / 1e9 == pytest.approx(4.76, abs=0.01)


@pytest.mark.parametrize("name", ["sd3.5-large", "sd3.5-medium"])
def test_full_size_names_are_those_of_diffusers(diffusers: Any, name: str) -> None:
    config = KNOWN[name].mmdit
    with torch.device("meta"):
        theirs = diffusers.SD3Transformer2DModel(
            num_layers=config.depth,
            num_attention_heads=config.heads,
            caption_projection_dim=config.dim,
            pos_embed_max_size=config.pos_embed_max_size,
            dual_attention_layers=config.dual_blocks,
            qk_norm="rms_norm",
        ).state_dict()
        official = {
            k: torch.empty(v) for k, v in component_shapes(KNOWN[name])["transformer"].items()
        }
    ours = to_diffusers("transformer", official, config.depth)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_full_size_names_of_the_autoencoder_are_those_of_diffusers(diffusers: Any) -> None:
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).state_dict()
        shapes = component_shapes(KNOWN["sd3.5-large"])["vae"]
        official = {name: torch.empty(shape) for name, shape in shapes.items()}
    ours = to_diffusers("vae", official, 4)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
