"""A stage cut at its attentions: the steps compute what the whole does, wherever they run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import HEADER, edit, reseal

from vkrt import backends
from vkrt.backends import cut as cut_backend
from vkrt.bundle import building, read_bundle
from vkrt.errors import BackendError, CheckpointError
from vkrt.export import half, marks
from vkrt.export.check import check_stage, refuse_failures
from vkrt.export.int8.rounding import in_bf16
from vkrt.export.to_onnx import stage_to_onnx
from vkrt.kernels import host_attention
from vkrt.kernels.memory_attention import memory_attention
from vkrt.manifest import write_manifest
from vkrt.options import Options
from vkrt.stage import Port, Stage
from vkrt.steps import Attention, CutFile, Piece, check_steps

HEADS, TOKENS, DIM, WIDTH = 2, 12, 16, 4
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}


class Blocks(nn.Module):
    """Attend twice within a picture and once to memories with a bias, with residuals around."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, 3 * DIM)
        self.query, self.key = nn.Linear(DIM, 8), nn.Linear(WIDTH, 8)
        self.read = nn.Linear(WIDTH, DIM)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        early = self.attend(self.first, x, None)
        x = early + self.attend(self.second, early, 0.7)
        found = memory_attention(self.query(x), self.key(memory), memory, bias)
        return x + self.read(found), early

    def attend(self, layer: nn.Linear, x: Tensor, scale: float | None) -> Tensor:
        parts = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in layer(x).chunk(3, dim=-1))
        return F.scaled_dot_product_attention(*parts, scale=scale).transpose(1, 2).flatten(2)


def blocks() -> Stage:
    return Stage(
        "blocks",
        Blocks().eval().requires_grad_(False),
        (
            Port("x", ("n", TOKENS, DIM)),
            Port("memory", ("n", "keys", WIDTH)),
            Port("bias", ("n", "keys")),
        ),
        (Port("y", ("n", TOKENS, DIM)), Port("early", ("n", TOKENS, DIM))),
    )


@pytest.fixture
def cut_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Return the stage as its export has it, with a CutFile."""
    # Small enough for the attention of TOKENS to count as large.
    monkeypatch.setattr(marks, "PAIRS_AT_ONCE", TOKENS * TOKENS // 2)
    stage = blocks()
    made = stage_to_onnx(stage, tmp_path / "blocks.onnx", may_cut=True)
    assert isinstance(made, CutFile)
    return Stage(stage.name, made, stage.inputs, stage.outputs)


def arrays(n: int = 2, keys: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(n)
    shapes = ((n, TOKENS, DIM), (n, keys, WIDTH), (n, keys))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def wanted(given: list[np.ndarray]) -> list[np.ndarray]:
    with torch.inference_mode():
        return [y.numpy() for y in Blocks().eval()(*map(torch.from_numpy, given))]


def test_steps_and_whole_pass_the_check_of_an_export(cut_stage: Stage) -> None:
    steps = cut_stage.module.steps
    assert [type(s) for s in steps] == [Piece, Attention, Piece, Attention, Piece, Attention, Piece]
    assert [len(s.inputs) for s in steps if isinstance(s, Attention)] == [3, 3, 4]
    for file in (cut_stage.module, cut_stage.module.path):
        refuse_failures(check_stage(blocks(), file))


def test_pieces_of_fp16_widen_their_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "PAIRS_AT_ONCE", TOKENS * TOKENS // 2)
    monkeypatch.setattr(half, "LEAST_VALUES", 16)
    made = stage_to_onnx(blocks(), tmp_path / "blocks.onnx", "fp16", may_cut=True)
    assert isinstance(made, CutFile)
    refuse_failures(check_stage(blocks(), made, "fp16"))
    asked = {name for step in made.steps for name in step.inputs}
    assert not [name for name in asked if "weight" in name or "bias_" in name]


def test_the_whole_has_operators_that_every_runtime_knows(cut_stage: Stage) -> None:
    model = onnx.load(cut_stage.module.path)
    assert {node.domain for node in model.graph.node} == {""}
    assert [entry.domain for entry in model.opset_import] == [""]
    kinds = [node.op_type for node in model.graph.node]
    # Each of the two large ones in two parts, and the memories' in one.
    assert kinds.count("Softmax") == 5


def test_weights_are_stored_once(cut_stage: Stage, tmp_path: Path) -> None:
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    data = files.pop("blocks.onnx.data")
    whole = sum(p.numel() * 4 for p in Blocks().parameters())
    assert data < 2 * whole + 4096 * 4
    pieces = [step.path.name for step in cut_stage.module.steps if isinstance(step, Piece)]
    assert sorted(files) == sorted(["blocks.onnx", *pieces])


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_backend_runs_the_steps(
    cut_stage: Stage, name: str, host_attentions: list[tuple[int, ...]]
) -> None:
    pytest.importorskip(RUNTIMES[name])
    backend = backends.create(Options(backend=name, device="cpu"))
    program = backend.prepare(cut_stage)
    for n, keys in ((2, 5), (1, 3), (3, 9), (2, 5)):
        host_attentions.clear()
        given = arrays(n, keys)
        found = program(*given)
        assert host_attentions == [(2 * n, TOKENS, 8), (2 * n, TOKENS, 8), (n, TOKENS, 8)]
        for ours, eager in zip(found, wanted(given), strict=True):
            np.testing.assert_allclose(ours, eager, atol=2e-6)
    kept = [array.copy() for array in found]
    program(*arrays(2, 7))
    assert all(np.array_equal(a, b) for a, b in zip(found, kept, strict=True))
    with pytest.raises(ValueError, match="memory"):
        program(given[0], given[0], given[2])
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        program(*given)


def test_without_the_fast_attention_the_whole_runs(
    cut_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut_backend.host_attention, "IS_NATIVE", False)
    backend = backends.create(Options(backend="onnx", device="cpu"))
    given = arrays()
    program = backend.prepare(cut_stage)
    assert not isinstance(program, cut_backend.CutProgram)
    np.testing.assert_allclose(program(*given)[0], wanted(given)[0], atol=2e-6)


def test_arrays_are_dropped_once_nothing_reads_them() -> None:
    steps = (
        Piece(Path("a"), ("x",), ("q", "rest")),
        Attention(("q", "q", "q"), ("read",)),
        Piece(Path("b"), ("read", "rest"), ("y",)),
    )
    assert cut_backend.dead_after(steps, ["y"]) == [["x"], ["q"], ["read", "rest"]]
    assert cut_backend.dead_after(steps, ["y", "rest"]) == [["x"], ["q"], ["read"]]


# In a bundle.


@pytest.fixture
def folder(cut_stage: Stage, tmp_path: Path) -> Path:
    """Return a bundle of the stage."""
    target = tmp_path / "bundle"
    with building(target) as part:
        for path in tmp_path.glob("blocks*"):
            (part / path.name).write_bytes(path.read_bytes())
        whole = cut_stage.module
        steps = tuple(
            Piece(part / s.path.name, s.inputs, s.outputs) if isinstance(s, Piece) else s
            for s in whole.steps
        )
        file = CutFile(part / whole.name, steps)
        stage = Stage(cut_stage.name, file, cut_stage.inputs, cut_stage.outputs)
        write_manifest(part, HEADER, [stage])
    return target


def test_a_bundle_keeps_the_steps(folder: Path, cut_stage: Stage) -> None:
    stage = read_bundle(folder).stages["blocks"]
    assert stage.module.path == folder / "blocks.onnx"
    assert [(s.inputs, s.outputs) for s in stage.module.steps] == [
        (s.inputs, s.outputs) for s in cut_stage.module.steps
    ]
    given = arrays()
    (found, _) = backends.create(Options(backend="onnx", device="cpu")).prepare(stage)(*given)
    np.testing.assert_allclose(found, wanted(given)[0], atol=2e-6)


def test_a_bundle_keeps_the_precision_of_attention(folder: Path) -> None:
    bundle = read_bundle(folder)
    entries = json.loads((folder / "manifest.json").read_text())["stages"]["blocks"]["steps"]
    assert not [entry for entry in entries if "precision" in entry]
    write_manifest(folder, HEADER, [in_bf16(bundle.stages["blocks"])])
    stage = read_bundle(folder).stages["blocks"]
    found = [step.precision for step in stage.module.steps if isinstance(step, Attention)]
    assert found == ["bf16"] * 3


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_backend_rounds_where_the_steps_allow_it(
    cut_stage: Stage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(RUNTIMES[name])
    asked: list[str] = []

    def stand_in(*arrays: Any) -> np.ndarray:
        asked.append(arrays[-1])
        return host_attention.stand_in(*arrays[:4])

    monkeypatch.setattr(host_attention, "attend", stand_in)
    monkeypatch.setattr(host_attention, "IS_NATIVE", True)
    given = arrays()
    for stage, precision in ((cut_stage, "fp32"), (in_bf16(cut_stage), "bf16")):
        asked.clear()
        backend = backends.create(Options(backend=name, device="cpu"))
        (found, _) = backend.prepare(stage)(*given)
        assert asked == [precision] * 3
        np.testing.assert_allclose(found, wanted(given)[0], atol=2e-6)
        backend.close()


def swap_steps(entry: dict[str, Any]) -> None:
    entry["steps"] = entry["steps"][::-1]


def drop_last(entry: dict[str, Any]) -> None:
    entry["steps"].pop()


def climb(entry: dict[str, Any]) -> None:
    entry["steps"][0]["file"] = "../blocks.0.onnx"


def name_absent(entry: dict[str, Any]) -> None:
    entry["steps"][0]["file"] = "absent.onnx"


def read_two(entry: dict[str, Any]) -> None:
    entry["steps"][1]["inputs"].pop()


def name_no_precision(entry: dict[str, Any]) -> None:
    entry["steps"][1]["precision"] = "fp8"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (name_no_precision, "no precision 'fp8'"),
        (swap_steps, "no earlier one makes"),
        (drop_last, "no step makes"),
        (climb, "outside the folder"),
        (name_absent, "no digest"),
        (read_two, "three or four"),
    ],
)
def test_steps_that_can_not_be_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    edit(folder, lambda content: change(content["stages"]["blocks"]))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_bundle(folder)
    assert "\n" not in str(caught.value)


def test_a_piece_must_not_read_files_of_its_own(folder: Path) -> None:
    model = onnx.load(folder / "blocks.0.onnx", load_external_data=False)
    outside = [t for t in model.graph.initializer if t.external_data]
    assert outside, "nothing to tamper with"
    for entry in outside[0].external_data:
        if entry.key == "location":
            entry.value = "../secret"
    (folder / "blocks.0.onnx").write_bytes(model.SerializeToString())
    reseal(folder)
    with pytest.raises(CheckpointError, match="secret"):
        read_bundle(folder)


def test_steps_are_checked_in_order() -> None:
    steps = (Attention(("x", "x", "x"), ("y",)),)
    check_steps(steps, ["x"], ["y"])
    with pytest.raises(ValueError, match="'x'"):
        check_steps(steps, [], ["y"])


def test_the_manifest_of_a_whole_stage_says_nothing_of_steps(tmp_path: Path) -> None:
    stage = blocks()
    with building(tmp_path / "plain") as part:
        path = part / "blocks.onnx"
        assert stage_to_onnx(stage, path) == path
        write_manifest(part, HEADER, [Stage(stage.name, path, stage.inputs, stage.outputs)])
    content = json.loads((tmp_path / "plain/manifest.json").read_text())
    assert "steps" not in content["stages"]["blocks"]
