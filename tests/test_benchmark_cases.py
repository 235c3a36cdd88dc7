"""The speed benchmarks: equal weights, the gate, what the cases take down."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

from benchmarks import agreement, cases, child, segment, variants
from benchmarks.agreement import DisagreementError, check_agreement, check_own
from benchmarks.arithmetic import own_flops, plain_flops, stage_flops
from benchmarks.assets import Assets, make_once
from benchmarks.cases import AloneError, Figures, Plan, run_case
from benchmarks.contest import Contest, Entrant
from benchmarks.exports import assets_of, provide
from benchmarks.machine import ROOT
from benchmarks.peers.base import OpenPeer
from benchmarks.peers.ours import Ours, OursInt8
from benchmarks.peers.plain_onnx import Graph, PlainOnnx
from benchmarks.peers.transformers_compile import TransformersCompile
from benchmarks.peers.transformers_eager import TransformersEager
from benchmarks.photo import SIZE, clicks_on, set_photo
from benchmarks.results import SpeedRow, read_rows
from benchmarks.rss import forget_peak, peak_rss_mib, rss_mib
from benchmarks.variants import CASES, VARIANTS, baseline_of, check_packages, import_variant
from vkrt import catalog
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.stages import image_stages

SMALL = catalog.find("sam2.1-nano", 64)
CLICKS = [(40.0, 30.0), (90.0, 70.0)]
THREADS = torch.get_num_threads()


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    """Return the small model's assets for photos of 120x90, the weights made."""
    photo = np.zeros((90, 120, 3), np.uint8)
    found = assets_of(SMALL, photo, tmp_path_factory.mktemp("bench"))
    provide(found, ["weights"])
    return found


@pytest.fixture(scope="module")
def ours(assets: Assets) -> Ours:
    return Ours.load(assets, THREADS)


@pytest.fixture(scope="module")
def peer(assets: Assets) -> TransformersEager:
    return TransformersEager.load(assets, THREADS)


def changed(assets: Assets, folder: Path, parameter: str) -> Assets:
    """Return assets whose checkpoint differs in one parameter."""
    other = replace(assets, folder=folder)
    other.checkpoint.parent.mkdir()
    state = load_file(assets.checkpoint)
    state[parameter] += 0.05
    save_file(state, other.checkpoint)
    return other


# The photo and the assets.


def test_set_photo_is_as_stated() -> None:
    photo = set_photo()
    assert photo.shape == (SIZE[1], SIZE[0], 3) and photo.dtype == np.uint8
    assert photo.std() > 10
    assert np.array_equal(photo, set_photo())


def test_clicks_are_spread_over_the_photo() -> None:
    clicks = clicks_on(np.empty((90, 120, 3), np.uint8), 300)
    assert clicks[0] == (60, 45) and len(set(clicks)) == 300
    assert all(0 <= x < 120 and 0 <= y < 90 for x, y in clicks)
    quarters = [(x < 60, y < 45) for x, y in clicks]
    assert all(60 < quarters.count(quarter) < 90 for quarter in set(quarters))
    assert clicks_on(np.empty((90, 120, 3), np.uint8), 5) == clicks[:5]


def test_a_part_is_made_once_and_whole(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError

    with pytest.raises(ValueError):
        make_once(tmp_path / "part", fail)
    assert not list(tmp_path.iterdir())
    make_once(tmp_path / "part", lambda folder: (folder / "whole").touch())
    make_once(tmp_path / "part", fail)
    assert [path.name for path in tmp_path.rglob("*")] == ["part", "whole"]


def test_the_first_of_two_makers_wins(tmp_path: Path) -> None:
    def overtaken(folder: Path) -> None:
        make_once(tmp_path / "part", lambda other: (other / "first").touch())
        (folder / "second").touch()

    make_once(tmp_path / "part", overtaken)
    assert [path.name for path in tmp_path.rglob("*")] == ["part", "first"]


def test_other_models_photos_and_sources_have_other_parts(assets: Assets, tmp_path: Path) -> None:
    photo = np.zeros((90, 120, 3), np.uint8)
    here = assets_of(SMALL, photo, tmp_path)
    assert here == assets_of(SMALL, photo, tmp_path)
    larger = assets_of(catalog.find("sam2.1-nano", 128), photo, tmp_path)
    assert larger.folder != here.folder
    wider = assets_of(SMALL, np.zeros((90, 130, 3), np.uint8), tmp_path)
    assert wider.encoder("fp32") == here.encoder("fp32") and wider.masks != here.masks
    edited = replace(here, sources="0")
    assert edited.bundle("fp32") != here.bundle("fp32") and edited.decoder("fp32") == here.decoder(
        "fp32"
    )


# Variants.


def test_every_variant_has_the_name_and_the_parts_it_says(assets: Assets) -> None:
    paths = {assets.part(part) for variant in VARIANTS.values() for part in variant.parts}
    assert len(paths) == 6
    for name, variant in VARIANTS.items():
        check_packages(variant)
        assert import_variant(variant).name == name == variant.name
        assert set(variant.cases) <= set(CASES)
        assert variant.is_ours == name.startswith("vkrt")


def test_what_runs_without_torch_imports_none() -> None:
    """Or it would hold torch's memory as well when its own is measured."""
    names = "child, peers.ours, peers.onnx_runtime, peers.open_vino"
    code = f"import benchmarks.{names.replace(', ', ', benchmarks.')}, sys\n"
    code += "assert not {'torch', 'transformers', 'onnx', 'vkrt.demo'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_baseline_is_the_first_of_vkrt() -> None:
    assert baseline_of(["transformers", "vkrt", "vkrt-onnx"]) == "vkrt-onnx"
    assert baseline_of(["vkrt", "vkrt-int8", "openvino"]) == "vkrt"
    assert baseline_of(["vkrt-int8", "openvino"]) is None


# The peers and the gate.


def test_peers_give_the_same_whole_answer(
    ours: Ours, peer: TransformersEager, photo: np.ndarray
) -> None:
    (masks, scores), (others, wanted) = (p.click(p.encode(photo), 40, 30) for p in (ours, peer))
    assert masks.shape == others.shape == (3, *photo.shape[:2])
    assert masks.dtype == others.dtype == bool
    # Each resizes by its own code here, so the models see slightly different pixels.
    assert (masks != others).mean() < 0.02
    assert np.abs(scores - wanted).max() < 0.02
    assert ours.segmenter.backend == ours.backend == peer.backend == "eager"


def test_gate_passes_equal_weights(ours: Ours, peer: TransformersEager, photo: np.ndarray) -> None:
    assert 0 < check_agreement(ours, peer, photo, CLICKS) < 1e-4
    assert check_own(ours, ours, photo, CLICKS) == 0


@pytest.mark.slow
def test_the_compiled_peer_is_whole_and_agrees(
    ours: Ours, peer: TransformersEager, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured as when it is timed, but run without the minutes of a C++ compiler."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compile_, backend="eager", fullgraph=True))
    compiled = TransformersCompile(peer.model, SMALL.config.image_size)
    assert 0 < check_agreement(ours, compiled, photo, CLICKS) < 1e-4
    torch.compiler.reset()


@pytest.mark.slow
def test_plain_exports_agree(ours: Ours, assets: Assets, photo: np.ndarray, tmp_path: Path) -> None:
    """The graphs of torch.onnx.export in both runtimes, and the quantized ones."""
    other = Ours.load(
        changed(assets, tmp_path, "image_encoder.trunk.patch_embed.proj.bias"), THREADS
    )
    for name, limit in (("onnxruntime", 1e-4), ("openvino", 1e-4), ("onnxruntime-int8", 0.3)):
        provide(assets, VARIANTS[name].parts)
        plain = variants.open_variant(VARIANTS[name], assets, THREADS)
        assert isinstance(plain, OpenPeer)
        assert 0 < check_agreement(ours, plain, photo, CLICKS) < limit
        masks, scores = plain.click(plain.encode(photo), 40, 30)
        assert masks.shape == (3, 90, 120) and masks.dtype == bool and scores.shape == (3,)
        if plain.precision == "fp32":
            with pytest.raises(DisagreementError, match=name):
                check_agreement(other, plain, photo, CLICKS)
    with pytest.raises(ValueError, match="photos of"):
        plain.click(plain.encode(photo[:80]), 40, 30)


@pytest.mark.parametrize(
    ("parameter", "what"),
    [
        ("image_encoder.trunk.patch_embed.proj.bias", "embeddings"),
        ("sam_prompt_encoder.point_embeddings.1.weight", "logits"),
        ("sam_mask_decoder.iou_prediction_head.layers.2.bias", "scores"),
    ],
)
def test_gate_refuses_other_weights(
    assets: Assets,
    ours: Ours,
    peer: TransformersEager,
    photo: np.ndarray,
    tmp_path: Path,
    parameter: str,
    what: str,
) -> None:
    other = Ours.load(changed(assets, tmp_path, parameter), THREADS)
    with pytest.raises(DisagreementError, match=what):
        check_agreement(other, peer, photo, CLICKS)
    with pytest.raises(DisagreementError, match=what):
        check_own(ours, other, photo, CLICKS)


def test_gate_refuses_unrelated_weights_in_int8_too(
    ours: Ours, photo: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    save_file(Sam2(SMALL.config).state_dict(), tmp_path / "other.safetensors")
    other = replace_segmenter(ours, tmp_path / "other.safetensors")
    with pytest.raises(DisagreementError, match="vkrt-int8: embeddings"):
        check_own(ours, OursInt8(other.segmenter), photo, CLICKS)


def replace_segmenter(ours: Ours, checkpoint: Path) -> Ours:
    """Return eager vkrt with other weights."""
    import vkrt

    size = ours.segmenter.config.image_size
    return Ours(vkrt.load(SMALL.name, checkpoint, backend="eager", image_size=size))


def test_gate_refuses_nan_and_other_preprocessing(
    ours: Ours, peer: TransformersEager, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (float("nan"), float("inf"), 0.2):
        with pytest.raises(DisagreementError, match="it differ by"):
            agreement.check("it", error, 0.1)
    assert agreement.check("it", 0.1, 0.1) == 0.1
    monkeypatch.setattr(peer, "preprocess", lambda photo: torch.zeros(1, 3, 64, 64))
    with pytest.raises(DisagreementError, match="pixels"):
        check_agreement(ours, peer, photo, CLICKS)


class Recorded(PlainOnnx):
    """Run no graph, and remember what each was given."""

    name = backend = "recorded"
    log: ClassVar[list[tuple[str, list[tuple[int, ...]], np.ndarray]]] = []

    @staticmethod
    def open_graph(path: Path, threads: int) -> Graph:
        shapes = {
            "encoder.onnx": [(1, 16, 16, 16), (1, 32, 8, 8), (1, 128, 4, 4)],
            "decoder.onnx": [(3, 16, 16), (3,)],
            "masks.onnx": [(3, 90, 120)],
        }[path.name]

        def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            Recorded.log.append((path.name, [np.shape(array) for array in inputs], inputs[-1]))
            return [np.zeros(shape, np.float32) for shape in shapes]

        return run


def test_a_plain_export_gets_what_transformers_gets(
    assets: Assets, peer: TransformersEager, photo: np.ndarray
) -> None:
    Recorded.log.clear()
    plain = Recorded.load(assets, THREADS)
    masks, scores = plain.click(plain.encode(photo), 30, 45)
    assert masks.shape == (3, 90, 120) and scores.shape == (3,)
    names, shapes, last = zip(*Recorded.log, strict=True)
    assert names == ("encoder.onnx", "decoder.onnx", "masks.onnx")
    assert shapes[0] == [(1, 3, 64, 64)] and shapes[2] == [(3, 16, 16)]
    assert shapes[1][3] == (1, 1, 1, 2) and last[1].tolist() == [[[[16, 32]]]]
    theirs = peer.preprocess(photo).numpy()
    assert last[0].dtype == np.float32
    # One level of uint8, where the roundings of the two resizes differ.
    assert np.abs(last[0] - theirs).max() < agreement.PIXEL_ERROR


def test_arithmetic_is_that_of_the_products() -> None:
    stage = image_stages(Sam2(SMALL.config))["image_encoder"]
    once = stage_flops(stage, images=1)
    # What depends on positions alone is computed once for all pictures.
    assert 2.9 * once < stage_flops(stage, images=3) <= 3 * once
    own, plain = own_flops(SMALL.config), plain_flops(SMALL.config)
    assert own["encode"] == once and set(own) == set(plain) == {"encode", "click"}
    # The patch embedding alone: 7 x 7 x 3 products and sums for each of 40 channels, stride 4.
    assert min(own["encode"], plain["encode"]) > 2 * 7 * 7 * 3 * 40 * 16 * 16
    # Exact savings may take some away, but neither side computes a different model.
    for case in own:
        assert 0.6 < own[case] / plain[case] < 1.1


# What the cases take down.


class FakePeer:
    """Answer at once, and remember what was asked."""

    backend, precision = "fake", "fp32"

    def __init__(self, name: str) -> None:
        self.name = name
        self.photos: list[np.ndarray] = []
        self.clicks: list[tuple[float, float]] = []

    def encode(self, photo: np.ndarray) -> int:
        self.photos.append(photo)
        return len(self.photos)

    def click(self, embedding: int, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
        self.clicks.append((x, y))
        return np.ones((3, 1, 1), bool), np.ones(3, np.float32)


@pytest.fixture
def contest(assets: Assets, photo: np.ndarray) -> Contest:
    """Return a contest of two fakes that run in this process."""
    entrants = {
        name: Entrant(VARIANTS[name], "fake", "fp32", 1e-6, FakePeer(name))
        for name in ("vkrt", "openvino")
    }
    return Contest(SMALL, assets, photo, 1, entrants)


def test_encode_and_click_sample_every_peer(contest: Contest) -> None:
    names, plan = list(contest.entrants), Plan(rounds=2, clicks=4)
    encodes = run_case("encode", contest, names, plan)["encode"]
    clicks = run_case("click", contest, names, plan)["click"]
    assert [len(f.seconds) for f in (*encodes.values(), *clicks.values())] == [2, 2, 4, 4]
    for entrant in contest.entrants.values():
        fake = entrant.peer
        assert isinstance(fake, FakePeer)
        assert len(fake.photos) == 1 + 2 + 1  # warm-up, rounds, and once for all the clicks
        assert len(fake.clicks) == 3 + 4 and len(set(fake.clicks)) == 4
    assert run_case("encode", contest, [], plan) == {}
    contest.release()
    assert all(entrant.peer is None for entrant in contest.entrants.values())


def fake_alone(answers: dict[str, list[Any]], asked: list[str]) -> Callable[..., Any]:
    """Return what stands for cases.alone and gives the answers of each variant in turn."""

    def alone(task: str, name: str, contest: Contest, photo: Path, **more: Any) -> Any:
        assert np.array_equal(np.load(photo), contest.photo)
        asked.append(name)
        return answers[name].pop(0)

    return alone


def test_cold_adds_up_its_parts_without_the_first_round(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ("start", "import", "load", "encode", "predict")
    rounds = [dict.fromkeys(parts, 100.0), dict.fromkeys(parts, 1.0), dict.fromkeys(parts, 2.0)]
    answers, asked = {"vkrt": list(rounds), "openvino": list(rounds)}, list[str]()
    monkeypatch.setattr(cases, "alone", fake_alone(answers, asked))
    found = run_case("cold", contest, ["vkrt", "openvino"], Plan(processes=2))
    assert found["cold"]["vkrt"].seconds == [5.0, 10.0]
    assert found["cold-load"]["openvino"].seconds == [1.0, 2.0]
    assert set(found) == {"cold", *(f"cold-{part}" for part in parts)}
    assert asked == ["vkrt", "openvino", "openvino", "vkrt", "vkrt", "openvino"]


def test_memory_and_growth_keep_what_the_processes_tell(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = [{"whole": mib, "encode": mib - 1} for mib in (5.0, 9.0, 6.0)]
    monkeypatch.setattr(cases, "alone", fake_alone({"vkrt": peaks}, []))
    found = run_case("memory", contest, ["vkrt"], Plan(processes=3))
    whole, encoding = Figures(3, peak_rss_mib=6.0), Figures(3, peak_rss_mib=5.0)
    assert found == {"memory": {"vkrt": whole}, "memory-encode": {"vkrt": encoding}}
    told = {"seconds": [0.1, 0.2], "rss_growth_mib": 0.5, "peak_rss_mib": 7.0}
    monkeypatch.setattr(cases, "alone", fake_alone({"vkrt": [told]}, []))
    grown = run_case("growth", contest, ["vkrt"], Plan(encodes=2))
    assert grown == {"growth": {"vkrt": Figures(2, [0.1, 0.2], 7.0, 0.5)}}


def test_a_process_that_fails_is_told_in_a_line(contest: Contest, tmp_path: Path) -> None:
    with pytest.raises(AloneError, match=r"^vkrt failed .*KeyError: 'nap'$"):
        cases.alone("nap", "vkrt", contest, tmp_path)


def job_for(assets: Assets, photo: np.ndarray, folder: Path, **more: Any) -> dict[str, Any]:
    """Return what a process of its own would be asked."""
    np.save(folder / "photo.npy", photo)
    named = {**asdict(assets), "folder": str(assets.folder)}
    job = {"variant": "vkrt", "assets": named, "photo": str(folder / "photo.npy"), "threads": 1}
    found: dict[str, Any] = json.loads(json.dumps({**job, **more}))
    return found


def test_a_process_does_its_tasks(
    assets: Assets, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, seen = FakePeer("vkrt"), list[Assets]()
    monkeypatch.setattr(child, "open_variant", lambda v, a, t: (seen.append(a), fake)[1])
    job = job_for(assets, photo, tmp_path, warmups=3, encodes=250, asked=0.0, click=[4.0, 5.0])
    parts = child.cold(job)
    assert list(parts) == ["start", "import", "load", "encode", "predict"]
    assert all(seconds >= 0 for seconds in parts.values()) and fake.clicks == [(4.0, 5.0)]
    fake.photos.clear()
    grown = child.growth(job)
    assert len(fake.photos) == 253 and len(grown["seconds"]) == 250
    assert len({picture.tobytes() for picture in fake.photos}) == 253
    assert seen == [assets, assets]


def test_memory_tells_loading_from_encoding(
    assets: Assets, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakePeer("vkrt")
    told = iter((300.0, 200.0) * 2)  # after loading, after encoding
    monkeypatch.setattr(child, "open_variant", lambda *_: fake)
    monkeypatch.setattr(child, "peak_rss_mib", lambda: next(told))
    for forgets, encoding in ((True, 200.0), (False, None)):
        monkeypatch.setattr(child, "forget_peak", lambda can=forgets: can)
        found = child.memory(job_for(assets, photo, tmp_path))
        assert found == {"whole": 300.0, "encode": encoding}
    assert len(fake.photos) == 4
    monkeypatch.setattr(child, "peak_rss_mib", lambda: None)
    assert set(child.memory(job_for(assets, photo, tmp_path)).values()) == {None}


@pytest.mark.slow
def test_memory_is_of_the_process_itself(
    contest: Contest, photo: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "photo.npy", photo)
    told = cases.alone("memory", "vkrt", contest, tmp_path / "photo.npy")
    if told["whole"] is None:
        pytest.skip("this system does not tell a process its peak memory")
    # This process has transformers and more besides.
    assert 50 < (told["encode"] or told["whole"]) <= told["whole"] < (peak_rss_mib() or 0)


def test_rss_follows_what_is_held() -> None:
    before = rss_mib()
    if before is None:
        pytest.skip("this system does not tell a process its memory")
    held = np.ones(64 << 20, np.uint8)
    assert (rss_mib() or 0) > before + 48
    assert held.all() and (peak_rss_mib() or 0) > before + 48
    del held
    if forget_peak():
        assert (peak_rss_mib() or 0) < before + 48


# The command.


@pytest.fixture
def small_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the command small, and return where its rows go."""
    monkeypatch.setattr(segment, "RESULTS", tmp_path / "results.csv")
    monkeypatch.setattr(segment, "BARS", tmp_path / "bars.csv")
    monkeypatch.setattr(segment, "peaks", lambda products, threads: dict.fromkeys(products, 50.0))
    monkeypatch.setattr(segment, "set_photo", lambda: set_photo((180, 120)))
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "results.csv"


def run_segment(**options: Any) -> None:
    """Run the command in this process, with the smallest counts."""
    usual = {"models": "sam2.1-nano", "cases": "click,encode", "peers": "vkrt,transformers"}
    usual |= {"image_size": 64, "rounds": 2, "clicks": 3, "processes": 1, "encodes": 2}
    segment.main(**{**usual, "warmups": 0, "threads": None, **options})


def test_segment_writes_a_row_for_each_case_and_variant(
    small_segment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_segment(dry=True, cases="encode", peers="vkrt")
    assert not small_segment.exists()
    run_segment(dry=False)
    rows = read_rows(small_segment, SpeedRow)
    cases = [(row["case"], row["variant"], row["samples"]) for row in rows]
    names = ("vkrt", "transformers")
    assert cases == [(c, v, n) for c, n in (("encode", "2"), ("click", "3")) for v in names]
    for row in rows:
        assert 0 < float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"])
        assert 0 < float(row["max_rel_error"]) < 1e-4 and float(row["gflops"]) > 0
        assert row["photo"] == "180x120" and row["image_size"] == "64"
        assert row["baseline"] == "vkrt" and row["p99_ms"] == row["peak_rss_mib"] == ""
        assert row["peak_gflops"] == "50"
    assert {row["ratio_to_vkrt"] for row in rows if row["variant"] == "vkrt"} == {"1"}
    assert "transformers" in capsys.readouterr().out


def test_segment_measures_nothing_that_disagrees(
    small_segment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def other(oracle: object, config: object) -> Sam2:
        return Sam2(SMALL.config)

    monkeypatch.setattr("benchmarks.exports.twin", other)
    monkeypatch.setattr(segment, "run_case", lambda *a: pytest.fail("timed after all"))
    with pytest.raises(typer.Exit) as left:
        run_segment(dry=False)
    assert left.value.exit_code == 1
    seen = capsys.readouterr()
    assert "differ by" in seen.err and not seen.out
    assert not small_segment.exists()


def test_a_variant_that_can_not_run_is_left_out_or_refused(
    small_segment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {name: VARIANTS[name] for name in ("vkrt", "openvino")}
    kept["openvino"] = replace(kept["openvino"], packages=("no_such_package",))
    for module in (segment, sys.modules["benchmarks.contest"]):
        monkeypatch.setattr(module, "VARIANTS", kept)
    run_segment(cases="encode", peers=None, dry=False)
    assert [row["variant"] for row in read_rows(small_segment, SpeedRow)] == ["vkrt"]
    assert "openvino is not measured: no_such_package not installed" in capsys.readouterr().err
    with pytest.raises(typer.Exit) as left:
        run_segment(cases="encode", peers="openvino", dry=True)
    assert left.value.exit_code == 2
    assert "pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [{"models": "sam9"}, {"cases": "nap"}, {"peers": "sam9"}, {"models": None, "cases": "x"}],
)
def test_segment_knows_every_name_before_it_starts(
    wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(segment, "enter", lambda *a: pytest.fail("started after all"))
    with pytest.raises(typer.Exit) as left:
        run_segment(dry=True, **wrong)
    assert left.value.exit_code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_table_is_what_is_measured_by_default() -> None:
    found = {o.model.name: o.cases for o in segment.orders(None, None, None, None)}
    assert found == segment.TABLE
    only = segment.orders(None, "encode,growth", None, None)
    assert [(o.model.name, o.cases) for o in only] == [
        ("sam2.1-tiny", ("encode",)),
        ("sam2.1-base-plus", ("encode",)),
        ("sam2.1-nano", ("growth",)),
    ]
    (one,) = segment.orders("sam2.1-small", None, "vkrt, openvino", None)
    assert one.cases == CASES and one.names("growth") == ["vkrt", "openvino"]
    (usual,) = segment.orders("sam2.1-nano", "click,growth", None, None)
    assert usual.cases == ("click", "growth")
    assert "transformers-compile" in usual.names("click")
    assert "transformers-compile" not in usual.names("growth", "memory", "cold")
