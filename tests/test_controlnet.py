"""ControlNets give what diffusers' do, and lead the transformer by either way to spread them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SD3ControlNetModel, SD3Transformer2DModel
from sd35_oracle import (
    fold,
    oracle_controlnet,
    oracle_mmdit,
    places,
    relative_error,
    tiny_controlnet,
    tiny_mmdit,
    twin_controlnet,
    twin_mmdit,
    unfold,
)
from torch import Tensor, nn

from vkrt.backends.eager import EagerBackend
from vkrt.backends.onnx import OnnxBackend
from vkrt.export.check import check_stage, refuse_failures
from vkrt.export.inputs import random_inputs
from vkrt.export.to_onnx import stage_to_onnx
from vkrt.models.sd35.config import ControlNetConfig, MmditConfig, Sd35Config
from vkrt.models.sd35.controlnet import ControlNet, ControlNetConditioning
from vkrt.models.sd35.mmdit import ControlledDenoiser
from vkrt.models.sd35.stages import stage_of
from vkrt.options import Options
from vkrt.stage import Stage, shape_of

RELATIVE = 1e-4
TIMESTEP = 713.2
DEPTH = 5
HEIGHT, WIDTH = 6, 10
MMDIT = tiny_mmdit(depth=DEPTH)


@dataclass
class Pair:
    """Hold a ControlNet and what it leads, of diffusers and ours, with inputs of both."""

    led: SD3Transformer2DModel
    oracle: SD3ControlNetModel
    latent: Tensor
    condition: Tensor
    pooled: Tensor
    context: Tensor

    def ask_oracle(self, scale: float) -> list[Tensor]:
        """Return diffusers' residuals."""
        return self.oracle(
            self.led.pos_embed(self.latent),
            self.condition,
            conditioning_scale=scale,
            pooled_projections=self.pooled,
            timestep=torch.full((len(self.latent),), TIMESTEP),
        ).controlnet_block_samples

    def lead_oracle(self, residuals: list[Tensor] | None) -> Tensor:
        """Return diffusers' velocity, led by residuals."""
        times = torch.full((len(self.latent),), TIMESTEP)
        return self.led(
            self.latent,
            self.context,
            self.pooled,
            times,
            block_controlnet_hidden_states=residuals,
        ).sample

    def residuals(self) -> Tensor:
        """Return ours (layers, B, P, D)."""
        tables, net = self.parts
        (table,) = tables(torch.tensor([TIMESTEP]), self.pooled)
        return net(fold(self.latent), self.positions, fold(self.condition), table[0])[0]

    def lead(self, index: list[int], scale: list[float]) -> Tensor:
        """Return our velocity, led by our residuals."""
        conditioning, _, denoiser = twin_mmdit(self.led, MMDIT)
        table, context = conditioning(torch.tensor([TIMESTEP]), self.pooled, self.context)
        (patches,) = ControlledDenoiser(denoiser)(
            fold(self.latent),
            self.positions,
            context,
            table[0],
            self.residuals(),
            torch.tensor(index),
            torch.tensor(scale),
        )
        return unfold(patches, HEIGHT, WIDTH)

    @property
    def parts(self) -> tuple[ControlNetConditioning, ControlNet]:
        """Return our ControlNet."""
        return twin_controlnet(self.oracle, self.led, self.config, MMDIT)

    @property
    def config(self) -> ControlNetConfig:
        """Return its shape."""
        return tiny_controlnet(len(self.oracle.transformer_blocks))

    @property
    def positions(self) -> Tensor:
        """Return the positions (P, D) of the latent."""
        return places(twin_mmdit(self.led, MMDIT)[1], HEIGHT, WIDTH)


@pytest.fixture(scope="module", params=[3, 2])
def pair(request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(4)
    return Pair(
        oracle_mmdit(MMDIT),
        oracle_controlnet(tiny_controlnet(request.param)),
        torch.randn(2, 16, HEIGHT, WIDTH),
        torch.randn(2, 16, HEIGHT, WIDTH),
        torch.randn(2, 24),
        torch.randn(2, 9, 40),
    )


def test_residuals(pair: Pair) -> None:
    wanted = torch.stack(list(pair.ask_oracle(1.0)))
    assert relative_error(pair.residuals(), wanted) < RELATIVE


def test_leading_as_diffusers_does(pair: Pair) -> None:
    residuals = pair.ask_oracle(0.7)
    interval = DEPTH / len(residuals)
    wanted = pair.lead_oracle(residuals)
    found = pair.lead([int(block / interval) for block in range(DEPTH)], [0.7] * (DEPTH - 1) + [0])
    assert relative_error(found, wanted) < RELATIVE
    assert relative_error(wanted, pair.lead_oracle(None)) > 0.01


def test_leading_as_the_reference_does(pair: Pair) -> None:
    residuals = pair.ask_oracle(0.7)
    index = [min(block // 2, len(residuals) - 1) for block in range(DEPTH)]

    def hook(block: int) -> torch.utils.hooks.RemovableHandle:
        def add(module: nn.Module, given: object, out: tuple[Tensor, Tensor]) -> object:
            return out[0], out[1] + residuals[index[block]]

        return pair.led.transformer_blocks[block].register_forward_hook(add)

    handles = [hook(block) for block in range(DEPTH)]
    wanted = pair.lead_oracle(None)
    for handle in handles:
        handle.remove()
    assert relative_error(pair.lead(index, [0.7] * DEPTH), wanted) < RELATIVE


def test_without_scale_nothing_is_led(pair: Pair) -> None:
    found = pair.lead([0] * DEPTH, [0.0] * DEPTH)
    assert relative_error(found, pair.lead_oracle(None)) < RELATIVE


def test_a_control_net_of_another_width() -> None:
    other = ControlNetConfig(depth=1, heads=2, head_dim=16)
    with pytest.raises(ValueError, match="width 32 can't lead a model of 48"):
        ControlNet(other, tiny_mmdit())


def test_full_size() -> None:
    config = ControlNetConfig()
    with torch.device("meta"):
        tables = ControlNetConditioning(config)
        net = ControlNet(config, MmditConfig(depth=38, heads=38))
    sizes = {k: v.numel() for part in (tables, net) for k, v in part.state_dict().items()}
    assert sum(sizes.values()) == pytest.approx(2.15e9, rel=5e-3)


# Stages.

NAMES = ["controlnet_conditioning", "controlnet"]


def tiny_stage(pair: Pair, name: str) -> Stage:
    return stage_of(name, pair.parts[NAMES.index(name)], Sd35Config(MMDIT))


@pytest.mark.parametrize("name", NAMES)
def test_ports_are_what_the_stages_give(pair: Pair, name: str) -> None:
    stage = tiny_stage(pair, name)
    sizes = {symbol: size for size, symbol in enumerate(stage.symbols, start=3)}
    arrays = random_inputs(stage, sizes, np.random.default_rng(0))
    found = stage.module(*map(torch.from_numpy, arrays))
    program = EagerBackend(Options(precision="bf16", device="cpu")).prepare(stage)
    low = program(*map(torch.from_numpy, arrays))
    for port, output, rounded in zip(stage.outputs, found, low, strict=True):
        assert tuple(output.shape) == shape_of(port, sizes), port.name
        assert relative_error(rounded.float(), output) < 0.05, port.name


@pytest.mark.slow
@pytest.mark.parametrize("pair", [2], indirect=True)
@pytest.mark.parametrize("name", NAMES)
def test_onnx_runtime_gives_the_same(pair: Pair, name: str, tmp_path: Path) -> None:
    stage, path = tiny_stage(pair, name), tmp_path / f"{name}.onnx"
    stage_to_onnx(stage, path)
    refuse_failures(check_stage(stage, path))


@pytest.mark.slow
@pytest.mark.parametrize("pair", [3], indirect=True)
def test_onnx_runtime_takes_any_residual(pair: Pair, tmp_path: Path) -> None:
    denoiser = twin_mmdit(pair.led, MMDIT)[2]
    stage, path = stage_of("mmdit_controlled", denoiser, Sd35Config(MMDIT)), tmp_path / "m"
    stage_to_onnx(stage, path)
    sizes = {symbol: size for size, symbol in enumerate(stage.symbols, start=4)}
    arrays = random_inputs(stage, sizes, np.random.default_rng(0))
    arrays[5] = np.array([0, 1, 2, 3, 1])
    program = OnnxBackend(Options()).prepare(Stage("m", path, stage.inputs, stage.outputs))
    (wanted,) = stage.module(*map(torch.from_numpy, arrays))
    assert relative_error(torch.from_numpy(program(*arrays)[0]), wanted) < RELATIVE
