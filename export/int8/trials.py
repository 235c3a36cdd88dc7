"""Forms of a stage's products, tried: what their ranges are, and what they do to its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from vkrt.backends.onnx import OnnxBackend
from vkrt.errors import BackendError
from vkrt.export.files import load_model
from vkrt.export.int8.calibration import TRIALS, scene_inputs
from vkrt.export.int8.observe import observe
from vkrt.export.int8.products import find_products, shapes_of
from vkrt.export.int8.quantize import Form, quantize
from vkrt.export.to_onnx import write_model
from vkrt.options import Options
from vkrt.stage import Stage

__all__ = ["Trials"]


class Trials:
    """Write a stage with its products in other forms.

    Args:
        stage: in fp32.
        draft: of it, as stage_to_onnx writes one; it stays as it is.
        folder: where to write.
        pictures: arrays for its input, for the ranges.
        side: of its input, in pixels.
        reduced: as in quantize.

    Attributes:
        shapes: of the products by name, for one picture.

    Raises:
        BackendError: the stage can't run, has no product with constant weights, or values in it
            are not finite.
    """

    def __init__(
        self,
        stage: Stage,
        draft: Path,
        folder: Path,
        pictures: Iterable[np.ndarray],
        side: int,
        reduced: bool,
    ) -> None:
        self._stage = stage
        self._draft = draft
        self._folder = folder
        self._side = side
        self._reduced = reduced
        self._damages: dict[tuple[str, Form], float] = {}
        self._wanted: list[tuple[np.ndarray, ...]] = []
        products = find_products(load_model(draft).graph)
        if not products:
            raise BackendError(f"{stage.name} has no product with constant weights to quantize")
        self._ranges = observe(stage, draft, (str(p.source.name) for p in products), pictures)
        self.shapes = shapes_of(products, {n: span.size for n, span in self._ranges.items()})

    def write(self, forms: Mapping[str, Form]) -> Stage:
        """Return the stage with products in these forms, in files that the next call replaces."""
        model = load_model(self._draft)
        quantize(model, forms, self._ranges, self._reduced)
        path = self._folder / f"{self._stage.name}.onnx"
        return replace(self._stage, module=write_model(model, self._stage, path, may_cut=True))

    def damage(self, name: str, form: Form) -> float:
        """Return the error that one product alone in a form makes in the stage's outputs.

        It is the root mean square over the outputs of each one's relative error, on pictures that
        the ranges do not know.
        """
        if (name, form) not in self._damages:
            self._wanted = self._wanted or self._run(self._stage)
            found = self._run(self.write({name: form}))
            self._damages[name, form] = relative_error(found, self._wanted)
        return self._damages[name, form]

    def _run(self, stage: Stage) -> list[tuple[np.ndarray, ...]]:
        """Return the outputs of a stage for each trial picture."""
        backend = OnnxBackend(Options(device="cpu"))
        program = backend.prepare(stage)
        outputs = [program(array) for array in scene_inputs(TRIALS, self._side)]
        backend.close()
        return outputs


def relative_error(
    found: Iterable[tuple[np.ndarray, ...]], wanted: Iterable[tuple[np.ndarray, ...]]
) -> float:
    """Return the root mean square over outputs of |found - wanted| / |wanted|, all pictures."""
    squares = []
    for one, other in zip(zip(*found, strict=True), zip(*wanted, strict=True), strict=True):
        error = sum(float(np.square(a - b).sum()) for a, b in zip(one, other, strict=True))
        squares.append(error / (sum(float(np.square(b).sum()) for b in other) or 1.0))
    return float(np.sqrt(np.mean(squares)))
