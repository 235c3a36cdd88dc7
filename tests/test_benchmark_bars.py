"""What vkrt must reach beside its peers: which rows are compared, and what is kept of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import speed_row

from benchmarks.bars import GROWTH_MIB, Verdict, as_rows, judge
from benchmarks.results import BarRow, SpeedRow, append_rows, read_rows


def verdicts(*rows: SpeedRow) -> dict[str, Verdict]:
    """Return the verdicts on rows by their words."""
    return {verdict.what: verdict for verdict in judge(rows)}


def test_encode_is_judged_by_the_fastest_peer_in_fp32() -> None:
    rows = [
        speed_row(case="encode", variant=name, p50_ms=ms, precision=precision)
        for name, ms, precision in (
            ("vkrt", 90.0, "fp32"),
            ("vkrt-onnx", 100.0, "fp32"),
            ("vkrt-openvino", 119.0 / 1.14, "fp32"),
            ("vkrt-int8", 80.0, "int8"),
            ("transformers", 130.0, "fp32"),
            ("openvino", 119.0, "fp32"),
            ("onnxruntime-int8", 70.0, "int8"),
        )
    ]
    found = verdicts(*rows)
    fp32 = found["sam2.1-tiny encode: openvino over vkrt-onnx"]
    assert fp32.figure == pytest.approx(1.19) and fp32.holds
    other = found["sam2.1-tiny encode: openvino over vkrt-openvino"]
    assert other.figure == pytest.approx(1.14) and not other.holds
    int8 = found["sam2.1-tiny encode, int8: openvino over vkrt-int8"]
    assert int8.figure == pytest.approx(119 / 80) and not int8.holds
    assert not verdicts(*(replace(row, image_size=64) for row in rows))
    assert not verdicts(rows[4], rows[5])
    assert len(verdicts(*(replace(row, model="sam2.1-base-plus") for row in rows))) == 2


def test_click_is_judged_by_transformers_the_best_and_its_spread() -> None:
    found = verdicts(
        speed_row(case="click", variant="vkrt-onnx", p50_ms=10.0, p99_ms=15.1),
        speed_row(case="click", variant="transformers", p50_ms=30.0),
        speed_row(case="click", variant="onnxruntime", p50_ms=29.0),
        speed_row(case="click", variant="onnxruntime-int8", p50_ms=9.0, precision="int8"),
    )
    wanted = {
        "transformers over vkrt-onnx": (3.0, True),
        "best peer: onnxruntime over vkrt-onnx": (2.9, False),
        "p99 over the median of 300, vkrt-onnx": (1.51, False),
    }
    assert len(found) == len(wanted)
    for (what, verdict), (end, told) in zip(found.items(), wanted.items(), strict=True):
        assert what.startswith("sam2.1-tiny click") and what.endswith(end)
        assert (round(verdict.figure, 2), verdict.holds) == told


def test_transformers_may_be_the_best_peer_of_a_click() -> None:
    found = verdicts(
        speed_row(case="click", variant="vkrt-onnx", p50_ms=10.0),
        speed_row(case="click", variant="transformers", p50_ms=28.0),
        speed_row(case="click", variant="openvino", p50_ms=29.0),
    )
    assert [round(verdict.figure, 2) for verdict in found.values()] == [2.8, 2.8]


def test_cold_memory_and_growth_are_judged() -> None:
    def bundle(case: str, **columns: Any) -> SpeedRow:
        columns |= {"backend": "onnx", "baseline": "vkrt-bundle"}
        return speed_row(case=case, variant="vkrt-bundle", **columns)

    def plain(case: str, mib: float) -> SpeedRow:
        return speed_row(case=case, variant="onnxruntime", baseline="vkrt-bundle", peak_rss_mib=mib)

    rows = [
        bundle("cold", p50_ms=3600.0),
        bundle("cold-encode", p50_ms=2200.0),
        bundle("memory", peak_rss_mib=300.0),
        bundle("memory-encode", peak_rss_mib=280.0),
        plain("memory", 290.0),
        plain("memory-encode", 280.0),
        bundle("growth", rss_growth_mib=GROWTH_MIB),
    ]
    memory = [(1.03, False), (1.0, True), (round(GROWTH_MIB, 2), True)]
    assert [(round(v.figure, 2), v.holds) for v in verdicts(*rows).values()] == memory
    eager = speed_row(case="encode", variant="vkrt", backend="eager", p50_ms=2500.0)
    encode = speed_row(case="encode", variant="vkrt-onnx", backend="onnx", p50_ms=2000.0)
    # One encode is that of the case of the same name, not a new process's own, which takes longer.
    first, *others = verdicts(eager, encode, *rows).values()
    assert (first.figure, first.holds, len(others)) == (pytest.approx(1.6), False, 3)
    assert not any("cold" in what for what in verdicts(eager, *rows))
    assert not Verdict("it", float("nan"), 1.0, at_least=False).holds


def test_verdicts_are_kept(tmp_path: Path) -> None:
    of = speed_row(date="2026-01-01", commit="c", cpu="A, B", threads=2)
    told = [Verdict("it", 1.2, 1.15, True), Verdict("that", 1.2, 1.0, False)]
    append_rows(tmp_path / "bars.csv", as_rows(told, of))
    first, second = read_rows(tmp_path / "bars.csv", BarRow)
    assert first == {
        "date": "2026-01-01",
        "commit": "c",
        "cpu": "A, B",
        "threads": "2",
        "what": "it",
        "figure": "1.2",
        "must": "at least",
        "bar": "1.15",
        "verdict": "reached",
    }
    assert (second["must"], second["verdict"]) == ("at most", "missed")
