"""Samplers: from a latent and the velocity that the model gives to the latent of the next step."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from vkrt.engines.schedule import EULER, check_profile, check_sampler
from vkrt.errors import GenerationError

__all__ = [
    "DpmSolver2M",
    "Euler",
    "Sampler",
    "add_noise",
    "denoise",
    "inpaint_blend",
    "make_sampler",
]


class Sampler(ABC):
    """Step latents (n, C, h, w) float32 down the noise levels, each image apart from the others."""

    def __init__(self, sigmas: np.ndarray) -> None:
        """Take (steps + 1,) float32 noise levels that fall to 0.

        Raises:
            GenerationError: the levels do not fall, or end above 0.
        """
        levels = np.asarray(sigmas, np.float64)
        falls = levels.ndim == 1 and len(levels) > 1 and bool((np.diff(levels) < 0).all())
        if not falls or levels[-1] != 0 or levels[0] > 1:
            raise GenerationError(
                f"noise levels must fall from at most 1 to 0, not {levels.tolist()!s:.60}: "
                "take those of vkrt.engines.schedule"
            )
        self.sigmas = levels

    @property
    def steps(self) -> int:
        """Return the number of steps."""
        return len(self.sigmas) - 1

    @abstractmethod
    def step(self, index: int, latent: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """Return the latent (n, C, h, w) float32 at noise level index + 1.

        Args:
            index: the step, from 0; steps are taken in order, from any of them on.
            latent: (n, C, h, w) float32 at noise level `index`.
            velocity: the same shape, what the model gives for it, guided.
        """


class Euler(Sampler):
    """Go straight along the velocity: x + (next sigma - sigma) * v."""

    def step(self, index: int, latent: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """Return the latent at noise level index + 1."""
        return latent + np.float32(self.sigmas[index + 1] - self.sigmas[index]) * velocity


class DpmSolver2M(Sampler):
    """Go along a line through the last two pictures that were foreseen: DPM-Solver++(2M).

    With D the denoised pictures of this step and of the one before, lambda = log(alpha / sigma),
    h = lambda_next - lambda and r = h_before / h,
    x_next = sigma_next / sigma * x + alpha_next * (1 - exp(-h)) * ((1 + 1/2r) D - 1/2r D_before);
    the first and the last step take D alone.

    The "reference" profile has alpha = 1, so lambda = -log(sigma), as for models that add noise
    to a picture that is not scaled down; the "diffusers" profile has alpha = 1 - sigma.

    Source: Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2.
    """

    def __init__(self, sigmas: np.ndarray, profile: str = "reference") -> None:
        """Take the noise levels and the profile.

        Raises:
            GenerationError: the levels do not fall, or the profile is unknown.
        """
        super().__init__(sigmas)
        check_profile(profile)
        self.alphas = 1 - self.sigmas if profile == "diffusers" else np.ones_like(self.sigmas)
        # At sigma 0 and at alpha 0 lambda is infinite, which leaves the terms it belongs in: 0.
        with np.errstate(divide="ignore"):
            self.log_snr = np.log(self.alphas) - np.log(self.sigmas)
        self._before: tuple[int, np.ndarray] | None = None

    def step(self, index: int, latent: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """Return the latent at noise level index + 1, and remember the picture foreseen."""
        picture = denoise(latent, velocity, self.sigmas[index])
        weight = self._weight_before(index)
        ahead = picture
        if weight and self._before is not None:
            ahead = np.float32(1 + weight) * picture - np.float32(weight) * self._before[1]
        self._before = (index, picture)
        keep = self.sigmas[index + 1] / self.sigmas[index]
        # alpha_next * exp(-h), without the infinities: exp(-h) is a ratio of sigmas and alphas.
        take = self.alphas[index + 1] - keep * self.alphas[index]
        return np.float32(keep) * latent + np.float32(take) * ahead

    def _weight_before(self, index: int) -> float:
        """Return 1/2r: 0 for the first step that is taken, for the last and after a gap."""
        if self._before is None or self._before[0] != index - 1 or index == self.steps - 1:
            return 0.0
        before, here, after = self.log_snr[index - 1 : index + 2]
        return float((after - here) / (here - before) / 2)


def make_sampler(name: str, sigmas: np.ndarray, profile: str = "reference") -> Sampler:
    """Return a fresh sampler, "euler" or "dpmpp_2m", for one generation.

    Args:
        name: of the sampler.
        sigmas: (steps + 1,) float32 noise levels, of `schedule.make_schedule`.
        profile: "reference" or "diffusers": which form of "dpmpp_2m".

    Raises:
        GenerationError: the name or the profile is unknown, or the levels do not fall to 0.
    """
    check_sampler(name)
    check_profile(profile)
    return Euler(sigmas) if name == EULER else DpmSolver2M(sigmas, profile)


def denoise(latent: np.ndarray, velocity: np.ndarray, sigma: float) -> np.ndarray:
    """Return the picture that the model foresees, x - sigma * v: what a preview shows."""
    return latent - np.float32(sigma) * velocity


def add_noise(picture: np.ndarray, noise: np.ndarray, sigma: float) -> np.ndarray:
    """Return sigma * noise + (1 - sigma) * picture, float32: a picture's latent at a noise level.

    Args:
        picture: (n, C, h, w) float32 latent as the transformer sees it, or one that broadcasts.
        noise: (n, C, h, w) float32.
        sigma: the noise level.
    """
    level = np.float32(sigma)
    return level * noise + (1 - level) * picture


def inpaint_blend(
    latent: np.ndarray, picture: np.ndarray, noise: np.ndarray, mask: np.ndarray, sigma: float
) -> np.ndarray:
    """Return the latent with everything outside the mask set back to the picture's.

    Args:
        latent: (n, C, h, w) float32 after a step.
        picture: (n, C, h, w) float32, the latent of the picture to keep, or one that broadcasts.
        noise: (n, C, h, w) float32 that the generation started from.
        mask: (h, w) or (n, 1, h, w) from 0, where the picture is kept, to 1, where it is made
            anew; truth values will do.
        sigma: the noise level that the latent is at now, sigmas[index + 1]: 0 after the last step.
    """
    anew = np.asarray(mask, np.float32)
    return (1 - anew) * add_noise(picture, noise, sigma) + anew * latent
