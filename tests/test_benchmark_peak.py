"""What a variant's speed is a share of: each runtime's own matrix product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmark_rows import speed_row

from benchmarks import peak
from benchmarks.rows import products, shares_of
from benchmarks.variants import VARIANTS, import_variant


@pytest.fixture
def small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the products small, and of three different sides."""
    for name, size in (("ROWS", 32), ("DEPTH", 48), ("COLUMNS", 40), ("ROUNDS", 2)):
        monkeypatch.setattr(peak, name, size)


@pytest.mark.usefixtures("small_product")
@pytest.mark.parametrize(
    ("runtime", "precision"),
    [("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "fp32")],
)
def test_a_runtime_computes_the_product_that_is_timed(
    runtime: str, precision: str, tmp_path: Path
) -> None:
    left, right = peak.factors(precision)
    peak.write_product(tmp_path / "product.onnx", right)
    run = import_variant(VARIANTS[runtime]).open_graph(tmp_path / "product.onnx", 1)
    (found,) = run([left])
    assert found.shape == (32, 40)
    if precision == "int8":
        assert np.array_equal(found, left.astype(int) @ right.astype(int))
    else:
        assert np.allclose(found, left @ right, rtol=1e-5)


@pytest.mark.usefixtures("small_product")
def test_every_variant_has_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = [import_variant(variant) for variant in VARIANTS.values()]
    wanted = {peak.product_of(one.backend, one.precision) for one in classes}
    assert wanted == {"torch fp32", "onnxruntime fp32", "onnxruntime int8", "openvino fp32"}
    found = peak.peaks(sorted(wanted), threads=1)
    assert set(found) == wanted and min(found.values()) > 0
    monkeypatch.setattr(
        peak, "measure", lambda calls, *_, **__: {name: [3.0, 2.0] for name in calls}
    )
    assert peak.peaks(["torch fp32"], 1)["torch fp32"] == pytest.approx(32 * 48 * 40 / 1e9)
    assert peak.peaks([], 1) == {}


def test_a_share_is_of_the_own_product_and_of_the_best() -> None:
    rows = [
        speed_row(variant="onnxruntime", backend="onnxruntime", gflops=150.0, peak_gflops=200.0),
        speed_row(variant="openvino", backend="openvino", gflops=None, peak_gflops=300.0),
        speed_row(
            variant="vkrt-int8", backend="onnx", precision="int8", gflops=150.0, peak_gflops=600.0
        ),
    ]
    shares = [shares_of(row, rows) for row in rows]
    assert shares == [(0.75, 0.5), (None, None), (0.25, 0.25)]
    assert products(rows) == "onnxruntime fp32 200, onnxruntime int8 600, openvino fp32 300"
