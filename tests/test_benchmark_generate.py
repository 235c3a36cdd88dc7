"""The benchmarks of image generation: same weights, honest counts, gates before any timing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from torch import nn

from benchmarks import generate, plan_memory
from benchmarks.agreement import DisagreementError
from benchmarks.generate import compare_outputs, judge, read_setting
from benchmarks.generate_cases import (
    CASES,
    Entrant,
    Setting,
    flops_of,
    plain_decode_flops,
    plain_step_flops,
    random_stage,
)
from benchmarks.generate_results import GenerateRow
from benchmarks.peers.diffusers_sd35 import DiffusersDecode, DiffusersStep
from benchmarks.peers.ours_sd35 import OursConditioning, StepInputs
from benchmarks.plan_memory import Task, run_apart, watch
from benchmarks.random_sd35 import (
    NoRoomError,
    draw,
    file_shapes,
    random_part,
    write_checkpoint,
    write_vocabulary,
)
from benchmarks.results import append_rows, read_rows
from benchmarks.rss import rss_mib
from vkrt.media.text import Tokenizers
from vkrt.models.sd35.config import ClipConfig, MmditConfig, Sd35Config, VaeConfig
from vkrt.models.sd35.known import KNOWN
from vkrt.weights.sd35 import open_sd35

TOKENS = 21
TINY = Sd35Config(
    MmditConfig(3, 2, 16, (0, 1), pos_embed_max_size=8, context_dim=192, pooled_dim=160),
    clip_l=ClipConfig(64, 2, 1, 96, 64, "quick_gelu", pad=599, vocabulary=600),
    clip_g=ClipConfig(128, 3, 2, 96, 96, "gelu", pad=0, vocabulary=600),
    vae=VaeConfig(channels=32, multipliers=(1, 1, 2, 2), blocks=1),
)
TRANSFORMER = ("conditioning", "positions", "denoiser")
needs_proc = pytest.mark.skipif(rss_mib() is None, reason="the system does not tell")


def setting(*peers: str, **changes: Any) -> Setting:
    """Return one of the tiny model at 48x64, with an odd number of tokens."""
    usual = Setting("tiny", TINY, 64, 48, TOKENS, peers or ("vkrt", "diffusers"), 1)
    return replace(usual, **changes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of the tiny model's random weights in bf16, and a vocabulary beside it."""
    path = tmp_path_factory.mktemp("random") / "tiny.safetensors"
    write_checkpoint(path, TINY)
    write_vocabulary(path.parent, TINY.clip_l.vocabulary)
    return path


# Random weights.


def test_drawn_values_are_the_same_each_time_and_of_the_right_size() -> None:
    for name, shape, mean, spread in (
        ("a.weight", (64, 4, 5, 5), 0.0, 0.1),
        ("a.bias", (4096,), 0.0, 0.2),
        ("norm.weight", (4096,), 1.0, 0.2),
        ("pos_embed", (1, 256, 16), 0.0, 1.0),
    ):
        values = draw(name, shape)
        assert torch.equal(values, draw(name, shape))
        assert torch.equal(values.bfloat16(), draw(name, shape, torch.bfloat16))
        assert values.mean() == pytest.approx(mean, abs=0.05)
        assert values.std() == pytest.approx(spread, rel=0.05)
    assert not torch.equal(draw("a.weight", (4, 4)), draw("b.weight", (4, 4)))


def test_no_tensor_of_a_part_is_at_a_neutral_value() -> None:
    for name, values in random_part("denoiser", TINY).state_dict().items():
        assert values.std() > 0.05, name


def test_a_file_loads_strictly_and_holds_the_values_of_the_parts(checkpoint: Path) -> None:
    weights = open_sd35(checkpoint)
    assert weights.config.mmdit == TINY.mmdit
    assert weights.parts == {"clip_l", "clip_g", "vae_encoder", "vae_decoder", *TRANSFORMER}
    for part in (*TRANSFORMER, "clip_g", "vae_decoder"):
        wanted = random_part(part, TINY).state_dict()
        for name, values in weights.load(part, "bf16").state_dict().items():
            assert torch.equal(values, wanted[name].bfloat16()), name


def test_a_file_of_the_full_size_would_have_the_published_names() -> None:
    shapes = file_shapes(KNOWN["sd3.5-medium"])
    transformer = [n for n in shapes if n.startswith("model.diffusion_model.")]
    assert sum(np.prod(shapes[n]) for n in transformer) == pytest.approx(2.47e9, rel=0.1)
    assert "text_encoders.clip_l.transformer.text_projection.weight" not in shapes
    assert shapes["text_encoders.clip_g.transformer.text_projection.weight"] == (1280, 1280)
    assert shapes["first_stage_model.decoder.conv_in.weight"] == (512, 16, 3, 3)


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(NoRoomError, match="free"):
        write_checkpoint(tmp_path / "tiny.safetensors", TINY)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_file_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.random_sd35.draw", fail)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "tiny.safetensors", TINY)
    assert list(tmp_path.iterdir()) == []


# Peers.


@pytest.mark.parametrize("case", ["mmdit-step", "vae-decode"])
def test_both_compute_the_same_at_a_sane_scale(case: str) -> None:
    entrants = CASES[case](setting())
    errors = compare_outputs(entrants)
    assert list(errors) == ["vkrt", "diffusers"]
    assert errors["vkrt"] is None
    assert 0 <= errors["diffusers"] < 1e-4
    for entrant in entrants.values():
        assert 0.05 < entrant.run().std() < 20


def storages(model: nn.Module) -> set[int]:
    """Return where the memory of a model's tensors begins."""
    return {value.untyped_storage().data_ptr() for value in model.state_dict().values()}


def test_diffusers_has_no_weights_of_its_own_but_the_exchanged_ones() -> None:
    modules = [random_part(part, TINY) for part in TRANSFORMER]
    inputs = StepInputs.draw(TINY, 64, 48, TOKENS)
    theirs = DiffusersStep(TINY.mmdit, modules, inputs).model
    ours = set().union(*(storages(module) for module in modules))
    assert len(storages(theirs) - ours) == 4
    assert not any(value.is_meta for value in theirs.state_dict().values())
    decoder = random_part("vae_decoder", TINY)
    assert storages(DiffusersDecode(TINY.vae, decoder).model.decoder) == storages(decoder)


def test_our_step_does_not_copy_the_shared_weights() -> None:
    stages = [random_stage(name, TINY) for name in ("conditioning", "positions")]
    before = [storages(stage.module) for stage in stages]
    OursConditioning(stages, TINY.mmdit, setting().backends()("conditioning"))
    assert [storages(stage.module) for stage in stages] == before


def test_conditioning_runs_all_steps_at_once() -> None:
    (entrant,) = CASES["conditioning"](setting()).values()
    assert entrant.run().shape[:2] == (28, 1)
    assert CASES["conditioning"](setting("diffusers")) == {}


# Counts of operations.


def step_formula(config: MmditConfig, patches: int, tokens: int) -> int:
    """Return the operations of our step, written out by hand."""
    dim, both = config.dim, patches + tokens
    image = config.depth * patches * 2 * dim * dim * (3 + 1 + 8)
    context = tokens * 2 * dim * dim * (config.depth * 3 + (config.depth - 1) * 9)
    joint = 4 * dim * both * ((config.depth - 1) * both + patches)
    dual = len(config.dual_blocks) * (patches * 2 * dim * dim * 4 + 4 * dim * patches**2)
    return image + context + joint + dual + 2 * 2 * patches * dim * config.patch_dim


def conditioning_formula(config: MmditConfig, tokens: int) -> int:
    """Return the operations before a single step, written out by hand."""
    dim, parts = config.dim, config.depth * 12 - 4 + len(config.dual_blocks) * 3 + 2
    embedders = (256 + dim + config.pooled_dim + dim) * dim
    return 2 * (embedders + tokens * config.context_dim * dim + parts * dim * dim)


def test_the_operations_of_a_step_are_those_written_out() -> None:
    config, patches = TINY.mmdit, 12
    ours = flops_of("mmdit", TINY, batch=1, patches=patches, length=TOKENS)
    assert ours == step_formula(config, patches, TOKENS)
    before = flops_of("conditioning", TINY, steps=1, batch=1, length=TOKENS)
    assert before == conditioning_formula(config, TOKENS)
    # What the last block's context would read is not used.
    unused = 4 * config.dim * TOKENS * (patches + TOKENS)
    assert plain_step_flops(setting()) == ours + before + unused


def test_the_operations_of_decoding_are_at_most_those_of_the_peer() -> None:
    ours = flops_of("vae_decoder", TINY, batch=1, height=6, width=8)
    assert 0 < ours <= plain_decode_flops(setting())


@pytest.mark.slow
def test_the_operations_of_the_full_size_are_the_published_ones() -> None:
    large = Setting("sd3.5-medium", KNOWN["sd3.5-medium"], 1024, 1024, 333, ("vkrt",), 1)
    assert plain_step_flops(large) == pytest.approx(11.2e12, rel=0.03)
    ours = flops_of("mmdit", large.config, batch=1, patches=4096, length=333)
    assert ours == step_formula(large.config.mmdit, 4096, 333)


# The gate and the rows.


def entrant(output: Sequence[float], precision: str = "fp32") -> Entrant:
    return Entrant("eager", precision, 1, lambda: np.array(output, np.float32))


def test_other_outputs_are_refused() -> None:
    right, off = entrant([1.0, -2.0]), entrant([1.0, -2.001])
    assert compare_outputs({"a": right, "b": right}) == {"a": None, "b": 0.0}
    with pytest.raises(DisagreementError, match="b and a"):
        compare_outputs({"a": right, "b": off})
    with pytest.raises(DisagreementError, match="not finite"):
        compare_outputs({"a": entrant([float("nan"), 1.0])})


def test_int8_is_held_against_fp32_and_by_its_own_limit() -> None:
    errors = compare_outputs({"a": entrant([1.0, -1.8], "int8"), "b": entrant([1.0, -2.0])})
    assert errors == {"a": pytest.approx(0.1), "b": None}


def test_a_bundle_of_other_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {name: random_stage(name, TINY) for name in ("mmdit", "vae_decoder")}
    bundle: Any = SimpleNamespace(stages=stages, header=SimpleNamespace(precision="fp32"))
    eager = setting().backends()
    monkeypatch.setattr(Setting, "backends", lambda self, name="eager": eager)
    for case in ("mmdit-step", "vae-decode"):
        entrants = CASES[case](setting("vkrt", "vkrt-onnx", bundle=bundle))
        assert [each.backend for each in entrants.values()] == ["eager", "onnx"]
        assert compare_outputs(entrants)["vkrt-onnx"] == 0.0
    module: Any = stages["mmdit"].module
    module.final_layer.linear.weight.mul_(1.001)
    entrants = CASES["mmdit-step"](setting("vkrt-onnx", "diffusers", bundle=bundle))
    assert list(entrants) == ["vkrt-onnx", "diffusers"]
    with pytest.raises(DisagreementError):
        compare_outputs(entrants)


def test_rows_say_what_was_measured(tmp_path: Path) -> None:
    rows = generate.run("mmdit-step", setting(), 2, {"torch fp32": 100.0})
    assert [row.variant for row in rows] == ["vkrt", "diffusers"]
    ours, theirs = rows
    assert (ours.photo, ours.image_size, ours.tokens) == ("64x48", 64, TOKENS)
    assert ours.baseline == theirs.baseline == "vkrt"
    assert ours.ratio_to_vkrt == 1.0
    assert theirs.max_rel_error is not None and ours.max_rel_error is None
    work = step_formula(TINY.mmdit, 12, TOKENS)
    assert ours.gflops == pytest.approx(work / ours.p50_ms / 1e6)
    append_rows(tmp_path / "generate.csv", rows)
    (first, _) = read_rows(tmp_path / "generate.csv", GenerateRow)
    assert first["diffusers"] and first["psnr_db"] == ""
    generate.show(rows)


def measured(variant: str, p50: float, **columns: Any) -> GenerateRow:
    """Return a row of the size that the bars are for."""
    values: dict[str, Any] = dict.fromkeys((field.name for field in fields(GenerateRow)), None)
    usual = {"case": "mmdit-step", "model": "sd3.5-medium", "photo": "512x512", "tokens": 333}
    usual |= {"variant": variant, "precision": "fp32", "p50_ms": p50}
    return GenerateRow(**{**values, **usual, **columns})


def test_bars_are_by_case_and_precision() -> None:
    rows = [
        measured("vkrt", 10.0),
        measured("vkrt-onnx", 10.0, precision="int8"),
        measured("diffusers", 12.0),
    ]
    fp32, int8 = judge(rows)
    assert (fp32.figure, fp32.bar, fp32.holds) == (1.2, 1.15, True)
    assert (int8.figure, int8.bar, int8.holds) == (1.2, 1.6, False)
    for change in ({"photo": "256x256"}, {"tokens": 154}, {"model": "sd3.5-large"}):
        assert judge([replace(row, **change) for row in rows]) == []
    assert judge(rows[:2]) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "sd3.5-small"}, "choose of sd3.5-medium"),
        ({"peers": "vkrt,comfy"}, "unknown peer comfy"),
        ({"peers": "vkrt,vkrt-onnx"}, "--bundle"),
        ({"size": "500"}, "multiples of 16"),
        ({"size": "large"}, "--size"),
    ],
)
def test_bad_options_are_told_in_one_line(
    change: dict[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as stopped:
        generate.main(**{"cases": "vae-decode", "peers": "vkrt", "dry": True, **change})
    assert stopped.value.exit_code == 2
    message = capsys.readouterr().err
    assert told in message and message.count("\n") == 1


def test_sizes_are_squares_or_both_sides() -> None:
    read = read_setting("sd3.5-medium", "512x768", 333, "diffusers,vkrt", None, 2)
    assert (read.width, read.height, read.peers) == (512, 768, ("vkrt", "diffusers"))
    assert read_setting("sd3.5-medium", "512", 333, "vkrt", None, 2).height == 512


# Memory.


def task(case: str, checkpoint: Path, **changes: Any) -> Task:
    usual = Task(case, str(checkpoint), str(checkpoint.parent), "bf16", 64, 48, 2, 2)
    return replace(usual, **changes)


def test_the_vocabulary_reads_any_prompt(checkpoint: Path) -> None:
    tokens = Tokenizers(checkpoint.parent).clip("A house, 1", length=77)
    assert tokens[0] == 598 and tokens.max() == 599
    assert len(np.flatnonzero(tokens < 598)) == 8


@needs_proc
def test_generating_is_watched_by_part(checkpoint: Path) -> None:
    figures = watch(task("generate", checkpoint))
    cases = {"generate", "generate-steps", "generate-decode"}
    assert figures["found"].keys() == figures["foreseen"].keys() == cases
    parts = [figures["found"][case] for case in ("generate-steps", "generate-decode")]
    assert figures["found"]["generate"] == max(parts)
    foreseen = figures["foreseen"]
    assert foreseen["generate"] == max(foreseen["generate-steps"], foreseen["generate-decode"]) > 0


@needs_proc
def test_loading_is_held_against_the_bytes_of_the_weights(checkpoint: Path) -> None:
    figures = watch(task("load", checkpoint, precision="fp32"))
    count = sum(v.numel() for p in TRANSFORMER for v in random_part(p, TINY).state_dict().values())
    assert figures["foreseen"] == {"load": pytest.approx(4 * count / 1024**2)}
    assert figures["found"].keys() == {"load"}


@needs_proc
def test_a_peak_that_is_gone_counts() -> None:
    peaks = plan_memory.Peaks()
    block = np.ones(64 * 1024**2, np.uint8)
    del block
    peaks.note("first")
    assert peaks.found["first"] > 60
    peaks.note("second")
    assert peaks.found["second"] < 30


@pytest.mark.parametrize(
    ("case", "peak", "verdict"),
    [
        ("generate", 1080, "reached"),
        ("generate", 1120, "missed"),
        ("generate", 880, "missed"),
        ("load", 1080, "reached"),
        ("load", 700, "reached"),
        ("load", 1120, "missed"),
    ],
)
def test_peaks_are_judged_by_their_bars(
    case: str, peak: float, verdict: str, checkpoint: Path, tmp_path: Path
) -> None:
    figures = {"held": 300.0, "found": {case: peak}, "foreseen": {case: 1000.0}}
    (row,) = plan_memory.judge("sd3.5-medium", task(case, checkpoint), figures)
    assert (row.verdict, row.ratio) == (verdict, peak / 1000)
    append_rows(tmp_path / "plan_memory.csv", [row])
    assert len(astuple(row)) == len(read_rows(tmp_path / "plan_memory.csv", type(row))[0])
    plan_memory.show([row])


@pytest.mark.slow
@needs_proc
def test_a_process_of_its_own_gives_the_same_figures(checkpoint: Path) -> None:
    figures = run_apart(task("generate", checkpoint, threads=1))
    assert figures["foreseen"] == watch(task("generate", checkpoint, threads=1))["foreseen"]


def test_an_unknown_model_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as stopped:
        plan_memory.main(model="sd3.5-small", dry=True)
    assert stopped.value.exit_code == 2
    assert "choose of sd3.5-medium" in capsys.readouterr().err
