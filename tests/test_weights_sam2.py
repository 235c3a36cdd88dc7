"""SAM 2 weights: every format loads into the module completely, and nothing else loads at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vkrt import catalog
from vkrt.errors import CheckpointError, DownloadError, UnknownModelError
from vkrt.models.sam2.model import Sam2
from vkrt.weights.sam2 import MEMORY, load_sam2, recognise
from vkrt.weights.sam2_names import official_name, to_official

GRID = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
OFFICIAL = [name for name in catalog.names() if catalog.find(name).hub_id]
State = dict[str, Tensor]


def meta_state(name: str) -> State:
    with torch.device("meta"):
        return Sam2(catalog.find(name).config).state_dict()


def shapes_of(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def random_state(name: str) -> State:
    """Return values in which every tensor differs from every other, even of its own shape."""
    generator = torch.Generator().manual_seed(5)
    shapes = shapes_of(meta_state(name))
    return {key: torch.rand(shape, generator=generator) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def nano() -> State:
    return random_state("sam2.1-nano")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    """Remove every test's folder after it: full-size weights fill a disk."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def assert_holds(module: Sam2, state: State) -> None:
    held = module.state_dict()
    assert held.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(held[name], tensor.float()), name
    for tensor in (*module.parameters(), *module.buffers()):
        assert tensor.device.type == "cpu" and tensor.dtype == torch.float32
        assert tensor.is_contiguous() and not tensor.requires_grad
    assert not module.training


def refusal(state: State | Path, folder: Path, name: str | None = None) -> str:
    """Return the one line with which loading fails."""
    path = state if isinstance(state, Path) else folder / "refused.safetensors"
    if not isinstance(state, Path):
        save_file(state, path)
    with pytest.raises(CheckpointError) as caught:
        load_sam2(path, name)
    message = str(caught.value)
    assert message.isprintable() and str(path) in message and len(message) < 3000
    return message


def write_official(path: Path, state: State) -> None:
    torch.save({"model": state}, path)


def write_safe(path: Path, state: State) -> None:
    save_file(state, path)


@pytest.mark.parametrize("write", [write_official, write_safe])
def test_full_size_round_trip(folder: Path, write: Callable[[Path, State], None]) -> None:
    state = random_state("sam2.1-tiny")
    write(folder / "x.pt", state)
    model, module = load_sam2(folder / "x.pt")
    assert model == catalog.find("sam2.1-tiny")
    assert module.has_memory
    assert_holds(module, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(nano: State, tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in nano.items()}
    save_file(state, tmp_path / "nano.safetensors")
    model, module = load_sam2(str(tmp_path / "nano.safetensors"), image_size=320)
    assert model.name == "sam2.1-nano"
    assert model.config.image_size == module.config.image_size == 320
    assert_holds(module, state)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("write", [write_official, write_safe])
def test_float32_is_mapped_not_copied(
    nano: State, tmp_path: Path, write: Callable[[Path, State], None]
) -> None:
    write(tmp_path / "nano", nano)
    _, module = load_sam2(tmp_path / "nano")
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if str(tmp_path / "nano") in line]
    mapped = [range(int(start, 16), int(end, 16)) for start, end in spans]
    for name, tensor in module.state_dict().items():
        assert any(tensor.data_ptr() in span for span in mapped), name


def test_loading_leaves_the_random_state_alone(nano: State, tmp_path: Path) -> None:
    save_file(nano, tmp_path / "nano.safetensors")
    before = torch.random.get_rng_state()
    load_sam2(tmp_path / "nano.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", catalog.names())
def test_recognises_every_model_by_its_shapes(name: str) -> None:
    assert recognise(shapes_of(meta_state(name))) == catalog.find(name)


@pytest.mark.parametrize("name", OFFICIAL)
def test_hub_ids_name_models(name: str, nano: State, tmp_path: Path) -> None:
    hub_id = catalog.find(name).hub_id
    assert f"sam2.1-nano, but {name} was asked for" in refusal(nano, tmp_path, hub_id)


def transformers_config(name: str, kind: str) -> Any:
    """Return the transformers config of a catalog model."""
    transformers = pytest.importorskip("transformers")
    model = catalog.find(name).config
    trunk, newer = model.trunk, model.version == "2.1"
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=trunk.embed_dim,
        num_attention_heads=trunk.num_heads,
        blocks_per_stage=list(trunk.stages),
        embed_dim_per_stage=list(trunk.dims),
        num_attention_heads_per_stage=[trunk.num_heads * 2**i for i in range(4)],
        window_size_per_stage=list(trunk.window_spec),
        global_attention_blocks=list(trunk.global_blocks),
        window_positional_embedding_background_size=[trunk.pos_embed_bkg] * 2,
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=list(reversed(trunk.dims))
    )
    if kind == "Sam2Model":
        return transformers.Sam2Config(vision_config=vision)
    return transformers.Sam2VideoConfig(
        vision_config=vision,
        enable_temporal_pos_encoding_for_object_pointers=newer,
        enable_occlusion_spatial_embedding=newer,
    )


def transformers_model(name: str, kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, kind)(transformers_config(name, kind))


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_name_of_a_video_model_has_its_place(name: str) -> None:
    with torch.device("meta"):
        state = transformers_model(name, "Sam2VideoModel").state_dict()
    assert recognise(shapes_of(state)).name == name
    # One copy of the shared encoding: meta tensors have no values to compare.
    del state["prompt_encoder.shared_embedding.positional_embedding"]
    assert shapes_of(to_official(state)) == shapes_of(meta_state(name))


def randomize(model: Any) -> State:
    """Give every parameter its own values, and the two copies of the encoding the same."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    encoding = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(encoding)
    return dict(model.state_dict())


PLACES = {
    "image_encoder.trunk.pos_embed": "vision_encoder.backbone.pos_embed",
    "image_encoder.trunk.patch_embed.proj.bias": (
        "vision_encoder.backbone.patch_embed.projection.bias"
    ),
    "image_encoder.trunk.blocks.3.norm2.weight": (
        "vision_encoder.backbone.blocks.3.layer_norm2.weight"
    ),
    "image_encoder.trunk.blocks.0.mlp.layers.1.bias": (
        "vision_encoder.backbone.blocks.0.mlp.proj_out.bias"
    ),
    "image_encoder.neck.convs.2.conv.weight": "vision_encoder.neck.convs.2.weight",
    GRID: "shared_image_embedding.positional_embedding",
    "sam_prompt_encoder.mask_downscaling.4.weight": (
        "prompt_encoder.mask_embed.layer_norm2.weight"
    ),
    "sam_mask_decoder.transformer.layers.1.norm4.bias": (
        "mask_decoder.transformer.layers.1.layer_norm4.bias"
    ),
    "sam_mask_decoder.transformer.layers.0.self_attn.out_proj.weight": (
        "mask_decoder.transformer.layers.0.self_attn.o_proj.weight"
    ),
    "sam_mask_decoder.transformer.norm_final_attn.weight": (
        "mask_decoder.transformer.layer_norm_final_attn.weight"
    ),
    "sam_mask_decoder.output_upscaling.3.bias": "mask_decoder.upscale_conv2.bias",
    "sam_mask_decoder.output_hypernetworks_mlps.2.layers.0.weight": (
        "mask_decoder.output_hypernetworks_mlps.2.proj_in.weight"
    ),
    "sam_mask_decoder.iou_prediction_head.layers.1.weight": (
        "mask_decoder.iou_prediction_head.layers.0.weight"
    ),
    "sam_mask_decoder.pred_obj_score_head.layers.2.weight": (
        "mask_decoder.pred_obj_score_head.proj_out.weight"
    ),
    "no_mem_embed": "no_memory_embedding",
}
VIDEO_PLACES = {
    "memory_attention.norm.weight": "memory_attention.layer_norm.weight",
    "memory_attention.layers.2.cross_attn_image.out_proj.bias": (
        "memory_attention.layers.2.cross_attn_image.o_proj.bias"
    ),
    "memory_encoder.mask_downsampler.encoder.7.bias": (
        "memory_encoder.mask_downsampler.layers.2.layer_norm.bias"
    ),
    "memory_encoder.mask_downsampler.encoder.12.weight": (
        "memory_encoder.mask_downsampler.final_conv.weight"
    ),
    "memory_encoder.fuser.layers.1.gamma": "memory_encoder.memory_fuser.layers.1.scale",
    "memory_encoder.fuser.layers.0.pwconv2.weight": (
        "memory_encoder.memory_fuser.layers.0.pointwise_conv2.weight"
    ),
    "memory_encoder.out_proj.weight": "memory_encoder.projection.weight",
    "maskmem_tpos_enc": "memory_temporal_positional_encoding",
    "no_mem_pos_enc": "no_memory_positional_encoding",
    "no_obj_ptr": "no_object_pointer",
    "obj_ptr_proj.layers.1.weight": "object_pointer_proj.layers.0.weight",
}


def assert_places(module: Sam2, state: State, places: dict[str, str]) -> None:
    held = module.state_dict()
    for official, theirs in places.items():
        assert torch.equal(held[official], state[theirs]), official
    points = state["prompt_encoder.point_embed.weight"]
    for index in range(4):
        ours = held[f"sam_prompt_encoder.point_embeddings.{index}.weight"]
        assert torch.equal(ours, points[index : index + 1])


@pytest.mark.parametrize("name", ["sam2.1-tiny", "sam2-tiny"])
def test_a_video_folder_loads(folder: Path, name: str) -> None:
    theirs = transformers_model(name, "Sam2VideoModel")
    state = randomize(theirs)
    theirs.save_pretrained(folder, max_shard_size="100MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    model, module = load_sam2(folder)
    assert model == catalog.find(name) and module.has_memory
    assert_holds(module, to_official(state))
    assert_places(module, state, PLACES | VIDEO_PLACES)
    # What was saved is all distinct, so equal counts mean that each tensor went to its own place.
    assert len(module.state_dict()) == len(state) + 3 - 1


@pytest.mark.parametrize("name", [None, "sam2.1-tiny", "sam2-tiny"])
def test_an_image_folder_loads_without_memory(folder: Path, name: str | None) -> None:
    theirs = transformers_model("sam2.1-tiny", "Sam2Model")
    state = randomize(theirs)
    theirs.save_pretrained(folder)
    model, module = load_sam2(folder, name)
    assert model.name == (name or "sam2.1-tiny")
    assert model.config == catalog.find(model.name).config
    assert "image weights only" in model.summary and model.config.version in model.summary
    assert not module.has_memory
    assert_places(module, state, PLACES)
    held = module.state_dict()
    loaded = {key: held[key] for key in to_official(state)}
    assert len(loaded) == len(state) + 3 - 1
    left = held.keys() - loaded.keys()
    assert left and all(key.startswith(MEMORY) and not held[key].any() for key in left)


def test_differing_copies_of_the_encoding_are_refused(folder: Path) -> None:
    theirs = transformers_model("sam2.1-tiny", "Sam2Model")
    randomize(theirs)
    theirs.prompt_encoder.shared_embedding.positional_embedding += 1
    theirs.save_pretrained(folder)
    message = refusal(folder, folder)
    assert "differs from another copy" in message and GRID in message


def test_unknown_names_stay_as_they_are() -> None:
    assert official_name("vision_encoder_2.x") == "vision_encoder_2.x"
    assert official_name("prompt_encoder.point_embed.weight").startswith("sam_prompt_encoder.")
    odd = {"vision_encoder.x": torch.ones(1), "prompt_encoder.point_embed.weight": torch.ones(3)}
    assert "sam_prompt_encoder.point_embed.weight" in to_official(odd)


def test_absurd_names_are_only_unexpected(nano: State, tmp_path: Path) -> None:
    digits = "9" * 9000
    for name in (
        f"image_encoder.trunk.blocks.{digits}.norm2.weight",
        f"memory_encoder.mask_downsampler.layers.{digits}.conv.weight",
        "line\nbreak",
    ):
        assert "1 unexpected" in refusal(nano | {name: torch.ones(1)}, tmp_path)
        odd = {name: torch.ones(1), "vision_encoder.x": torch.ones(1)}
        assert "give a checkpoint of sam2.1-nano" in refusal(odd, tmp_path)


def test_all_that_does_not_fit_is_named_at_once(nano: State, tmp_path: Path) -> None:
    state = dict(nano)
    for index in range(6):
        del state[f"image_encoder.trunk.blocks.{index}.norm1.bias"]
    state["extra.weight"] = torch.ones(1)
    state["no_mem_embed"] = torch.ones(1, 128)
    state["mask_downsample.bias"] = torch.ones(1, dtype=torch.int8)
    for name in (None, "sam2.1-nano"):
        message = refusal(state, tmp_path, name)
        assert "6 missing (image_encoder.trunk.blocks.0.norm1.bias, " in message
        assert "and 1 more)" in message
        assert "1 unexpected (extra.weight)" in message
        assert "1 misshaped (no_mem_embed is 1x128, not 1x1x128)" in message
        assert "1 not floating point (mask_downsample.bias is torch.int8)" in message


def test_some_memory_weights_are_not_enough(nano: State, tmp_path: Path) -> None:
    state = {k: v for k, v in nano.items() if not k.startswith("memory_attention.")}
    assert "missing (memory_attention." in refusal(state, tmp_path)


def test_an_official_file_without_memory_loads(nano: State, tmp_path: Path) -> None:
    state = {k: v for k, v in nano.items() if not k.startswith(MEMORY)}
    save_file(state, tmp_path / "image.safetensors")
    model, module = load_sam2(tmp_path / "image.safetensors")
    assert model.name == "sam2.1-nano" and not module.has_memory


def test_another_size_or_version_is_refused(nano: State, tmp_path: Path) -> None:
    message = refusal(nano, tmp_path, "sam2.1-tiny")
    assert "holds sam2.1-nano, but sam2.1-tiny was asked for" in message
    assert "load it as sam2.1-nano" in message
    image_only = {k: v for k, v in nano.items() if not k.startswith(MEMORY)}
    assert "but sam2-large was asked for" in refusal(image_only, tmp_path, "sam2-large")


def test_an_unknown_model_is_refused(nano: State, tmp_path: Path) -> None:
    cut = {k: v for k, v in nano.items() if ".blocks.9." not in k}
    assert "1 blocks of 40 channels, 2 blocks of 80 channels" in refusal(cut, tmp_path)
    assert "missing (image_encoder.trunk.blocks.9." in refusal(cut, tmp_path, "sam2.1-nano")
    other = {"conv.weight": torch.ones(2), "fc.bias": torch.ones(2)}
    message = refusal(other, tmp_path)
    assert "no SAM 2 model but conv.weight, fc.bias" in message and "sam2.1-tiny" in message
    old = {k.replace("sam_", ""): v for k, v in nano.items() if not k.startswith("obj_ptr")}
    del old["no_obj_embed_spatial"]
    assert "(version 2.0)" in refusal(old, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_refused(nano: State, tmp_path: Path, value: float) -> None:
    damaged = nano["obj_ptr_proj.layers.1.bias"].clone()
    damaged[5] = value
    message = refusal(nano | {"obj_ptr_proj.layers.1.bias": damaged}, tmp_path)
    assert "obj_ptr_proj.layers.1.bias holds NaN or infinity" in message
    too_large = {k: v.double() for k, v in nano.items()}
    too_large["no_mem_embed"] = too_large["no_mem_embed"] * 1e300
    assert "no_mem_embed holds NaN or infinity" in refusal(too_large, tmp_path)


def test_a_name_or_a_checkpoint_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What this user has downloaded before must not be found.
    monkeypatch.setattr("vkrt.weights.hub.import_hub", lambda: None)
    with pytest.raises(CheckpointError, match="give a checkpoint"):
        load_sam2(None)
    with pytest.raises(UnknownModelError):
        load_sam2(None, "sam9-tiny")
    with pytest.raises(UnknownModelError, match="multiple of 32"):
        load_sam2(None, "sam2.1-tiny", image_size=100)
    with pytest.raises(DownloadError, match="vkrt pull sam2-large"):
        load_sam2(None, "sam2-large", cache=tmp_path)


def test_a_file_in_the_cache_is_found(nano: State, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    write_official(tmp_path / "checkpoints" / "sam2_hiera_tiny.pt", nano)
    # It is found, read and seen to be of another model.
    with pytest.raises(CheckpointError, match=r"sam2_hiera_tiny.pt.*holds sam2.1-nano"):
        load_sam2(None, "sam2-tiny", cache=tmp_path)
