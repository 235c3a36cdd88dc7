"""The whole engine against diffusers' pipelines, on a folder that these saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

diffusers = pytest.importorskip("diffusers")

from sd35_pipeline import open_folder, tiny_controlled, tiny_pipeline  # noqa: E402

from vkrt.engines.inputs import Inputs, read_inputs  # noqa: E402
from vkrt.engines.request import read_request  # noqa: E402
from vkrt.engines.sd35 import Generator  # noqa: E402

WIDTH, HEIGHT, STEPS, SEED = 64, 48, 6, 11
PROMPT, NEGATIVE = "a cat and the light house!", "a dog"
SIZE = {"width": WIDTH, "height": HEIGHT}
NUMBERS = {"steps": STEPS, "guidance": 4.5, "profile": "diffusers", "sampler": "euler"}
# Of diffusers' call, which has these numbers under other names.
CALL = {
    "num_inference_steps": STEPS,
    "guidance_scale": 4.5,
    "negative_prompt": NEGATIVE,
    "output_type": "latent",
}
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sd35")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return tiny_pipeline(folder)


@pytest.fixture(scope="module")
def engine(folder: Path, pipeline: Any) -> Iterator[Generator]:
    with open_folder(folder) as generator:
        yield generator


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, 16, HEIGHT // 8, WIDTH // 8, generator=generator)


def drawing(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def ours(engine: Generator, inputs: Inputs | None = None, **changes: Any) -> np.ndarray:
    """Return the engine's final latents."""
    controlled = inputs is not None and inputs.control is not None
    numbers = {**NUMBERS, "seed": SEED, "controlled": controlled, **changes}
    request = read_request(engine.config, PROMPT, NEGATIVE, **SIZE, **numbers)
    return engine.sample(request, inputs or Inputs((WIDTH, HEIGHT)))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def close(found: np.ndarray, wanted: torch.Tensor) -> None:
    """Check final latents, and that they are worth checking."""
    assert 0.1 < float(wanted.abs().max()) < 100
    assert found.shape == tuple(wanted.shape)
    np.testing.assert_allclose(found, wanted.numpy(), atol=TOLERANCE, rtol=0)


def test_given_latents(pipeline: Any, engine: Generator, noise: torch.Tensor) -> None:
    wanted = pipeline(PROMPT, **SIZE, **CALL, latents=noise).images
    close(ours(engine, Inputs((WIDTH, HEIGHT), noise=noise.numpy())), wanted)


def test_a_seed(pipeline: Any, engine: Generator) -> None:
    wanted = pipeline(PROMPT, **SIZE, **CALL, generator=seeded()).images
    close(ours(engine), wanted)


def test_pictures_of_a_batch(pipeline: Any, engine: Generator) -> None:
    seeds = [torch.Generator().manual_seed(SEED + index) for index in range(2)]
    wanted = pipeline(PROMPT, **SIZE, **CALL, generator=seeds, num_images_per_prompt=2).images
    found = ours(engine, count=2)
    close(found, wanted)
    alone = ours(engine, seed=SEED + 1)
    np.testing.assert_allclose(found[1:], alone, atol=1e-5)


def test_without_guidance(pipeline: Any, engine: Generator) -> None:
    call = {**CALL, "guidance_scale": 1.0}
    wanted = pipeline(PROMPT, **SIZE, **call, generator=seeded()).images
    close(ours(engine, guidance=1.0), wanted)


def test_skip_layer_guidance(pipeline: Any, engine: Generator, noise: torch.Tensor) -> None:
    skips = {"skip_guidance_layers": [1, 2], "skip_layer_guidance_scale": 2.8}
    wanted = pipeline(PROMPT, **SIZE, **CALL, **skips, latents=noise).images
    inputs = Inputs((WIDTH, HEIGHT), noise=noise.numpy())
    found = ours(engine, inputs, skip_layers=[1, 2], skip_scale=2.8)
    close(found, wanted)
    assert np.abs(found - ours(engine, inputs)).max() > 10 * TOLERANCE


def test_a_longer_context(pipeline: Any, engine: Generator) -> None:
    wanted = pipeline(PROMPT, **SIZE, **CALL, generator=seeded(), max_sequence_length=300).images
    close(ours(engine, t5_length=300), wanted)


def test_dpmpp_2m(pipeline: Any, engine: Generator) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    parts = {**pipeline.components, "scheduler": scheduler}
    other = diffusers.StableDiffusion3Pipeline(**parts)
    other.set_progress_bar_config(disable=True)
    wanted = other(PROMPT, **SIZE, **CALL, generator=seeded()).images
    close(ours(engine, sampler="dpmpp_2m"), wanted)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_picture_changed(pipeline: Any, engine: Generator, strength: float) -> None:
    other = diffusers.StableDiffusion3Img2ImgPipeline(**pipeline.components)
    other.set_progress_bar_config(disable=True)
    call = {**CALL, **SIZE, "generator": [seeded()], "strength": strength}
    wanted = other(PROMPT, image=drawing(1), **call).images
    inputs = read_inputs(engine.config, WIDTH, HEIGHT, image=drawing(1))
    close(ours(engine, inputs, strength=strength), wanted)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_picture_changed_in_part(pipeline: Any, engine: Generator, strength: float) -> None:
    other = diffusers.StableDiffusion3InpaintPipeline(**pipeline.components)
    other.set_progress_bar_config(disable=True)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[8:40, 24:] = 255
    call = {**CALL, **SIZE, "generator": [seeded()], "strength": strength}
    wanted = other(PROMPT, image=drawing(1), mask_image=Image.fromarray(mask), **call).images
    inputs = read_inputs(engine.config, WIDTH, HEIGHT, image=drawing(1), mask=mask)
    close(ours(engine, inputs, strength=strength), wanted)


def test_a_controlnet(
    pipeline: Any, folder: Path, noise: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    led = tiny_controlled(pipeline, folder)
    # diffusers draws the condition by chance; its mean is what we take.
    drawn = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
    monkeypatch.setattr(drawn, "sample", lambda self, generator=None: self.mean)
    wanted = led(
        PROMPT,
        control_image=drawing(2),
        controlnet_conditioning_scale=0.7,
        **SIZE,
        **CALL,
        latents=noise,
    ).images
    with open_folder(folder, controlnet=True) as engine:
        read = read_inputs(engine.config, WIDTH, HEIGHT, control=drawing(2))
        inputs = Inputs(read.size, control=read.control, noise=noise.numpy())
        found = ours(engine, inputs, control_scale=0.7)
        close(found, wanted)
        plain = ours(engine, Inputs(read.size, noise=noise.numpy()))
    assert np.abs(found - plain).max() > 10 * TOLERANCE


def write_lora(path: Path, pipeline: Any) -> None:
    """Write a LoRA on attentions, feed-forwards and modulations, and on a text encoder."""
    generator = torch.Generator().manual_seed(8)
    paths = {
        "transformer": (
            "transformer_blocks.0.attn.to_q",
            "transformer_blocks.1.attn.add_v_proj",
            "transformer_blocks.1.attn2.to_k",
            "transformer_blocks.2.ff.net.0.proj",
            "transformer_blocks.2.norm1.linear",
            "transformer_blocks.3.attn.to_out.0",
        ),
        "text_encoder": ("text_model.encoder.layers.1.self_attn.q_proj",),
    }
    tensors = {}
    for model, names in paths.items():
        for name in names:
            rows, columns = getattr(pipeline, model).get_submodule(name).weight.shape
            stem = f"{model}.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.1
            tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
    save_file(tensors, path)


def test_a_lora(tmp_path: Path, pipeline: Any, engine: Generator, noise: torch.Tensor) -> None:
    pytest.importorskip("peft")
    inputs = Inputs((WIDTH, HEIGHT), noise=noise.numpy())
    before = ours(engine, inputs)
    path = tmp_path / "fox.safetensors"
    write_lora(path, pipeline)
    pipeline.load_lora_weights(str(path), adapter_name="fox")
    try:
        pipeline.set_adapters("fox", 0.8)
        wanted = pipeline(PROMPT, **SIZE, **CALL, latents=noise).images
    finally:
        pipeline.unload_lora_weights()
    engine.load_lora(path, 0.8)
    found = ours(engine, inputs)
    close(found, wanted)
    assert np.abs(found - before).max() > 10 * TOLERANCE
    engine.unload_loras()
    np.testing.assert_array_equal(ours(engine, inputs), before)


def test_pixels(pipeline: Any, engine: Generator) -> None:
    call = {**CALL, "output_type": "np", "generator": seeded()}
    wanted = pipeline(PROMPT, **SIZE, **call).images[0]
    (picture,) = engine.generate(PROMPT, NEGATIVE, **SIZE, **NUMBERS, seed=SEED)
    found = np.asarray(picture, np.float32) / 255
    assert np.abs(found - wanted).max() < 2 / 255
