"""How long a product takes in each form, measured on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from vkrt.backends.onnx import CPU, session_options, set_arena
from vkrt.export.int8.products import Shape, find_products
from vkrt.export.int8.quantize import DYNAMIC, FP32, STATIC, Form, Range, quantize
from vkrt.export.to_onnx import OPSET
from vkrt.options import usable_cores

__all__ = ["Rewrite", "Seconds", "time_forms"]

Seconds = Mapping[Form, float]
# Gives named products of a model other forms, in place; the last argument is as in quantize.
Rewrite = Callable[[ir.Model, Mapping[str, Form], bool], None]
FORMS = (FP32, STATIC, DYNAMIC)
# Short products are run more often: on a machine that does other things one run says little.
LEAST_ROUNDS, MOST_ROUNDS = 5, 25
ENOUGH_SECONDS = 0.4
IR_VERSION = 10


def with_range(model: ir.Model, forms: Mapping[str, Form], reduced: bool) -> None:
    """Give products other forms, with a range of what they multiply as random numbers have it."""
    sources = (str(product.source.name) for product in find_products(model.graph))
    quantize(model, forms, {name: Range(-4.0, 4.0, 0) for name in sources}, reduced)


def time_forms(
    shape: Shape,
    reduced: bool,
    clock: Callable[[], float] = time.perf_counter,
    forms: Sequence[Form] = FORMS,
    rewrite: Rewrite = with_range,
) -> Seconds:
    """Return the median seconds of a product in each form; the forms run in turns.

    Products of one source are timed together, since its conversion to uint8 serves all of them.

    Args:
        shape: its sizes.
        reduced: as in quantize.
        clock: gives seconds; called before and after each run.
        forms: to be timed.
        rewrite: gives a product a form.
    """
    runs = {form: prepare(shape, form, reduced, rewrite) for form in forms}
    taken: dict[Form, list[float]] = {form: [] for form in forms}
    for run in runs.values():
        run()
    for count in range(MOST_ROUNDS):
        if count >= LEAST_ROUNDS and sum(map(sum, taken.values())) > ENOUGH_SECONDS:
            break
        for form, run in runs.items():
            start = clock()
            run()
            taken[form].append(clock() - start)
    return {form: median(seconds) / shape.readers for form, seconds in taken.items()}


def prepare(
    shape: Shape, form: Form, reduced: bool, rewrite: Rewrite = with_range
) -> Callable[[], None]:
    """Return a function that computes products in a form, always into the same memory."""
    model = product_model(shape)
    rewrite(model, {product.name: form for product in find_products(model.graph)}, reduced)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        ir.save(model, path)
        set_arena()
        options = session_options(usable_cores(), fixed=True)
        session = ort.InferenceSession(path, options, providers=[CPU])
    binding = session.io_binding()
    values = np.random.default_rng(0).standard_normal((shape.rows, shape.inner), np.float32)
    results = [np.empty((shape.rows, shape.outer), np.float32) for _ in range(shape.readers)]
    binding.bind_input("x", "cpu", 0, values.dtype, values.shape, values.ctypes.data)
    for index, result in enumerate(results):
        binding.bind_output(f"y{index}", "cpu", 0, result.dtype, result.shape, result.ctypes.data)

    # The binding knows addresses only: the arrays have to live as long as this function.
    def run(_arrays: object = (values, results)) -> None:
        session.run_with_iobinding(binding)

    return run


def product_model(shape: Shape) -> ir.Model:
    """Return a model that computes y0 = x @ weight + bias with random weights, y1 and so on."""
    x = tensor_value("x", (shape.rows, shape.inner))
    generator = np.random.default_rng(1)
    nodes, weights, outputs = [], [], []
    for index in range(shape.readers):
        weight, bias = (
            ir.Value(name=name, const_value=ir.tensor(array, name=name))
            for name, array in (
                (f"weight{index}", generator.standard_normal((shape.inner, shape.outer), "f4")),
                (f"bias{index}", generator.standard_normal(shape.outer, "f4")),
            )
        )
        product = ir.node("MatMul", [x, weight])
        product.outputs[0].name = f"product{index}"
        outputs.append(tensor_value(f"y{index}", (shape.rows, shape.outer)))
        nodes += [product, ir.node("Add", [product.outputs[0], bias], outputs=outputs[-1:])]
        weights += [weight, bias]
    graph = ir.Graph(
        [x],
        outputs,
        nodes=nodes,
        initializers=weights,
        opset_imports={"": OPSET},
        name="products",
    )
    return ir.Model(graph, ir_version=IR_VERSION)


def tensor_value(name: str, shape: tuple[int, ...]) -> ir.Value:
    """Return a float32 value of a shape."""
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
