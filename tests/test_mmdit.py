"""The transformer gives what diffusers' does, in ONNX too; its table holds what it says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from sd35_oracle import fold, oracle_mmdit, places, relative_error, tiny_mmdit, twin_mmdit, unfold
from torch import Tensor

from vkrt.backends.eager import EagerBackend
from vkrt.export.check import check_stage, refuse_failures
from vkrt.export.inputs import random_inputs
from vkrt.export.to_onnx import stage_to_onnx
from vkrt.models.sd35.conditioning import Conditioning
from vkrt.models.sd35.config import MmditConfig, Sd35Config
from vkrt.models.sd35.layout import gate_columns, mmdit_widths
from vkrt.models.sd35.mmdit import Denoiser
from vkrt.models.sd35.positions import PositionTable
from vkrt.models.sd35.stages import PARTS, stage_of
from vkrt.options import Options
from vkrt.stage import Stage, shape_of

RELATIVE = 1e-4
LARGE = MmditConfig(depth=38, heads=38)
MEDIUM = MmditConfig(depth=24, heads=24, dual_blocks=tuple(range(13)), pos_embed_max_size=384)


@dataclass
class Case:
    """Hold an oracle, our twin and inputs of both.

    Attributes:
        latent: (B, C, h, w).
        pooled: (B, pooled_dim).
        context: (B, L, context_dim).
    """

    oracle: SD3Transformer2DModel
    parts: tuple[Conditioning, PositionTable, Denoiser]
    latent: Tensor
    pooled: Tensor
    context: Tensor

    def ask_oracle(self, timestep: float, skip_layers: list[int] | None = None) -> Tensor:
        """Return diffusers' velocity (B, C, h, w)."""
        times = torch.full((len(self.latent),), timestep)
        return self.oracle(
            self.latent, self.context, self.pooled, times, skip_layers=skip_layers
        ).sample

    def condition(self, *timesteps: float) -> tuple[Tensor, Tensor]:
        """Return our table and embedded context."""
        return self.parts[0](torch.tensor(timesteps), self.pooled, self.context)

    def velocity(self, table: Tensor, embedded: Tensor) -> Tensor:
        """Return ours (B, C, h, w), given the table of one step."""
        height, width = self.latent.shape[2:]
        positions = places(self.parts[1], height, width)
        (patches,) = self.parts[2](fold(self.latent), positions, embedded, table)
        return unfold(patches, height, width)


def make_case(
    config: MmditConfig, batch: int = 2, height: int = 6, width: int = 10, length: int = 7
) -> Case:
    oracle = oracle_mmdit(config)
    generator = torch.Generator().manual_seed(length)
    shapes = (
        (batch, config.channels, height, width),
        (batch, config.pooled_dim),
        (batch, length, config.context_dim),
    )
    inputs = (torch.randn(shape, generator=generator) for shape in shapes)
    return Case(oracle, twin_mmdit(oracle, config), *inputs)


@pytest.fixture(scope="module")
def dual() -> Case:
    return make_case(tiny_mmdit(dual=(0, 1)))


@pytest.mark.parametrize("dual_blocks", [(), (0,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize(
    ("batch", "height", "width", "length"), [(1, 2, 2, 1), (2, 6, 10, 13), (1, 22, 4, 154)]
)
def test_velocity(
    dual_blocks: tuple[int, ...], batch: int, height: int, width: int, length: int
) -> None:
    case = make_case(tiny_mmdit(dual=dual_blocks), batch, height, width, length)
    table, embedded = case.condition(431.7)
    assert relative_error(case.velocity(table[0], embedded), case.ask_oracle(431.7)) < RELATIVE


def test_one_block_alone() -> None:
    case = make_case(tiny_mmdit(depth=1))
    table, embedded = case.condition(999.0)
    assert relative_error(case.velocity(table[0], embedded), case.ask_oracle(999.0)) < RELATIVE


def test_a_table_of_many_steps(dual: Case) -> None:
    timesteps = 1000.0, 857.7, 8.93
    table, embedded = dual.condition(*timesteps)
    for row, timestep in zip(table, timesteps, strict=True):
        found = dual.velocity(row, embedded)
        assert relative_error(found, dual.ask_oracle(timestep)) < RELATIVE


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [replace(LARGE, depth=2), replace(MEDIUM, depth=2, dual_blocks=(0,))],
    ids=["large", "medium"],
)
def test_velocity_at_full_width(config: MmditConfig) -> None:
    config = replace(config, pos_embed_max_size=16)
    case = make_case(config, height=12, width=16, length=77)
    table, embedded = case.condition(602.2)
    assert relative_error(case.velocity(table[0], embedded), case.ask_oracle(602.2)) < RELATIVE


# Skipping blocks.


@pytest.mark.parametrize("skipped", [[1], [0, 2], [0, 1, 2]], ids=str)
def test_without_gates_a_block_is_skipped(dual: Case, skipped: list[int]) -> None:
    table, embedded = dual.condition(700.0)
    config = tiny_mmdit(dual=(0, 1))
    for block in skipped:
        for columns in gate_columns(config, block):
            table[:, 1, columns] = 0
    found = dual.velocity(table[0], embedded)
    plain, shorter = dual.ask_oracle(700.0), dual.ask_oracle(700.0, skipped)
    assert relative_error(found[:1], plain[:1]) < RELATIVE
    assert relative_error(found[1:], shorter[1:]) < RELATIVE
    assert relative_error(shorter, plain) > 0.01


def test_gates_are_all_that_the_table_says(dual: Case) -> None:
    config = tiny_mmdit(dual=(0, 1))
    counts = [len(gate_columns(config, block)) for block in range(config.depth)]
    assert counts == [5, 5, 2]
    columns = [slices for block in range(3) for slices in gate_columns(config, block)]
    covered = np.concatenate([np.arange(s.start, s.stop) for s in columns])
    assert len(np.unique(covered)) == len(covered) == 12 * config.dim
    assert covered.max() < sum(mmdit_widths(config)) == dual.condition(1.0)[0].shape[-1]


@pytest.mark.parametrize("block", [-1, 3])
def test_gates_of_no_block(block: int) -> None:
    with pytest.raises(ValueError, match=f"no block {block}, they are 0 to 2"):
        gate_columns(tiny_mmdit(), block)


# Sizes.


@pytest.mark.parametrize(
    ("config", "total", "of_tables"), [(LARGE, 8.14e9, 2.69e9), (MEDIUM, 2.47e9, 0.77e9)]
)
def test_full_size(config: MmditConfig, total: float, of_tables: float) -> None:
    with torch.device("meta"):
        parts = Conditioning(config), PositionTable(config), Denoiser(config)
    sizes = {k: v.numel() for part in parts for k, v in part.state_dict().items()}
    assert sum(sizes.values()) == pytest.approx(total, rel=2e-3)
    adaptive = sum(size for name, size in sizes.items() if "adaLN" in name)
    assert adaptive == pytest.approx(of_tables, rel=5e-3)
    assert sizes["pos_embed"] == config.pos_embed_max_size**2 * config.dim


# Stages.

NAMES = ["conditioning", "positions", "mmdit", "mmdit_controlled"]


def tiny_stage(name: str) -> Stage:
    config = tiny_mmdit(depth=2, dual=(0,))
    parts = dict(
        zip(
            ("conditioning", "positions", "denoiser"),
            twin_mmdit(oracle_mmdit(config), config),
            strict=True,
        )
    )
    return stage_of(name, parts[PARTS[name]], Sd35Config(config))


def sizes_of(stage: Stage) -> dict[str, int]:
    return {symbol: size for size, symbol in enumerate(stage.symbols, start=3)}


def test_every_part_has_a_stage() -> None:
    assert set(NAMES) < set(PARTS)
    with pytest.raises(KeyError):
        stage_of("painter", None, Sd35Config(tiny_mmdit()))


@pytest.mark.parametrize("name", NAMES)
def test_ports_are_what_the_stages_give(name: str) -> None:
    stage = tiny_stage(name)
    sizes = sizes_of(stage)
    arrays = random_inputs(stage, sizes, np.random.default_rng(0))
    found = stage.module(*map(torch.from_numpy, arrays))
    for port, output in zip(stage.outputs, found, strict=True):
        assert tuple(output.shape) == shape_of(port, sizes), port.name
        assert str(output.numpy().dtype) == port.dtype and output.isfinite().all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_reduced_precision(name: str, precision: str) -> None:
    stage = tiny_stage(name)
    arrays = random_inputs(stage, sizes_of(stage), np.random.default_rng(1))
    wanted = stage.module(*map(torch.from_numpy, arrays))
    program = EagerBackend(Options(precision=precision, device="cpu")).prepare(stage)
    for port, found, exact in zip(
        stage.outputs, program(*map(torch.from_numpy, arrays)), wanted, strict=True
    ):
        assert relative_error(found.float(), exact) < 0.05, port.name


EXPORTED = [
    *(name for name in NAMES if name != "mmdit_controlled"),
    pytest.param("mmdit_controlled", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_runtime_gives_the_same(name: str, tmp_path: Path) -> None:
    stage, path = tiny_stage(name), tmp_path / f"{name}.onnx"
    stage_to_onnx(stage, path)
    refuse_failures(check_stage(stage, path))
