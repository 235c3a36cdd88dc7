"""The half of the autoencoder that turns a picture into the distribution of its latent."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor, nn

from vkrt.models.sd35.config import VaeConfig
from vkrt.models.sd35.vae_blocks import Middle, ResidualBlock, activate, new_norm
from vkrt.models.sd35.vae_resample import Downsample

__all__ = ["VaeEncoder"]

# Of the logarithm of the variance, so that no weights give an infinite spread.
LIMITS = (-30.0, 20.0)


class EncoderLevel(nn.Module):
    """Hold the residual blocks of one level, and what halves the sides unless it is the last."""

    def __init__(self, channels: int, channels_out: int, config: VaeConfig, last: bool) -> None:
        super().__init__()
        widths = (channels, *(channels_out for _ in range(config.blocks)))
        self.block = nn.ModuleList(ResidualBlock(*pair, config) for pair in pairwise(widths))
        self.downsample = None if last else Downsample(channels_out)

    def layers(self) -> Iterator[nn.Module]:
        """Give what to run, in order."""
        yield from self.block
        if self.downsample is not None:
            yield self.downsample


class Encoder(nn.Module):
    """Give the means and the logarithms of the variances of a latent, one after the other."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.channels * factor for factor in config.multipliers]
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        pairs = list(pairwise([widths[0], *widths]))
        self.down = nn.ModuleList(
            EncoderLevel(finer, coarser, config, last=index == len(pairs) - 1)
            for index, (finer, coarser) in enumerate(pairs)
        )
        self.mid = Middle(widths[-1], config)
        self.norm_out = new_norm(widths[-1], config)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        # pixels: (B, 3, H, W) -> (B, 2C, h, w)
        x = self.conv_in(pixels)
        # Layer by layer, so that what a level begins with is dropped behind its first one.
        for level in self.down:
            assert isinstance(level, EncoderLevel)
            for layer in level.layers():
                x = layer(x)
        x = self.mid(x)
        return self.conv_out(activate(self.norm_out, x))


class VaeEncoder(nn.Module):
    """Encode pictures."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distribution of each picture's latent; mean + std * noise draws from it.

        Args:
            pixels: (B, 3, h, stride, w, stride) in [-1, 1]: a view of (B, 3, H, W).

        Returns:
            mean: (B, C, h, w), not scaled or shifted as the transformer wants it.
            std: (B, C, h, w)
        """
        mean, log_variance = self.encoder(pixels.flatten(4).flatten(2, 3)).chunk(2, dim=1)
        return mean, log_variance.clamp(*LIMITS).mul(0.5).exp()
