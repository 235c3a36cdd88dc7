"""The quality gate of an int8 transformer: its velocities and latents against those of fp32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vkrt.demo.scenes import make_scene
from vkrt.engines.inputs import Inputs, read_inputs
from vkrt.engines.request import Request, largest_side, read_request
from vkrt.engines.sd35 import Generator
from vkrt.export.int8.exchange import Call, Exchange
from vkrt.models.sd35.config import Sd35Config
from vkrt.stage import Stage

__all__ = ["LEAST_PSNR", "MOST_ERROR", "Gate", "Verdict", "psnr_of", "relative_error"]

# What the root mean square error of velocities may be as a share of theirs, and the least PSNR of
# latents behind the last step, in dB.
MOST_ERROR = 0.05
LEAST_PSNR = 30.0
STEPS = 4
# Small, so that the steps of a large model take minutes. Each token has a range of its own: more of
# them would err alike.
SIDE = 256
PROMPTS = ("a red fox in deep snow, a photograph", "a kitchen with blue tiles, watercolour")
SEED = 700_000


@dataclass(frozen=True)
class Verdict:
    """Hold how far int8 is from fp32.

    Attributes:
        error: of the velocities, relative, at the inputs that fp32 had.
        psnr: of the latents behind the last step, in dB, of a ControlNet's too: the lower one.
        seconds: the shortest step in "fp32" and in "int8".
        steps, pictures, side: what was sampled.
        most_error, least_psnr: what is wanted.
    """

    error: float
    psnr: float
    seconds: Mapping[str, float]
    steps: int
    pictures: int
    side: int
    most_error: float = MOST_ERROR
    least_psnr: float = LEAST_PSNR

    @property
    def passed(self) -> bool:
        """Tell whether int8 is near enough."""
        return self.error <= self.most_error and self.psnr >= self.least_psnr

    def __str__(self) -> str:
        return (
            f"velocities err by {self.error:.3f}, latents after {self.steps} steps have "
            f"{self.psnr:.1f} dB to fp32"
        )


class Gate:
    """Keep what an engine makes with its stages in fp32, and hold others against that.

    Args:
        engine: of the whole model; `exchange` is the backend of its stages.
        exchange: gives it the transformer's.
        stages: those in fp32.
        controlled: whether it has a ControlNet to be led by.

    Attributes:
        calls: of the stages in fp32, by name.
    """

    def __init__(
        self, engine: Generator, exchange: Exchange, stages: Mapping[str, Stage], controlled: bool
    ) -> None:
        self._engine, self._exchange = engine, exchange
        self._cases = list(cases(engine.config, controlled))
        exchange.use(stages)
        self._latents = self._sample()
        self.calls: dict[str, Sequence[Call]] = dict(exchange.calls)
        self._seconds = fastest(exchange)
        exchange.use({})

    def judge(self, stages: Mapping[str, Stage]) -> Verdict:
        """Return how far stages are from those in fp32.

        Raises:
            GenerationError: they give NaN.
        """
        exchange = self._exchange
        exchange.use(stages)
        psnr = min(map(psnr_of, self._sample(), self._latents))
        error = max(self._error(name) for name in self.calls)
        seconds = {"fp32": self._seconds, "int8": fastest(exchange)}
        exchange.use({})
        request, _ = self._cases[0]
        return Verdict(error, psnr, seconds, request.steps, len(request.prompts), request.width)

    def _error(self, name: str) -> float:
        """Return the error of a stage at the inputs that fp32 had."""
        calls = self.calls[name]
        found = [self._exchange.run(name, *call.given) for call in calls]
        return relative_error([made[0] for made in found], [call.made[0] for call in calls])

    def _sample(self) -> list[np.ndarray]:
        """Return the latents of every case."""
        return [self._engine.sample(*case) for case in self._cases]


def cases(config: Sd35Config, controlled: bool) -> list[tuple[Request, Inputs]]:
    """Return what is sampled: pictures from text, and some that a ControlNet leads."""
    side = min(SIDE, largest_side(config))
    scene = make_scene(SEED, side).image
    found = []
    for led in (False, True)[: 1 + controlled]:
        request = read_request(
            config,
            list(PROMPTS),
            width=side,
            height=side,
            steps=STEPS,
            seed=SEED,
            sampler="euler",
            controlled=led,
        )
        found.append((request, read_inputs(config, side, side, control=scene if led else None)))
    return found


def fastest(exchange: Exchange) -> float:
    """Return the seconds of a step: the shortest call of each stage that was called, together."""
    return sum(map(min, exchange.seconds.values()))


def psnr_of(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB; the peak is the span of what is wanted."""
    error = float(np.square(np.subtract(found, wanted, dtype=np.float64)).mean())
    span = float(np.ptp(wanted))
    return 10 * float(np.log10(max(span**2, 1e-30) / max(error, 1e-30)))


def relative_error(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Return |found - wanted| / |wanted|, all arrays together."""
    error = sum(float(np.square(a - b).sum()) for a, b in zip(found, wanted, strict=True))
    return float(np.sqrt(error / (sum(float(np.square(b).sum()) for b in wanted) or 1.0)))
