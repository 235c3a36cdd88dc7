"""spiece.model is read as sentencepiece's own format says, and damage is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vocabularies import T5_PIECES, small_charsmap, t5_message, write_spiece

from vkrt.errors import CheckpointError
from vkrt.media.sentencepiece import read_unigram

FIXTURES = [HealthCheck.function_scoped_fixture]


def test_a_model_is_read(tmp_path: Path) -> None:
    charsmap = small_charsmap({"\uff21": "A"})
    model = read_unigram(write_spiece(tmp_path, charsmap) / "spiece.model")
    assert [(piece.text, piece.kind) for piece in model.pieces] == [
        (text, kind) for text, _, kind in T5_PIECES
    ]
    assert [piece.score for piece in model.pieces] == pytest.approx([p[1] for p in T5_PIECES])
    assert model.unknown == 2 and model.charsmap == charsmap


def test_fields_of_other_uses_are_passed_over(tmp_path: Path) -> None:
    file = write_spiece(tmp_path) / "spiece.model"
    wanted = read_unigram(file)
    message = t5_message()
    message.trainer_spec.input.append("a file")
    message.trainer_spec.character_coverage = 0.9
    message.self_test_data.samples.add(input="a", expected="b")
    # A field of eight bytes, which this format has none of yet.
    file.write_bytes(message.SerializeToString() + bytes([(100 & 0x0F) << 3 | 1, *range(8)]))
    assert read_unigram(file) == wanted


def test_another_kind_of_vocabulary_is_refused(tmp_path: Path) -> None:
    message = t5_message()
    message.trainer_spec.model_type = 2
    file = tmp_path / "spiece.model"
    file.write_bytes(message.SerializeToString())
    with pytest.raises(CheckpointError, match="not of the unigram kind"):
        read_unigram(file)


@pytest.mark.parametrize(
    "content", [b"", b"\x0a", b"\x0a\xff\x01ab", b"\xff" * 30, b"\x0b", b"\x08"]
)
def test_damage_is_told(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "spiece.model"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"spiece\.model.* is no sentencepiece model"):
        read_unigram(file)
    with pytest.raises(CheckpointError, match="can't be read"):
        read_unigram(tmp_path / "nowhere.model")


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=FIXTURES)
def test_no_damage_gives_another_error(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(t5_message(small_charsmap({"\uff21": "A"})).SerializeToString())
    end = data.draw(st.integers(1, len(content)))
    place, byte = data.draw(st.integers(0, end - 1)), data.draw(st.integers(0, 255))
    content[place] = byte
    file = tmp_path / "spiece.model"
    file.write_bytes(content[:end])
    try:
        model = read_unigram(file)
    except CheckpointError:
        return
    assert model.unknown < len(model.pieces)
