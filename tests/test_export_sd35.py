"""Stable Diffusion 3.5 as a bundle: what it holds, and that it makes the pictures of eager."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sd35_tiny import CONTROL, TINY
from torch_free import run_torch_free
from toys import HEADER, edit, write_toy
from vocabularies import write_clip, write_spiece, write_t5_json

import vkrt
from vkrt import backends
from vkrt.backends import cut as cut_backend
from vkrt.bundle import Bundle, read_bundle
from vkrt.cli import main
from vkrt.engines.inputs import Inputs, read_inputs
from vkrt.engines.request import read_request
from vkrt.engines.sd35 import Generator
from vkrt.errors import BackendError, CheckpointError, GenerationError, VkrtError
from vkrt.export import write
from vkrt.export.expectation import Expectation
from vkrt.export.sd35_tokenizers import find_tokenizers
from vkrt.exporting import export_model
from vkrt.loading_sd35 import bundled_generator
from vkrt.manifest import SAM2, SD35
from vkrt.media.text import Tokenizers
from vkrt.memory.residency import Residency
from vkrt.models.sd35.config import ControlNetConfig, Sd35Config
from vkrt.models.sd35.record import from_record, to_record
from vkrt.options import Options
from vkrt.stage import Port, Stage
from vkrt.steps import Attention, CutFile, Piece

WIDTH, HEIGHT = 64, 48
PROMPT, NEGATIVE = "a cat and the light house!", "a dog"
NUMBERS = {"steps": 6, "guidance": 4.5, "sampler": "euler", "seed": 11}
STAGES = (
    *("clip_l", "clip_g", "t5", "conditioning", "positions", "mmdit", "mmdit_controlled"),
    *("controlnet_conditioning", "controlnet", "vae_encoder", "vae_decoder"),
)
TOLERANCE = 1e-4


# What a manifest says of it.


def test_a_config_goes_through_json() -> None:
    for config in (TINY, CONTROL):
        record = json.loads(json.dumps(to_record(config)))
        assert from_record(type(config), record) == config


def test_what_a_record_lacks_is_as_the_config_has_it() -> None:
    record = to_record(TINY)
    del record["vae"]["scaling"], record["steps"]
    found = from_record(Sd35Config, record)
    assert (found.vae.scaling, found.steps) == (1.5305, Sd35Config(TINY.mmdit).steps)


@pytest.mark.parametrize(
    "change",
    [
        {"depth": "19"},
        {"depth": True},
        {"depth": -1},
        {"depth": 1.5},
        {"colour": 3},
        {"head_dim": None},
    ],
)
def test_a_damaged_record_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        from_record(ControlNetConfig, {**to_record(CONTROL), **change})
    with pytest.raises(TypeError):
        from_record(Sd35Config, {"mmdit": [1]})


def toy(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None) -> Path:
    """Write a bundle that says it is of this family."""
    write_toy(folder)

    def say(content: dict[str, Any]) -> None:
        content.update(family=SD35, model="sd3.5-medium", image_size=0)
        change(content)

    edit(folder, say)
    return folder


def test_bundles_of_before_are_of_the_first_family(tmp_path: Path) -> None:
    write_toy(tmp_path / "b")
    edit(tmp_path / "b", lambda content: [content.pop("family"), content.pop("settings")])
    header = read_bundle(tmp_path / "b").header
    assert (header.family, header.settings) == (SAM2, {})


def test_the_other_family_is_refused_in_one_line(tmp_path: Path) -> None:
    pictures = toy(tmp_path / "pictures")
    write_toy(tmp_path / "masks")
    cases = [
        (("sam2.1-nano", pictures), "segments nothing"),
        (("sd3.5-medium", tmp_path / "masks"), "makes no pictures"),
        (("sd3.5-large", pictures), "holds sd3.5-medium"),
        ((pictures,), "has no stage 'clip_l'"),
    ]
    for given, words in cases:
        with pytest.raises(CheckpointError, match=words) as caught:
            vkrt.load(*given)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("command", "out"), [("segment", "out.png"), ("track", "out.json")])
def test_commands_that_segment_refuse_it(
    command: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("vkrt.load", lambda *given, **options: pytest.fail("loaded"))
    drawing(1).save(tmp_path / "in.gif")
    given = [command, tmp_path / "in.gif", "--model", "sd3.5-medium", "--box", "4,4,20,20"]
    assert main.main([*map(str, given), "--out", str(tmp_path / out)]) == 2
    error = capsys.readouterr().err
    assert "sd3.5-medium makes pictures" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "eager"},
        {"precision": "bf16"},
        {"precision": {"mmdit": "bf16"}},
        {"control_model": "c.safetensors"},
        {"encoders": {"t5": "t5.safetensors"}},
    ],
)
def test_what_a_bundle_cannot_do_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(VkrtError, match=r"bundle|holds fp32"):
        vkrt.load(toy(tmp_path / "b"), **options)


# Tokenizers.


def test_files_of_tokenizers_get_names_of_their_own(tmp_path: Path) -> None:
    clip, spiece = write_clip(tmp_path / "clip"), write_spiece(tmp_path / "t5")
    write_t5_json(tmp_path / "whole")
    found = find_tokenizers({"clip_g": clip, "t5": spiece}, with_t5=True)
    assert found.names == {"clip_g": "vocab.json", "t5": "spiece.model"}
    assert set(found.files) == {"vocab.json", "merges.txt", "spiece.model"}
    found = find_tokenizers({"clip_l": clip, "t5": tmp_path / "whole"}, with_t5=True)
    assert found.names["t5"] == "t5.tokenizer.json"
    found = find_tokenizers({"clip_l": clip, "clip_g": clip}, with_t5=False)
    assert found.names == {"clip_l": "vocab.json", "clip_g": "vocab.json"}
    for given in ({"clip_l": clip}, {"t5": spiece}, {"clip_l": spiece, "t5": spiece}):
        with pytest.raises(CheckpointError, match="tokenizer"):
            find_tokenizers(given, with_t5=True)


# A whole pipeline.


@pytest.fixture(scope="module")
def bundle(sd35_folder: Path) -> Bundle:
    return export_model(
        sd35_folder / "pipeline",
        sd35_folder / "tiny.vkrt",
        control_model=sd35_folder / "controlnet",
    )


@pytest.fixture(scope="module")
def eager(sd35_folder: Path) -> Iterator[Generator]:
    from sd35_pipeline import open_folder

    with open_folder(sd35_folder, controlnet=True) as engine:
        yield engine


def drawing(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def latents(engine: Generator, inputs: Inputs, **changes: Any) -> np.ndarray:
    numbers = {**NUMBERS, "controlled": inputs.control is not None, **changes}
    request = read_request(engine.config, PROMPT, NEGATIVE, WIDTH, HEIGHT, **numbers)
    return engine.sample(request, inputs)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "from text": ({}, {}),
    "from a picture": ({"image": drawing(1)}, {"strength": 0.6}),
    "led by a ControlNet": ({"control": drawing(2)}, {"control_scale": 0.7}),
    "skipping layers": ({}, {"skip_layers": [1, 2], "skip_scale": 2.8}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fast", [True, False], ids=["steps", "whole"])
def test_latents_are_those_of_eager(
    bundle: Bundle, eager: Generator, case: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut_backend.host_attention, "IS_NATIVE", fast)
    pictures, changes = CASES[case]
    inputs = read_inputs(eager.config, WIDTH, HEIGHT, **pictures)
    wanted = latents(eager, inputs, **changes)
    with vkrt.load(bundle.folder) as engine:
        found = latents(engine, inputs, **changes)
    assert np.abs(wanted).max() > 0.1
    assert np.abs(found - wanted).max() < TOLERANCE * np.abs(wanted).max()


@pytest.mark.slow
def test_openvino_runs_it(bundle: Bundle, eager: Generator) -> None:
    pytest.importorskip("openvino")
    inputs = Inputs((WIDTH, HEIGHT))
    wanted = latents(eager, inputs)
    with vkrt.load(bundle.folder, backend="openvino") as engine:
        found = latents(engine, inputs)
    assert np.abs(found - wanted).max() < TOLERANCE * np.abs(wanted).max()


@pytest.mark.slow
def test_what_the_bundle_holds(bundle: Bundle, eager: Generator) -> None:
    header = bundle.header
    assert (header.family, header.model, header.precision) == (SD35, "custom", "fp32")
    assert sorted(bundle.stages) == sorted(STAGES)
    assert from_record(Sd35Config, header.settings["config"]) == eager.config
    assert header.settings["weights"].keys() == set(STAGES)
    tokenizers = header.settings["tokenizers"]
    assert set(tokenizers) == {"clip_l", "clip_g", "t5"}
    assert set(tokenizers.values()) <= set(bundle.bytes)
    assert all(f["max_relative"] <= f["allowed"] < 1e-3 for f in header.parity)
    for name, count in (("mmdit", 4 + 3 + 2), ("controlnet", 2), ("vae_decoder", 1)):
        steps = bundle.stages[name].module.steps
        assert sum(isinstance(step, Attention) for step in steps) == count
        # No piece for every mark, but for every layer of them.
        assert sum(isinstance(step, Piece) for step in steps) <= count + 1
    assert not isinstance(bundle.stages["t5"].module, CutFile)
    # Two stages of one transformer, whose weights are there once.
    assert "mmdit.onnx.data" in bundle.bytes and "mmdit_controlled.onnx.data" not in bundle.bytes
    pairs = [(figure["stage"], figure["output"]) for figure in header.parity]
    assert len(set(pairs)) == len(pairs)


@pytest.mark.slow
def test_stages_are_opened_when_needed_and_let_go(bundle: Bundle) -> None:
    plain = vkrt.load(bundle.folder)
    assert not plain._residency.loaded
    plain.encode_prompt(PROMPT)
    assert set(plain._residency.loaded) <= {"clip_l", "clip_g"}
    programs = plain._backend_of("t5").inside._programs
    assert len(programs) <= 2
    plain.close()
    assert not len(programs)
    peak = plain_peak(bundle)
    with vkrt.load(bundle.folder, memory_limit=peak) as engine:
        engine.generate(PROMPT, width=WIDTH, height=HEIGHT, steps=1, seed=0)
    with (
        vkrt.load(bundle.folder, memory_limit=100_000) as engine,
        pytest.raises(GenerationError, match="memory limit"),
    ):
        engine.generate(PROMPT, width=WIDTH, height=HEIGHT, steps=1, seed=0)
    with vkrt.load(bundle.folder) as engine, pytest.raises(GenerationError, match="bundle"):
        engine.load_lora("fox.safetensors")


def plain_peak(bundle: Bundle) -> int:
    """Return what a small generation takes without a limit."""
    with vkrt.load(bundle.folder) as engine:
        return engine.plan(WIDTH, HEIGHT, steps=1).peak


GENERATE = """
import vkrt
with vkrt.load(sys.argv[1]) as sd:
    (picture,) = sd.generate(
        sys.argv[2], "a dog", width=64, height=48, steps=2, guidance=4.5, sampler="euler", seed=11
    )
picture.save(sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("installed", ["ban", "have"])
def test_it_generates_without_torch(
    bundle: Bundle, eager: Generator, tmp_path: Path, installed: str
) -> None:
    """Torch is not there, or is and stays out of it."""
    out = tmp_path / "out.png"
    run_torch_free(GENERATE, installed, bundle.folder, PROMPT, out)
    numbers = {**NUMBERS, "steps": 2}
    (wanted,) = eager.generate(PROMPT, NEGATIVE, width=WIDTH, height=HEIGHT, **numbers)
    with Image.open(out) as picture:
        found = np.asarray(picture, np.int16)
    assert np.abs(found - np.asarray(wanted, np.int16)).max() <= 1


@pytest.mark.slow
def test_the_command_stores_half(
    sd35_folder: Path, bundle: Bundle, eager: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    out = sd35_folder / "half.vkrt"
    given = [sd35_folder / "pipeline", "--out", out, "--precision", "fp16", "--json"]
    assert main.main(["export", *map(str, given)]) == 0
    report = json.loads(capsys.readouterr().out)
    half = read_bundle(out)
    assert half.header.precision == "fp16" == report["precision"]
    assert "controlnet" not in half.stages and "mmdit_controlled" not in half.stages
    whole, stored = (b.bytes["mmdit.onnx.data"] for b in (bundle, half))
    assert stored < 0.75 * whole
    inputs = Inputs((WIDTH, HEIGHT))
    wanted = latents(eager, inputs)
    with vkrt.load(out, precision="fp16") as engine:
        found = latents(engine, inputs)
        with pytest.raises(CheckpointError, match="without controlnet"):
            engine.generate(PROMPT, width=WIDTH, height=HEIGHT, control=drawing(2), steps=1)
    assert 0 < np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.slow
def test_damaged_settings_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    def drop(content: dict[str, Any]) -> None:
        del content["config"]["mmdit"]

    changes: list[Callable[[dict[str, Any]], Any]] = [
        drop,
        lambda content: content["tokenizers"].update(t5="../t5.json"),
        lambda content: content.pop("weights"),
        lambda content: content.update(config=[]),
    ]
    for change in changes:
        settings = json.loads(json.dumps(dict(bundle.header.settings)))
        change(settings)
        damaged = replace(bundle, header=replace(bundle.header, settings=settings))
        with pytest.raises(CheckpointError, match="damaged settings"):
            bundled_generator(damaged, Options())


def test_options_of_the_other_family_are_refused(tmp_path: Path) -> None:
    for options in (
        {"image_size": 512},
        {"photos_only": True},
        {"precision": "int8", "calibration": tmp_path},
    ):
        with pytest.raises(VkrtError, match="any size"):
            export_model("sd3.5-medium", tmp_path / "b", tmp_path / "no.safetensors", **options)


def test_a_bundle_without_tokenizers_is_not_written(sd35_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tokenizer"):
        export_model(sd35_folder / "pipeline", tmp_path / "b", tokenizers={"clip_l": tmp_path})
    assert not list(tmp_path.iterdir())
    assert Tokenizers(sd35_folder / "pipeline").parts == {"clip_l", "clip_g", "t5"}


# What an export keeps in memory.


def test_stages_are_let_go_before_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from torch import nn

    held: list[weakref.ref[Any]] = []

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 500)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.layer(x),)

    def made(name: str) -> Stage:
        module = Layer()
        assert not any(other() is not None for other in held)
        held.extend(map(weakref.ref, (module, module.layer.weight)))
        return Stage(name, module, (Port("x", ("n", 3)),), (Port("y", ("n", 500)),))

    def hold(expected: Expectation, path: Path) -> list[Any]:
        assert [held[-2](), held[-1](), expected.stage.module] == [None] * 3
        assert expected.again(1) is None
        return found(expected, path)

    found = write.hold
    monkeypatch.setattr(write, "hold", hold)
    extra = tmp_path / "words.txt"
    extra.write_text("a cat")
    header = replace(HEADER, family=SD35, settings={"a": [1]})
    stages = (made(name) for name in ("one", "two"))
    write.write_bundle(header, stages, tmp_path / "b", files={"more.txt": extra})
    bundle = read_bundle(tmp_path / "b")
    assert sorted(bundle.stages) == ["one", "two"] and len(held) == 4
    assert (bundle.header.settings, bundle.bytes["more.txt"]) == ({"a": [1]}, 5)
    assert len(bundle.header.parity) == 2


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_program_that_was_evicted_is_freed(name: str, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(name, name))
    write_toy(tmp_path / "b")
    stages = read_bundle(tmp_path / "b").stages
    backend: Any = backends.create(Options(backend=name, device="cpu"))
    residency = Residency(stages, lambda stage: backend)
    program = weakref.ref(residency.program("product"))
    assert program() is not None and len(backend._programs) == 1
    residency.evict("product")
    assert program() is None and not len(backend._programs)
    again = residency.program("product")
    residency.close()
    with pytest.raises(BackendError, match="closed"):
        again(np.zeros((1, 4), np.float32))
