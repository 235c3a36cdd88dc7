"""How often the check of an export refuses a correct one: none of many random weights may be.

Run `python -m benchmarks.export_check sam2.1-tiny --sets 50 --image-size 64`. Each stage is traced
once; its weights are then replaced, and all that is computed of weights is computed again.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

from vkrt import catalog
from vkrt.export.check import FACTORS, Figure, check_stage
from vkrt.export.to_onnx import folded, optimized, quiet, tidy, trace, write_model
from vkrt.models.sam2.config import Sam2Config
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.stage_set import all_stages
from vkrt.stage import Stage

__all__ = ["KINDS", "Traces", "main", "sets_of_weights"]

# What becomes of weights as they are initialized.
KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "default": lambda tensor: tensor,
    "x1.5": lambda tensor: tensor * 1.5,
    "x3": lambda tensor: tensor * 3,
    "fp16": lambda tensor: tensor.half().float(),
}


class Traces:
    """Hold each stage of a model as torch translates it, to export it with any weights."""

    def __init__(self, config: Sam2Config) -> None:
        stages = all_stages(Sam2(config).eval().requires_grad_(False))
        with quiet():
            self._traces = {
                name: trace(replace(stage, module=folded(stage.module)))
                for name, stage in stages.items()
            }

    def export(self, stage: Stage, path: Path) -> list[Figure]:
        """Write a stage with its own weights, and return the figures of its check."""
        model = self._traces[stage.name].clone()
        bind(model, folded(stage.module))
        model = optimized(model)
        tidy(model)
        return check_stage(stage, Path(write_model(model, stage, path)))


def bind(model: ir.Model, module: nn.Module) -> None:
    """Give a graph the weights of a module, by their names."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name in model.graph.initializers:
            value = model.graph.initializers[name]
            # The original's tensor must stay with it: a clone shares its values' contents.
            value.const_value = ir.tensor(tensor.detach().numpy().copy(), name=name)


def sets_of_weights(config: Sam2Config, count: int, first: int = 0) -> Iterator[tuple[str, Sam2]]:
    """Give models of random weights, the kinds in turns."""
    for seed in range(first, first + count):
        kind = list(KINDS)[seed % len(KINDS)]
        torch.manual_seed(1000 + seed)
        model = Sam2(config).eval().requires_grad_(False)
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(KINDS[kind](tensor))
        yield f"{kind} {seed}", model


def main(arguments: list[str] | None = None) -> int:
    """Export every stage with each set of weights, and return how many were refused."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("--sets", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the number of the first set")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--out", type=Path, help="a CSV of all figures")
    given = parser.parse_args(arguments)
    config = catalog.find(given.model, given.image_size).config
    traces, refused, rows = Traces(config), 0, []
    for label, model in sets_of_weights(config, given.sets, given.first):
        for name, stage in all_stages(model).items():
            with tempfile.TemporaryDirectory() as folder:
                figures = traces.export(stage, Path(folder) / f"{name}.onnx")
            refused += not all(figure.passed for figure in figures)
            for found in figures:
                rows.append([given.model, label, name, found.output, *numbers(found)])
                if not found.passed:
                    print("refused:", *rows[-1], flush=True)
        worst = max(rows, key=lambda row: row[-1])
        print(f"{given.model} {label}: {refused} refused; worst so far:", *worst[1:], flush=True)
    if given.out is not None:
        with given.out.open("a", newline="") as file:
            csv.writer(file).writerows(rows)
    units = max(row[-1] for row in rows) * FACTORS["fp32"]
    stages = given.sets * len(traces._traces)
    print(f"{given.model}: {refused} of {stages} refused; at most {units:.1f} units of error")
    return refused


def numbers(figure: Figure) -> list[float]:
    """Return a figure's relative difference, what is allowed, and the share of it."""
    return [figure.max_relative, figure.allowed, figure.max_relative / figure.allowed]


if __name__ == "__main__":
    sys.exit(main())
