"""Small vocabularies of CLIP and T5, written as checkpoints have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import T5Tokenizer
from transformers.convert_slow_tokenizer import import_protobuf

__all__ = [
    "CLIP_MERGES",
    "T5_PIECES",
    "clip_vocabulary",
    "small_charsmap",
    "t5_message",
    "write_clip",
    "write_spiece",
    "write_t5_json",
]

CLIP_MERGES = [
    *(("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("l", "i"), ("g", "h")),
    *(("li", "gh"), ("ligh", "t"), ("o", "u"), ("h", "ou"), ("s", "e</w>"), ("hou", "se</w>")),
    *(("!", "!</w>"), ("Ã", "©</w>"), ("ð", "Ł"), ("ðŁ", "ĺ"), ("'", "s</w>")),
]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
T5_PIECES: list[tuple[str, float, int]] = [
    *(("<pad>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN)),
    *(("▁", -2.0, NORMAL), ("▁a", -3.0, NORMAL), ("▁the", -3.1, NORMAL)),
    *(("house", -7.0, NORMAL), ("▁light", -6.4, NORMAL), ("at", -5.0, NORMAL)),
    *((letter, -8.0 - 0.1 * index, NORMAL) for index, letter in enumerate("etaoinshrdlcumwfgypb")),
    *((sign, -9.0, NORMAL) for sign in "A.,!é猫"),
    ("[keep]", -1.0, USER_DEFINED),
]


def clip_vocabulary() -> dict[str, int]:
    """Return CLIP's vocabulary in its order: bytes, bytes that end a word, merges, specials."""
    alphabet = sorted(ByteLevel.alphabet())
    merged = ["".join(pair) for pair in CLIP_MERGES]
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *merged]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}


def write_clip(folder: Path) -> Path:
    """Write vocab.json and merges.txt into a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(clip_vocabulary()), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in CLIP_MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def small_charsmap(rules: dict[str, str]) -> bytes:
    """Return rules of normalization as sentencepiece stores them.

    A double array of the strings' bytes: each node owns a block of 256 units, the first of which
    holds the place of the result where a string ends there.
    """
    nodes, results = {b"": 0}, b""
    for string in rules:
        key = string.encode()
        for size in range(1, len(key) + 1):
            nodes.setdefault(key[:size], len(nodes))
    units = [0] * (256 * (len(nodes) + 1))

    def block(node: bytes) -> int:
        return 256 * (nodes[node] + 1)

    units[0] = block(b"") << 10
    for node in nodes:
        if node:
            place = block(node[:-1]) + node[-1]
            ends = node in map(str.encode, rules)
            units[place] = (place ^ block(node)) << 10 | ends << 8 | node[-1]
    for string, result in rules.items():
        units[block(string.encode())] = len(results) | 1 << 31
        results += result.encode() + b"\0"
    array = b"".join(unit.to_bytes(4, "little") for unit in units)
    return len(array).to_bytes(4, "little") + array + results


def t5_message(charsmap: bytes = b"") -> Any:
    """Return the small vocabulary as transformers' own class of the file's format."""
    message = import_protobuf().ModelProto()
    for text, score, kind in T5_PIECES:
        message.pieces.add(piece=text, score=score, type=kind)
    message.trainer_spec.model_type = 1
    message.trainer_spec.unk_id = 2
    message.trainer_spec.vocab_size = len(T5_PIECES)
    message.normalizer_spec.name = "small"
    message.normalizer_spec.precompiled_charsmap = charsmap
    return message


def write_spiece(folder: Path, charsmap: bytes = b"") -> Path:
    """Write spiece.model into a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(t5_message(charsmap).SerializeToString())
    return folder


def write_t5_json(folder: Path, charsmap: bytes = b"") -> T5Tokenizer:
    """Write tokenizer.json as transformers does and return its tokenizer."""
    extra = [(f"<extra_id_{index}>", 0.0) for index in reversed(range(100))]
    oracle = T5Tokenizer(
        vocab=[*((text, score) for text, score, _ in T5_PIECES), *extra],
        _spm_precompiled_charsmap=charsmap or None,
    )
    oracle.save_pretrained(folder)
    return oracle
