"""Where a checkpoint keeps its tokenizers, and how they are read."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vkrt.errors import CheckpointError, GenerationError
from vkrt.limited import parse_json, read_limited
from vkrt.media.sentencepiece import CONTROL, UNKNOWN, USER_DEFINED, Piece, read_unigram
from vkrt.weights.safety_limits import (
    MAX_TEXT_GROWTH,
    MAX_TOKEN_CHARACTERS,
    MAX_TOKENIZER_BYTES,
    MAX_VOCABULARY,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "CLIP_END",
    "CLIP_START",
    "T5_END",
    "T5_PAD",
    "add_special",
    "is_failure",
    "locate",
    "read_tokenizer",
]

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
T5_PAD, T5_END = "<pad>", "</s>"

# In a diffusers folder.
FOLDERS = {"clip_l": "tokenizer", "clip_g": "tokenizer_2", "t5": "tokenizer_3"}
WANTED = {
    "clip": "a folder with vocab.json and merges.txt, or tokenizer.json",
    "t5": "a folder with spiece.model or tokenizer.json",
}
KINDS = {"BPE": "clip_l", "Unigram": "t5"}
# The last one there is read: it says more than those before.
FILES = {"clip": ("vocab.json", "tokenizer.json"), "t5": ("spiece.model", "tokenizer.json")}
ALL_FILES = ("spiece.model", "vocab.json", "tokenizer.json")

# Keys of what a rule of a tokenizer.json puts in place of a text, or in front of it.
LENGTHENS = ("content", "prepend", "replacement")
WORD_END = "</w>"
# A word of CLIP: a special token, an English ending, letters, one digit, or other signs.
CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
SPACE = "\u2581"
# T5's vocabulary goes on behind that of its spiece.model, the last of these first.
EXTRA_IDS = 100


def load_package() -> Any:
    """Return the module `tokenizers`, whose import takes a while.

    Raises:
        GenerationError: it is not installed.
    """
    try:
        return import_module("tokenizers")
    except ImportError as error:
        raise GenerationError(
            f"prompts need the package tokenizers ({error}); run pip install 'vkrt[generate]'"
        ) from None


def locate(place: str | os.PathLike[str]) -> dict[str, Path]:
    """Return where the tokenizers of "clip_l", "clip_g" and "t5" are, those that are there.

    Args:
        place: a diffusers folder (tokenizer/, tokenizer_2/, tokenizer_3/), a folder with a
            tokenizer's own files, of CLIP, T5 or both, or one such file.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(place)
    found = {part: path / name for part, name in FOLDERS.items() if (path / name).is_dir()}
    if not found:
        kinds = {part_of(file): file for file in own_files(path, ALL_FILES)}
        found = {part: file for part, file in kinds.items() if part is not None}
    if not found:
        raise CheckpointError(
            f"{path} has no tokenizer; give a folder with tokenizer/, tokenizer_2/ and "
            "tokenizer_3/, or with vocab.json, merges.txt and spiece.model"
        )
    return found


def own_files(path: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of a folder that have one of these names; or the file itself."""
    if path.is_file():
        return [path]
    return [path / name for name in names if (path / name).is_file()]


def part_of(file: Path) -> str | None:
    """Return "clip_l" or "t5", whichever the tokenizer of a file is for; None if neither."""
    if file.suffix == ".model":
        return "t5"
    content = read_json(file)
    model = content.get("model")
    if not isinstance(model, dict):
        return "clip_l" if CLIP_END in content else None
    return KINDS.get(str(model.get("type")))


def read_tokenizer(part: str, place: Path) -> Tokenizer:
    """Return the tokenizer of "clip_l", "clip_g" or "t5"; it adds nothing to a text.

    Args:
        place: a folder with its files, or one of them: tokenizer.json, which says it all,
            vocab.json (with merges.txt beside it) or spiece.model.

    Raises:
        CheckpointError: it is not there, damaged, or another model's.
        GenerationError: the package tokenizers is missing.
    """
    family = "t5" if part == "t5" else "clip"
    files = own_files(place, FILES[family])
    if not files:
        raise CheckpointError(
            f"{place} has no tokenizer for {part}; give {WANTED[family]}, as "
            f'tokenizers={{"{part}": FOLDER}}'
        )
    tokenizer = read_file(files[-1])
    needed = (T5_PAD, T5_END) if part == "t5" else (CLIP_START, CLIP_END)
    absent = [token for token in needed if tokenizer.token_to_id(token) is None]
    if absent:
        raise CheckpointError(
            f"{files[-1]} is no tokenizer for {part}: it has no {absent[0]}; give {WANTED[family]}"
        )
    return tokenizer


def read_file(file: Path) -> Tokenizer:
    """Return the tokenizer of a file, whatever it is for."""
    package = load_package()
    try:
        if file.suffix == ".model":
            return unigram(file)
        content = read_json(file)
        if not isinstance(content.get("model"), dict):
            return byte_pairs(content, file.with_name("merges.txt"))
        check_growth(content)
        tokenizer = package.Tokenizer.from_str(json.dumps(content))
    except CheckpointError:
        raise
    except BaseException as error:
        # The package has no class of its own for what it raises.
        if not is_failure(error):
            raise
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{file} can't be read as a tokenizer ({reason:.200}); copy it anew"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_json(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        CheckpointError: it can't be read, or holds something else.
    """
    try:
        content = parse_json(read_limited(file, MAX_TOKENIZER_BYTES).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} can't be read as a tokenizer ({error!s:.200}); copy it anew"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is no tokenizer but a JSON {type(content).__name__}")
    return content


def is_failure(error: BaseException) -> bool:
    """Tell whether an error is one of the package tokenizers, not of the program around it.

    On damaged files the package panics, which is no Exception and has no importable class.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def check_growth(content: dict[str, Any]) -> None:
    """Refuse a tokenizer.json whose rules could make a text many times as long.

    Raises:
        ValueError: they could, or there are too many tokens.
    """
    growth = 1
    waiting = [content.get("normalizer"), content.get("pre_tokenizer")]
    while waiting:
        rule = waiting.pop()
        if isinstance(rule, list):
            waiting += rule
        elif isinstance(rule, dict):
            waiting += (value for value in rule.values() if isinstance(value, dict | list))
            growth *= growth_of(rule)
    check_longest(growth)
    check_vocabulary(content["model"].get("vocab"))
    added = content.get("added_tokens")
    tokens = added if isinstance(added, list) else []
    check_vocabulary([each.get("content") for each in tokens if isinstance(each, dict)])


def growth_of(rule: dict[str, Any]) -> int:
    """Return how many times as long a rule of a tokenizer.json can make a text."""
    if rule.get("type") == "ByteLevel":
        return 2
    charsmap = base64.b64decode(str(rule.get("precompiled_charsmap") or ""))
    return max(1, longest(charsmap), *(len(str(rule.get(key, ""))) for key in LENGTHENS))


def longest(charsmap: bytes) -> int:
    """Return the bytes of the longest text that a character is normalized to.

    Behind a table with its size in front come all these texts, each with a NUL at its end.
    """
    behind = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]
    return max(map(len, behind.split(b"\0")))


def check_longest(growth: int) -> None:
    """Refuse to make texts many times as long.

    Raises:
        ValueError: that is beyond MAX_TEXT_GROWTH.
    """
    if growth > MAX_TEXT_GROWTH:
        raise ValueError("its rules make texts many times as long")


def check_vocabulary(vocabulary: Any) -> None:
    """Refuse too many tokens, and tokens that are too long.

    Args:
        vocabulary: an object with tokens as its keys, or a list of pairs with them in front.

    Raises:
        ValueError: says which it is.
    """
    if not isinstance(vocabulary, dict | list):
        return
    if len(vocabulary) > MAX_VOCABULARY:
        raise ValueError(f"it has {len(vocabulary)} tokens, {MAX_VOCABULARY} at most are read")
    pairs = isinstance(vocabulary, list)
    texts = (each[0] if pairs and isinstance(each, list) and each else each for each in vocabulary)
    if max((len(text) for text in texts if isinstance(text, str)), default=0) > (
        MAX_TOKEN_CHARACTERS
    ):
        raise ValueError("it has a token that is too long")


def byte_pairs(vocabulary: dict[str, Any], merges: Path) -> Tokenizer:
    """Return CLIP's tokenizer: lower case, one space between words, bytes merged in pairs."""
    package = load_package()
    check_vocabulary(vocabulary)
    models, normalizers = package.models, package.normalizers
    tokenizer = package.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=read_merges(merges),
            unk_token=CLIP_END,
            continuing_subword_prefix="",
            end_of_word_suffix=WORD_END,
        )
    )
    one_space = normalizers.Replace(package.Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), one_space, normalizers.Lowercase()]
    )
    split = package.pre_tokenizers
    words = split.Split(package.Regex(CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = split.Sequence([words, split.ByteLevel(add_prefix_space=False)])
    known = (token for token in (CLIP_START, CLIP_END) if token in vocabulary)
    add_special(tokenizer, known)
    return tokenizer


def read_merges(file: Path) -> list[tuple[str, str]]:
    """Return the pairs of a merges.txt, the first to be merged first.

    Raises:
        CheckpointError: it is not there, or damaged.
    """
    try:
        lines = read_limited(file, MAX_TOKENIZER_BYTES).decode("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} can't be read ({error}); CLIP needs it beside vocab.json"
        ) from None
    pairs = [tuple(line.split()) for line in lines if not line.startswith("#version")]
    wrong = next((pair for pair in pairs if len(pair) not in (0, 2)), None)
    if wrong is not None:
        raise CheckpointError(f"{file} is damaged: {wrong!r:.60} is no pair; copy it anew")
    if len(pairs) > MAX_VOCABULARY:
        raise CheckpointError(f"{file} has {len(pairs)} lines, {MAX_VOCABULARY} at most are read")
    return [(pair[0], pair[1]) for pair in pairs if pair]


def unigram(file: Path) -> Tokenizer:
    """Return T5's tokenizer: words with a space in front, split into the likeliest pieces."""
    package = load_package()
    model = read_unigram(file)
    names = {piece.text for piece in model.pieces}
    more = (f"<extra_id_{index}>" for index in reversed(range(EXTRA_IDS)))
    extra = [Piece(name, 0.0, CONTROL) for name in more if name not in names]
    pieces = [*model.pieces, *extra]
    vocabulary = [(piece.text, piece.score) for piece in pieces]
    tokenizer = package.Tokenizer(package.models.Unigram(vocabulary, model.unknown, False))
    if model.charsmap:
        check_longest(longest(model.charsmap))
        tokenizer.normalizer = package.normalizers.Precompiled(model.charsmap)
    split = package.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence(
        [split.WhitespaceSplit(), split.Metaspace(replacement=SPACE, prepend_scheme="always")]
    )
    add_special(tokenizer, (p.text for p in pieces if p.kind in (UNKNOWN, CONTROL)))
    whole = (p.text for p in pieces if p.kind == USER_DEFINED)
    tokenizer.add_tokens([package.AddedToken(text, normalized=False) for text in whole])
    return tokenizer


def add_special(tokenizer: Tokenizer, tokens: Iterable[str]) -> None:
    """Let a text's own mention of special tokens stand for these, as transformers has it."""
    token = load_package().AddedToken
    tokenizer.add_special_tokens([token(text, normalized=False, special=True) for text in tokens])
