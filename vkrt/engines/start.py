"""What a generation starts from: the noise of each seed, and a picture where one is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vkrt.engines.noise import NoiseStream, round_to
from vkrt.engines.request import Request
from vkrt.engines.sampling import add_noise
from vkrt.models.sd35.config import VaeConfig

__all__ = ["Posterior", "Start", "make_start", "to_model", "to_vae"]


@dataclass(frozen=True)
class Posterior:
    """Hold what the autoencoder makes of a picture: (1, C, h, w) float32 each, not yet scaled."""

    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True)
class Start:
    """Hold the noise of each picture, and what is to be changed.

    Attributes:
        noise: (N, C, h, w) float32.
        picture: (N, C, h, w) float32, the latents of the picture that is given; None without one.
    """

    noise: np.ndarray
    picture: np.ndarray | None = None

    def latents(self, sigma: float) -> np.ndarray:
        """Return (N, C, h, w) float32 at a noise level: pure noise where there is no picture."""
        return self.noise if self.picture is None else add_noise(self.picture, self.noise, sigma)


def to_model(latent: np.ndarray, config: VaeConfig) -> np.ndarray:
    """Return (z - shift) * scaling: a latent of the autoencoder as the transformer has it."""
    return (latent - np.float32(config.shift)) * np.float32(config.scaling)


def to_vae(latent: np.ndarray, config: VaeConfig) -> np.ndarray:
    """Return z / scaling + shift: a latent of the transformer as the autoencoder has it."""
    return latent / np.float32(config.scaling) + np.float32(config.shift)


def make_start(
    request: Request,
    config: VaeConfig,
    dtype: str = "fp32",
    posterior: Posterior | None = None,
    noise: np.ndarray | None = None,
) -> Start:
    """Draw what a generation starts from; each picture has a seed of its own.

    A picture's latent is drawn from its posterior by the same seed, so that every run gives the
    same: behind the noise, or before it in the "diffusers" profile.

    Args:
        request: says the size, the seeds and the profile.
        config: of the autoencoder.
        dtype: "fp32", "bf16" or "fp16", what the transformer computes in.
        posterior: of the picture that is given, None without one.
        noise: (N, C, h, w) float32 to take in place of that of the seeds.
    """
    shape = config.latent_channels, request.height // config.stride, request.width // config.stride
    early = request.profile == "diffusers"
    noises, pictures = [], []
    for index in range(len(request.prompts)):
        stream = NoiseStream(request.seed + index)
        order = ("picture", "noise") if early else ("noise", "picture")
        drawn = {}
        for what in order:
            if what == "noise" or posterior is not None:
                drawn[what] = draw(stream, shape, request.profile, dtype)
        noises.append(drawn["noise"])
        if posterior is not None:
            pictures.append(posterior.mean[0] + posterior.std[0] * drawn["picture"])
    picture = to_model(np.stack(pictures), config) if pictures else None
    return Start(np.stack(noises) if noise is None else noise, picture)


def draw(stream: NoiseStream, shape: tuple[int, ...], profile: str, dtype: str) -> np.ndarray:
    """Return the next noise of a stream, in the way of a profile."""
    if profile == "diffusers":
        return stream.normal(shape, dtype)
    return round_to(stream.normal(shape), dtype)
