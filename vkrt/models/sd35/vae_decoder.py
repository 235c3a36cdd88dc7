"""The half of the autoencoder that turns a latent into a picture."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor, nn

from vkrt.models.sd35.config import VaeConfig
from vkrt.models.sd35.vae_blocks import Middle, ResidualBlock, activate, new_norm
from vkrt.models.sd35.vae_resample import Upsample

__all__ = ["VaeDecoder"]


class DecoderLevel(nn.Module):
    """Hold the residual blocks of one level, and what doubles the sides unless it is the last."""

    def __init__(self, channels: int, channels_out: int, config: VaeConfig, last: bool) -> None:
        super().__init__()
        widths = (channels, *(channels_out for _ in range(config.blocks + 1)))
        self.block = nn.ModuleList(ResidualBlock(*pair, config) for pair in pairwise(widths))
        self.upsample = None if last else Upsample(channels_out)

    def layers(self) -> Iterator[nn.Module]:
        """Give what to run, in order."""
        yield from self.block
        if self.upsample is not None:
            yield self.upsample


class Decoder(nn.Module):
    """Give the pixels of a latent."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.channels * factor for factor in config.multipliers]
        pairs = list(pairwise([*widths, widths[-1]]))
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config)
        # Numbered as the encoder's levels are, the finest first; run from the other end.
        self.up = nn.ModuleList(
            DecoderLevel(coarser, finer, config, last=index == 0)
            for index, (finer, coarser) in enumerate(pairs)
        )
        self.norm_out = new_norm(widths[0], config)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        # latent: (B, C, h, w) -> (B, 3, H, W)
        x = self.mid(self.conv_in(latent))
        # Layer by layer, so that what a level begins with is dropped behind its first one.
        for level in reversed(self.up):
            assert isinstance(level, DecoderLevel)
            for layer in level.layers():
                x = layer(x)
        x = activate(self.norm_out, x)
        return self.conv_out(x)


class VaeDecoder(nn.Module):
    """Decode latents."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.stride = config.stride
        self.decoder = Decoder(config)

    def forward(self, latent: Tensor) -> tuple[Tensor]:
        """Return the pictures of latents.

        Args:
            latent: (B, C, h, w), no longer scaled and shifted as the transformer wants it.

        Returns:
            (B, 3, h, stride, w, stride): a view of (B, 3, H, W); [-1, 1] where nothing went out of
            range, not clamped.
        """
        stride = self.stride
        rows, columns = latent.shape[-2:]
        pixels = self.decoder(latent)
        return (pixels.unflatten(3, (columns, stride)).unflatten(2, (rows, stride)),)
