"""Tokenizers are found where checkpoints keep them, and wrong files are told from right ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer
from vocabularies import T5_PIECES, write_clip, write_spiece, write_t5_json

from vkrt.errors import CheckpointError
from vkrt.media.tokenizer_files import locate, read_tokenizer

CLIP_TEXT = "a cat's house!!"


def ids(part: str, place: Path, text: str = CLIP_TEXT) -> list[int]:
    return read_tokenizer(part, place).encode(text, add_special_tokens=False).ids


def clip_json(folder: Path, target: Path) -> Path:
    """Write the tokenizer.json that transformers makes of CLIP's two files."""
    CLIPTokenizer.from_pretrained(folder).save_pretrained(target)
    return target / "tokenizer.json"


def test_a_diffusers_folder_is_known(tmp_path: Path) -> None:
    for name in ("tokenizer", "tokenizer_3"):
        (tmp_path / name).mkdir()
    assert locate(tmp_path) == {"clip_l": tmp_path / "tokenizer", "t5": tmp_path / "tokenizer_3"}


def test_a_folder_with_the_files_is_known(tmp_path: Path) -> None:
    write_clip(tmp_path)
    assert locate(tmp_path) == {"clip_l": tmp_path / "vocab.json"}
    write_spiece(tmp_path)
    wanted = {"clip_l": tmp_path / "vocab.json", "t5": tmp_path / "spiece.model"}
    assert locate(tmp_path) == wanted
    assert locate(str(tmp_path / "spiece.model")) == {"t5": tmp_path / "spiece.model"}
    for part, text in (("clip_l", CLIP_TEXT), ("t5", "the house")):
        assert ids(part, tmp_path, text) == ids(part, wanted[part], text) != []


def test_a_tokenizer_json_is_told_by_its_model(tmp_path: Path) -> None:
    write_t5_json(tmp_path / "t5")
    assert locate(tmp_path / "t5") == {"t5": tmp_path / "t5" / "tokenizer.json"}
    file = clip_json(write_clip(tmp_path / "clip"), tmp_path / "json")
    assert locate(tmp_path / "json") == {"clip_l": file}
    assert ids("clip_g", file) == ids("clip_g", tmp_path / "clip")


def test_what_a_tokenizer_json_says_of_lengths_does_not_count(tmp_path: Path) -> None:
    file = clip_json(write_clip(tmp_path), tmp_path / "json")
    content = json.loads(file.read_text())
    content["truncation"] = {
        **{"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    }
    content["padding"] = {
        **{"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
    }
    file.write_text(json.dumps(content))
    assert ids("clip_l", file) == ids("clip_l", tmp_path)
    assert ids("clip_l", file, "a") == ids("clip_l", tmp_path, "a")


def test_pieces_that_the_user_defined_stay_whole(tmp_path: Path) -> None:
    whole = next(index for index, (_, _, kind) in enumerate(T5_PIECES) if kind == 4)
    assert whole in ids("t5", write_spiece(tmp_path), "the [keep]")


def test_merges_may_end_lines_as_they_like(tmp_path: Path) -> None:
    wanted = ids("clip_l", write_clip(tmp_path))
    merges = tmp_path / "merges.txt"
    merges.write_bytes(b"\n" + merges.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert ids("clip_l", tmp_path) == wanted


@pytest.mark.parametrize(
    "content", ["{", "[1]", "[" * 100_000, "\x00", '{"model": {}}', '{"a": 1}']
)
def test_a_damaged_tokenizer_json_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    for part in ("clip_l", "t5"):
        with pytest.raises(CheckpointError, match="tokenizer") as caught:
            read_tokenizer(part, tmp_path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"c a t", b"c", b"q zz", b"\xff"])
def test_damaged_merges_are_refused(content: bytes, tmp_path: Path) -> None:
    write_clip(tmp_path)
    (tmp_path / "merges.txt").write_bytes(b"#version: 0.2\nc a\n" + content)
    with pytest.raises(CheckpointError):
        read_tokenizer("clip_l", tmp_path)


@pytest.mark.parametrize("change", [{"cat": -1}, {"cat": "x"}, {"cat": 1.5}, {"cat": None}])
def test_a_damaged_vocabulary_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    file = write_clip(tmp_path) / "vocab.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match="vocab"):
        read_tokenizer("clip_l", tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"vocab\.json, merges\.txt and spiece\.model"):
        locate(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no tokenizer"):
        locate(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"for t5; give .*spiece\.model.*tokenizers="):
        read_tokenizer("t5", tmp_path / "nowhere")
    write_clip(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt can't be read"):
        read_tokenizer("clip_l", tmp_path)


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    write_t5_json(tmp_path / "t5")
    with pytest.raises(CheckpointError, match=r"no tokenizer for t5: it has no <pad>"):
        read_tokenizer("t5", tmp_path / "clip" / "vocab.json")
    with pytest.raises(CheckpointError, match=r"no tokenizer for clip_g: it has no <\|startof"):
        read_tokenizer("clip_g", tmp_path / "t5")
