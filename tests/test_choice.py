"""The form of each product: by its speed on this machine, and by the harm that it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from vkrt.export.int8 import speed
from vkrt.export.int8.choice import Choice, choose, give_back
from vkrt.export.int8.cpu import needs_reduced_range
from vkrt.export.int8.products import Shape
from vkrt.export.int8.quantize import DYNAMIC, FP32, STATIC, Form
from vkrt.export.int8.speed import time_forms

WIDTH, ROWS = 24, 40
INT8_FASTER = {FP32: 3.0, STATIC: 1.0, DYNAMIC: 2.0}
INT8_SLOWER = {FP32: 1.0, STATIC: 1.0, DYNAMIC: 1.0}


# This machine.


@pytest.mark.parametrize(
    ("machine", "flags", "reduced"),
    [
        ("x86_64", {"avx2", "fma"}, True),
        ("AMD64", {"avx2", "avx512f", "avx512bw"}, True),
        ("x86_64", set(), True),
        ("x86_64", {"avx2", "avx_vnni"}, False),
        ("x86_64", {"avx512f", "avx512_vnni"}, False),
        ("aarch64", set(), False),
        ("arm64", {"asimd"}, False),
    ],
)
def test_which_cpus_need_a_reduced_range(machine: str, flags: set[str], reduced: bool) -> None:
    assert needs_reduced_range(machine, flags) == reduced


def test_the_flags_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr("vkrt.export.int8.cpu.CPUINFO", info)
    assert needs_reduced_range("x86_64")
    info.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx_vnni\n\nflags\t: fpu\n")
    assert not needs_reduced_range("x86_64")


def test_forms_are_timed_in_turns() -> None:
    now, runs = [0.0], 0

    def clock() -> float:
        # Every second reading ends a run; runs take 3, 1 and 2 seconds in turn.
        nonlocal runs
        if runs % 2:
            now[0] += (3.0, 1.0, 2.0)[runs // 2 % 3]
        runs += 1
        return now[0]

    shape = Shape(ROWS, WIDTH, 8)
    assert time_forms(shape, False, clock) == INT8_FASTER
    assert runs == 2 * 3 * speed.LEAST_ROUNDS
    runs = 0
    shared = time_forms(replace(shape, readers=2), True, clock)
    assert shared == {form: seconds / 2 for form, seconds in INT8_FASTER.items()}


def test_real_time_passes() -> None:
    assert all(seconds > 0 for seconds in time_forms(Shape(ROWS, WIDTH, 8), False).values())


# The choice.


def test_speed_chooses_first() -> None:
    measured = []

    def measure(shape: Shape) -> Mapping[Form, float]:
        measured.append(shape)
        return {FP32: 1.0, STATIC: 1.0 - shape.rows / 100, DYNAMIC: 1.0}

    few, some, many = (Shape(rows, 8, 8) for rows in (1, 4, 50))
    choices = choose({"a": few, "b": many, "c": many, "d": some}, measure)
    assert measured == [few, many, some]
    assert {name: choice.form for name, choice in choices.items()} == {
        "a": FP32,
        "b": STATIC,
        "c": STATIC,
        "d": FP32,
    }
    assert (choices["a"].reason, choices["b"].reason) == ("not faster", "faster")


def chosen(**seconds: Mapping[Form, float]) -> dict[str, Choice]:
    shapes = {name: Shape(index, 8, 8) for index, name in enumerate(seconds)}
    by_shape = {shapes[name]: taken for name, taken in seconds.items()}
    return choose(shapes, by_shape.__getitem__)


def forms(choices: Mapping[str, Choice]) -> str:
    return " ".join(choice.form for choice in choices.values())


def test_what_harms_most_for_what_it_saves_goes_back() -> None:
    little = {FP32: 1.1, STATIC: 1.0, DYNAMIC: 1.1}
    choices = chosen(a=INT8_FASTER, b=little, c=INT8_FASTER, d=INT8_SLOWER)
    assert forms(choices) == "static static static fp32"
    harm = {"a": 0.1, "b": 0.1, "c": 0.3}

    def damage(name: str, form: Form) -> float:
        return harm[name]

    # Squares: 0.01, 0.01 and 0.09 of 0.11; for what it saves b harms more than c.
    back = give_back(choices, damage, keep=0.92)
    assert forms(back) == "static fp32 static fp32"
    assert (back["b"].reason, back["c"].reason, back["d"].reason) == (
        "quality",
        "faster",
        "not faster",
    )
    assert forms(give_back(choices, damage, keep=0.5)) == "static fp32 fp32 fp32"
    assert forms(give_back(choices, damage, keep=0.01)) == "fp32 fp32 fp32 fp32"


def test_a_range_of_its_own_is_tried_first() -> None:
    choices = chosen(a=INT8_FASTER, b=INT8_FASTER)
    harm: dict[tuple[str, Form], float] = {
        ("a", STATIC): 1.0,
        ("a", DYNAMIC): 0.1,
        ("b", STATIC): 0.2,
        ("b", DYNAMIC): 0.2,
    }
    back = give_back(choices, lambda *key: harm[key], keep=0.1)
    assert forms(back) == "dynamic static" and back["a"].reason == "quality"
    again = give_back(back, lambda *key: harm[key], keep=0.3)
    assert forms(again) == "dynamic fp32"
    assert forms(give_back(again, lambda *key: harm[key], keep=0.1)) == "fp32 fp32"


def test_a_product_that_gives_no_number_goes_first() -> None:
    choices = chosen(a=INT8_FASTER, b=INT8_FASTER)
    back = give_back(choices, lambda name, form: float("nan") if name == "b" else 1.0, keep=0.8)
    assert forms(back) == "static fp32"
