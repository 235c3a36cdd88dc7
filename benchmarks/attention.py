"""Speed of memory attention on a CPU against PyTorch's: `python -m benchmarks.attention`.

Every candidate gives the same: attention to memories, projected from their width to the model's.
Each is checked against float64 first, or nothing is timed; ours in bf16 may err by twice what
PyTorch does in it. Then all run in the same rounds. Nothing is written to a file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import compare, measure, summarize
from benchmarks.peak import TORCH, peaks, product_of
from benchmarks.variants import VARIANTS, AbsentError, import_variant
from vkrt.cli.doctor import cpu_model
from vkrt.kernels import host_attention as host
from vkrt.kernels.memory_attention import reference
from vkrt.media import native
from vkrt.options import usable_cores

__all__ = ["Candidate", "Inputs", "error_of", "exact_rows", "limit_of", "make_candidates"]

DEPTH, WIDTH = 256, 64  # channels of a query and of a memory
NEAR = 1e-5  # of the largest result: float32 against float64
BF16_SHARE = 2.0  # of the error that PyTorch makes in bf16
CHECKED = 64  # queries of each object that are computed in float64
PAUSE = 0.1  # seconds: thread pools spin for a while after their work


@dataclass(frozen=True)
class Inputs:
    """Hold N objects' (N, Q, D) queries, (N, K, D) keys, (N, K, V) values, and the projection."""

    query: Tensor
    key: Tensor
    value: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def make(cls, objects: int, queries: int, keys: int) -> Inputs:
        """Return random inputs, the same for the same numbers; logits have a spread of 3."""
        made = torch.Generator().manual_seed(0)
        return cls(
            3 * torch.randn(objects, queries, DEPTH, generator=made),
            torch.randn(objects, keys, DEPTH, generator=made),
            torch.randn(objects, keys, WIDTH, generator=made),
            torch.randn(DEPTH, WIDTH, generator=made) / WIDTH**0.5,
            torch.randn(DEPTH, generator=made),
        )

    def project(self, values: Tensor) -> Tensor:
        """Return (..., V) as (..., D)."""
        return F.linear(values, self.weight.to(values), self.bias.to(values))

    def flops(self, width: int) -> int:
        """Return the multiplications and additions of both products, values being `width` wide."""
        objects, queries, _ = self.query.shape
        return 2 * objects * queries * self.key.shape[1] * (DEPTH + width)


@dataclass(frozen=True)
class Candidate:
    """Say what is timed.

    Attributes:
        name: of the way to compute it.
        run: does so once and returns (N, Q, D).
        width: of the values in its second product.
        precision: that the factors of its products have.
    """

    name: str
    run: Callable[[], Tensor]
    width: int
    precision: str = "fp32"


def make_candidates(inputs: Inputs, threads: int) -> list[Candidate]:
    """Return our way and PyTorch's; PyTorch's threads are those of the process."""
    query, key, value = inputs.query, inputs.key, inputs.value
    unmasked = torch.zeros(key.shape[:2])

    def ours(precision: str = "fp32") -> Tensor:
        arrays = query.numpy(), key.numpy(), value.numpy()
        narrow = host.attend(*arrays, threads=threads, precision=precision)
        return inputs.project(torch.from_numpy(narrow))

    def projected_first() -> Tensor:
        q, k, v = (tensor.unsqueeze(1) for tensor in (query, key, inputs.project(value)))
        return F.scaled_dot_product_attention(q, k, v).squeeze(1)

    def in_parts() -> Tensor:
        return inputs.project(reference.attend(query, key, value, unmasked))

    candidates = [
        Candidate("vkrt", ours, WIDTH),
        Candidate("torch, scaled_dot_product_attention", projected_first, DEPTH),
        Candidate("torch, matmul, softmax, matmul in parts", in_parts, WIDTH),
    ]
    if host.instructions("bf16") != host.instructions():
        candidates.append(Candidate("vkrt, bf16", lambda: ours("bf16"), WIDTH, "bf16"))
    return candidates


def checked_rows(queries: int) -> Tensor:
    """Return the places of the queries that are checked, from first to last."""
    return torch.linspace(0, queries - 1, min(CHECKED, queries)).long()


def exact_rows(inputs: Inputs) -> Tensor:
    """Return what the checked queries should get, in float64."""
    query = inputs.query[:, checked_rows(inputs.query.shape[1])].double()
    logits = query @ inputs.key.double().transpose(1, 2) * DEPTH**-0.5
    return inputs.project(logits.softmax(dim=-1) @ inputs.value.double())


def error_of(candidate: Candidate, wanted: Tensor) -> float:
    """Return the largest error of a candidate's checked queries, relative to the largest result."""
    got = candidate.run()
    errors = got[:, checked_rows(got.shape[1])] - wanted
    return float(errors.abs().max() / wanted.abs().max())


def limit_of(candidate: Candidate, inputs: Inputs, wanted: Tensor) -> float:
    """Return what the error of a candidate may be, given what the checked queries should get."""
    if candidate.precision == "fp32":
        return NEAR
    some = inputs.query[:, checked_rows(inputs.query.shape[1])]
    q, k, v = (part.bfloat16().unsqueeze(1) for part in (some, inputs.key, inputs.value))
    found = inputs.project(F.scaled_dot_product_attention(q, k, v).squeeze(1).float())
    return BF16_SHARE * float((found - wanted).abs().max() / wanted.abs().max())


def find_peaks(threads: int) -> dict[str, float]:
    """Return the GFLOP/s of the own matrix product of each runtime that is installed."""
    products = [TORCH]
    for name in ("onnxruntime", "openvino"):
        try:
            products.append(product_of(import_variant(VARIANTS[name]).backend, "fp32"))
        except AbsentError:
            continue
    return peaks(products, threads)


def fill(
    table: Table, inputs: Inputs, candidates: dict[str, Candidate], rounds: int, peak: float
) -> None:
    """Time the candidates and add a row for each."""
    calls = {name: candidate.run for name, candidate in candidates.items()}
    samples = measure(calls, rounds, warmups=1, pause=PAUSE)
    for name, candidate in candidates.items():
        found = summarize(samples[name])
        speed = inputs.flops(candidate.width) / found.p50 / 1e6
        table.add_row(
            name,
            *(f"{ms:.1f}" for ms in (found.p20, found.p50, found.p80)),
            f"{inputs.flops(candidate.width) / 1e9:.1f}",
            f"{speed:.1f}",
            f"{speed / peak:.0%}",
            f"{compare(samples[name], samples['vkrt']).paired:.2f}",
        )


def leave(why: str, code: int) -> typer.Exit:
    """Print a line and return what ends the command."""
    print(f"benchmarks.attention: {why}", file=sys.stderr)
    return typer.Exit(code)


@torch.inference_mode()
def main(
    objects: Annotated[int, typer.Option(min=1, help="Objects in one call.")] = 1,
    queries: Annotated[int, typer.Option(min=1, help="Pixels of the frame.")] = 4096,
    keys: Annotated[int, typer.Option(min=1, help="Tokens of the memory.")] = 28736,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each candidate.")] = 9,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 is one per core.")] = 0,
) -> None:
    """Measure memory attention in C++ against PyTorch."""
    if not native.available():
        raise leave(str(native.why_missing()), 2)
    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    inputs = Inputs.make(objects, queries, keys)
    candidates = {each.name: each for each in make_candidates(inputs, threads)}
    wanted = exact_rows(inputs)
    for name, candidate in candidates.items():
        if not (error := error_of(candidate, wanted)) < limit_of(candidate, inputs, wanted):
            raise leave(f"nothing is timed, because the error of {name} is {error:.1e}", 1)
    found = find_peaks(threads)
    table = Table(
        title=f"{objects} x {queries} queries, {keys} keys, {cpu_model()}, {threads} threads",
        caption="measured peaks, GFLOP/s: "
        + ", ".join(f"{name} {speed:.0f}" for name, speed in found.items()),
    )
    names = ("case", "p20 ms", "p50 ms", "p80 ms", "GFLOP", "GFLOP/s", "of highest peak", "time, x")
    for name in names:
        table.add_column(name, justify="left" if name == "case" else "right")
    fill(table, inputs, candidates, rounds, max(found.values()))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    typer.run(main)
