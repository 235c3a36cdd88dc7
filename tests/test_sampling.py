"""Samplers: whole trajectories against diffusers and the published formula, and known solutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vkrt.engines.sampling import add_noise, denoise, inpaint_blend, make_sampler
from vkrt.engines.schedule import PROFILES, SAMPLERS, make_schedule
from vkrt.errors import GenerationError

SHAPE = (3, 16, 4, 6)
STEP_COUNTS = (1, 2, 3, 4, 14, 15, 28, 50)


def normal(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def curved(latent: np.ndarray, timestep: float) -> np.ndarray:
    """Return a velocity that bends with the latent and with time."""
    level = timestep / 1000
    return (0.8 * np.sin(1.3 * latent + 4 * level) + 0.3 * latent * np.cos(5 * level)).astype(
        latent.dtype
    )


def trajectory(name: str, steps: int, profile: str, start: int = 0) -> list[np.ndarray]:
    """Return the latents after each step, from noise."""
    schedule = make_schedule(steps, profile=profile, sampler=name).after(start)
    sampler = make_sampler(name, schedule.sigmas, profile)
    latents = [normal()]
    for index, timestep in enumerate(schedule.timesteps):
        latents.append(sampler.step(index, latents[-1], curved(latents[-1], float(timestep))))
    return latents


def oracle_trajectory(scheduler: Any, start: int = 0) -> list[np.ndarray]:
    """Return the latents that diffusers gives after each step, from the same noise."""
    scheduler.set_begin_index(start)
    latents = [normal()]
    for timestep in scheduler.timesteps[start:]:
        velocity = torch.from_numpy(curved(latents[-1], float(timestep)))
        stepped = scheduler.step(velocity, timestep, torch.from_numpy(latents[-1]))
        latents.append(stepped.prev_sample.numpy())
    return latents


def diffusers_scheduler(name: str, steps: int) -> Any:
    """Return diffusers' scheduler for a sampler, its levels laid out."""
    import diffusers

    if name == "euler":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    else:
        scheduler = diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", STEP_COUNTS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_trajectory_is_that_of_diffusers(name: str, steps: int) -> None:
    ours = trajectory(name, steps, "diffusers")
    theirs = oracle_trajectory(diffusers_scheduler(name, steps))
    assert ours[-1].dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_trajectory_from_the_middle_is_that_of_diffusers(name: str) -> None:
    ours = trajectory(name, 20, "diffusers", start=8)
    theirs = oracle_trajectory(diffusers_scheduler(name, 20), start=8)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def published_2m(
    model: Callable[[np.ndarray, float], np.ndarray], noise: np.ndarray, levels: np.ndarray
) -> list[np.ndarray]:
    """Follow algorithm 2 of Lu et al. 2022 (2211.01095) in float64, with alpha = 1.

    Its times are the levels above 0; the step to 0 is the limit of its first-order step.
    """
    x, lambdas = noise.astype(np.float64), [-np.log(level) for level in levels[:-1]]
    buffer = [model(x, levels[0])]
    latents = [x]
    for i in range(1, len(levels) - 1):
        h = lambdas[i] - lambdas[i - 1]
        d = buffer[-1]
        if i > 1:
            r = (lambdas[i - 1] - lambdas[i - 2]) / h
            d = (1 + 1 / (2 * r)) * buffer[-1] - 1 / (2 * r) * buffer[-2]
        x = levels[i] / levels[i - 1] * x - (np.exp(-h) - 1) * d
        buffer.append(model(x, levels[i]))
        latents.append(x)
    return [*latents, buffer[-1]]


@pytest.mark.parametrize("steps", STEP_COUNTS)
def test_reference_2m_follows_the_published_algorithm(steps: int) -> None:
    levels = make_schedule(steps).sigmas.astype(np.float64)
    expected = published_2m(lambda x, s: x - s * curved(x, 1000 * s), normal(), levels)
    np.testing.assert_allclose(
        trajectory("dpmpp_2m", steps, "reference"), expected, rtol=0, atol=1e-5
    )


def test_both_forms_of_2m_differ() -> None:
    levels = make_schedule(6).sigmas
    ends = []
    for profile in PROFILES:
        sampler, latent = make_sampler("dpmpp_2m", levels, profile), normal()
        for index in range(6):
            latent = sampler.step(index, latent, curved(latent, 1000 * levels[index]))
        ends.append(latent)
    assert np.isfinite(ends).all()
    assert np.abs(ends[0] - ends[1]).max() > 1e-3


def gaussian_error(name: str, steps: int, profile: str) -> float:
    """Return how far a sampler ends from the exact end, for pictures that are normal numbers.

    With deviation s the latents at level sigma have variance (1 - sigma)^2 s^2 + sigma^2, and
    following the velocity scales each latent with their deviation.
    """
    s, levels = 0.4, np.append(np.linspace(1, 0.1, steps), 0).astype(np.float32)
    sampler, latent = make_sampler(name, levels, profile), normal()
    for index, level in enumerate(levels[:-2].astype(np.float64)):
        variance = (1 - level) ** 2 * s**2 + level**2
        velocity = latent * np.float32((level - (1 - level) * s**2) / variance)
        latent = sampler.step(index, latent, velocity)
    exact = normal() * np.sqrt(0.9**2 * s**2 + 0.1**2)
    return float(np.abs(latent - exact).max())


@pytest.mark.parametrize("profile", PROFILES)
def test_2m_is_of_second_order(profile: str) -> None:
    coarse, fine = (gaussian_error("dpmpp_2m", steps, profile) for steps in (21, 41))
    assert fine < coarse / 3
    assert fine < gaussian_error("euler", 41, profile) / 4


def test_euler_is_of_first_order() -> None:
    coarse, fine = (gaussian_error("euler", steps, "reference") for steps in (21, 41))
    assert coarse / 2.5 < fine < coarse / 1.6


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("profile", PROFILES)
def test_image_of_a_batch_equals_its_solo_run(name: str, profile: str) -> None:
    schedule = make_schedule(5, profile=profile, sampler=name)
    together, alone = (make_sampler(name, schedule.sigmas, profile) for _ in range(2))
    many, one = normal(), normal()[1:2]
    for index, timestep in enumerate(schedule.timesteps):
        many = together.step(index, many, curved(many, float(timestep)))
        one = alone.step(index, one, curved(one, float(timestep)))
    np.testing.assert_array_equal(many[1:2], one)


def test_inputs_stay_as_they_are() -> None:
    sampler = make_sampler("dpmpp_2m", make_schedule(3).sigmas)
    latent, velocity = normal(1), normal(2)
    for index in range(3):
        sampler.step(index, latent, velocity)
    np.testing.assert_array_equal(latent, normal(1))
    np.testing.assert_array_equal(velocity, normal(2))


def test_sampler_starts_afresh_at_its_first_step() -> None:
    sampler = make_sampler("dpmpp_2m", make_schedule(4).sigmas)
    first = [sampler.step(i, normal(i), normal(i + 9)) for i in range(4)]
    again = [sampler.step(i, normal(i), normal(i + 9)) for i in range(4)]
    np.testing.assert_array_equal(first, again)


def test_last_step_ends_at_the_picture_that_is_foreseen() -> None:
    for name in SAMPLERS:
        sampler = make_sampler(name, np.array([0.5, 0.2, 0], np.float32))
        sampler.step(0, normal(1), normal(2))
        end = sampler.step(1, normal(3), normal(4))
        np.testing.assert_allclose(end, denoise(normal(3), normal(4), 0.2), atol=1e-6)


@pytest.mark.parametrize("start", [0, 5, 9])
def test_picture_enters_as_in_diffusers(start: int) -> None:
    scheduler = diffusers_scheduler("euler", 10)
    scheduler.set_begin_index(start)
    picture, noise = normal(1), normal(2)
    theirs = scheduler.scale_noise(
        torch.from_numpy(picture), scheduler.timesteps[start : start + 1], torch.from_numpy(noise)
    )
    level = make_schedule(10).after(start).sigmas[0]
    np.testing.assert_allclose(add_noise(picture, noise, level), theirs.numpy(), atol=1e-6)


def inpaint_like_diffusers(start: int, mask: np.ndarray) -> list[np.ndarray]:
    """Return the latents after each step of a masked generation on diffusers' own scheduler."""
    scheduler = diffusers_scheduler("euler", 8)
    scheduler.set_begin_index(start)
    picture, noise = (torch.from_numpy(normal(seed)) for seed in (1, 2))
    timesteps, latents = scheduler.timesteps[start:], []
    latent = scheduler.scale_noise(picture, timesteps[:1], noise)
    for i, timestep in enumerate(timesteps):
        velocity = torch.from_numpy(curved(latent.numpy(), float(timestep)))
        latent = scheduler.step(velocity, timestep, latent).prev_sample
        kept = picture
        if i < len(timesteps) - 1:
            kept = scheduler.scale_noise(picture, timesteps[i + 1 : i + 2], noise)
        latent = (1 - torch.from_numpy(mask)) * kept + torch.from_numpy(mask) * latent
        latents.append(latent.numpy())
    return latents


@pytest.mark.parametrize("start", [0, 3])
def test_inpainting_is_that_of_diffusers(start: int) -> None:
    mask = (np.random.default_rng(3).random((1, 1, *SHAPE[2:])) < 0.5).astype(np.float32)
    schedule = make_schedule(8, profile="diffusers").after(start)
    sampler = make_sampler("euler", schedule.sigmas, "diffusers")
    picture, noise = normal(1), normal(2)
    latent = add_noise(picture, noise, schedule.sigmas[0])
    latents = []
    for index, timestep in enumerate(schedule.timesteps):
        latent = sampler.step(index, latent, curved(latent, float(timestep)))
        latent = inpaint_blend(latent, picture, noise, mask, schedule.sigmas[index + 1])
        latents.append(latent)
    np.testing.assert_allclose(latents, inpaint_like_diffusers(start, mask), rtol=0, atol=1e-5)
    kept = np.broadcast_to(mask == 0, SHAPE)
    np.testing.assert_array_equal(latent[kept], picture[kept])


def test_mask_of_truth_values_blends_alike() -> None:
    mask = np.random.default_rng(0).random(SHAPE[2:]) < 0.5
    blended = inpaint_blend(normal(1), normal(2)[:1], normal(3), mask, 0.5)
    assert blended.dtype == np.float32
    np.testing.assert_array_equal(
        blended, inpaint_blend(normal(1), normal(2)[:1], normal(3), mask.astype(np.float32), 0.5)
    )


@pytest.mark.parametrize(
    "levels", [[1, 0.5], [0.5, 0.5, 0], [0.2, 0.5, 0], [0], [], [2, 1, 0], [1, float("nan"), 0]]
)
def test_levels_that_do_not_fall_to_zero_are_refused(levels: list[float]) -> None:
    with pytest.raises(GenerationError, match="noise levels must fall"):
        make_sampler("euler", np.array(levels, np.float32))


def test_unknown_sampler_and_profile_are_refused() -> None:
    with pytest.raises(GenerationError, match='"euler" or "dpmpp_2m"'):
        make_sampler("ddim", make_schedule(2).sigmas)
    with pytest.raises(GenerationError, match='"reference" or "diffusers"'):
        make_sampler("euler", make_schedule(2).sigmas, "other")
