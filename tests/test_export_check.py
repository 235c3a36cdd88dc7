"""The check of an export: what arithmetic allows passes, and one fault in a graph does not."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_mutants import KINDS, write_mutants
from torch import Tensor, nn

from benchmarks.export_check import main
from vkrt.bundle import read_bundle
from vkrt.export.check import FACTORS, check_stage, compare, hold
from vkrt.export.expectation import expect, spread_of
from vkrt.export.to_onnx import stage_to_onnx
from vkrt.export.twin import InFloat64
from vkrt.models.sam2.stage_set import all_stages
from vkrt.stage import Port, Stage
from vkrt.weights.sam2 import load_sam2

WIDTH = 64


class Score(nn.Module):
    """Give one number near 0 that is a sum of large ones, as an object score may be."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.offset = offset

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = self.layer(x)
        return made, made.sum(dim=-1, keepdim=True) + self.offset


def score(offset: float = 0.0) -> Stage:
    shapes = (("n", WIDTH), ("n", 1))
    outputs = tuple(Port(name, shape) for name, shape in zip("yz", shapes, strict=True))
    return Stage("score", Score(offset).eval(), (Port("x", ("n", WIDTH)),), outputs)


def test_a_score_near_0_is_not_held_relative_to_itself(tmp_path: Path) -> None:
    near = -float(expect(score()).trials[0].wanted[1][0, 0])
    stage_to_onnx(score(near), tmp_path / "s.onnx")
    expected = expect(score(near))
    value, allowed = expected.trials[0].wanted[1], FACTORS["fp32"] * expected.errors[1]
    assert np.abs(value).max() < allowed < 1e-3 < expected.spreads[1]
    figure = check_stage(score(near), tmp_path / "s.onnx")[1]
    assert figure.passed and figure.allowed < 1e-3
    moved = check_stage(score(near + 0.1), tmp_path / "s.onnx")[1]
    assert not moved.passed and moved.max_abs == pytest.approx(0.1, rel=1e-3)


def test_fp64_is_what_an_export_is_held_against() -> None:
    stage = score()
    expected = expect(stage)
    # An output of one number: all trials in fp64.
    assert {array.dtype for trial in expected.trials for array in trial.wanted} == {
        np.dtype(np.float64)
    }
    large = replace(stage, outputs=stage.outputs[:1], module=First(stage.module))
    first, second = expect(large).trials
    # The second has the first one's item again, behind another one that nobody computed.
    assert second.first == 1 and second.wanted is first.wanted
    assert first.wanted[0].dtype == np.float64 and np.abs(first.wanted[0]).max() > 0.5
    for trial in (first, second):
        exact = trial.arrays[0].astype(np.float64) @ weight(stage).T + bias(stage)
        assert trial.off(0, exact) < 1e-12
        assert trial.off(0, exact[::-1] + 1e-3) > 5e-4


class Sum(nn.Module):
    """Sum over an axis that is of any size."""

    def forward(self, x: Tensor, shared: Tensor) -> tuple[Tensor]:
        return (x.sum(dim=1) + shared,)


def test_an_item_is_tried_alone_first_and_last() -> None:
    inputs = (Port("x", ("items", "parts", WIDTH)), Port("shared", (1, WIDTH)))
    stage = Stage("sum", Sum().eval(), inputs, (Port("y", ("items", WIDTH)),))
    trials = expect(stage).trials
    assert [trial.sizes for trial in trials] == [
        {"items": 1, "parts": 1},
        {"items": 2, "parts": 2},
        {"items": 2, "parts": 1},
    ]
    assert [trial.first for trial in trials] == [0, 1, 0]
    assert [trial.wanted[0].dtype for trial in trials] == [np.float64, np.float32, np.float64]
    for trial in trials:
        x, shared = trial.arrays
        exact = x.astype(np.float64).sum(axis=1) + shared
        assert trial.off(0, exact) < 1e-5
        # Another item in its place, or one with a part of it, is told apart.
        assert len(exact) == 1 or trial.off(0, exact[::-1]) > 1


def test_fp64_of_a_convolution_of_each_channel() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, (7, 5), padding=(3, 1), groups=8)
    x = torch.randn(2, 8, 9, 11)
    with torch.no_grad(), InFloat64():
        found = layer(x)
    wanted = layer.double()(x.double())
    assert found.dtype == torch.float64 and wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


class First(nn.Module):
    """Give the first output of a module alone."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return self.whole(x)[:1]


def weight(stage: Stage) -> np.ndarray:
    return stage.module.layer.weight.detach().double().numpy()


def bias(stage: Stage) -> np.ndarray:
    return stage.module.layer.bias.detach().double().numpy()


def test_how_much_an_output_varies() -> None:
    wide = np.linspace(-3, 5, 100)[None]
    absent = np.full((1, 100), -1024.0)
    # What is not there has one value and says nothing of what masks vary by.
    assert spread_of([np.concatenate([wide, absent]), wide]) == pytest.approx(4.0)
    assert spread_of([np.array([[1.0]]), np.array([[3.0], [2.0]])]) == 1.0
    assert spread_of([np.array([[10.0]]), np.array([[10.0]])]) == 10.0
    assert spread_of([np.zeros((2, 1))]) == 1.0
    # Nothing but roundings.
    assert spread_of([np.array([[10.0]]), np.array([[10.0 + 1e-6]])]) == pytest.approx(10.0)


class Tip(nn.Module):
    """Count what is over a threshold: a rounding tips a number that is near it."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return ((x > 0).to(x.dtype).cumsum(dim=-1),)


def test_a_threshold_that_tips_over_is_tried_again(tmp_path: Path) -> None:
    port = Port("x", ("n", 100))
    stage = Stage("tip", Tip(), (port,), (replace(port, name="y"),))
    stage_to_onnx(stage, tmp_path / "t.onnx")
    expected = expect(stage)
    first = expected.trials[0]
    tipped = replace(expected, trials=[replace(first, wanted=[first.wanted[0] + 1.0])])
    assert not all(figure.passed for figure in compare(tipped, tmp_path / "t.onnx"))
    assert all(figure.passed for figure in hold(tipped, tmp_path / "t.onnx"))
    # Nothing can be tried again once the module is gone.
    stage = replace(stage, module=None)
    gc.collect()
    assert tipped.again(1) is None
    assert not all(figure.passed for figure in hold(tipped, tmp_path / "t.onnx"))


def missed(
    stages: Iterable[Stage], files: Mapping[str, Any], folder: Path, kind: str, count: int
) -> tuple[list[str], int]:
    """Return which faulty graphs of stages pass, and how many were tried."""
    passed, tried = [], 0
    for stage in stages:
        expected, path = expect(stage), Path(files[stage.name])
        for label in write_mutants(path, folder / "m.onnx", kind, count, seed=7):
            tried += 1
            if all(figure.passed for figure in hold(expected, folder / "m.onnx")):
                passed.append(label)
    return passed, tried


@pytest.mark.parametrize("kind", list(KINDS))
def test_one_fault_is_refused(
    kind: str, pico: str, pico_bundle: Path, pico_checkpoint: Path, tmp_path: Path
) -> None:
    stages = all_stages(load_sam2(pico_checkpoint, pico)[1])
    chosen = [stages["mask_decoder"]]
    files = {stage.name: read_bundle(pico_bundle).stages[stage.name].module for stage in chosen}
    passed, tried = missed(chosen, files, tmp_path, kind, 4)
    assert not passed and tried >= 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_one_fault_of_any_stage_is_refused(
    kind: str, pico: str, pico_checkpoint: Path, tmp_path: Path
) -> None:
    module = load_sam2(pico_checkpoint, pico)[1]
    # Where no object is seen, what decodes it does not show in what is given.
    module.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(6.0)
    stages = all_stages(module)
    # New weights scale what the fuser of memories adds by 1e-6: no fault there shows.
    chosen = [stages[name] for name in stages if name not in ("memory_encoder", "mask_prompter")]
    files = {s.name: stage_to_onnx(s, tmp_path / f"{s.name}.onnx") for s in chosen}
    passed, tried = missed(chosen, files, tmp_path, kind, 6)
    # Stages that track give one mask of several: what makes the others may not show.
    others = [label for label in passed if not label.startswith("track_")]
    assert not others and len(passed) <= 2 and tried >= 30, passed


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sam2.1-tiny", "sam2.1-small", "sam2-base-plus", "sam2.1-large"])
def test_no_correct_export_is_refused(model: str) -> None:
    assert main([model, "--sets", "4"]) == 0


@pytest.mark.slow
def test_no_correct_export_of_the_smallest_model_is_refused(pico: str) -> None:
    assert main([pico, "--sets", "12"]) == 0
