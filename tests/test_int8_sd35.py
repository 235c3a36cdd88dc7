"""The transformer in int8: its products' forms, what they cost, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import vkrt
from vkrt.backends.onnx import OnnxBackend
from vkrt.bundle import read_bundle
from vkrt.cli import main
from vkrt.engines.inputs import Inputs
from vkrt.engines.request import read_request
from vkrt.errors import BackendError
from vkrt.export.check import check_stage
from vkrt.export.int8 import transformer, velocity
from vkrt.export.int8.choice import FASTER, QUALITY, Choice
from vkrt.export.int8.exchange import Call, Exchange
from vkrt.export.int8.noise import observe_noise, weight_noise
from vkrt.export.int8.products import Shape, find_products
from vkrt.export.int8.quantize import FP32, Form
from vkrt.export.int8.speed import product_model
from vkrt.export.int8.token_forms import BLOCKS, ROWS, block_codes, rewrite_products
from vkrt.export.int8.transformer import (
    Trials,
    refuse_slow,
    settle,
    shapes_in,
    time_token_forms,
)
from vkrt.export.int8.velocity import Verdict, psnr_of, relative_error
from vkrt.export.to_onnx import stage_to_onnx, write_model
from vkrt.exporting import export_model
from vkrt.manifest import Header
from vkrt.models.sd35.config import MmditConfig
from vkrt.models.sd35.mmdit import Denoiser
from vkrt.models.sd35.mmdit_stages import mmdit_stage
from vkrt.options import Options
from vkrt.stage import Port, Stage
from vkrt.steps import CutFile, Piece

TOKENS, INNER, OUTER = 123, 96, 72
# Rounding to 255 steps, of values whose largest is some 3 times as large as most.
NEAR = {ROWS: 0.015, BLOCKS: 0.010}


# Products.


def run_model(model: ir.Model, x: np.ndarray, folder: Path, outputs: int = 1) -> list[np.ndarray]:
    """Return what a model of speed.product_model makes, in any number of tokens."""
    path = folder / "model.onnx"
    model.graph.inputs[0].shape = ir.Shape(x.shape)
    for index, value in enumerate(model.graph.outputs):
        value.shape = ir.Shape((len(x), OUTER))
        value.name = f"y{index}"
    ir.save(model, path)
    ports = tuple(Port(f"y{index}", (len(x), OUTER)) for index in range(outputs))
    backend = OnnxBackend(Options(device="cpu", threads=1))
    made = backend.prepare(Stage("s", path, (Port("x", x.shape),), ports))(x)
    backend.close()
    return list(made)


def tokens() -> np.ndarray:
    """Return tokens of very different sizes, one of them all zeros."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((TOKENS, INNER), np.float32)
    x *= np.exp(rng.standard_normal((TOKENS, 1), np.float32) * 2)
    x[5] = 0
    return x


@pytest.mark.parametrize("form", [ROWS, BLOCKS])
@pytest.mark.parametrize("reduced", [False, True])
def test_each_token_is_near(form: Form, reduced: bool, tmp_path: Path) -> None:
    x = tokens()
    shape = Shape(TOKENS, INNER, OUTER, readers=2)
    wanted = run_model(product_model(shape), x, tmp_path, 2)
    model = product_model(shape)
    rewrite_products(model, {p.name: form for p in find_products(model.graph)}, reduced)
    kinds = Counter(node.op_type for node in model.graph)
    operator = {ROWS: "MatMulIntegerToFloat", BLOCKS: "MatMulNBits"}[form]
    # What both read is quantized once.
    assert kinds[operator] == 2 and kinds["MatMul"] == 0 and kinds["QuantizeLinear"] <= 1
    found = run_model(model, x, tmp_path, 2)
    bias = [product_model(shape).graph.initializers[f"bias{i}"].const_value for i in range(2)]
    for one, other, added in zip(found, wanted, bias, strict=True):
        # The same share of each token, however small it is.
        plain = other - added.numpy()
        error = np.linalg.norm(one - other, axis=1) / np.maximum(np.linalg.norm(plain, axis=1), 1)
        size = np.linalg.norm(plain, axis=1) > 1
        assert 1e-4 < error[size].max() < NEAR[form] * (2 if reduced else 1) * 1.5
        assert np.abs(one[5] - added.numpy()).max() < 1e-6


def test_weights_keep_within_seven_bits_where_sums_overflow() -> None:
    most = {}
    for reduced in (False, True):
        model = product_model(Shape(TOKENS, INNER, OUTER))
        rewrite_products(model, {p.name: ROWS for p in find_products(model.graph)}, reduced)
        codes = [
            value.const_value.numpy()
            for value in model.graph.initializers.values()
            if value.const_value.dtype == ir.DataType.INT8
        ]
        most[reduced] = int(np.abs(codes[0].astype(int)).max())
    assert most == {False: 127, True: 63} or most == {False: 127, True: 64}


def test_codes_of_blocks_give_the_weights_back() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 5), np.float32)
    weight[:32, 2] = 0
    codes, scale = block_codes(weight)
    assert (codes.shape, codes.dtype, scale.shape) == ((5, 2, 32), np.uint8, (5, 2))
    back = ((codes.astype(np.float32) - 128) * scale[..., None]).reshape(5, 64).T
    assert np.abs(back - weight).max() <= scale.max() / 2 + 1e-6
    assert not back[:32, 2].any()


def test_unknown_ranges_refuse_no_product_of_odd_size() -> None:
    assert set(weight_noise(np.ones((33, 4), np.float32))) == {ROWS}
    assert set(weight_noise(np.ones((64, 4), np.float32))) == {ROWS, BLOCKS}
    assert set(time_token_forms(Shape(4, 64, 8), True)) == {FP32, ROWS}
    assert set(time_token_forms(Shape(4, 64, 8), False)) == {FP32, ROWS, BLOCKS}
    assert set(time_token_forms(Shape(4, 33, 8), False)) == {FP32, ROWS}


# A whole stage.

CONFIG = MmditConfig(
    depth=3, heads=2, head_dim=32, dual_blocks=(0,), pos_embed_max_size=12, context_dim=24
)
# Blocks of 6 and, of the dual one, 8 products of image and context; the last leaves the context.
PRODUCTS = 10 + 8 + 5


@pytest.fixture(scope="module")
def stage() -> Stage:
    torch.manual_seed(0)
    return mmdit_stage(Denoiser(CONFIG).eval().requires_grad_(False), CONFIG)


@pytest.fixture(scope="module")
def draft(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a draft beside the files that it can be made of again."""
    folder = tmp_path_factory.mktemp("draft")
    path = folder / "mmdit.draft.onnx"
    made = stage_to_onnx(stage, folder / "mmdit.onnx", may_cut=True, draft=path)
    assert isinstance(made, CutFile)
    assert len(list(folder.glob("*.data"))) == 1 and path.stat().st_size < 200_000
    return path


def arrays(seed: int, batch: int = 2, patches: int = 12, length: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    width = sum(w for w in Denoiser(CONFIG).widths)
    shapes = ((batch, patches, 64), (patches, 64), (batch, length, 64), (batch, width))
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def run_stage(stage: Stage, given: list[np.ndarray]) -> np.ndarray:
    backend = OnnxBackend(Options(device="cpu", threads=1))
    (velocity,) = backend.prepare(stage)(*given)
    backend.close()
    return velocity


def quantized(stage: Stage, draft: Path, folder: Path, form: Form) -> Stage:
    """Return a stage with every product of its blocks in a form."""
    model = ir.load(draft)
    names = [key.partition("/")[2] for key, _ in shapes_in("mmdit", draft)]
    rewrite_products(model, dict.fromkeys(names, form), reduced=False)
    return replace(stage, module=write_model(model, stage, folder / "mmdit.onnx", may_cut=True))


@pytest.mark.parametrize("form", [ROWS, BLOCKS])
def test_pieces_and_whole_file_are_near_eager(
    stage: Stage, draft: Path, tmp_path: Path, form: Form
) -> None:
    assert len(list(shapes_in("mmdit", draft))) == PRODUCTS
    made = quantized(stage, draft, tmp_path, form)
    given = arrays(1)
    with torch.inference_mode():
        (wanted,) = stage.module(*map(torch.from_numpy, given))
    found = run_stage(made, given)
    whole = run_stage(replace(made, module=made.module.path), given)
    assert 1e-4 < relative_error([found], [wanted.numpy()]) < 0.05
    # A sum in another order may fall on the other side of a step.
    assert relative_error([found], [whole]) < 0.01
    for figure in check_stage(replace(stage), made.module, "int8"):
        assert figure.passed


def test_what_lies_outside_the_blocks_stays(stage: Stage, draft: Path, tmp_path: Path) -> None:
    made = quantized(stage, draft, tmp_path, ROWS)
    model = ir.load(made.module.path)
    left = {product.name for product in find_products(model.graph)}
    assert left == {"x_embedder.proj", "final_layer.linear"}
    kinds = Counter(node.op_type for node in model.graph)
    assert kinds["MatMulIntegerToFloat"] == PRODUCTS
    pieces = [ir.load(step.path) for step in made.module.steps if isinstance(step, Piece)]
    again = Counter(node.op_type for piece in pieces for node in piece.graph)
    assert again["MatMulIntegerToFloat"] == PRODUCTS
    # Pieces and whole file share weights, of a byte each.
    (data,) = tmp_path.glob("*.data")
    before = draft.with_name("mmdit.onnx.data").stat().st_size
    assert data.stat().st_size < 0.6 * before


def test_noise_tells_the_error(stage: Stage, draft: Path, tmp_path: Path) -> None:
    names = [key.partition("/")[2] for key, _ in shapes_in("mmdit", draft)]
    before = sorted(draft.parent.iterdir())
    noise = observe_noise(stage, draft, names, [arrays(1), arrays(2)])
    assert list(noise) == names and sorted(draft.parent.iterdir()) == before
    for of_product in noise.values():
        assert 0 < of_product[BLOCKS] < of_product[ROWS] < 0.03**2


def test_noise_of_one_product(tmp_path: Path) -> None:
    """What is told of a product is what its rounding does."""
    model = product_model(Shape(TOKENS, INNER, OUTER))
    (product,) = find_products(model.graph)
    weight = product.weight
    codes = np.rint(weight / np.abs(weight).max(0) * 127) * np.abs(weight).max(0) / 127
    of_weight = float(np.square(codes - weight).mean() / np.square(weight).mean())
    assert 0.8 < weight_noise(weight)[ROWS] / of_weight < 1.25


def test_trials_write_what_is_chosen(stage: Stage, draft: Path, tmp_path: Path) -> None:
    calls = [Call(tuple(arrays(seed)), ()) for seed in (1, 2)]
    gate: Any = SimpleNamespace(calls={"mmdit": calls}, judge=lambda stages: stages["mmdit"])
    trials = Trials({"mmdit": stage}, {"mmdit": draft}, gate, tmp_path, False)
    shapes = dict(shapes_in("mmdit", draft))
    forms = dict(zip(shapes, (BLOCKS, FP32, *[ROWS] * (PRODUCTS - 2)), strict=True))
    made: Any = trials.judge({k: Choice(shapes[k], f, FASTER, FAST) for k, f in forms.items()})
    kinds = Counter(node.op_type for node in ir.load(made.module.path).graph)
    assert (kinds["MatMulNBits"], kinds["MatMulIntegerToFloat"]) == (1, PRODUCTS - 2)
    key = next(iter(shapes))
    assert 0 < trials.damage(key, BLOCKS) < trials.damage(key, ROWS) < 0.03


# What is chosen and refused.

HEADER = Header("0", "toy", 0, "int8", "f")
FAST = {FP32: 3.0, ROWS: 1.0, BLOCKS: 2.0}


def verdict(error: float, psnr: float, int8: float = 1.0) -> Verdict:
    return Verdict(error, psnr, {"fp32": 2.0, "int8": int8}, 4, 2, 256)


class Told:
    """Give verdicts in turn, and the same damage for every product of a form."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)
        self.seen: list[Counter[str]] = []

    def judge(self, choices: Mapping[str, Choice]) -> Verdict:
        self.seen.append(Counter(choice.form for choice in choices.values()))
        return self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]

    def damage(self, key: str, form: Form) -> float:
        return {ROWS: 0.02, BLOCKS: 0.01}[form]


def all_rows(count: int) -> dict[str, Choice]:
    shape = Shape(8, 64, 64)
    return {f"mmdit/{i}": Choice(shape, ROWS, FASTER, FAST) for i in range(count)}


def test_products_become_more_exact_until_it_is_near_enough() -> None:
    trials: Any = Told(verdict(0.06, 40.0), verdict(0.049, 29.0), verdict(0.04, 31.0))
    choices, last = settle(trials, all_rows(8), HEADER, allow_loss=False)
    rows = [seen[ROWS] for seen in trials.seen]
    assert last.psnr == 31.0 and rows[0] == 8
    assert rows[0] > rows[1] > rows[2]
    assert {c.reason for c in choices.values() if c.form == BLOCKS} == {QUALITY}


def test_what_stays_far_is_refused_and_the_loss_can_be_allowed() -> None:
    far: Any = Told(verdict(0.2, 12.0))
    with pytest.raises(BackendError, match=r"err by 0\.200.*12\.0 dB.*at most 0\.05") as caught:
        settle(far, all_rows(4), HEADER, allow_loss=False)
    assert "\n" not in str(caught.value) and "--allow-loss" in str(caught.value)
    choices, last = settle(Told(verdict(0.2, 12.0)), all_rows(4), HEADER, allow_loss=True)  # type: ignore[arg-type]
    assert last.error == 0.2 and all(choice.form == ROWS for choice in choices.values())


def test_what_is_not_faster_as_a_whole_is_refused() -> None:
    refuse_slow(verdict(0.01, 50.0, int8=1.5), HEADER)
    with pytest.raises(BackendError, match=r"not faster than fp32: a step of toy takes 1\.95 s"):
        refuse_slow(verdict(0.01, 50.0, int8=1.95), HEADER)


def test_psnr_is_of_the_span() -> None:
    wanted = np.array([0.0, 2.0])
    assert psnr_of(wanted + 0.02, wanted) == pytest.approx(40.0)
    assert psnr_of(wanted, wanted) > 200
    assert relative_error([wanted * 1.1], [wanted]) == pytest.approx(0.1)


def test_stages_are_exchanged_and_their_calls_noted(stage: Stage, draft: Path) -> None:
    exchange = Exchange(OnnxBackend(Options(device="cpu", threads=1)), ["mmdit"])
    program = exchange.prepare(stage)
    file = replace(stage, module=draft.with_name("mmdit.onnx"))
    exchange.use({"mmdit": file})
    given = arrays(4)
    (made,) = program(*given)
    ((call,),) = exchange.calls.values()
    given[0][:] = 0
    assert call.given[0].any() and (call.made[0] == made).all()
    assert len(exchange.seconds["mmdit"]) == 1
    exchange.use({})
    assert not exchange.calls
    with pytest.raises(KeyError):
        program(*given)
    exchange.close()


# A whole bundle.


def faster(shape: Shape, reduced: bool) -> Mapping[Form, float]:
    return {FP32: 3.0, ROWS: 1.0}


def slower(shape: Shape, reduced: bool) -> Mapping[Form, float]:
    return {FP32: 1.0, ROWS: 1.0}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let int8 be faster, which models of so few numbers do not show."""
    monkeypatch.setattr(transformer, "time_token_forms", faster)
    seconds = iter([2.0] + [1.0] * 9)
    monkeypatch.setattr(velocity, "fastest", lambda exchange: next(seconds))


@pytest.mark.slow
def test_a_bundle_makes_the_pictures_of_fp32(
    sd35_folder: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from sd35_pipeline import open_folder

    out = sd35_folder / "int8.vkrt"
    given = [sd35_folder / "pipeline", "--out", out, "--precision", "int8"]
    given += ["--control-model", sd35_folder / "controlnet", "--allow-loss"]
    assert main.main(["export", *map(str, given)]) == 0
    shown, _ = capsys.readouterr()
    assert "a range for each token" in shown and "loss allowed" in shown
    bundle = read_bundle(out)
    assert not list(out.glob("*draft*")) and bundle.header.precision == "int8"
    found = bundle.header.quantization
    assert found["latents"]["error"] < 0.05 and found["latents"]["psnr"] > 30
    assert {product["form"] for product in found["products"]} == {ROWS}
    stages = Counter(product["name"].partition("/")[0] for product in found["products"])
    # 4 blocks of image and context, two of them dual, the last without context; 2 blocks of 4.
    assert stages == {"mmdit": 33, "mmdit_controlled": 33, "controlnet": 8}
    errors = {f["stage"]: f["max_relative"] for f in bundle.header.parity}
    assert all(1e-4 < errors[name] < 0.5 for name in stages) and errors["vae_decoder"] < 1e-4
    assert bundle.header.settings["weights"]["mmdit"] == bundle.bytes["mmdit.onnx.data"]

    inputs = Inputs((64, 48))
    with open_folder(sd35_folder, controlnet=True) as eager, vkrt.load(out) as engine:
        request = read_request(eager.config, "a cat", "", 64, 48, steps=3, seed=5)
        wanted, made = eager.sample(request, inputs), engine.sample(request, inputs)
    assert 30 < psnr_of(made, wanted) < 90
    with pytest.raises(BackendError, match="holds int8"):
        vkrt.load(out, precision="fp16")


@pytest.mark.slow
def test_a_bundle_that_gains_nothing_is_not_written(
    sd35_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "time_token_forms", slower)
    out = sd35_folder / "slow.vkrt"
    with pytest.raises(BackendError, match="not faster than fp32 for any of the 33 products"):
        export_model(sd35_folder / "pipeline", out, precision="int8")
    assert not out.exists() and not list(sd35_folder.glob(".*"))


def test_photos_are_not_for_it(tmp_path: Path) -> None:
    for options in ({"calibration": tmp_path}, {"photos_only": True}):
        with pytest.raises(BackendError, match="needs no photos"):
            export_model("sd3.5-medium", tmp_path / "b", precision="int8", **options)
