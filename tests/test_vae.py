"""The autoencoder against diffusers', and its stages exported."""

from __future__ import annotations

import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from vae_oracle import TINY, make_oracle, our_weights, randomize

from vkrt.export.check import check_stage
from vkrt.export.to_onnx import folded, stage_to_onnx
from vkrt.models.sd35.config import VaeConfig
from vkrt.models.sd35.vae_decoder import VaeDecoder
from vkrt.models.sd35.vae_encoder import VaeEncoder
from vkrt.models.sd35.vae_resample import Upsample, upsample_plainly
from vkrt.models.sd35.vae_stages import vae_decoder_stage, vae_encoder_stage
from vkrt.stage import Stage, bind, shape_of

PARITY = 1e-4


def difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a share of the largest wanted value."""
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


def noise(*shape: int) -> Tensor:
    """Return normal values, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def halves(config: VaeConfig) -> tuple[nn.Module, VaeEncoder, VaeDecoder]:
    """Return diffusers' autoencoder and our two halves with its weights."""
    torch.manual_seed(0)
    oracle = make_oracle(config)
    encoder, decoder = VaeEncoder(config).eval(), VaeDecoder(config).eval()
    encoder.load_state_dict(our_weights(oracle, "encoder"), strict=True)
    decoder.load_state_dict(our_weights(oracle, "decoder"), strict=True)
    return oracle, encoder, decoder


@torch.inference_mode()
def check_halves(config: VaeConfig, batch: int, rows: int, columns: int) -> None:
    """Hold both halves against diffusers at one size."""
    oracle, encoder, decoder = halves(config)
    latent = noise(batch, config.latent_channels, rows, columns)
    (pixels,) = decoder(latent)
    assert difference(pixels.flatten(4).flatten(2, 3), oracle.decode(latent).sample) < PARITY
    photo = noise(batch, 3, rows * config.stride, columns * config.stride).clamp(-1, 1)
    mean, std = encoder(photo.view(batch, 3, rows, config.stride, columns, config.stride))
    wanted = oracle.encode(photo).latent_dist
    assert difference(mean, wanted.mean) < PARITY
    assert difference(std, wanted.std) < PARITY


@pytest.mark.parametrize(("batch", "rows", "columns"), [(1, 1, 1), (1, 6, 4), (2, 3, 5)])
def test_both_halves_equal_diffusers(batch: int, rows: int, columns: int) -> None:
    check_halves(TINY, batch, rows, columns)


@pytest.mark.slow
def test_both_halves_equal_diffusers_at_full_width() -> None:
    check_halves(VaeConfig(), 1, 4, 6)


def test_other_shapes_of_the_model_equal_diffusers() -> None:
    config = VaeConfig(channels=8, multipliers=(1, 3, 2), blocks=1, latent_channels=3, groups=2)
    assert config.stride == 4
    check_halves(config, 1, 3, 4)


def test_wild_variances_are_limited() -> None:
    _, encoder, _ = halves(TINY)
    with torch.inference_mode():
        encoder.encoder.conv_out.weight.zero_()
        encoder.encoder.conv_out.bias[:4] = 0
        encoder.encoder.conv_out.bias[4:] = torch.tensor([-1e9, 0.0, 2.0, 1e9])
        _, std = encoder(noise(1, 3, 2, 8, 2, 8))
    wanted = torch.tensor([-15.0, 0.0, 1.0, 10.0]).exp().view(1, 4, 1, 1).expand(1, 4, 2, 2)
    torch.testing.assert_close(std, wanted)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 7), (6, 5)])
def test_upsampling_saves_products_and_nothing_else(rows: int, columns: int) -> None:
    torch.manual_seed(1)
    layer = Upsample(6).double()
    x = noise(2, 6, rows, columns).double()
    with torch.inference_mode():
        wanted = upsample_plainly(x, layer.conv.weight, layer.conv.bias)
        found = layer(x)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous()


def test_upsampling_keeps_the_memory_format_and_dtype() -> None:
    layer = Upsample(4).to(memory_format=torch.channels_last)
    x = noise(1, 4, 3, 5)
    with torch.inference_mode():
        found = layer(x.to(memory_format=torch.channels_last))
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, layer(x))
        assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_folding_changes_the_weights_only() -> None:
    _, _, decoder = halves(TINY)
    names = set(decoder.state_dict())
    twin = folded(decoder)
    latent = noise(1, 4, 2, 3)
    with torch.inference_mode():
        torch.testing.assert_close(twin(latent)[0], decoder(latent)[0], rtol=0, atol=0)
    assert set(decoder.state_dict()) == names
    assert "decoder.up.1.upsample.conv.weight" in names
    assert not any("upsample.conv" in name for name in twin.state_dict())


def test_decoding_leaves_its_input_alone() -> None:
    _, encoder, decoder = halves(TINY)
    latent, photo = noise(1, 4, 2, 3), noise(1, 3, 2, 8, 3, 8)
    before = latent.clone(), photo.clone()
    with torch.inference_mode():
        decoder(latent)
        encoder(photo)
    assert torch.equal(latent, before[0]) and torch.equal(photo, before[1])


def test_full_size_has_the_published_size() -> None:
    with torch.device("meta"):
        encoder, decoder = VaeEncoder(VaeConfig()), VaeDecoder(VaeConfig())
    weights = {**encoder.state_dict(), **decoder.state_dict()}
    assert sum(value.numel() for value in weights.values()) == 83_819_683
    assert len(weights) == 244
    assert weights["decoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1)
    assert weights["encoder.down.1.block.0.nin_shortcut.weight"].shape == (256, 128, 1, 1)
    assert weights["decoder.up.0.block.0.nin_shortcut.weight"].shape == (128, 256, 1, 1)


class Held(TorchDispatchMode):
    """Count the bytes of the tensors made under it, weights aside: now, and the most there were."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.weights = {value.untyped_storage()._cdata for value in module.parameters()}
        self.tensors: Counter[int] = Counter()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count a tensor; its storage may be that of another one."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.weights:
            return
        self.now += 0 if self.tensors[key] else size
        self.tensors[key] += 1
        self.peak = max(self.peak, self.now)
        weakref.finalize(tensor, self.drop, key, size)

    def drop(self, key: int, size: int) -> None:
        """Count a tensor no more."""
        self.tensors[key] -= 1
        self.now -= 0 if self.tensors[key] else size


@pytest.mark.parametrize(
    ("half", "shape", "floats"),
    # Block 0 of the finest level: 256 channels come in and are normalized, 128 come out.
    [(VaeDecoder, (1, 16, 32, 32), 256 + 256 + 128), (VaeEncoder, (1, 3, 32, 8, 32, 8), 3 * 128)],
)
def test_no_more_is_held_than_the_largest_block_needs(
    half: type[nn.Module], shape: tuple[int, ...], floats: int
) -> None:
    with torch.device("meta"), torch.inference_mode():
        module, given = half(VaeConfig()), torch.empty(shape)
        with Held(module) as held:
            module(given)
    assert 0.98 < held.peak / (256 * 256 * floats * 4) < 1.02


def new_stage(name: str) -> Stage:
    """Return a stage of a tiny autoencoder with random weights."""
    torch.manual_seed(2)
    encodes = name == "vae_encoder"
    module = VaeEncoder(TINY) if encodes else VaeDecoder(TINY)
    randomize(module)
    return vae_encoder_stage(module, TINY) if encodes else vae_decoder_stage(module, TINY)


@pytest.mark.parametrize("name", ["vae_encoder", "vae_decoder"])
def test_stage_is_exported_at_any_size(name: str, tmp_path: Path) -> None:
    stage, path = new_stage(name), tmp_path / f"{name}.onnx"
    assert stage.name == name
    stage_to_onnx(stage, path)
    figures = check_stage(stage, path)
    assert len(figures[0].sizes) == 3
    assert all(figure.passed for figure in figures), figures


@pytest.mark.parametrize("name", ["vae_encoder", "vae_decoder"])
def test_stage_gives_what_its_ports_say(name: str) -> None:
    stage, sizes = new_stage(name), {"batch": 2, "height": 3, "width": 5}
    with torch.inference_mode():
        outputs = stage.module(noise(*shape_of(stage.inputs[0], sizes)))
    assert len(outputs) == len(stage.outputs)
    assert bind(stage.outputs, (tuple(output.shape) for output in outputs)) == sizes
