"""Prompts become the tokens that transformers makes of them, of the right length in any case."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer, T5Tokenizer
from vocabularies import clip_vocabulary, small_charsmap, write_clip, write_spiece, write_t5_json

from vkrt.errors import CheckpointError, GenerationError, PromptError
from vkrt.media.text import MOST_CHARACTERS, REMEMBERED, Tokenizers

CHARSMAP = small_charsmap({"\uff21": "A", "\ufb01": "fi", "\u3000": " "})
START, END = (clip_vocabulary()[token] for token in ("<|startoftext|>", "<|endoftext|>"))
PROMPTS = [
    "",
    "   \t\n ",
    "A cat,  a DOG\nand a lighthouse!!",
    "it's the café's 2024 é e\u0301 ÀÉ",
    "\N{GRINNING FACE} \N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET} 猫 \u202eabc \x00 a\u2003b",
    "a <|endoftext|> b <|ENDOFTEXT|> <|startoftext|> </s> <pad> <unk> <extra_id_3>",
    "! a! !! b!c",
    "\uff21A \ufb01fi \u3000a  the  house",
]
ANY = st.text(max_size=120) | st.text("a cat's DOG!é猫\uff21<|endoftext|>\n", max_size=300)
FIXTURES = [HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a diffusers folder's tokenizers."""
    path = tmp_path_factory.mktemp("checkpoint")
    write_clip(path / "tokenizer")
    write_clip(path / "tokenizer_2")
    write_t5_json(path / "tokenizer_3", CHARSMAP)
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizers:
    return Tokenizers(folder)


@pytest.fixture(scope="module")
def from_spiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizers:
    return Tokenizers(write_spiece(tmp_path_factory.mktemp("t5"), CHARSMAP))


@pytest.fixture(scope="module")
def clip_l(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


@pytest.fixture(scope="module")
def clip_g(folder: Path) -> CLIPTokenizer:
    files = (str(folder / "tokenizer_2" / name) for name in ("vocab.json", "merges.txt"))
    return CLIPTokenizer(*files, pad_token="!")


@pytest.fixture(scope="module")
def t5(folder: Path) -> T5Tokenizer:
    return T5Tokenizer.from_pretrained(folder / "tokenizer_3")


def wanted(oracle: CLIPTokenizer | T5Tokenizer, prompt: str, length: int = 77) -> list[int]:
    return oracle(prompt, padding="max_length", max_length=length, truncation=True).input_ids


@pytest.fixture
def quiet() -> None:
    """Let prompts be cut without a word."""
    warnings.simplefilter("ignore", RuntimeWarning)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("prompt", [*PROMPTS, "a cat and the dog " * 60])
def test_tokens_are_those_of_transformers(
    prompt: str,
    ours: Tokenizers,
    from_spiece: Tokenizers,
    clip_l: CLIPTokenizer,
    clip_g: CLIPTokenizer,
    t5: T5Tokenizer,
) -> None:
    assert ours.clip(prompt).tolist() == wanted(clip_l, prompt)
    matched = ours.clip(prompt, 0, part="clip_g", match_pad=True)
    assert matched.tolist() == wanted(clip_g, prompt)
    for length in (20, 77, 256):
        assert ours.t5(prompt, length).tolist() == wanted(t5, prompt, length)
        assert from_spiece.t5(prompt, length).tolist() == wanted(t5, prompt, length)


@pytest.mark.usefixtures("quiet")
@given(prompt=ANY)
@settings(max_examples=60, deadline=None, suppress_health_check=FIXTURES)
def test_any_text_gives_the_tokens_of_transformers(
    prompt: str, ours: Tokenizers, from_spiece: Tokenizers, clip_l: CLIPTokenizer, t5: T5Tokenizer
) -> None:
    assert ours.clip(prompt).tolist() == wanted(clip_l, prompt)
    assert ours.t5(prompt, 77).tolist() == wanted(t5, prompt)
    assert from_spiece.t5(prompt, 77).tolist() == wanted(t5, prompt)


@pytest.mark.usefixtures("quiet")
@given(
    prompt=ANY | st.text(st.characters(categories=["Cs", "Cc", "L"])),
    length=st.integers(3, 90),
    least=st.integers(1, 90),
    most=st.integers(2, 90),
)
@settings(max_examples=60, deadline=None, suppress_health_check=FIXTURES)
def test_lengths_are_right(
    prompt: str, length: int, least: int, most: int, ours: Tokenizers
) -> None:
    tokens = ours.clip(prompt, 0, length=length)
    assert tokens.shape == (length,) and tokens.dtype == np.int64
    assert tokens[0] == START and tokens.max() == END
    assert (tokens[int((tokens == END).nonzero()[0][-1]) + 1 :] == 0).all()
    fixed = ours.t5(prompt, length)
    assert fixed.shape == (length,) and fixed.dtype == np.int64 and 1 in fixed
    free = ours.t5(prompt, least=least, most=most)
    assert least <= len(free) <= max(least, most) and 1 in free


def test_padding_is_what_is_asked_for(ours: Tokenizers) -> None:
    assert ours.clip("a cat").tolist()[4:] == [END] * 73
    assert ours.clip("a cat", 0).tolist()[4:] == [0] * 73
    assert ours.clip("a!", 0)[2] != 0 == ours.clip("a!", 0, match_pad=True)[2]
    assert ours.t5("a").tolist() == [4, 1, *[0] * 75]
    assert ours.t5("a", least=5).tolist() == [4, 1, 0, 0, 0]
    assert ours.t5("a", 3).tolist() == [4, 1, 0]


def test_t5_is_as_long_as_the_prompt(ours: Tokenizers) -> None:
    assert len(ours.t5("a " * 100)) == 101
    assert len(ours.t5("a " * 100, least=256)) == 256
    with pytest.warns(RuntimeWarning, match="character 1022 of 1200"):
        assert len(ours.t5("a " * 600)) == 512


def test_a_cut_is_told_once(folder: Path) -> None:
    tokenizers = Tokenizers(folder)
    prompt = "a " * 75 + "cat on the house"
    with pytest.warns(RuntimeWarning) as caught:
        for pad in (None, 0):
            tokens = tokenizers.clip(prompt, pad)
        tokenizers.t5(prompt, 20)
        tokenizers.t5(prompt, 20)
    assert [str(each.message) for each in caught] == [
        "the prompt is too long for CLIP: it is cut at character 150 of 166, before "
        "'cat on the house'",
        f"the prompt is too long for T5: it is cut at character 38 of 166, before '{'a ' * 30}...'",
    ]
    assert caught[0].filename == __file__
    assert tokens[-1] == END and len(set(tokens[1:-1].tolist())) == 1


def test_a_prompt_that_fits_is_not_warned_of(ours: Tokenizers) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.clip("a " * 75)
        ours.t5("a " * 19, 20)
        ours.t5("a " * 10 + "  \n", characters=20)


def test_ten_thousand_words_are_cut(ours: Tokenizers) -> None:
    prompt = "lighthouse " * 10_000
    with pytest.warns(RuntimeWarning, match=r"cut at character \d+ of 110000") as caught:
        assert len(ours.clip(prompt)) == 77
        assert len(ours.t5(prompt)) == 512
    assert len(caught) == 2 and all(len(str(each.message)) < 200 for each in caught)


def test_characters_may_be_counted(ours: Tokenizers) -> None:
    prompt = "a " * 113 + "house"
    with pytest.warns(RuntimeWarning, match="character 226 of 231, before 'house'"):
        tokens = ours.t5(prompt, characters=226)
    assert tokens.tolist() == ours.t5(prompt[:226]).tolist()


def test_few_prompts_are_remembered(folder: Path) -> None:
    tokenizers = Tokenizers(folder)
    with pytest.warns(RuntimeWarning):
        for index in range(3 * REMEMBERED):
            tokenizers.clip(f"a {index}", length=3)
    assert len(tokenizers._warned) == REMEMBERED


def test_either_vocabulary_serves_both_clips(folder: Path) -> None:
    one, other = (Tokenizers({part: folder / "tokenizer"}) for part in ("clip_l", "clip_g"))
    assert one.parts == other.parts == {"clip_l", "clip_g"}
    assert Tokenizers(folder).parts == {"clip_l", "clip_g", "t5"}
    for part in one.parts:
        assert one.clip("a cat", part=part).tolist() == other.clip("a cat", part=part).tolist()


@pytest.mark.parametrize("prompt", [None, 3, b"a cat", ["a cat"], "a" * (MOST_CHARACTERS + 1)])
def test_what_is_no_prompt_is_refused(prompt: str, ours: Tokenizers) -> None:
    for tokenize in (ours.clip, ours.t5):
        with pytest.raises(PromptError, match="prompt"):
            tokenize(prompt)


def test_a_length_without_room_is_refused(ours: Tokenizers) -> None:
    with pytest.raises(PromptError, match="larger length"):
        ours.clip("a", length=2)
    with pytest.raises(PromptError, match="larger length"):
        ours.t5("a", 1)


def test_what_is_missing_is_said(folder: Path) -> None:
    only_clip = Tokenizers({"clip_l": folder / "tokenizer"})
    with pytest.raises(CheckpointError, match=r"no tokenizer for t5.*tokenizers=FOLDER"):
        only_clip.t5("a")
    with pytest.raises(CheckpointError, match=r"no tokenizer for clip_l.*tokenizers=FOLDER"):
        Tokenizers({}).clip("a")
    with pytest.raises(CheckpointError, match="no token 99999 to pad with"):
        only_clip.clip("a", 99999, match_pad=True)


def test_a_tokenizer_that_panics_is_said_to_be_damaged(tmp_path: Path) -> None:
    # The results are cut off, so that the place of the one for "b" is beyond them.
    damaged = small_charsmap({"a": "e" * 20, "b": "x"})[:-10]
    tokenizers = Tokenizers(write_spiece(tmp_path, damaged))
    with pytest.raises(CheckpointError, match="damaged; copy it anew"):
        tokenizers.t5("b")


def test_the_package_is_asked_for_when_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(GenerationError, match=r"pip install 'vkrt\[generate\]'"):
        Tokenizers(folder).clip("a")


def test_the_import_is_light() -> None:
    code = "import sys, vkrt.media.text; print({'tokenizers', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
