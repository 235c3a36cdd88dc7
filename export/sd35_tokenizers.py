"""The files of tokenizers that go into a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vkrt.errors import CheckpointError
from vkrt.media.tokenizer_files import FILES, WANTED, own_files, read_json, read_tokenizer

__all__ = ["Found", "find_tokenizers"]

# What a bare vocabulary of CLIP is read with lies beside it under this name.
VOCABULARY, MERGES = "vocab.json", "merges.txt"


@dataclass(frozen=True)
class Found:
    """Say which files tokenize prompts.

    Attributes:
        files: where they are, by their names in the bundle.
        names: the name of the one to read, by "clip_l", "clip_g" and "t5".
    """

    files: Mapping[str, Path]
    names: Mapping[str, str]


def find_tokenizers(given: Mapping[str, Path], with_t5: bool) -> Found:
    """Return the files of the tokenizers of CLIP and, if it is wanted, T5; each is read once.

    Args:
        given: folders or files, by "clip_l", "clip_g" and "t5"; of the CLIPs one is enough, as
            their vocabularies are the same.
        with_t5: whether there is a T5.

    Raises:
        CheckpointError: one is missing, damaged or another model's.
        GenerationError: the package tokenizers is missing.
    """
    clips = [part for part in ("clip_l", "clip_g") if part in given] or ["clip_l"]
    files: dict[str, Path] = {}
    names: dict[str, str] = {}
    for part in (*clips, "t5") if with_t5 else clips:
        file = file_of(part, given.get(part))
        names[part] = name_of(file, part)
        # Where both CLIPs have a bare vocabulary, which says nothing but their common one.
        files.setdefault(names[part], file)
        if names[part] == VOCABULARY:
            files.setdefault(MERGES, file.with_name(MERGES))
    return Found(files, names)


def file_of(part: str, place: Path | None) -> Path:
    """Return the file that a tokenizer is read from.

    Raises:
        CheckpointError: it is missing, damaged or another model's.
    """
    family = "t5" if part == "t5" else "clip"
    own = [] if place is None else own_files(place, FILES[family])
    if not own:
        raise CheckpointError(
            f"a bundle needs the tokenizer of {part}: give tokenizers=FOLDER (--tokenizers), "
            f"{WANTED[family]}"
        )
    read_tokenizer(part, own[-1])
    return own[-1]


def name_of(file: Path, part: str) -> str:
    """Return the name that a tokenizer's file has in a bundle, where all lie in one folder."""
    if file.suffix == ".model":
        return "spiece.model"
    whole = isinstance(read_json(file).get("model"), dict)
    return f"{part}.tokenizer.json" if whole else VOCABULARY
