"""Small files that claim much, or hold very many of something, are refused before it is made."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.mutators import sealed, varint, written
from fuzz.targets import SHAPES
from PIL import Image
from safetensors.numpy import save
from vocabularies import small_charsmap, t5_message, write_clip, write_t5_json

from vkrt.engines.embedding import EmbeddingHeader, read_embedding
from vkrt.errors import CheckpointError, ImageError
from vkrt.limited import TooLargeError, parse_json, read_limited
from vkrt.media import rle, tokenizer_files
from vkrt.media.labels import read_labels
from vkrt.media.rle import Rle
from vkrt.media.sentencepiece import read_unigram
from vkrt.media.tokenizer_files import read_tokenizer
from vkrt.weights.safety_limits import (
    MAX_JSON_DEPTH,
    MAX_TEXT_GROWTH,
    MAX_TOKEN_CHARACTERS,
    MAX_TOKENIZER_BYTES,
    MAX_VOCABULARY,
)

BYTES = 2


@contextmanager
def little_memory(most: int = 50_000_000) -> Iterator[None]:
    """Expect that no more than so many bytes are taken by Python at once."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most


# Files and JSON.


def test_files_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    assert read_limited(path, 5) == b"12345"
    with pytest.raises(TooLargeError, match="larger than 4 bytes"):
        read_limited(path, 4)
    # As large as it says, but for holes.
    os.truncate(path, 2**40)
    with little_memory(), pytest.raises(TooLargeError):
        read_limited(path, 10_000)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        read_limited(tmp_path / "pipe", 5)
    with pytest.raises(OSError):
        read_limited(tmp_path, 5)


def nested(depth: int, start: str = "[", end: str = "]") -> str:
    return start * depth + "1" + end * depth


def test_json_of_bounded_depth() -> None:
    assert parse_json('{"a": [1.5, null, {"b": "c"}]}') == {"a": [1.5, None, {"b": "c"}]}
    parse_json(nested(MAX_JSON_DEPTH))
    for text in (
        *(nested(MAX_JSON_DEPTH + 2), nested(MAX_JSON_DEPTH + 2, '{"a":', "}")),
        nested(100_000),
    ):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)
    for text in ("NaN", "[Infinity]", '{"a": -Infinity}'):
        with pytest.raises(ValueError, match="is no number of JSON"):
            parse_json(text)


# Tokenizers.


def test_a_panic_is_damage(tmp_path: Path) -> None:
    """The Rust library panics on this file, with an error that is no Exception."""
    write_t5_json(tmp_path, small_charsmap({"\ufb01": "fi"}))
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    rules = json.dumps(content["normalizer"])
    assert "precompiled_charsmap" in rules
    charsmap = content["normalizer"]
    while "precompiled_charsmap" not in charsmap:
        charsmap = charsmap["normalizers"][0]
    charsmap["precompiled_charsmap"] = "AAAA"
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="can't be read as a tokenizer") as caught:
        read_tokenizer("t5", tmp_path)
    assert "\n" not in str(caught.value)


def test_an_interruption_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer_files, "byte_pairs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_tokenizer("clip_l", tmp_path)


def changed_json(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    write_t5_json(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


def replace_all(times: int) -> list[dict[str, Any]]:
    return [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * times


LONG = "x" * (MAX_TOKEN_CHARACTERS + 1)
CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "doubled again and again": lambda c: c.update(
        normalizer={"type": "Sequence", "normalizers": replace_all(40)}
    ),
    "a long replacement": lambda c: c.update(
        normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 10_000}
    ),
    "a long text in front": lambda c: c.update(
        normalizer={"type": "Prepend", "prepend": "b" * 10_000}
    ),
    "bytes as characters, often": lambda c: c.update(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
            ]
            * 30,
        }
    ),
    "a token without end": lambda c: c["model"]["vocab"].append([LONG, 0.0]),
    "an added token without end": lambda c: c["added_tokens"][0].update(content=LONG),
    "too many tokens": lambda c: c["model"].update(
        vocab=[[f"{i}", 0.0] for i in range(MAX_VOCABULARY + 1)]
    ),
}


@pytest.mark.parametrize("case", list(CHANGES))
def test_rules_that_make_texts_huge(tmp_path: Path, case: str) -> None:
    changed_json(tmp_path, CHANGES[case])
    with pytest.raises(CheckpointError, match=r"times as long|too long|at most are read"):
        read_tokenizer("t5", tmp_path)


def test_a_few_rules_pass(tmp_path: Path) -> None:
    rules = {"type": "Sequence", "normalizers": replace_all(6)}
    changed_json(tmp_path, lambda content: content.update(normalizer=rules))
    assert read_tokenizer("t5", tmp_path).normalizer.normalize_str("a") == "a" * MAX_TEXT_GROWTH


def test_large_tokenizers(tmp_path: Path) -> None:
    write_clip(tmp_path)
    vocabulary, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    sound = vocabulary.read_bytes(), merges.read_bytes()
    for path, content in (
        (vocabulary, b" " * (MAX_TOKENIZER_BYTES + 1)),
        (merges, b"\n" * (MAX_TOKENIZER_BYTES + 1)),
        (merges, b"c a\n" * (MAX_VOCABULARY + 1)),
        (vocabulary, json.dumps({LONG: 1}).encode()),
    ):
        vocabulary.write_bytes(sound[0])
        merges.write_bytes(sound[1])
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read_tokenizer("clip_l", tmp_path)
        assert "\n" not in str(caught.value)


PIECE = written(1 << 3 | BYTES, b"a") + b"\x15" + struct.pack("<f", -1.0)
SPIECES = {
    "empty pieces": (b"\x0a\0" * (MAX_VOCABULARY + 1), "tokens, 300000 at most"),
    "unknown fields": (varint(100 << 3) + b"\1", "not one for what is unknown"),
    "a score that is none": (
        written(1 << 3 | BYTES, b"\x15" + struct.pack("<f", float("nan"))),
        "score is no number",
    ),
    "a token without end": (written(1 << 3 | BYTES, b"\x0a" + varint(2000) + b"x" * 2000), "long"),
    "a long number": (b"\x0a\x02\x18\x81\x80\x00", "cut off|needs|no end"),
    "a text twice": (
        written(1 << 3 | BYTES, PIECE + written(1 << 3 | BYTES, b"b")),
        "comes twice",
    ),
    "another form": (written(1 << 3 | BYTES, b"\x08\1"), "wrong form"),
}


@pytest.mark.parametrize("case", list(SPIECES))
def test_vocabularies_of_sentencepiece(tmp_path: Path, case: str) -> None:
    content, words = SPIECES[case]
    path = tmp_path / "spiece.model"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_unigram(path)


def test_very_many_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vkrt.media.sentencepiece.MAX_VOCABULARY_FIELDS", 1000)
    path = tmp_path / "spiece.model"
    for field in (varint(100 << 3) + b"\1", b"\x12\0", b"\x0a\0"):
        path.write_bytes(field * 1001)
        with pytest.raises(CheckpointError, match=r"more fields|comes twice"):
            read_unigram(path)


def test_characters_that_become_long_texts(tmp_path: Path) -> None:
    charsmap = small_charsmap({"a": "b" * (MAX_TEXT_GROWTH + 1)})
    (tmp_path / "spiece.model").write_bytes(t5_message(charsmap).SerializeToString())
    with pytest.raises(CheckpointError, match="times as long"):
        read_tokenizer("t5", tmp_path)


# Embeddings.

HEADER = EmbeddingHeader("sam2.1-nano", "abc", (90, 120), "key")


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()} | changes


def embedding(path: Path, notes: Any, **changes: np.ndarray) -> Path:
    path.write_bytes(save(arrays(**changes), metadata={"vkrt": notes}))
    return path


def notes(**changes: Any) -> str:
    return json.dumps({"schema": 2, **asdict(HEADER)} | changes)


def read(path: Path) -> EmbeddingHeader:
    return read_embedding(path, HEADER.model, HEADER.fingerprint, SHAPES)[0]


def test_an_embedding_is_read(tmp_path: Path) -> None:
    assert read(embedding(tmp_path / "e", notes())) == HEADER


@pytest.mark.parametrize(
    "said",
    [
        *("", "7", "null", '"text"', "[]", "{}", "[" * 100_000, nested(1000)),
        *(notes(size=size) for size in (None, 7, [1], [1, 2, 3], "90", [0, 1], [-1, 5])),
        *(notes(size=size) for size in ([1.5, 2], [True, 2], [2**24 + 1, 1], [10**30, 1])),
        *(notes(size=size) for size in ([2**20, 2**20], [float("inf"), 1], ["1", "2"])),
        *(notes(key=7), notes(key=None), notes(other=1), notes(schema=1), notes(schema=[])),
        *(notes(model=7), notes(fingerprint=None), notes().replace('"key"', '"schlüssel"')),
        '{"schema": ' + "9" * 5000 + "}",
    ],
)
def test_what_an_embedding_can_not_say(tmp_path: Path, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(embedding(tmp_path / "e", said))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_what_an_embedding_can_not_hold(tmp_path: Path) -> None:
    shape = SHAPES["image"]
    for content, words in (
        (np.ones(shape, np.float64), "as F64, wanted F32"),
        (np.ones(shape, np.int32), "as I32, wanted F32"),
        (np.full(shape, np.nan, np.float32), "no numbers"),
        (np.full(shape, np.inf, np.float32), "no numbers"),
        (np.ones((*shape, 1), np.float32), "holds arrays"),
    ):
        with pytest.raises(CheckpointError, match=words):
            read(embedding(tmp_path / "e", notes(), image=content))
    for place in (Path("e\0"), tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError):
            read(place)


# Masks.


def test_a_label_map_of_too_many_pixels(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    Image.new("L", (1, 1)).save(path)
    content = path.read_bytes()
    header = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + content[24:29]
    path.write_bytes(content[:8] + sealed(header) + content[33:])
    with pytest.raises(ImageError, match="20000x20000 = 400 megapixels"):
        read_labels(path)


@pytest.mark.parametrize(
    "record",
    [
        {"size": [[1], [2, 3]], "counts": [6]},
        {"size": [10**400, 1], "counts": [1]},
        {"size": [2**24, 2**24], "counts": "0"},
        {"size": [-1, -1], "counts": [1]},
        {"size": [2.0, 3.0], "counts": [6]},
        {"size": [2, 3], "counts": [[6]]},
        {"size": [2, 3], "counts": [2**32 + 6]},
        {"size": [2, 3], "counts": "\ud800"},
        {"size": [2, 3], "counts": {"a": 1}},
    ],
)
def test_run_lengths_that_are_none(record: dict[str, Any]) -> None:
    with pytest.raises(ImageError):
        Rle.from_coco(record)


def test_masks_that_memory_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    large = Rle.from_coco({"size": [2**15, 2**15], "counts": [2**30]})

    class Full:
        def decode_masks(self, *_: Any) -> Any:
            raise MemoryError

    monkeypatch.setattr(rle, "operations", Full())
    with pytest.raises(ImageError, match="no memory for 3 masks of 32768x32768"):
        rle.decode([large] * 3)
