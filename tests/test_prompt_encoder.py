"""Prompts to context and pooled text: where each encoder's numbers go, and what is kept."""

from __future__ import annotations

import numpy as np
import pytest
from sd35_tiny import TINY, RowBackend, Words, tiny_stages

from vkrt.engines.calls import Calls
from vkrt.engines.prompt_encoder import PromptEncoder
from vkrt.memory.activations import Shape
from vkrt.memory.plan import make_plan
from vkrt.memory.residency import Residency


def make(*without: str, cache: int = 1 << 20) -> tuple[PromptEncoder, Calls, RowBackend]:
    backend, stages = RowBackend(), tiny_stages(*without)
    residency = Residency(stages, lambda name: backend)
    plan = make_plan(Shape(TINY), {}, stages)
    calls = Calls(residency, lambda name: backend, plan)
    return PromptEncoder(TINY, Words(), cache), calls, backend


def outputs(backend: RowBackend, name: str, tokens: np.ndarray) -> tuple[np.ndarray, ...]:
    return backend.prepare(tiny_stages()[name])(tokens)


def test_the_parts_of_the_context() -> None:
    encoder, calls, backend = make()
    (made,) = encoder.encode(calls, ["a red fox"], 80)
    assert made.context.shape == (77 + 80, 24)
    assert made.pooled.shape == (12,)
    words = Words()
    l_hidden, l_pooled = outputs(backend, "clip_l", words.clip("a red fox", 99)[None])
    g_hidden, g_pooled = outputs(backend, "clip_g", words.clip("a red fox", 0)[None])
    (t5_hidden,) = outputs(backend, "t5", words.t5("a red fox", 80)[None])
    np.testing.assert_array_equal(made.context[:77, :8], l_hidden[0])
    np.testing.assert_array_equal(made.context[:77, 8:20], g_hidden[0])
    assert not made.context[:77, 20:].any()
    np.testing.assert_array_equal(made.context[77:], t5_hidden[0])
    np.testing.assert_array_equal(made.pooled, np.concatenate((l_pooled[0], g_pooled[0])))


def test_without_t5_there_are_zeros() -> None:
    encoder, calls, _ = make("t5")
    (made,) = encoder.encode(calls, ["a red fox"], 77)
    assert made.context.shape == (154, 24)
    assert not made.context[77:].any()


def test_texts_are_encoded_together_and_once() -> None:
    encoder, calls, backend = make()
    first = encoder.encode(calls, ["", "a fox"], 77)
    assert backend.calls == {"clip_l": 1, "clip_g": 1, "t5": 1}
    again = encoder.encode(calls, ["a fox", "a dog", ""], 77)
    assert backend.calls == {"clip_l": 2, "clip_g": 2, "t5": 2}
    assert len(backend.received["t5"][0]) == 1
    assert again[0] is first[1]
    assert again[2] is first[0]


def test_a_text_is_what_it_is_by_itself() -> None:
    encoder, calls, _ = make(cache=0)
    both = encoder.encode(calls, ["a fox", "a dog"], 77)
    for text, made in zip(("a fox", "a dog"), both, strict=True):
        (alone,) = encoder.encode(calls, [text], 77)
        np.testing.assert_array_equal(made.context, alone.context)
        np.testing.assert_array_equal(made.pooled, alone.pooled)


@pytest.mark.parametrize("change", [{"length": 78}, {"variant": "lora"}, {"profile": "diffusers"}])
def test_what_differs_is_encoded_again(change: dict[str, object]) -> None:
    encoder, calls, backend = make()
    encoder.encode(calls, ["a fox"], 77)
    encoder.encode(calls, ["a fox"], **{"length": 77, **change})
    assert backend.calls["clip_l"] == 2


def test_padding_is_matched_as_transformers_does() -> None:
    encoder, calls, backend = make()
    encoder.encode(calls, ["a fox"], 77, "diffusers")
    assert 97 in backend.received["clip_g"][0]


def test_the_cache_is_bounded_in_bytes() -> None:
    encoder, calls, backend = make()
    (made,) = encoder.encode(calls, ["a fox"], 77)
    encoder, calls, backend = make(cache=2 * made.nbytes)
    for text in ("a", "b", "c", "a"):
        encoder.encode(calls, [text], 77)
    assert backend.calls["clip_l"] == 4


def test_t5_is_loaded_last_and_evicted() -> None:
    encoder, calls, backend = make()
    encoder.encode(calls, ["a fox"], 77)
    assert backend.prepared == ["clip_l", "clip_g", "t5"]
    encoder.encode(calls, ["a dog"], 77)
    assert backend.prepared == ["clip_l", "clip_g", "t5", "t5"]


@pytest.mark.parametrize(
    ("profile", "wanted", "with_t5", "words", "length"),
    [
        ("reference", None, True, 3, 77),
        ("reference", None, True, 76, 77),
        ("reference", None, True, 100, 101),
        ("reference", None, True, 10_000, 512),
        ("reference", None, False, 100, 77),
        ("diffusers", None, True, 3, 256),
        ("diffusers", None, False, 3, 256),
        ("diffusers", 40, True, 300, 40),
    ],
)
def test_the_length_of_t5(
    profile: str, wanted: int | None, with_t5: bool, words: int, length: int
) -> None:
    encoder, _, _ = make()
    assert encoder.length(["fox", "fox " * words], profile, wanted, with_t5) == length
