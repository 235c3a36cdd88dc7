"""Prompts as token ids, through the checkpoint's own tokenizers."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vkrt.errors import CheckpointError, PromptError
from vkrt.media.tokenizer_files import (
    CLIP_END,
    CLIP_START,
    T5_END,
    T5_PAD,
    add_special,
    is_failure,
    locate,
    read_tokenizer,
)

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = ["Tokenizers"]

# Beyond it a text is not a prompt but a mistake; 10,000 words have less than a tenth.
MOST_CHARACTERS = 1_000_000
SHOWN = 60
REMEMBERED = 64
# Either CLIP encoder has the other's vocabulary.
TWINS = {"clip_l": "clip_g", "clip_g": "clip_l"}
NAMES = {"clip": "CLIP", "t5": "T5"}
HOW = (
    "give tokenizers=FOLDER, a folder with tokenizer/, tokenizer_2/ and tokenizer_3/ as diffusers "
    "has it, or with vocab.json, merges.txt and spiece.model"
)


class Tokenizers:
    """Turn prompts into token ids; each tokenizer is read when it is first needed.

    A prompt that is too long is cut, and a warning says where, once for each prompt.

    Args:
        files: for "clip_l" or "clip_g" (their vocabularies are the same) and for "t5" the folder
            or file of the tokenizer: tokenizer.json, vocab.json with merges.txt beside it, or
            spiece.model. Or one folder that has them all, as a diffusers folder does.

    Raises:
        CheckpointError: the one folder has no tokenizer.
    """

    def __init__(
        self, files: Mapping[str, str | os.PathLike[str]] | str | os.PathLike[str]
    ) -> None:
        given = files if isinstance(files, Mapping) else locate(files)
        self._files = {part: Path(place) for part, place in given.items()}
        self._read: dict[tuple[str, int | None], Tokenizer] = {}
        self._warned: deque[tuple[str, int, int]] = deque(maxlen=REMEMBERED)

    @property
    def parts(self) -> frozenset[str]:
        """Return the text encoders that prompts can be tokenized for."""
        twins = {TWINS[part] for part in self._files if part in TWINS}
        return frozenset(self._files) | twins

    def clip(
        self,
        prompt: str,
        pad: int | None = None,
        *,
        part: str = "clip_l",
        length: int = 77,
        match_pad: bool = False,
    ) -> np.ndarray:
        """Return a prompt's tokens for CLIP: start, words, end, padding.

        Args:
            prompt: any text; upper case and the width of spaces do not count.
            pad: the id behind the end; None is the end again.
            part: whose tokenizer, "clip_l" or "clip_g"; where one is not given the other serves.
            length: of the result.
            match_pad: take the text of the padding token in a prompt for that token: transformers
                does where its tokenizer has the token as a special one ("!" of clip_g, id 0).

        Returns:
            (length,) int64

        Raises:
            PromptError: the prompt is no text, or longer than a million characters.
            CheckpointError: the tokenizer is not given, damaged or another model's.
            GenerationError: the package tokenizers is missing.
        """
        tokenizer = self._tokenizer(part, pad if match_pad else None)
        start, end = (id_of(tokenizer, token) for token in (CLIP_START, CLIP_END))
        words = self._encode("clip", tokenizer, prompt, check_room(length - 2))
        return padded([start, *words, end], length, end if pad is None else pad)

    def t5(
        self,
        prompt: str,
        length: int | None = None,
        *,
        least: int = 77,
        most: int = 512,
        characters: int | None = None,
    ) -> np.ndarray:
        """Return a prompt's tokens for T5: words, end, padding.

        Padding counts as other tokens do, so the length changes the picture. diffusers has
        length=256 unless told otherwise; the authors' own code least=77 and characters=226.

        Args:
            prompt: any text.
            length: of the result; None is what the prompt needs, from `least` to `most`.
            characters: of the prompt that count at all; None is all.

        Returns:
            (N,) int64

        Raises:
            PromptError: the prompt is no text, or longer than a million characters.
            CheckpointError: the tokenizer is not given, damaged or another model's.
            GenerationError: the package tokenizers is missing.
        """
        tokenizer = self._tokenizer("t5")
        end, pad = (id_of(tokenizer, token) for token in (T5_END, T5_PAD))
        room = check_room((max(least, most) if length is None else length) - 1)
        words = self._encode("t5", tokenizer, prompt, room, characters)
        size = max(least, len(words) + 1) if length is None else length
        return padded([*words, end], size, pad)

    def _tokenizer(self, part: str, pad: int | None = None) -> Tokenizer:
        """Return the tokenizer of a part, which takes the text of `pad` for that token."""
        given = part if part in self._files else TWINS.get(part, part)
        if given not in self._files:
            raise CheckpointError(f"no tokenizer for {part} is given; {HOW}")
        key = given, pad
        if key not in self._read:
            tokenizer = read_tokenizer(given, self._files[given])
            if pad is not None:
                add_special(tokenizer, [text_of(tokenizer, pad, self._files[given])])
            self._read[key] = tokenizer
        return self._read[key]

    def _encode(
        self,
        family: str,
        tokenizer: Tokenizer,
        prompt: str,
        room: int,
        characters: int | None = None,
    ) -> list[int]:
        """Return the ids of a prompt's words, `room` at most."""
        text = check_prompt(prompt)
        encoding = split(tokenizer, text[:characters])
        ids = encoding.ids
        at = len(text[:characters])
        if len(ids) > room:
            at = encoding.offsets[room][0]
        if len(ids) > room or text[at:].strip():
            self._warn(family, room, text, at)
        return ids[:room]

    def _warn(self, family: str, room: int, text: str, at: int) -> None:
        """Say once for each prompt where it is cut."""
        key = family, room, hash(text)
        if key in self._warned:
            return
        self._warned.append(key)
        left = " ".join(text[at:].split())
        shown = left if len(left) <= SHOWN else f"{left[:SHOWN]}..."
        warnings.warn(
            f"the prompt is too long for {NAMES[family]}: it is cut at character {at} of "
            f"{len(text)}, before {shown!r}",
            RuntimeWarning,
            stacklevel=4,
        )


def check_prompt(prompt: str) -> str:
    """Return a prompt as text that UTF-8 has.

    Raises:
        PromptError: it is no text, or longer than a million characters.
    """
    if not isinstance(prompt, str):
        raise PromptError(f"a prompt must be a text, not {type(prompt).__name__}; give a str")
    if len(prompt) > MOST_CHARACTERS:
        raise PromptError(
            f"the prompt has {len(prompt)} characters, {MOST_CHARACTERS} at most are read; "
            "shorten it"
        )
    # Half of a surrogate pair, as file names may have, is no character.
    return prompt.encode("utf-8", "replace").decode("utf-8")


def split(tokenizer: Tokenizer, text: str) -> Encoding:
    """Return the tokens of a text and where each begins.

    Raises:
        CheckpointError: the tokenizer fails.
    """
    try:
        return tokenizer.encode(text, add_special_tokens=False)
    except BaseException as error:
        if not is_failure(error):
            raise
        raise CheckpointError(
            f"the tokenizer fails on {text[:SHOWN]!r} ({error!s:.100}): its file is damaged; "
            "copy it anew"
        ) from None


def check_room(room: int) -> int:
    """Return for how many tokens of words there is room.

    Raises:
        PromptError: for none.
    """
    if room < 1:
        raise PromptError(f"there is room for {max(0, room)} words; give a larger length")
    return room


def id_of(tokenizer: Tokenizer, text: str) -> int:
    """Return the id of a special token, which reading the tokenizer has made sure of."""
    token = tokenizer.token_to_id(text)
    assert token is not None
    return token


def text_of(tokenizer: Tokenizer, token: int, file: Path) -> str:
    """Return the text of a token.

    Raises:
        CheckpointError: there is no such token.
    """
    text = tokenizer.id_to_token(token)
    if text is None:
        raise CheckpointError(f"{file} has no token {token} to pad with; give the model's own")
    return text


def padded(ids: list[int], length: int, pad: int) -> np.ndarray:
    """Return ids as (length,) int64, `pad` behind them."""
    tokens = np.full(length, pad, np.int64)
    tokens[: len(ids)] = ids
    return tokens
