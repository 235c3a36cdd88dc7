"""Export: one stage, one .onnx that gives what the module gives; a bundle that is off is none."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from vkrt import catalog
from vkrt.backends.onnx import OnnxBackend
from vkrt.bundle import read_bundle
from vkrt.cli import main
from vkrt.errors import BackendError, CheckpointError, VkrtError
from vkrt.export import files, write
from vkrt.export.check import Figure, check_stage, refuse_failures, worse_of
from vkrt.export.half import LEAST_VALUES, round_half
from vkrt.export.inputs import random_inputs, traced_sizes, trial_sizes
from vkrt.export.to_onnx import stage_to_onnx
from vkrt.exporting import export_model
from vkrt.manifest import Header
from vkrt.options import Options
from vkrt.stage import Port, Stage
from vkrt.weights.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 64
HEADER = Header("1.0", "sam2.1-nano", 64, "fp32", "abc", {"mean": [0.5]})


class Mixer(nn.Module):
    """Look labels up and mix them with rows: every kind of port, and shapes that are computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.kinds = nn.Embedding(5, WIDTH)

    def forward(self, rows: Tensor, labels: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        mixed = self.linear(rows).relu() + self.kinds(labels.long() + 1)
        token = self.kinds.weight[:1].expand(rows.shape[0], 1, -1)
        joined = torch.cat((token, mixed), dim=1).flatten(1)
        return joined[:, WIDTH:].unflatten(1, (-1, WIDTH)), mixed.sum(dim=(1, 2)) + shift


def mixer() -> Stage:
    """Return a stage with two symbols and weights enough to be stored as fp16."""
    return Stage(
        "mixer",
        Mixer().eval().requires_grad_(False),
        (
            Port("rows", ("n", "p", WIDTH)),
            Port("labels", ("n", "p"), "int32", bounds=(-1, 3)),
            Port("shift", (1,)),
        ),
        (Port("mixed", ("n", "p", WIDTH)), Port("total", ("n",))),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, Path]:
    """Return a stage and its fp32 file."""
    stage, path = mixer(), tmp_path_factory.mktemp("export") / "mixer.onnx"
    stage_to_onnx(stage, path)
    return stage, path


def of_file(stage: Stage, path: Path) -> Stage:
    return Stage(stage.name, path, stage.inputs, stage.outputs)


# One stage.


def test_the_file_has_the_ports_and_their_symbols(exported: tuple[Stage, Path]) -> None:
    stage, path = exported
    graph = onnx.load(path).graph
    for ports, values in ((stage.inputs, graph.input), (stage.outputs, graph.output)):
        for port, value in zip(ports, values, strict=True):
            shape = value.type.tensor_type.shape.dim
            assert value.name == port.name
            assert tuple(d.dim_param or d.dim_value for d in shape) == port.shape


@pytest.mark.parametrize(("n", "p"), [(1, 1), (1, 9), (7, 1), (4, 4), (2, 0)])
def test_sizes_that_were_never_tried(exported: tuple[Stage, Path], n: int, p: int) -> None:
    stage, path = exported
    arrays = random_inputs(stage, {"n": n, "p": p}, np.random.default_rng(n))
    found = OnnxBackend(Options()).prepare(of_file(stage, path))(*arrays)
    wanted = stage.module(*map(torch.from_numpy, arrays))
    for ours, eager in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, eager.numpy(), rtol=1e-5, atol=1e-6)


def test_figures_of_a_good_export(exported: tuple[Stage, Path]) -> None:
    figures = check_stage(*exported)
    assert [(f.stage, f.output) for f in figures] == [("mixer", "mixed"), ("mixer", "total")]
    for figure in figures:
        assert figure.sizes == ["n=1 p=1", "n=2 p=2", "n=2 p=1"]
        assert figure.passed and 0 <= figure.max_relative <= figure.allowed < 1e-4
    refuse_failures(figures)


def test_an_export_of_other_weights_is_found(exported: tuple[Stage, Path]) -> None:
    stage, path = exported
    other = mixer()
    with torch.no_grad():
        other.module.linear.weight[3, 5] += 0.01
    figures = check_stage(Stage("mixer", other.module, stage.inputs, stage.outputs), path)
    assert not figures[0].passed
    with pytest.raises(BackendError, match=r"mixer\.mixed .* was not written") as caught:
        refuse_failures(figures)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [float("nan"), float("inf"), 1e-3])
def test_a_figure_that_fails(error: float) -> None:
    good, bad = (Figure("s", o, [], e, e, 1e-5) for o, e in (("good", 0.0), ("bad", error)))
    with pytest.raises(BackendError, match=r"1 of 2 outputs .* s\.bad by"):
        refuse_failures([good, bad])


def test_the_worse_of_two_forms_counts() -> None:
    whole, steps = (Figure("s", "y", ["n=1"], a, r, 1e-5) for a, r in ((2.0, 1e-7), (1.0, 3e-7)))
    for one, other in ((whole, steps), (steps, whole)):
        assert worse_of(one, other) == Figure("s", "y", ["n=1"], 2.0, 3e-7, 1e-5)
    lost = replace(steps, max_relative=float("nan"))
    assert not worse_of(whole, lost).passed and not worse_of(lost, whole).passed


def test_nan_in_an_output_fails(tmp_path: Path) -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x.sqrt(),)

    stage = Stage("root", Root(), (Port("x", ("n",)),), (Port("y", ("n",)),))
    stage_to_onnx(stage, tmp_path / "root.onnx")
    (figure,) = check_stage(stage, tmp_path / "root.onnx")
    assert np.isnan(figure.max_relative) and not figure.passed


def test_what_torch_cannot_export_is_told_in_one_line(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x if x.sum() > 0 else -x,)

    stage = Stage("branch", Branch(), (Port("x", ("n",)),), (Port("y", ("n",)),))
    with pytest.raises(BackendError, match="torch can't export branch") as caught:
        stage_to_onnx(stage, tmp_path / "branch.onnx")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_file_is_the_same_every_time_and_names_no_machine(
    exported: tuple[Stage, Path], tmp_path: Path
) -> None:
    stage_to_onnx(mixer(), tmp_path / "again.onnx")
    content = exported[1].read_bytes()
    assert (tmp_path / "again.onnx").read_bytes() == content
    assert b".py" not in content and str(ROOT).encode() not in content


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_INLINE_BYTES", 1000)
    stage = mixer()
    write.write_bundle(HEADER, [stage], tmp_path / "b")
    bundle = read_bundle(tmp_path / "b")
    assert set(bundle.bytes) == {"mixer.onnx", "mixer.onnx.data"}
    assert bundle.bytes["mixer.onnx.data"] >= 4 * WIDTH**2
    arrays = random_inputs(stage, {"n": 2, "p": 2}, np.random.default_rng(0))
    found = OnnxBackend(Options()).prepare(bundle.stages["mixer"])(*arrays)
    np.testing.assert_allclose(
        found[1], stage.module(*map(torch.from_numpy, arrays))[1].numpy(), rtol=1e-5
    )


class Doubled(Mixer):
    """Give twice what a Mixer gives, from the same weights."""

    def forward(self, rows: Tensor, labels: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        mixed, total = super().forward(rows, labels, shift)
        return 2 * mixed, 2 * total


def test_stages_of_the_same_weights_keep_one_file_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_INLINE_BYTES", 1000)
    other = mixer().module
    with torch.no_grad():
        other.linear.weight[3, 5] += 1
    modules = {"mixer": mixer().module, "mixer_doubled": Doubled().eval(), "other": other}
    stages = {name: replace(mixer(), name=name, module=made) for name, made in modules.items()}
    write.write_bundle(HEADER, stages.values(), tmp_path / "b")
    bundle = read_bundle(tmp_path / "b")
    graphs = {f"{name}.onnx" for name in stages}
    assert set(bundle.bytes) == {*graphs, "mixer.onnx.data", "other.onnx.data"}
    for name, stage in stages.items():
        refuse_failures(check_stage(stage, bundle.stages[name].module))
    (tmp_path / "b/mixer.onnx.data").write_bytes(bytes(bundle.bytes["mixer.onnx.data"]))
    with pytest.raises(CheckpointError, match="changed"):
        read_bundle(tmp_path / "b")


# fp16 weights.


def test_fp16_halves_the_weights_and_not_the_arithmetic(
    exported: tuple[Stage, Path], tmp_path: Path
) -> None:
    stage, whole = exported
    half = tmp_path / "half.onnx"
    stage_to_onnx(stage, half, "fp16")
    # Two bytes of every weight, less the node that casts them.
    assert whole.stat().st_size - half.stat().st_size > 2 * WIDTH**2 - 300
    kinds = {i.name: i.data_type for i in onnx.load(half).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds.values()
    figures = check_stage(stage, half, "fp16")
    assert all(figure.passed for figure in figures)
    assert figures[0].max_relative > check_stage(stage, whole)[0].max_relative
    assert not all(figure.passed for figure in check_stage(stage, half, "fp32"))

    arrays = random_inputs(stage, {"n": 3, "p": 2}, np.random.default_rng(0))
    found = OnnxBackend(Options()).prepare(of_file(stage, half))(*arrays)
    rounded = round_half(mixer().module)(*map(torch.from_numpy, arrays))
    np.testing.assert_allclose(found[0], rounded[0].numpy(), rtol=1e-5, atol=1e-6)


def test_what_fp16_would_break_stays() -> None:
    module = nn.ParameterDict(
        {
            "small": nn.Parameter(torch.full((LEAST_VALUES - 1,), 0.1)),
            "large": nn.Parameter(torch.full((LEAST_VALUES,), 0.1)),
            "beyond": nn.Parameter(torch.full((LEAST_VALUES,), 70_000.1)),
        }
    )
    before = {name: value.detach().clone() for name, value in module.items()}
    round_half(module)
    assert torch.equal(module["small"], before["small"])
    assert torch.equal(module["beyond"], before["beyond"])
    assert torch.equal(module["large"], before["large"].half().float())
    assert not torch.equal(module["large"], before["large"])


# Inputs.


def test_sizes_tell_symbols_apart() -> None:
    stage = mixer()
    assert stage.symbols == ("n", "p")
    traced = list(traced_sizes(stage).values())
    assert min(traced) >= 2 and len(set(traced)) == len(traced)
    assert trial_sizes(stage)[0] == {"n": 1, "p": 1}
    fixed = Stage("fixed", None, (Port("x", (3,)),), (Port("y", (3,)),))
    assert trial_sizes(fixed) == [{}]


def test_random_inputs_keep_to_the_ports() -> None:
    stage = Stage(
        "s",
        None,
        (
            Port("labels", ("n",), "int32", bounds=(-1, 3)),
            Port("tokens", ("n",), "int64"),
            Port("points", ("n", 2), bounds=(0, 64)),
            Port("pixels", ("n",)),
        ),
        (),
    )
    labels, tokens, points, pixels = random_inputs(stage, {"n": 4000}, np.random.default_rng(0))
    assert set(labels) == {-1, 0, 1, 2, 3} and labels.dtype == np.int32
    assert set(tokens) == {0, 1} and tokens.dtype == np.int64
    assert 0 <= points.min() < 1 and 63 < points.max() <= 64 and points.shape == (4000, 2)
    assert abs(pixels.mean()) < 0.1 and abs(pixels.std() - 1) < 0.1 and pixels.dtype == np.float32


# A whole bundle.


def test_a_bundle_that_is_off_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_another(stage: Stage, path: Path, *options: Any, **named: Any) -> Any:
        other = mixer()
        with torch.no_grad():
            other.module.linear.bias[0] += 1
        return stage_to_onnx(other, path, *options, **named)

    monkeypatch.setattr(write, "stage_to_onnx", export_another)
    with pytest.raises(BackendError, match="was not written"):
        write.write_bundle(HEADER, [mixer()], tmp_path / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lazy", [False, True])
def test_what_is_done_is_reported_in_order(tmp_path: Path, lazy: bool) -> None:
    told: list[tuple[str, float]] = []
    stages = [replace(mixer(), name=name) for name in ("image_encoder", "mask_decoder")]
    names = [stage.name for stage in stages]
    given = iter(stages) if lazy else stages
    write.write_bundle(
        HEADER, given, tmp_path / "b", report=lambda *said: told.append(said), names=names
    )
    for name in names:
        assert [what for what, _ in told if what.startswith(name)][-1] == f"{name}: checking"
    shares = [share for _, share in told]
    assert shares == sorted(shares) and len(set(shares)) == len(shares)
    assert shares[0] == 0.0 and told[-1] == ("done", 1.0)
    # The encoder is most of the work.
    assert told[len(told) // 2][1] > 0.5


def test_sizes_that_the_graph_lost_are_found(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (torch.cat((x, x), dim=1)[:, : x.shape[1]],)

    good = Stage("s", Fixed(), (Port("x", ("n", "p")),), (Port("y", ("n", "p")),))
    stage_to_onnx(good, tmp_path / "s.onnx")
    wrong = Stage("s", Fixed(), good.inputs, (Port("y", ("p", "n")),))
    with pytest.raises(BackendError, match=r"s fails at n=2 p=1"):
        check_stage(wrong, tmp_path / "s.onnx")


def test_the_manifest_of_a_real_export(pico: str, pico_bundle: Path, pico_checkpoint: Path) -> None:
    from vkrt.models.sam2.stage_set import all_stages
    from vkrt.weights.sam2 import load_sam2

    bundle = read_bundle(pico_bundle)
    _, module = load_sam2(pico_checkpoint, pico)
    stages = all_stages(module)
    assert set(bundle.stages) == set(stages)
    for name, stage in stages.items():
        assert (bundle.stages[name].inputs, bundle.stages[name].outputs) == (
            stage.inputs,
            stage.outputs,
        )
    header = bundle.header
    assert (header.model, header.image_size, header.precision) == (pico, 64, "fp32")
    assert header.fingerprint == fingerprint(module)
    assert header.preprocessing["mean"] == [0.485, 0.456, 0.406]
    outputs = [(s.name, port.name) for s in stages.values() for port in s.outputs]
    assert [(f["stage"], f["output"]) for f in header.parity] == outputs
    assert all(f["max_relative"] <= f["allowed"] < 1e-3 for f in header.parity)


# The command.


@pytest.fixture
def toy_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the models have one small stage, so that an export takes a second."""
    monkeypatch.setattr(
        "vkrt.models.sam2.stage_set.all_stages", lambda model: {"mixer": mixer(), "shaker": mixer()}
    )
    monkeypatch.setattr("vkrt.models.sam2.stages.image_stages", lambda model: {"mixer": mixer()})


def call(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main.main(["export", *map(str, arguments)])
    return (code, *capsys.readouterr())


def test_the_command_writes_a_bundle(
    toy_stages: None,
    nano_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("sam2.1-nano", "--checkpoint", nano_checkpoint, "--out", "b", "--image-size", 64)
    given = (*given, "--photos-only")
    code, out, err = call(capsys, *given, "--json")
    assert (code, err) == (0, "")
    report, bundle = json.loads(out), read_bundle("b")
    assert report["bytes"] == sum(report["files"].values()) == sum(bundle.bytes.values())
    assert (report["model"], report["image_size"]) == ("sam2.1-nano", 64)
    assert [f["output"] for f in report["parity"]] == ["mixed", "total"]

    code, out, err = call(capsys, *given)
    assert code == 2 and "--force" in err and err.count("\n") == 1
    code, out, err = call(capsys, *given, "--force", "--precision", "fp16")
    assert code == 0 and "mixer" in out and "fp16" in out and err == ""
    assert read_bundle("b").header.precision == "fp16"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


BAD: dict[str, tuple[list[str], str]] = {
    "an unknown model": (["sam9"], "unknown model"),
    "an odd size": (["sam2.1-nano", "--image-size", "100"], "multiple of 32"),
    "a precision that is none": (["sam2.1-nano", "--precision", "bf16"], "fp32, fp16"),
    "no weights": (["sam2.1-tiny"], "vkrt pull"),
    "other weights": (["sam2.1-tiny", "--checkpoint", "NANO"], "sam2.1-nano"),
    "no checkpoint": (["sam2.1-nano", "--checkpoint", "nowhere.pt"], "nowhere.pt"),
    "no folder": (["sam2.1-nano", "--out", "nowhere/b"], "nowhere"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_gets_one_line(
    case: str,
    nano_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    arguments, words = BAD[case]
    given = [str(nano_checkpoint) if a == "NANO" else a for a in arguments]
    code, out, err = call(capsys, "--out", "b", *given)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vkrt.backends.find_spec", lambda name: None)
    with pytest.raises(VkrtError, match=r"onnxscript.*pip install 'vkrt\[torch,cpu\]'"):
        export_model("sam2.1-nano", tmp_path / "b")


def test_the_module_runs_as_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vkrt.export", "sam9", "--out", str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("vkrt: unknown model 'sam9'")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_packaged_model_exports(tmp_path: Path, precision: str) -> None:
    bundle = export_model("sam2.1-nano", tmp_path / "b", precision=precision)
    known = catalog.find("sam2.1-nano")
    assert known.packaged is not None
    assert all(f["max_relative"] <= f["allowed"] for f in bundle.header.parity)
    assert bundle.header.image_size == known.config.image_size
