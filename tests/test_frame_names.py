"""Names of frame files: sorted as people count, whatever is around the numbers."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vkrt.media.frame_sources import natural_key
from vkrt.media.video import open_video


@given(st.lists(st.integers(0, 10**20), unique=True), st.text(max_size=5), st.randoms())
@settings(deadline=None)
def test_natural_order_is_that_of_the_numbers(
    numbers: list[int], prefix: str, shuffler: random.Random
) -> None:
    prefix = re.sub("[0-9]", "", prefix).rstrip("-")  # a minus before the number may be its sign
    names = {f"{prefix}{number}.jpg": number for number in numbers}
    shuffled = list(names)
    shuffler.shuffle(shuffled)
    assert [names[name] for name in sorted(shuffled, key=natural_key)] == sorted(numbers)


@given(st.lists(st.text("aA0129._ é", max_size=8), unique=True), st.randoms())
@settings(deadline=None)
def test_natural_order_does_not_depend_on_where_names_start(
    names: list[str], shuffler: random.Random
) -> None:
    shuffled = names.copy()
    shuffler.shuffle(shuffled)
    assert sorted(shuffled, key=natural_key) == sorted(names, key=natural_key)


@pytest.mark.parametrize(
    "ordered",
    [
        ["-10.jpg", "-2.jpg", "-1.jpg", "0.jpg", "1.jpg", "10.jpg"],
        ["-003.jpg", "-02.jpg", "-1.jpg", "0000.jpg", "2.jpg", "010.jpg"],
        ["frame_9.png", "frame_10.png", "frame_0011.png"],
        ["t_-2.png", "t_-1.png", "t_0.png", "t_1.png"],
        ["t=-2.png", "t=-1.png", "t=0.png"],
        ["at (-2).png", "at (-1).png", "at (0).png"],
        # Here the minus joins.
        ["a-1.jpg", "a-2.jpg", "a-10.jpg"],
        ["7-1.jpg", "7-2.jpg", "7-10.jpg", "10-1.jpg"],
        ["2024-01-09.jpg", "2024-01-10.jpg", "2024-02-01.jpg"],
        ["a - 1.jpg", "a - 2.jpg"],
        ["1.jpg", "2.jpg", "cover.jpg", "frame 1.jpg", "frame 2.jpg"],
    ],
)
def test_signs_zeros_and_prefixes(ordered: list[str]) -> None:
    turned = ordered[::-1]
    assert sorted(turned, key=natural_key) == ordered


def test_folder_with_negative_numbers(tmp_path: Path) -> None:
    for number in (-10, -2, -1, 0, 1, 2, 10):
        Image.new("RGB", (5, 4), (number + 10, 0, 0)).save(tmp_path / f"{number}.png")
    with open_video(tmp_path) as opened:
        assert [int(frame[0, 0, 0]) - 10 for frame in opened] == [-10, -2, -1, 0, 1, 2, 10]
