"""LoRA names: each way of writing a name leads to the weight it means, or nowhere."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vkrt.errors import CheckpointError
from vkrt.models.sd35.conditioning import Conditioning
from vkrt.models.sd35.config import MmditConfig
from vkrt.models.sd35.mmdit import Denoiser
from vkrt.weights.lora_names import Address, Targets, address_of, split_key

Shapes = dict[str, tuple[int, ...]]


def config_of(depth: int, dual_blocks: tuple[int, ...]) -> MmditConfig:
    """Return a narrow transformer: names do not depend on widths."""
    return MmditConfig(
        depth=depth,
        heads=2,
        head_dim=4,
        dual_blocks=dual_blocks,
        pos_embed_max_size=4,
        channels=4,
        context_dim=12,
        pooled_dim=10,
    )


TINY = config_of(3, (0,))
LARGE = config_of(38, ())
MEDIUM = config_of(24, tuple(range(13)))


def shapes_of(config: MmditConfig) -> dict[str, Shapes]:
    parts = {"denoiser": Denoiser(config), "conditioning": Conditioning(config)}
    return {
        part: {name: tuple(value.shape) for name, value in module.named_parameters()}
        for part, module in parts.items()
    }


@pytest.fixture(scope="module")
def tiny() -> dict[str, Shapes]:
    return shapes_of(TINY)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("transformer.a.lora_A.weight", ("transformer.a", "down")),
        ("transformer.a.lora_B.default.weight", ("transformer.a", "up")),
        ("base_model.model.a.b.lora_A.my-name.weight", ("base_model.model.a.b", "down")),
        ("text_encoder.a.lora_linear_layer.up.weight", ("text_encoder.a", "up")),
        ("transformer.a.to_out.0.lora.down.weight", ("transformer.a.to_out.0", "down")),
        ("lora_unet_a_b.lora_down.weight", ("lora_unet_a_b", "down")),
        ("lora_unet_a_b.alpha", ("lora_unet_a_b", "alpha")),
        ("lora_te1_a.dora_scale", ("lora_te1_a", "magnitude")),
        ("a.lora_magnitude_vector.default.weight", ("a", "magnitude")),
        ("a.lora_magnitude_vector", ("a", "magnitude")),
        ("lycoris_a.hada_w2_b", ("lycoris_a", "hada_w2_b")),
        ("a.lokr_w1.default", ("a", "lokr_w1")),
        ("lycoris_a.lokr_w2_a", ("lycoris_a", "lokr_w2_a")),
        ("lora_unet_a.lora_mid.weight", None),
        ("a.lora_B.bias", None),
        ("a.lora_B", None),
        ("a.lokr_t2", None),
        ("a.weight", None),
        ("lora_A.weight", None),
        ("", None),
    ],
)
def test_keys_are_split(key: str, expected: tuple[str, str] | None) -> None:
    assert split_key(key) == expected


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("transformer.x.proj", Address("denoiser", "x.proj", False)),
        ("base_model.model.x.proj", Address("denoiser", "x.proj", False)),
        ("base_model.model.text_encoder.x", Address("clip_l", "x", False)),
        ("blocks.0.attn.to_q", Address("denoiser", "blocks.0.attn.to_q", False)),
        ("lora_transformer_x_proj", Address("denoiser", "x_proj", True)),
        ("lora_transformer.x.proj", Address("denoiser", "x.proj", False)),
        ("lycoris_x_proj", Address("denoiser", "x_proj", True)),
        ("lora_unet_x_proj", Address("denoiser", "x_proj", True)),
        ("model.diffusion_model.x", Address("denoiser", "x", False)),
        ("text_encoder.x", Address("clip_l", "x", False)),
        ("text_encoder_2.x", Address("clip_g", "x", False)),
        ("text_encoder_3.x", Address("t5", "x", False)),
        ("lora_te1_x", Address("clip_l", "x", True)),
        ("lora_te2_x", Address("clip_g", "x", True)),
        ("lora_te3_x", Address("t5", "x", True)),
        ("text_encoders.t5xxl.transformer.x", Address("t5", "x", False)),
    ],
)
def test_prefixes_name_the_model(stem: str, expected: Address) -> None:
    assert address_of(stem) == expected


def every_name(shapes: Shapes, part: str) -> list[str]:
    return list(Targets(part, shapes).exact)


@pytest.mark.parametrize("config", [TINY, MEDIUM, LARGE], ids=["tiny", "medium", "large"])
def test_no_weight_of_the_models_is_ambiguous(config: MmditConfig) -> None:
    for part, shapes in shapes_of(config).items():
        targets = Targets(part, shapes)
        assert len(targets.exact) > len(shapes) / 2
        for path, target in targets.exact.items():
            flat = path.replace(".", "_")
            for stem in (f"transformer.{path}", f"lora_unet_{flat}", f"lycoris_{flat}", path):
                address = address_of(stem)
                assert address.part == part, stem
                assert targets.find(address) == target, stem


@pytest.mark.parametrize(("depth", "dual"), [(1, ()), (1, (0,)), (3, (0,)), (4, (1, 3))])
def test_names_of_diffusers_cover_each_row_once(depth: int, dual: tuple[int, ...]) -> None:
    config = config_of(depth, dual)
    for part, shapes in shapes_of(config).items():
        rows: dict[str, list[int]] = defaultdict(list)
        for path, target in Targets(part, shapes).exact.items():
            is_theirs = f"{path}.weight" not in shapes or path == "context_embedder"
            if is_theirs and ".qkv." not in path:
                for start, stop in target.ranges:
                    rows[target.weight] += range(start, stop)
        matrices = {k: v for k, v in shapes.items() if k.endswith(".weight") and len(v) > 1}
        assert rows.keys() == matrices.keys()
        for name, shape in matrices.items():
            assert sorted(rows[name]) == list(range(shape[0])), name


def test_slices_of_a_fused_weight(tiny: dict[str, Shapes]) -> None:
    targets = Targets("denoiser", tiny["denoiser"])
    for path, start in {
        "transformer_blocks.1.attn.to_q": 0,
        "transformer_blocks.1.attn.to_k": 8,
        "transformer_blocks.1.attn.to_v": 16,
        "joint_blocks.1.x_block.attn.qkv.2": 16,
    }.items():
        found = targets.find(Address("denoiser", path, flat=False))
        assert found is not None
        assert found.weight == "joint_blocks.1.x_block.attn.qkv.weight"
        assert (found.shape, found.ranges) == ((8, 8), ((start, start + 8),)), path
    found = targets.find(Address("denoiser", "transformer_blocks_0_attn_add_k_proj", flat=True))
    assert found is not None and found.weight == "joint_blocks.0.context_block.attn.qkv.weight"
    patches = targets.find(Address("denoiser", "pos_embed.proj", flat=False))
    assert patches is not None and patches.shape == (8, 16)


def test_only_the_two_modulations_are_swapped(tiny: dict[str, Shapes]) -> None:
    exact = Targets("conditioning", tiny["conditioning"]).exact
    swapped = {path for path, target in exact.items() if len(target.ranges) > 1}
    assert swapped == {"norm_out.linear", "transformer_blocks.2.norm1_context.linear"}
    assert all(exact[path].ranges == ((8, 16), (0, 8)) for path in swapped)


PIECES = st.lists(st.sampled_from(["a", "b", "a_b", "0", "1", "_"]), min_size=1, max_size=4)
PATHS = PIECES.map(".".join)


@settings(deadline=None)
@given(st.sets(PATHS, min_size=1, max_size=12))
def test_underscores_find_their_weight_or_say_that_they_can_not(paths: set[str]) -> None:
    targets = Targets("t5", {f"{path}.weight": (2, 3) for path in paths})
    for path in paths:
        exact = targets.find(Address("t5", path, flat=False))
        assert exact is not None and exact.weight == f"{path}.weight"
        flat = path.replace(".", "_")
        twins = [other for other in paths if other.replace(".", "_") == flat]
        if len(twins) == 1:
            assert targets.find(Address("t5", flat, flat=True)) == exact
        else:
            with pytest.raises(CheckpointError, match="may be"):
                targets.find(Address("t5", flat, flat=True))


@settings(deadline=None)
@given(st.sets(PATHS, max_size=12), PATHS)
def test_a_name_that_is_not_there_is_not_found(paths: set[str], other: str) -> None:
    targets = Targets("clip_l", {f"{path}.weight": (2, 3) for path in paths - {other}})
    assert targets.find(Address("clip_l", other, flat=False)) is None


@settings(deadline=None)
@given(PATHS, st.sampled_from(["lora_A.weight", "lora_down.weight", "lora_A.default.weight"]))
def test_splitting_a_key_keeps_the_path(path: str, ending: str) -> None:
    assert split_key(f"{path}.{ending}") == (path, "down")


def test_vectors_are_no_targets() -> None:
    shapes: Shapes = {"norm.weight": (4,), "fc.bias": (4,), "fc.weight": (4, 2), "scale": (4, 4)}
    assert every_name(shapes, "t5") == ["fc"]
