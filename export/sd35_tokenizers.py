"""The files of tokenizers that go into a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vkrt.errors import CheckpointError
from vkrt.media.tokenizer_files import FILES, WANTED, own_files, read_json, read_tokenizer

__all__ = ["Found", "find_tokenizers"]


@dataclass(frozen=True)
class Found:
    """Say which files tokenize prompts.

    Attributes:
        files: where they are, by their names in the bundle.
        names: the name of the one to read, by "clip_l" (which serves clip_g too) and "t5".
    """

    files: Mapping[str, Path]
    names: Mapping[str, str]


def find_tokenizers(given: Mapping[str, Path], with_t5: bool) -> Found:
    """Return the files of the tokenizers of CLIP and, if it is wanted, T5; each is read once.

    Args:
        given: folders or files, by "clip_l", "clip_g" and "t5". The vocabularies of both CLIPs
            are the same, so that one is enough.
        with_t5: whether there is a T5.

    Raises:
        CheckpointError: one is missing, damaged or another model's.
        GenerationError: the package tokenizers is missing.
    """
    clip = next((part for part in ("clip_l", "clip_g") if part in given), "clip_l")
    files: dict[str, Path] = {}
    names: dict[str, str] = {}
    for part, source in (("clip_l", clip), ("t5", "t5"))[: 1 + with_t5]:
        family = "t5" if part == "t5" else "clip"
        own = own_files(given[source], FILES[family]) if source in given else []
        if not own:
            raise CheckpointError(
                f"a bundle needs the tokenizer of {source}: give tokenizers=FOLDER (--tokenizers), "
                f"{WANTED[family]}"
            )
        # The file that is read where there are several.
        file = own[-1]
        read_tokenizer(source, file)
        names[part] = name_of(file, family)
        files[names[part]] = file
        if names[part] == "vocab.json":
            files["merges.txt"] = file.with_name("merges.txt")
    return Found(files, names)


def name_of(file: Path, family: str) -> str:
    """Return the name that a tokenizer's file has in a bundle, where all lie in one folder."""
    if file.suffix == ".model":
        return "spiece.model"
    whole = isinstance(read_json(file).get("model"), dict)
    return f"{family}.tokenizer.json" if whole else "vocab.json"
