"""The stages that track: what transformers gives, the same for each object, and in ONNX too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pico import PICO
from torch import Tensor
from transformers import Sam2VideoModel
from video_oracle import blocks, maps, relative_error, small_config, video_oracle, video_twin

from vkrt.backends.eager import EagerBackend
from vkrt.backends.onnx import OnnxBackend
from vkrt.export.check import check_stage, refuse_failures
from vkrt.export.inputs import random_inputs
from vkrt.export.to_onnx import stage_to_onnx
from vkrt.kernels.memory_attention import reference
from vkrt.models.sam2.choice import choose_mask, take
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.video_stages import video_stages
from vkrt.options import Options
from vkrt.stage import Stage

RELATIVE = 1e-4
OBJECTS = 6
NAMES = ["memory_attention", "memory_encoder", "track_decoder", "track_refiner", "mask_prompter"]


@dataclass
class Pair:
    """Hold an oracle, our stages, and pictures conditioned for some objects."""

    oracle: Sam2VideoModel
    model: Sam2
    stages: dict[str, Stage]
    conditioned: Tensor
    high_res: tuple[Tensor, Tensor]

    @property
    def ours(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pictures as our stages take them."""
        grid = self.model.config.embed_size
        finest, finer = (blocks(features, grid) for features in self.high_res)
        return self.conditioned, finest, finer

    def ask_oracle(self, index: int, **prompt: Tensor | bool | None) -> dict[str, Tensor]:
        """Return what transformers makes of one object, under our names."""
        pictures = [*self.high_res, maps(self.conditioned[index : index + 1])]
        out = self.oracle._single_frame_forward(image_embeddings=pictures, **prompt)
        return {
            "logits": out.pred_masks,
            "iou": out.iou_scores.amax(dim=-1),
            "pointer": out.object_pointer.flatten(0, 1),
            "object_score": out.object_score_logits.flatten(0, 1),
        }

    def run(self, name: str, *inputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs of one of our stages by name."""
        stage = self.stages[name]
        ports = (port.name for port in stage.outputs)
        return dict(zip(ports, stage.module(*inputs), strict=True))


@pytest.fixture(scope="module", params=[("2.1", 96), ("2.0", 64)], ids=["2.1", "2.0"])
def pair(request: pytest.FixtureRequest) -> Pair:
    config = small_config(*request.param)
    oracle = video_oracle(config)
    grid, dim = config.embed_size, config.hidden_dim
    conditioned = torch.randn(OBJECTS, grid**2, dim)
    high_res = (
        torch.randn(1, dim // 8, 4 * grid, 4 * grid),
        torch.randn(1, dim // 4, 2 * grid, 2 * grid),
    )
    centre_scores(oracle, conditioned, high_res)
    model = video_twin(oracle, config)
    return Pair(oracle, model, video_stages(model), conditioned, high_res)


@torch.no_grad()
def centre_scores(
    oracle: Sam2VideoModel, conditioned: Tensor, high_res: tuple[Tensor, Tensor]
) -> None:
    """Let random weights find about half of the objects to be there."""
    pictures = [*(f.expand(len(conditioned), -1, -1, -1) for f in high_res), maps(conditioned)]
    scores = oracle._single_frame_forward(image_embeddings=pictures).object_score_logits
    # Halfway between the two in the middle: a score of next to nothing has no relative error.
    middle = scores.flatten().sort().values[len(conditioned) // 2 - 1 :][:2]
    oracle.mask_decoder.pred_obj_score_head.proj_out.bias -= middle.mean()


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor], index: int) -> None:
    """Compare one object's outputs."""
    for name, theirs in wanted.items():
        assert relative_error(got[name][index : index + 1], theirs) < RELATIVE, name


def pads(count: int) -> tuple[Tensor, Tensor]:
    """Return what the caller pads prompts of `OBJECTS` objects with."""
    return torch.zeros(OBJECTS, count, 2), torch.full((OBJECTS, count), -1, dtype=torch.int32)


def clicks(size: int, count: int) -> tuple[Tensor, Tensor]:
    """Return random points (N, count, 2) and labels of all kinds."""
    labels = torch.arange(count, dtype=torch.int32).remainder(4).expand(OBJECTS, -1)
    return torch.rand(OBJECTS, count, 2) * size, labels


@pytest.mark.parametrize("points", [0, 1, 5])
@pytest.mark.parametrize("with_masks", [False, True], ids=["decoder", "refiner"])
@torch.inference_mode()
def test_track_stages(pair: Pair, points: int, with_masks: bool) -> None:
    torch.manual_seed(points)
    config = pair.model.config
    coordinates, labels = clicks(config.image_size, points)
    padding = pads(1 if points else 2)
    joined = torch.cat((coordinates, padding[0]), 1), torch.cat((labels, padding[1]), 1)
    masks = torch.randn(OBJECTS, 1, config.mask_size, config.mask_size) * 5
    multimask = torch.tensor([0, 1] * (OBJECTS // 2), dtype=torch.int32)
    inputs = *pair.ours, *joined, *((masks,) if with_masks else ()), multimask
    got = pair.run("track_refiner" if with_masks else "track_decoder", *inputs)
    for index in range(OBJECTS):
        one = slice(index, index + 1)
        wanted = pair.ask_oracle(
            index,
            input_points=coordinates[None, one] if points else None,
            input_labels=labels[None, one] if points else None,
            input_masks=masks[one] if with_masks else None,
            multimask_output=bool(multimask[index]),
        )
        assert_same(got, wanted, index)
    absent = got["object_score"][:, 0] <= 0
    if not points and not with_masks:
        assert absent.any() and not absent.all()
    assert (got["logits"][absent] == -1024).all() and (got["logits"][~absent] > -1024).all()
    assert torch.equal(got["pointer"][absent], pair.model.no_obj_ptr.expand(int(absent.sum()), -1))


@pytest.fixture(params=[-100.0, 100.0], ids=["never-there", "always-there"])
def shifted(pair: Pair, request: pytest.FixtureRequest) -> Iterator[bool]:
    """Let the decoder find no object or every object to be there, whatever it sees."""
    heads = (
        pair.oracle.mask_decoder.pred_obj_score_head.proj_out,
        pair.model.sam_mask_decoder.pred_obj_score_head.layers[-1],
    )
    kept = [head.bias.detach().clone() for head in heads]
    with torch.no_grad():
        for head in heads:
            head.bias.fill_(request.param)
        yield request.param > 0
        for head, bias in zip(heads, kept, strict=True):
            head.bias.copy_(bias)


@torch.inference_mode()
def test_mask_prompter(pair: Pair, shifted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # For the pointer, transformers takes the token of the best of three masks; we, as the official
    # code, take that of the single mask.
    single = partial(pair.oracle._single_frame_forward, multimask_output=False)
    monkeypatch.setattr(pair.oracle, "_single_frame_forward", single)
    config = pair.model.config
    size, grid = config.image_size, config.embed_size
    masks = (torch.rand(OBJECTS, 1, size, size) > 0.6).float()
    masks[:, :, : size // 3] = 0
    masks[-1] = 0
    raw = torch.randn(1, grid**2, config.hidden_dim)
    _, *high_res = pair.ours
    got = pair.run("mask_prompter", raw + pair.model.no_mem_embed, *high_res, masks)
    found = []
    for index in range(OBJECTS):
        out = pair.oracle._use_mask_as_output(maps(raw), list(pair.high_res), masks[index][None])
        wanted = {
            "logits": out.pred_masks,
            "pointer": out.object_pointer.flatten(0, 1),
            "object_score": out.object_score_logits.flatten(0, 1),
        }
        assert_same(got, wanted, index)
        found.append(not torch.equal(got["pointer"][index], pair.model.no_obj_ptr[0]))
    assert got["object_score"][:, 0].tolist() == [10.0] * (OBJECTS - 1) + [-10.0]
    # Nobody has a pointer where the mask is empty, nor where the decoder finds nothing.
    assert found == [shifted] * (OBJECTS - 1) + [False]


@torch.inference_mode()
def test_choice_of_a_mask(pair: Pair) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 4, 8, 8)
    # Firm, none at all, hardly decided, and on both sides of the threshold.
    logits[0, 0], logits[1, 0], logits[2, 0] = logits[0, 0].sign(), -1.0, 0.0
    edge = torch.full((100,), 1.0)
    edge[:2] = 0.0
    logits = torch.cat((logits, logits.new_full((2, 4, 8, 8), -1.0)))
    wide = logits.flatten(2).repeat(1, 1, 2)
    wide[6, 0, :100], wide[7, 0, :100] = edge, edge
    wide[7, 0, 2] = 0.0
    iou = torch.rand(8, 4)
    shown, speaking = choose_mask(wide.unflatten(2, (8, 16)), iou, torch.zeros(8))
    assert shown[0] == 0 and shown[1] == 0 and shown[2] > 0 and shown[6] == 0 and shown[7] > 0
    assert not speaking.any()
    masks, scores = pair.oracle.mask_decoder._dynamic_multimask_via_stability(
        wide.unflatten(2, (8, 16)).unsqueeze(1), iou.unsqueeze(1)
    )
    assert torch.equal(take(wide, shown), masks.flatten(0, 2).flatten(1))
    assert torch.equal(take(iou, shown), scores.flatten())
    best = iou[:, 1:].argmax(1) + 1
    shown, speaking = choose_mask(wide.unflatten(2, (8, 16)), iou, torch.ones(8))
    assert torch.equal(shown, best) and torch.equal(speaking, best)
    shown, speaking = choose_mask(wide.unflatten(2, (8, 16)), iou, -torch.ones(8))
    assert not shown.any() and not speaking.any()


# Every stage alike: objects do not see one another, and the export computes the same.


def pico_model(version: str = "2.1") -> Sam2:
    """Return the smallest model with random weights, none of them neutral."""
    torch.manual_seed(0)
    model = Sam2(replace(PICO.config, version=version)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if not parameter.any() or "gamma" in name:
            parameter.normal_(std=0.3)
        elif parameter.ndim == 2 and "memory_attention" in name:
            parameter.mul_(2.0)
    # Some objects are to be there and some not.
    head = model.sam_mask_decoder.pred_obj_score_head.layers[-1]
    head.weight.mul_(100.0)
    head.bias.fill_(-1.4)
    return model


def inputs_of(stage: Stage, sizes: dict[str, int], seed: int) -> list[np.ndarray]:
    """Return random inputs, masks binary, and the last object without anything to see."""
    arrays = random_inputs(stage, sizes, np.random.default_rng(seed))
    named = {port.name: array for port, array in zip(stage.inputs, arrays, strict=True)}
    if stage.name == "mask_prompter":
        named["masks"] = np.float32(named["masks"] > 0.6)
        named["masks"][-1] = 0
    if stage.name == "memory_attention":
        named["memories"][named["ages"] < 0] = np.nan
        named["pointers"][named["present"] == 0] = np.nan
    return list(named.values())


def sizes_of(stage: Stage, *sizes: int) -> dict[str, int]:
    return dict(zip(stage.symbols, sizes, strict=False))


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_many_objects_are_as_many_single_ones(name: str) -> None:
    stage = video_stages(pico_model())[name]
    arrays = inputs_of(stage, sizes_of(stage, 4, 3, 5), seed=1)
    together = stage.module(*map(torch.from_numpy, arrays))
    if name.startswith("track"):
        # Or there would be no logits to compare, here and below.
        assert (together[-1] > 0).any()
    for index in range(4):
        alone = [
            array[index : index + 1] if port.shape[0] == "objects" else array
            for port, array in zip(stage.inputs, arrays, strict=True)
        ]
        got = stage.module(*map(torch.from_numpy, alone))
        for port, one, all_objects in zip(stage.outputs, got, together, strict=True):
            wanted = all_objects[index : index + 1]
            assert relative_error(one, wanted) < RELATIVE, port.name


@pytest.mark.parametrize("version", ["2.1", "2.0"])
def test_ports_are_what_the_stages_give(version: str) -> None:
    stages = video_stages(pico_model(version))
    assert sorted(stages) == sorted(NAMES)
    for stage in stages.values():
        sizes = sizes_of(stage, 2, 3, 1)
        with torch.inference_mode():
            found = stage.module(*map(torch.from_numpy, inputs_of(stage, sizes, seed=2)))
        for port, output in zip(stage.outputs, found, strict=True):
            assert tuple(output.shape) == tuple(sizes.get(s, s) for s in port.shape), port.name
            assert str(output.numpy().dtype) == port.dtype and output.isfinite().all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_reduced_precision(name: str, precision: str) -> None:
    stage = video_stages(pico_model())[name]
    arrays = inputs_of(stage, sizes_of(stage, 3, 4, 2), seed=3)
    with torch.inference_mode():
        wanted = stage.module(*map(torch.from_numpy, arrays))
    program = EagerBackend(Options(precision=precision, device="cpu")).prepare(stage)
    for port, found, exact in zip(
        stage.outputs, program(*map(torch.from_numpy, arrays)), wanted, strict=True
    ):
        assert found.shape == exact.shape and found.isfinite().all(), port.name
        # Another mask may be chosen: only what nothing is chosen for is near.
        if name.startswith("memory"):
            assert relative_error(found.float(), exact) < 0.05, port.name


QUICK = ("memory_attention", "memory_encoder")
EXPORTED = [
    *((name, "2.1") for name in QUICK),
    *(pytest.param(name, "2.1", marks=pytest.mark.slow) for name in NAMES if name not in QUICK),
    pytest.param("memory_attention", "2.0", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "version"), EXPORTED)
def test_onnx_runtime_gives_the_same(
    name: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if version == "2.1":
        # 16 pixels in parts, as thousands are in a graph of a large model.
        monkeypatch.setattr(reference, "ROWS_AT_ONCE", 7)
    stage = video_stages(pico_model(version))[name]
    path = tmp_path / f"{name}.onnx"
    stage_to_onnx(stage, path)
    program = OnnxBackend(Options()).prepare(Stage(name, path, stage.inputs, stage.outputs))
    for seed, sizes in enumerate([(1, 1, 1), (5, 7, 16), (2, 1, 3), (3, 4, 1)]):
        arrays = inputs_of(stage, sizes_of(stage, *sizes), seed)
        with torch.inference_mode():
            wanted = stage.module(*map(torch.from_numpy, arrays))
        for port, found, eager in zip(stage.outputs, program(*arrays), wanted, strict=True):
            assert relative_error(torch.from_numpy(found), eager) < RELATIVE, port.name
    refuse_failures(check_stage(stage, path))
