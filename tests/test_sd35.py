"""The engine of Stable Diffusion 3.5 without a model: which stages run on what, and when."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sd35_tiny import CONTROL, TINY, RowBackend, make_generator

from vkrt.engines.budget import Budget
from vkrt.engines.noise import noise
from vkrt.engines.patches import to_patches
from vkrt.engines.request import Request
from vkrt.engines.sd35 import Generator
from vkrt.engines.watch import StepInfo
from vkrt.errors import (
    BackendError,
    CheckpointError,
    GenerationCancelled,
    GenerationError,
    ImageError,
    PromptError,
    VkrtError,
)
from vkrt.memory.plan import Plan
from vkrt.models.sd35.layout import gate_columns
from vkrt.stage import Program, Stage

SMALL = {"width": 64, "height": 32, "seed": 7}


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


def drawing(width: int = 64, height: int = 32, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def test_the_stages_of_one_picture() -> None:
    generator, backend = make_generator()
    (picture,) = generator.generate("a fox", **SMALL)
    assert picture.size == (64, 32)
    assert picture.mode == "RGB"
    assert backend.calls == {
        **{"clip_l": 1, "clip_g": 1, "t5": 1, "conditioning": 1, "positions": 1},
        **{"mmdit": TINY.steps, "vae_decoder": 1},
    }


def test_every_step_is_known_before_the_first() -> None:
    generator, backend = make_generator()
    generator.generate("a fox", "a dog", **SMALL, steps=4)
    timesteps, pooled, context = backend.received["conditioning"]
    assert timesteps.shape == (4,)
    np.testing.assert_allclose(timesteps, [1000, 857.69, 602.18, 8.93], rtol=1e-3)
    assert pooled.shape == (2, 12)
    assert context.shape == (2, 154, 24)
    assert [len(array) for array in backend.received["positions"]] == [2, 4]
    np.testing.assert_array_equal(backend.received["positions"][0], [5, 6])
    np.testing.assert_array_equal(backend.received["positions"][1], [4, 5, 6, 7])


def test_the_rows_of_a_step() -> None:
    generator, backend = make_generator()
    first = {}
    backend.watch = lambda name: first.setdefault(name, dict(backend.received))
    generator.generate("a fox", "a dog", **SMALL, steps=1)
    patches, positions, context, table = backend.received["mmdit"]
    start = to_patches(noise((16, 4, 8), 7)[None])[0]
    np.testing.assert_allclose(patches, np.stack((start, start)), rtol=1e-6)
    assert positions.shape == (8, 16)
    assert not np.array_equal(context[0], context[1])
    assert not np.array_equal(table[0], table[1])


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 1), (0.0, 1), (1.5, 2)])
def test_without_guidance_there_is_one_row(guidance: float, rows: int) -> None:
    generator, backend = make_generator()
    generator.generate("a fox", "a dog", **SMALL, guidance=guidance)
    assert len(backend.received["mmdit"][0]) == rows
    # A text that no row reads is not encoded.
    assert len(backend.received["clip_l"][0]) == rows


def test_skipped_blocks_have_closed_gates() -> None:
    generator, backend = make_generator()
    tables = []

    def keep(name: str) -> None:
        if name == "mmdit" and "mmdit" in backend.received:
            tables.append(backend.received["mmdit"][3])

    backend.watch = keep
    generator.generate("a fox", **SMALL, steps=10, skip_layers=[1, 3], skip_scale=2.0)
    tables.append(backend.received["mmdit"][3])
    assert [len(table) for table in tables] == [2, 3, *[2] * 8]
    cond, skip = tables[1][1:]
    closed = np.zeros(len(skip), bool)
    for block in (1, 3):
        for gate in gate_columns(TINY.mmdit, block):
            closed[gate] = True
    assert not skip[closed].any()
    np.testing.assert_array_equal(skip[~closed], cond[~closed])
    assert cond[closed].all()


def test_a_picture_of_a_batch_is_what_it_is_alone() -> None:
    generator, _ = make_generator()
    both = generator.generate(["a fox", "a dog"], ["", "a cat"], **SMALL, count=2)
    assert len(both) == 4
    for index, picture in enumerate(both):
        made = picture.info["parameters"]
        assert made["seed"] == 7 + index
        assert made["prompt"] == ("a fox", "a fox", "a dog", "a dog")[index]
        kept = {name: value for name, value in made.items() if name != "model"}
        (alone,) = generator.generate(**kept)
        np.testing.assert_array_equal(pixels(picture), pixels(alone))
        assert alone.info["parameters"] == made
    assert len({pixels(picture).tobytes() for picture in both}) == 4


class Unchecked(Budget):
    """Let everything pass."""

    def check(self, plan: Plan, request: Request) -> None: ...


def test_rows_that_do_not_fit_run_one_by_one() -> None:
    wide, backend = make_generator()
    (whole,) = wide.generate("a fox", **SMALL)
    sampling = wide.plan(64, 32).phases["sampling"]
    limit = sampling.activations - 1
    # The other phases would not fit, and they are not what is looked at.
    narrow, slow = make_generator(budget=Unchecked(limit=limit))
    assert narrow.plan(64, 32).rows == 1
    (split,) = narrow.generate("a fox", **SMALL)
    assert (backend.calls["mmdit"], slow.calls["mmdit"]) == (TINY.steps, 2 * TINY.steps)
    np.testing.assert_array_equal(pixels(whole), pixels(split))


def test_what_runs_once_is_evicted_and_the_rest_stays() -> None:
    generator, backend = make_generator()
    loaded: dict[str, set[str]] = {}
    backend.watch = lambda name: loaded.setdefault(name, set(generator._residency.loaded))
    generator.generate("a fox", **SMALL)
    assert backend.prepared == [
        *("clip_l", "clip_g", "t5", "conditioning", "positions", "mmdit", "vae_decoder")
    ]
    assert loaded["t5"] == {"clip_l", "clip_g", "t5"}
    assert loaded["conditioning"] == {"clip_l", "clip_g", "conditioning"}
    assert loaded["mmdit"] == {"clip_l", "clip_g", "mmdit"}
    assert set(generator._residency.loaded) == {"clip_l", "clip_g", "mmdit", "vae_decoder"}
    backend.prepared.clear()
    generator.generate("a fox", **SMALL)
    assert backend.prepared == ["conditioning", "positions"]


def test_a_roomy_limit_loads_once() -> None:
    generator, backend = make_generator(budget=Budget(limit=1 << 40))
    generator.generate("a fox", **SMALL)
    generator.generate("a dog", **SMALL)
    assert len(backend.prepared) == len(set(backend.prepared)) == 7


def test_a_tight_limit_holds_one_stage_at_a_time() -> None:
    names = ("clip_l", "clip_g", "t5", "conditioning", "positions", "mmdit", "vae_decoder")
    room = max(p.activations for p in make_generator()[0].plan(64, 32).phases.values())
    size = 1000 * room
    budget = Budget(dict.fromkeys(names, size), limit=2 * size + room)
    generator, backend = make_generator(budget=budget)
    held: list[int] = []
    backend.watch = lambda name: held.append(len(generator._residency.loaded))
    generator.generate("a fox", **SMALL)
    assert max(held) <= 2


def test_weights_beyond_the_limit_are_streamed_or_refused() -> None:
    weights = {"mmdit": 10**9, "t5": 10**6}
    budget = Budget(weights, limit=10**8, streams=True)
    generator, backend = make_generator(budget=budget)
    generator.generate("a fox", **SMALL)
    assert 0 < backend.budgets["mmdit"] < 10**8
    assert backend.budgets["t5"] is None
    generator, backend = make_generator(budget=Budget(weights, limit=10**8))
    with pytest.raises(GenerationError, match="memory limit is 95 MiB"):
        generator.generate("a fox", **SMALL)
    assert not backend.prepared


def test_pictures_larger_than_the_limit_are_refused() -> None:
    generator, _ = make_generator(budget=Budget(limit=10**5, streams=True))
    with pytest.raises(GenerationError, match="take a smaller size"):
        generator.generate("a fox", **SMALL)


def test_a_picture_is_changed_from_where_its_strength_says() -> None:
    generator, backend = make_generator()
    generator.generate("a fox", **SMALL, image=drawing(), strength=0.5, steps=4)
    assert backend.calls["vae_encoder"] == 1
    assert backend.calls["mmdit"] == 2
    assert len(backend.received["conditioning"][0]) == 2
    (given,) = backend.received["vae_encoder"]
    assert given.shape == (1, 3, 4, 8, 8, 8)
    flat = given.reshape(3, 32, 64).transpose(1, 2, 0)
    np.testing.assert_allclose(flat, pixels(drawing()) / 127.5 - 1, atol=1e-6)


def test_a_picture_gives_its_size() -> None:
    generator, _ = make_generator()
    (picture,) = generator.generate("a fox", image=drawing(70, 40), seed=1)
    assert picture.size == (64, 32)
    (picture,) = generator.generate("a fox", image=drawing(70, 40), width=48, seed=1)
    assert picture.size == (48, 32)


def test_the_same_seed_changes_a_picture_alike() -> None:
    generator, _ = make_generator()
    for profile in ("reference", "diffusers"):
        first, again, other = (
            generator.generate(
                "a fox", **{**SMALL, "seed": seed}, image=drawing(), profile=profile
            )[0]
            for seed in (7, 7, 8)
        )
        np.testing.assert_array_equal(pixels(first), pixels(again))
        assert not np.array_equal(pixels(first), pixels(other))


def test_only_what_the_mask_covers_changes() -> None:
    generator, backend = make_generator()
    mask = np.zeros((32, 64), bool)
    mask[:, 32:] = True
    made = {}

    def keep(name: str) -> None:
        made[name] = backend.received.get(name)

    backend.watch = keep
    results = []
    for negative in ("a dog", "a cat"):
        generator.generate("a fox", negative, **SMALL, image=drawing(), mask=mask)
        results.append(backend.received["vae_decoder"][0])
    np.testing.assert_array_equal(results[0][..., :4], results[1][..., :4])
    assert (results[0][..., 4:] != results[1][..., 4:]).any()


def test_a_condition_leads_every_step() -> None:
    generator, backend = make_generator(budget=Budget(control=CONTROL))
    generator.generate(
        "a fox", **SMALL, control=drawing(), control_scale=0.5, steps=3, guidance=2.0
    )
    assert backend.calls["mmdit"] == 0
    assert backend.calls["mmdit_controlled"] == backend.calls["controlnet"] == 3
    *_, residuals, index, scale = backend.received["mmdit_controlled"]
    assert residuals.shape == (2, 2, 8, 16)
    np.testing.assert_array_equal(index, [0, 0, 1, 1])
    np.testing.assert_array_equal(scale, np.full(4, 0.5, np.float32))
    condition = backend.received["controlnet"][2]
    np.testing.assert_array_equal(condition[0], condition[1])
    generator.generate("a fox", **SMALL, control=drawing(), steps=1, profile="diffusers")
    np.testing.assert_array_equal(backend.received["mmdit_controlled"][-1], [1, 1, 1, 0])


def test_the_controlled_transformer_and_the_other_are_not_both_loaded() -> None:
    generator, _ = make_generator(budget=Budget(control=CONTROL))
    generator.generate("a fox", **SMALL, control=drawing(), steps=1)
    assert "mmdit_controlled" in generator._residency.loaded
    generator.generate("a fox", **SMALL, steps=1)
    assert "mmdit" in generator._residency.loaded
    assert "mmdit_controlled" not in generator._residency.loaded


def test_a_condition_takes_the_numbers_of_its_authors() -> None:
    generator, _ = make_generator(budget=Budget(control=CONTROL))
    (picture,) = generator.generate("a fox", **SMALL, control=drawing(), steps=1)
    made = picture.info["parameters"]
    assert (made["guidance"], made["sampler"], made["control_scale"]) == (3.5, "euler", 1.0)


def test_edges_are_given_as_the_reference_does() -> None:
    seen = []
    for profile in ("reference", "diffusers"):
        generator, backend = make_generator(control_kind="canny")
        generator.generate("a fox", **SMALL, control=drawing(), steps=1, profile=profile)
        seen.append(backend.received["vae_encoder"][0].reshape(3, 32, 64).transpose(1, 2, 0))
    np.testing.assert_allclose(seen[0], pixels(drawing()) * 0.5 + 0.5, atol=1e-4)
    np.testing.assert_allclose(seen[1], pixels(drawing()) / 127.5 - 1, atol=1e-6)


def test_steps_are_told() -> None:
    generator, _ = make_generator()
    told: list[StepInfo] = []
    generator.generate("a fox", **SMALL, steps=3, on_step=told.append, preview=True)
    assert [(info.step, info.steps) for info in told] == [(1, 3), (2, 3), (3, 3)]
    assert told[-1].sigma == 0
    assert [info.preview.size for info in told if info.preview] == [(8, 4)] * 3
    told.clear()
    generator.generate("a fox", **SMALL, steps=1, on_step=told.append)
    assert told[0].preview is None


def test_a_step_may_be_the_last() -> None:
    generator, backend = make_generator()
    with pytest.raises(GenerationCancelled, match="after 2 of 5 steps"):
        generator.generate("a fox", **SMALL, on_step=lambda info: info.step < 2)
    assert backend.calls["mmdit"] == 2
    assert backend.calls["vae_decoder"] == 0
    with pytest.raises(GenerationCancelled, match="after 0 of 5 steps"):
        generator.generate("a fox", **SMALL, cancelled=lambda: True)
    asked = iter([False, False, False, True])
    with pytest.raises(GenerationCancelled, match="after 3 of 5 steps"):
        generator.generate("a fox", **SMALL, cancelled=lambda: next(asked))
    # It goes on working.
    assert generator.generate("a fox", **SMALL)


def test_an_error_of_the_caller_comes_through() -> None:
    generator, _ = make_generator()

    def fail(info: StepInfo) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        generator.generate("a fox", **SMALL, on_step=fail)
    assert generator.generate("a fox", **SMALL)


class Broken(RowBackend):
    """Give NaN, or an error of its own, from one call of the transformer on."""

    def __init__(self, error: VkrtError | None = None) -> None:
        super().__init__()
        self.error = error

    def prepare(self, stage: Stage, budget: int | None = None) -> Program:
        program = super().prepare(stage, budget)

        def breaks(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
            outputs = program(*arrays)
            if stage.name == "mmdit" and self.calls["mmdit"] == 3:
                if self.error is not None:
                    raise self.error
                outputs[0][0, 0, 0] = np.nan
            return outputs

        return breaks


def test_numbers_that_are_none_name_their_step() -> None:
    generator, backend = make_generator(backend=Broken())
    with pytest.raises(GenerationError, match=r"after step 3 of 5.*precision=\"mmdit=fp32\""):
        generator.generate("a fox", **SMALL)
    assert backend.calls["mmdit"] == 3
    generator, _ = make_generator(backend=Broken(GenerationError("mmdit gives NaN")))
    with pytest.raises(GenerationError, match="step 3 of 5: mmdit gives NaN"):
        generator.generate("a fox", **SMALL)


def test_an_empty_prompt_is_a_prompt() -> None:
    generator, backend = make_generator()
    assert generator.generate("", **SMALL)
    # One text serves both kinds of rows.
    assert len(backend.received["conditioning"][1]) == 1
    assert len(backend.received["mmdit"][0]) == 2


def refused(generator: Generator, error: type[VkrtError], match: str, **settings: object) -> None:
    wanted = {"prompt": "a fox", **SMALL, **settings}
    with pytest.raises(error, match=match) as raised:
        generator.generate(**wanted)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"width": 72}, "multiples of 16, not 72x32: take (64|80)x32"),
        ({"height": 0}, "height must be a whole number from 16 to 1048576, not 0"),
        ({"width": 64.0}, "width must be a whole number"),
        ({"width": 208}, "208x32 is too large: .* at most 192 pixels"),
        ({"steps": 0}, "steps must be a whole number.*, not 0"),
        ({"count": 0}, "count must be a whole number from 1 to 1000"),
        ({"seed": 2**64}, "seed must be from"),
        ({"seed": 2**64 - 1, "count": 2}, "take a smaller seed"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"strength": 0}, "strength must be above 0"),
        ({"strength": 1.1}, "strength must be above 0"),
        ({"guidance": float("nan")}, "guidance must be"),
        ({"control_scale": float("inf")}, "control_scale must be"),
        ({"shift": 0}, "shift must be"),
        ({"sampler": "ddim"}, "sampler must be"),
        ({"profile": "sdnext"}, "profile must be"),
        ({"t5_length": 0}, "t5_length must be a whole number from 1 to 512"),
        ({"skip_layers": [4]}, "skip_layers must be of 0 to 3"),
        ({"mask": drawing()}, "give image="),
        ({"negative_prompt": ""}, "no argument 'negative_prompt'; give negative$"),
        ({"num_inference_steps": 9}, "; give steps$"),
        ({"stpes": 9}, "no argument 'stpes'; give steps$"),
        ({"xyz": 9}, "no argument 'xyz'; it has prompt, negative, .*, cancelled$"),
    ],
)
def test_a_number_that_is_not_possible(settings: dict[str, object], match: str) -> None:
    generator, backend = make_generator()
    refused(generator, GenerationError, match, **settings)
    assert not backend.prepared


def test_pictures_that_do_not_fit() -> None:
    generator, backend = make_generator()
    refused(generator, ImageError, "32x32", image=drawing(), mask=drawing(32, 32))
    black = np.zeros((32, 64), bool)
    refused(generator, GenerationError, "black all over", image=drawing(), mask=black)
    refused(generator, ImageError, "no such file", image="no such file.png")
    assert not backend.prepared


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"prompt": 3}, "prompt must be text, or a list of texts, not 3"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": ["a", None]}, "prompt 2 of 2 must be text, .* not None"),
        ({"prompt": ["a", "b"], "negative": ["a", "b", "c"]}, "2 prompts and 3 negative"),
    ],
)
def test_texts_that_are_none(settings: dict[str, object], match: str) -> None:
    refused(make_generator()[0], PromptError, match, **settings)


def test_what_is_missing_is_said_before_anything_runs() -> None:
    generator, backend = make_generator("vae_decoder")
    refused(generator, CheckpointError, "without vae_decoder")
    generator, backend = make_generator("controlnet")
    refused(generator, CheckpointError, "without controlnet", control=drawing())
    assert not backend.prepared


def test_t5_may_be_missing() -> None:
    generator, backend = make_generator("t5")
    assert generator.generate("a fox", **SMALL)
    assert backend.received["conditioning"][2].shape == (2, 154, 24)


def test_a_long_prompt_lengthens_every_row() -> None:
    generator, _ = make_generator()
    (picture,) = generator.generate("fox " * 99, **SMALL, steps=1)
    assert picture.info["parameters"]["t5_length"] == 100


def test_a_prompt_can_be_encoded_before() -> None:
    generator, backend = make_generator()
    embedding = generator.encode_prompt("a fox")
    assert embedding.context.shape == (154, 24)
    assert backend.calls == {"clip_l": 1, "clip_g": 1, "t5": 1}
    generator.generate("a fox", **SMALL, guidance=1.0)
    assert backend.calls["clip_l"] == 1


class Loras:
    """Count what is put on which stages."""

    def __init__(self) -> None:
        self.key = ""
        self.named: list[dict[str, object]] = []
        self.seen: list[tuple[str, ...]] = []

    def add(self, path: object, scale: float, loaded: dict[str, object]) -> None:
        self.key += f"{path}:{scale};"
        self.named.append({"file": str(path), "scale": scale})
        self.seen.append(tuple(loaded))

    def clear(self, loaded: dict[str, object]) -> None:
        self.key, self.named = "", []
        self.seen.append(tuple(loaded))


def test_loras_are_put_on_what_is_loaded() -> None:
    loras = Loras()
    generator, backend = make_generator(adapters=loras)
    generator.generate("a fox", **SMALL, steps=1)
    generator.load_lora("fox.safetensors", 0.5)
    assert loras.seen == [("clip_l", "clip_g", "mmdit", "vae_decoder")]
    backend.prepared.clear()
    (picture,) = generator.generate("a fox", **SMALL, steps=1)
    # Prompts are encoded again: the encoders may have changed.
    assert backend.prepared == ["t5", "conditioning", "positions"]
    assert picture.info["parameters"]["loras"] == [{"file": "fox.safetensors", "scale": 0.5}]
    generator.unload_loras()
    (picture,) = generator.generate("a fox", **SMALL, steps=1)
    assert "loras" not in picture.info["parameters"]


def test_a_bundle_takes_no_lora() -> None:
    generator, _ = make_generator()
    with pytest.raises(GenerationError, match='backend="eager"'):
        generator.load_lora("fox.safetensors")
    generator.unload_loras()


def test_nothing_runs_once_closed() -> None:
    with make_generator()[0] as generator:
        generator.generate("a fox", **SMALL)
        backend = generator._backend_of("mmdit")
    assert backend.closed == 1
    with pytest.raises(BackendError, match="was closed"):
        generator.generate("a fox", **SMALL)
