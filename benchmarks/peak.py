"""How fast each runtime multiplies matrices here: what a variant's speed is a share of."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.measure import measure
from benchmarks.variants import VARIANTS, import_variant

__all__ = ["peaks", "product_of"]

ROWS, DEPTH, COLUMNS = 1024, 4096, 1024  # deep, so that writing the product takes little of it
ROUNDS, WARMUPS, PAUSE = 10, 2, 0.02
RUNTIMES = {"eager": "torch", "torch.compile": "torch", "onnx": "onnxruntime"}  # by backend
TORCH = "torch fp32"


def product_of(backend: str, precision: str) -> str:
    """Return which product limits a backend in a precision, such as "onnxruntime int8"."""
    return f"{RUNTIMES.get(backend, backend)} {precision}"


def peaks(products: Collection[str], threads: int) -> dict[str, float]:
    """Return the most GFLOP/s of each product, an addition or multiplication of int8 being one.

    All of them run in the same rounds. The best round counts: whatever disturbs one only ever
    makes it slower.

    Args:
        products: what product_of gives.
        threads: of each; torch's are those of the process.

    Raises:
        AbsentError: a runtime is not installed.
    """
    if not products:
        return {}
    with TemporaryDirectory() as folder:
        calls = {name: open_product(name, Path(folder), threads) for name in products}
        samples = measure(calls, ROUNDS, WARMUPS, pause=PAUSE)
    work = 2 * ROWS * DEPTH * COLUMNS
    return {name: work / min(seconds) / 1e9 for name, seconds in samples.items()}


def open_product(name: str, folder: Path, threads: int) -> Callable[[], object]:
    """Return a call that computes a product, in a runtime with a graph as its peer runs graphs."""
    if name == TORCH:
        left, right = torch.randn(ROWS, DEPTH), torch.randn(DEPTH, COLUMNS)
        out = torch.mm(left, right)
        return lambda: torch.mm(left, right, out=out)
    runtime, precision = name.split()
    path = folder / f"{precision}.onnx"
    pixels, weights = factors(precision)
    write_product(path, weights)
    run = import_variant(VARIANTS[runtime]).open_graph(path, threads)
    return lambda: run([pixels])


def factors(precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Return activations and weights, float32, or uint8 and int8 as quantized graphs have them."""
    rng = np.random.default_rng(0)
    left, right = (ROWS, DEPTH), (DEPTH, COLUMNS)
    if precision == "int8":
        # Seven bits of weight: without VNNI, sums of two products would saturate.
        return rng.integers(0, 256, left, np.uint8), rng.integers(-64, 64, right, np.int8)
    return rng.random(left, np.float32), rng.random(right, np.float32)


def write_product(path: Path, weights: np.ndarray) -> None:
    """Write a graph that multiplies its input by weights, which a runtime may pack beforehand."""
    from onnx import TensorProto, helper, numpy_helper, save

    is_int8 = weights.dtype == np.int8
    given, made = (TensorProto.UINT8, TensorProto.INT32) if is_int8 else (TensorProto.FLOAT,) * 2
    node = helper.make_node("MatMulInteger" if is_int8 else "MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", given, [ROWS, DEPTH])],
        [helper.make_tensor_value_info("y", made, [ROWS, COLUMNS])],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
