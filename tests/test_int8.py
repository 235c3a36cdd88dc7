"""An int8 bundle: exported as far as masks allow, refused where they do not, and loaded."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import pytest

import vkrt
from vkrt.backends import cut as cut_backend
from vkrt.bundle import read_bundle
from vkrt.cli import main
from vkrt.errors import BackendError
from vkrt.export import files, write
from vkrt.export.check import check_stage, refuse_failures
from vkrt.export.files import load_model, save_model
from vkrt.export.int8 import recipe
from vkrt.export.int8.gate import Gate, Verdict
from vkrt.export.int8.products import Shape, find_products
from vkrt.export.int8.quantize import DYNAMIC, FP32, STATIC, Form
from vkrt.export.int8.recipe import ENCODER, Int8
from vkrt.exporting import export_model
from vkrt.manifest import Header, write_manifest
from vkrt.stage import Stage
from vkrt.steps import Attention, CutFile, Piece

MEMORY = "memory_attention"
INT8_FASTER = {FP32: 3.0, STATIC: 1.0, DYNAMIC: 2.0}
INT8_SLOWER = {FP32: 1.0, STATIC: 1.0, DYNAMIC: 1.0}


def faster(shape: Shape, reduced: bool) -> Mapping[Form, float]:
    return INT8_FASTER


def faster_late(shape: Shape, reduced: bool) -> Mapping[Form, float]:
    """Let int8 be faster for few products only, of which each takes a session to judge."""
    return INT8_FASTER if shape.outer >= 128 or shape.inner >= 128 else INT8_SLOWER


class Unquantized(NamedTuple):
    """Hold a bundle in fp32 that is to be quantized, and the header that it gets."""

    stages: dict[str, Stage]
    draft: Path
    header: Header

    @property
    def folder(self) -> Path:
        return self.draft.parent

    def quantize(self, how: Int8) -> dict[str, Any]:
        """Take the stages that int8 changes, and return the record of it."""
        drafts = {ENCODER: self.draft}
        made, record = recipe.quantize_encoder(self.stages, drafts, self.header, how)
        self.stages.update(made)
        return record

    def write(self, record: dict[str, Any]) -> None:
        header = replace(self.header, quantization=record)
        write_manifest(self.folder, header, self.stages.values())


@pytest.fixture
def unquantized(copied: Callable[[], Path], pico: str) -> Unquantized:
    """Return a bundle that is free to be changed."""
    bundle = read_bundle(copied())
    header = replace(bundle.header, precision="int8")
    # As an export has them, which may still change their files.
    stages = {n: Stage(n, s.module, s.inputs, s.outputs) for n, s in bundle.stages.items()}
    return Unquantized(stages, write_draft(bundle.folder), header)


def write_draft(folder: Path) -> Path:
    """Write a draft of a bundle's encoder and return its path; one so small has no marks."""
    return Path(shutil.copy(folder / f"{ENCODER}.onnx", folder / f"{ENCODER}.draft.onnx"))


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "Gate", partial(Gate, scenes=3, clips=1))
    monkeypatch.setattr(recipe, "SCENES", range(4))


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list of the IoUs that the gate is to find, the last one for ever."""
    wanted: list[float] = [1.0]

    def judge(self: Gate, sam: vkrt.Segmenter) -> Verdict:
        iou = wanted.pop(0) if len(wanted) > 1 else wanted[0]
        return Verdict(iou, iou, iou, iou, 10, 3, 1)

    monkeypatch.setattr(Gate, "judge", judge)
    return wanted


def test_an_int8_bundle_runs_and_says_what_was_chosen(
    unquantized: Unquantized, pico_bundle: Path, photo: np.ndarray
) -> None:
    stages, folder = unquantized.stages, unquantized.folder
    whole = stages[ENCODER].module.stat().st_size
    weights = sum(p.weight.size for p in find_products(ir.load(stages[ENCODER].module).graph))
    record = unquantized.quantize(Int8(allow_loss=True, measure=faster))
    assert {path.name for path in folder.iterdir()} == {path.name for path in pico_bundle.iterdir()}
    # Three bytes less for each weight, and what nodes and scales take.
    assert stages[ENCODER].module.stat().st_size < whole - 3 * weights + 700 * len(
        record["products"]
    )
    held = ir.load(stages[ENCODER].module).graph.initializers.values()
    assert sum(v.const_value.size for v in held if v.const_value.dtype == ir.DataType.INT8) == (
        weights
    )
    assert {product["form"] for product in record["products"]} == {STATIC}
    assert record["calibration"] == {"scenes": 4, "photos": 0}

    unquantized.write(record)
    assert read_bundle(folder).header.quantization == json.loads(json.dumps(record))
    sam, fp32 = vkrt.load(folder), vkrt.load(pico_bundle)
    one, other = (s.encode(photo).predict(points=[[70, 40]]) for s in (sam, fp32))
    error = np.abs(one.logits - other.logits).max() / np.abs(other.logits).max()
    assert 0 < error < 0.1
    assert vkrt.load(folder, precision="int8").backend == "onnx"
    with pytest.raises(BackendError, match="holds int8"):
        vkrt.load(folder, precision="fp16")


def test_weights_beside_the_file_stay_beside_it(
    unquantized: Unquantized, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = unquantized.stages[ENCODER].module
    model = load_model(path)
    path.unlink()
    monkeypatch.setattr(files, "MOST_INLINE_BYTES", 1000)
    save_model(model, path)
    beside = path.with_name(f"{path.name}.data")
    write_draft(path.parent)
    whole = beside.stat().st_size
    record = unquantized.quantize(Int8(allow_loss=True, measure=faster))
    assert 0 < beside.stat().st_size < whole
    unquantized.write(record)
    with vkrt.load(path.parent) as sam:
        assert np.isfinite(sam.encode(photo).predict(points=[[70, 40]]).logits).all()


def test_what_costs_masks_goes_back_until_they_are_kept(
    unquantized: Unquantized, verdicts: list[float]
) -> None:
    verdicts[:] = [0.97, 0.985]
    record = unquantized.quantize(Int8(measure=faster_late))
    reasons = Counter(product["reason"] for product in record["products"])
    assert reasons["quality"] and reasons["faster"] and sum(reasons.values()) > 20
    assert reasons["quality"] + reasons["faster"] == 4
    assert record["masks"]["iou"] == 0.985 and not record["masks"]["loss_allowed"]


def test_a_bundle_that_loses_masks_is_refused_and_the_loss_can_be_allowed(
    unquantized: Unquantized, verdicts: list[float]
) -> None:
    stages = unquantized.stages
    verdicts[:] = [0.5]
    before = stages[ENCODER].module.read_bytes()
    with pytest.raises(BackendError, match=r"IoU to fp32 0\.500 .*0\.98 is wanted") as caught:
        unquantized.quantize(Int8(measure=faster_late))
    assert "\n" not in str(caught.value) and "--allow-loss" in str(caught.value)
    assert stages[ENCODER].module.read_bytes() == before
    how = Int8(allow_loss=True, measure=faster_late)
    record = unquantized.quantize(how)
    assert record["masks"]["loss_allowed"] and record["masks"]["iou"] == 0.5
    assert Counter(product["form"] for product in record["products"])[STATIC] == 4


def test_int8_that_gains_nothing_is_refused(
    unquantized: Unquantized,
) -> None:
    with pytest.raises(BackendError, match="not faster than fp32 for any"):
        unquantized.quantize(Int8(measure=lambda *_: INT8_SLOWER))
    with pytest.raises(BackendError, match=f"no {ENCODER}"):
        recipe.quantize_encoder({}, {}, unquantized.header, Int8())


@pytest.fixture
def ready_files(monkeypatch: pytest.MonkeyPatch, pico_bundle: Path) -> None:
    """Let an export of the smallest model take its fp32 files from a ready bundle."""
    ready = read_bundle(pico_bundle).stages

    def stage_to_onnx(
        stage: Stage, path: Path, precision: str, may_cut: bool, draft: Path | None
    ) -> Path | CutFile:
        assert precision == "fp32" and may_cut
        # Pieces of a stage that was cut lie beside it, and so do their weights.
        for file in pico_bundle.glob(f"{path.stem}.*"):
            shutil.copy(file, path.parent)
        assert (draft is not None) == (stage.name == ENCODER)
        if draft is not None:
            assert draft == write_draft(path.parent)
        module = ready[stage.name].module
        if not isinstance(module, CutFile):
            return path
        steps = [
            replace(step, path=path.with_name(step.path.name)) if isinstance(step, Piece) else step
            for step in module.steps
        ]
        return CutFile(path, tuple(steps))

    monkeypatch.setattr(write, "stage_to_onnx", stage_to_onnx)
    monkeypatch.setattr(recipe, "time_forms", faster_late)


def test_the_command_writes_int8(
    ready_files: None,
    pico: str,
    pico_checkpoint: Path,
    tmp_path: Path,
    verdicts: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [pico, "--checkpoint", str(pico_checkpoint), "--out", str(tmp_path / "b")]
    verdicts[:] = [0.25]
    assert main.main(["export", *given, "--precision", "int8"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "0.250" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert main.main(["export", *given, "--precision", "int8", "--allow-loss"]) == 0
    out, err = capsys.readouterr()
    assert "static range" in out and "0.2500" in out and "loss allowed" in out and err == ""
    header = read_bundle(tmp_path / "b").header
    assert (header.precision, header.quantization["masks"]["iou"]) == ("int8", 0.25)
    by_stage: dict[str, list[dict[str, Any]]] = {}
    for figure in header.parity:
        by_stage.setdefault(figure["stage"], []).append(dict(figure))
    assert len(by_stage[ENCODER]) == 5
    errors = [f["max_relative"] for f in by_stage[ENCODER]]
    assert 1e-3 < max(errors) < 0.5 and {f["allowed"] for f in by_stage[ENCODER]} == {0.5}
    assert all(f["allowed"] < 1e-3 for f in by_stage["mask_decoder"])


def test_attention_to_memories_is_in_bf16_in_an_int8_bundle(
    ready_files: None,
    pico: str,
    pico_bundle: Path,
    pico_checkpoint: Path,
    tmp_path: Path,
    verdicts: list[float],
    photo: np.ndarray,
    host_attentions: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vkrt.models.sam2.stage_set import all_stages
    from vkrt.weights.sam2 import load_sam2

    bundle = export_model(pico, tmp_path / "b", pico_checkpoint, precision="int8")
    cut = {name: s for name, s in bundle.stages.items() if isinstance(s.module, CutFile)}
    assert set(cut) == {MEMORY}
    attentions = [step for step in cut[MEMORY].module.steps if isinstance(step, Attention)]
    assert [step.precision for step in attentions] == ["bf16"]
    eager = all_stages(load_sam2(pico_checkpoint, pico)[1])
    refuse_failures(check_stage(eager[MEMORY], cut[MEMORY].module, "bf16"))
    refuse_failures(check_stage(eager[MEMORY], cut[MEMORY].module.path))
    (figure,) = (f for f in bundle.header.parity if f["stage"] == MEMORY)
    assert figure["allowed"] == 2.0**-6
    host_attentions.clear()
    found, fp32 = (tracked(folder, photo) for folder in (bundle.folder, pico_bundle))
    assert len(host_attentions) == 2 * 2
    monkeypatch.setattr(cut_backend.host_attention, "IS_NATIVE", False)
    np.testing.assert_allclose(found, tracked(bundle.folder, photo), atol=2.0**-8)
    assert len(host_attentions) == 2 * 2
    assert 0 < np.abs(found - fp32).max() < 0.1 * np.abs(fp32).max()


def test_a_bundle_for_photos_alone_is_judged_by_photos(
    ready_files: None, pico: str, pico_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b"
    bundle = export_model(
        pico, out, pico_checkpoint, precision="int8", photos_only=True, allow_loss=True
    )
    masks = bundle.header.quantization["masks"]
    assert (masks["track"], masks["clips"], MEMORY in bundle.stages) == (None, 0, False)


def tracked(folder: Path, photo: np.ndarray) -> np.ndarray:
    """Return the object scores of three frames: masks of random weights are empty."""
    with vkrt.load(folder) as sam, sam.track([photo, photo[::-1], photo]) as track:
        track.prompt(frame=0, obj=1, points=[[70, 40]])
        return np.concatenate([frame.object_scores for frame in track.propagate()])


def test_a_broken_int8_stage_is_not_written(
    ready_files: None,
    pico: str,
    pico_checkpoint: Path,
    tmp_path: Path,
    verdicts: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def break_and_move(stage: Stage, folder: Path) -> Stage:
        model = ir.load(stage.module)
        scale = next(v for v in model.graph.initializers.values() if v.name.endswith("bias"))
        scale.const_value = ir.tensor(np.full(scale.const_value.shape, np.nan, np.float32))
        ir.save(model, stage.module)
        return files.move(stage, folder)

    monkeypatch.setattr(recipe, "move", break_and_move)
    with pytest.raises(BackendError, match="differ from PyTorch"):
        export_model(pico, tmp_path / "b", pico_checkpoint, precision="int8")
    assert not list(tmp_path.iterdir())


def test_loading_in_int8_exports_once(
    ready_files: None,
    pico: str,
    pico_checkpoint: Path,
    tmp_path: Path,
    verdicts: list[float],
    photo: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VKRT_BACKEND")
    for _ in range(2):
        sam = vkrt.load(pico, pico_checkpoint, precision="int8", device="cpu")
        assert sam.backend == "onnx" and sam.encode(photo).predict(box=[40, 10, 100, 70]).best >= 0
    (folder,) = (path for path in (tmp_path / "cache/bundles").iterdir() if path.is_dir())
    assert folder.name.startswith(f"{pico}-64-int8-")
    with pytest.raises(BackendError, match="eager PyTorch has no int8"):
        vkrt.load(pico, pico_checkpoint, precision="int8", backend="eager")


def test_a_bundle_of_a_better_cpu_is_told(
    unquantized: Unquantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unquantized.folder
    unquantized.draft.unlink()
    for bits, told in ((8, 1), (7, 0)):
        unquantized.write({"weight_bits": bits})
        monkeypatch.setattr("vkrt.fitness.needs_reduced_range", lambda: True)
        with pytest.warns(RuntimeWarning) if told else nullcontext():
            vkrt.load(folder)
        monkeypatch.setattr("vkrt.fitness.needs_reduced_range", lambda: False)
        vkrt.load(folder)


@pytest.mark.slow
def test_the_packaged_model_keeps_its_masks(tmp_path: Path) -> None:
    bundle = export_model("sam2.1-nano", tmp_path / "b", precision="int8")
    record = bundle.header.quantization
    assert record["masks"]["iou"] >= 0.98 and record["masks"]["track"] >= 0.98
    assert any(product["form"] == STATIC for product in record["products"])
