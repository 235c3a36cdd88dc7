"""Reading checkpoints: every format that is taken, and every hostile or damaged file refused."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vkrt.errors import CheckpointError
from vkrt.weights.checkpoint import read_shapes, read_tensors

TENSORS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "c": torch.tensor(7),
}
SHAPES = {"a.weight": (2, 3), "b": (2,), "c": ()}


def refusal(path: Path) -> str:
    """Return the message with which reading fails, after checking that it is one line."""
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 2000
    assert caught.value.__cause__ is None
    with pytest.raises(CheckpointError):
        read_shapes(path)
    return message


def write_safetensors(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def rewrite(source: Path, target: Path, change: Callable[[zipfile.ZipInfo, bytes], bytes]) -> Path:
    """Copy a torch archive record by record."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for record in old.infolist():
            new.writestr(record.filename, change(record, old.read(record)))
    return target


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def write_pt(path: Path) -> None:
    torch.save(TENSORS, path)


def write_wrapped(path: Path) -> None:
    torch.save({"model": TENSORS, "epoch": 3, "optimizer": {"lr": 0.1}}, path)


def write_state_dict(path: Path) -> None:
    torch.save({"state_dict": TENSORS}, path)


def write_legacy(path: Path) -> None:
    torch.save({"model": TENSORS}, path, _use_new_zipfile_serialization=False)


def write_newest(path: Path) -> None:
    torch.save({"model": TENSORS}, path, pickle_protocol=5)


def write_safe(path: Path) -> None:
    save_file(TENSORS, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "write", [write_pt, write_wrapped, write_state_dict, write_legacy, write_newest, write_safe]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
def test_reads_by_content_whatever_the_name(
    tmp_path: Path, write: Callable[[Path], None], suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    write(path)
    found = read_tensors(str(path))
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    assert read_shapes(path) == SHAPES


@pytest.mark.parametrize(
    ("name", "write"),
    [("model.safetensors", write_safe), ("pytorch_model.bin", write_pt), ("own.pth", write_pt)],
)
def test_reads_a_folder(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    assert read_shapes(tmp_path) == SHAPES
    assert torch.equal(read_tensors(tmp_path)["a.weight"], TENSORS["a.weight"])


def write_shards(folder: Path, **renamed: str) -> Path:
    save_file({"a.weight": TENSORS["a.weight"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": TENSORS["b"], "c": TENSORS["c"]}, folder / "model-00002-of-00002.safetensors")
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    names = {"a.weight": first, "b": second, "c": second} | renamed
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return index


def test_reads_shards(tmp_path: Path) -> None:
    write_shards(tmp_path)
    assert read_shapes(tmp_path) == SHAPES
    assert torch.equal(read_tensors(tmp_path)["b"], TENSORS["b"])


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b", "..", "..\\x", "a\0"])
def test_refuses_shards_outside_the_folder(tmp_path: Path, name: str) -> None:
    write_shards(tmp_path, b=name)
    assert "outside its folder" in refusal(tmp_path)


def test_refuses_incomplete_shards(tmp_path: Path) -> None:
    index = write_shards(tmp_path, gone="model-00001-of-00002.safetensors")
    assert "lacks tensors that its index names (gone)" in refusal(tmp_path)
    save_file({"a.weight": torch.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    assert "in two shards" in refusal(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "lacks model-00002-of-00002.safetensors" in refusal(tmp_path)
    for text in ("", "[1]", "[" * 100_000, '{"weight_map": {}}', '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        assert "not an index" in refusal(tmp_path)


def test_reads_an_index_and_a_shard_beside_it_as_the_whole(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    for path in (index, shard):
        assert read_shapes(path) == SHAPES
        assert torch.equal(read_tensors(path)["a.weight"], TENSORS["a.weight"])
    index.unlink()
    assert "one of 2 shards, and their index is not beside it" in refusal(shard)
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    assert "not an index of shards" in refusal(tmp_path / "config.json")


def test_refuses_a_folder_without_weights(tmp_path: Path) -> None:
    assert "no model.safetensors" in refusal(tmp_path)
    write_pt(tmp_path / "one.pt")
    write_pt(tmp_path / "two.pt")
    assert "one.pt, two.pt" in refusal(tmp_path)


def test_refuses_what_is_not_there_or_no_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.pt")
    assert "does not exist" in refusal(tmp_path / "line\nbreak.pt")
    assert "can't be read" in refusal(tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "pipe.pt")
    assert "is no file" in refusal(tmp_path / "pipe.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\0", "is not a checkpoint"),
        (b"\xff\xd8\xff\xe0 a photo, not weights", "is not a checkpoint"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer"),
        (b"PK\x03\x04 and no more", "truncated or damaged"),
        (struct.pack("<Q", 2) + b"{}", "holds no tensors"),
        (struct.pack("<Q", 9) + b'{"a": "b"', "not a whole safetensors file"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_refuses_what_is_no_checkpoint(
    tmp_path: Path, content: bytes, words: str, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    assert words in refusal(path)


def test_code_in_a_pickle_never_runs(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save({"model": {"a": torch.ones(2), "b": RunsCode(marker)}}, path)
    message = refusal(path)
    assert "holds Python code" in message and "posix.mkdir" in message
    for bare in (pickle.dumps(RunsCode(marker)), pickle.dumps(RunsCode(marker), protocol=2)):
        path.write_bytes(bare)
        assert "bare pickle" in refusal(path)
    hidden = {"model": TENSORS, "args": RunsCode(marker)}
    for new in (True, False):
        torch.save(hidden, path, _use_new_zipfile_serialization=new)
        assert "posix.mkdir" in refusal(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [[torch.ones(2)], torch.ones(2), {"a": 1}, {"model": {"a": "text"}}, {1: torch.ones(1)}],
)
def test_refuses_what_is_not_tensors_by_name(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    assert "save a state_dict()" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(1).expand(10**6, 10**6),
        torch.eye(3).to_sparse(),
        torch.empty(10**6, 10**6, device="meta"),
    ],
    ids=["expanded", "sparse", "meta"],
)
def test_refuses_tensors_larger_than_the_file(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"a": tensor}, tmp_path / "x.pt")
    assert "save it dense" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["x2.pt", "x2.safetensors"])
def test_refuses_a_storage_that_claims_more_than_it_holds(tmp_path: Path, name: str) -> None:
    torch.save({"a": torch.arange(300.0)}, tmp_path / "x.pt")
    # 300 as a 2-byte integer of the pickle; 60,000 floats are not there.
    claim = (b"M" + struct.pack("<H", 300), b"M" + struct.pack("<H", 60_000))

    def enlarge(record: zipfile.ZipInfo, data: bytes) -> bytes:
        return data.replace(*claim) if record.filename.endswith("data.pkl") else data

    assert name in refusal(rewrite(tmp_path / "x.pt", tmp_path / name, enlarge))


def test_refuses_a_zip_bomb(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "x.pt")
    bomb = tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as old,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
        with new.open("x/data/9", "w") as data:
            for _ in range(64):
                data.write(bytes(1024**2))
    assert bomb.stat().st_size < 1024**2
    assert "compressed zip" in refusal(bomb)


def test_refuses_zips_of_other_programs(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    assert "torch.save did not write" in refusal(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "s.pt", "w") as archive:
        archive.writestr("s/data.pkl", "")
        archive.writestr("s/constants.pkl", "")
    assert "TorchScript" in refusal(tmp_path / "s.pt")


def test_refuses_a_pickle_of_many_megabytes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", bytes(5 * 1024**2))
    assert "more than the 20,000 tensors" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("write", [write_pt, write_legacy, write_safe])
def test_refuses_every_truncation(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path, cut = tmp_path / "whole", tmp_path / "cut"
    write(path)
    whole = path.read_bytes()
    for length in (*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1):
        cut.write_bytes(whole[:length])
        refusal(cut)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_flipped_byte_is_read_or_refused_but_never_crashes(
    tmp_path: Path, data: st.DataObject
) -> None:
    write = data.draw(st.sampled_from([write_pt, write_legacy, write_safe]))
    path = tmp_path / "flipped"
    write(path)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        for tensor in read_tensors(path).values():
            tensor.clone()
    except CheckpointError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12),
        ({"a": entry([2], 0, 80)}, 12),
        ({"a": entry([2], 8, 0)}, 8),
        ({"a": entry([2**40, 2**40], 0, 8)}, 8),
        ({"a": entry([-1], 0, 8)}, 8),
        ({"a": entry([2], 0, 8)}, 4),
        ({"a": entry([2], 0, 8)}, 12),
        ({"a": {"dtype": "?", "shape": [2], "data_offsets": [0, 8]}}, 8),
    ],
    ids=["overlap", "beyond", "backwards", "overflow", "negative", "short", "long", "dtype"],
)
def test_refuses_wrong_offsets(tmp_path: Path, header: object, size: int) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", header, bytes(size))
    assert "not a whole safetensors file" in refusal(path)


def test_names_in_messages_stay_on_one_line(tmp_path: Path) -> None:
    torch.save({"line\nbreak\x1b[2J" + "x" * 100_000: "text"}, tmp_path / "x.pt")
    assert "\\n" in refusal(tmp_path / "x.pt")


def peak_growth(paths: list[Path]) -> int:
    """Return by how many bytes reading hostile files raises a fresh process's peak memory."""
    code = (
        "import resource, sys\n"
        "from vkrt.errors import CheckpointError\n"
        "from vkrt.weights.checkpoint import read_tensors\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        read_tensors(path)\n"
        "    except CheckpointError:\n"
        "        continue\n"
        "    sys.exit('was read')\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout) * 1024


def write_giant_header(path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 8 * 1024**3) + b"{")
        # Sparse: the claim is true, and the file takes no room.
        file.truncate(9 * 1024**3)


def write_million_entries(path: Path) -> None:
    text = b"{%s}" % b",".join(
        b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(10**6)
    )
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def write_hundred_thousand_entries(path: Path) -> None:
    text = b"{%s}" % b",".join(
        b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(10**5)
    )
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def write_million_records(path: Path) -> None:
    """Write a zip whose directory lists one record a million times over."""
    name = b"x/data.pkl"
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name
    listed = struct.pack(
        "<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0
    )
    directory = (listed + name) * 10**6
    end = struct.pack(
        "<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), len(local), 0
    )
    path.write_bytes(local + directory + end)


def write_many_storages(path: Path) -> None:
    torch.save({str(i): torch.zeros(0) for i in range(21_000)}, path)


def test_hostile_sizes_take_little_memory(tmp_path: Path) -> None:
    cases = {
        write_giant_header: "claims a header of 8,589,934,592 bytes",
        write_million_entries: "claims a header of",
        write_hundred_thousand_entries: "holds 100,000 tensors",
        write_million_records: "more than the 20,000 tensors",
        write_many_storages: "more than the 20,000 tensors",
    }
    paths = [tmp_path / write.__name__ for write in cases]
    for path, (write, words) in zip(paths, cases.items(), strict=True):
        write(path)
        assert words in refusal(path)
    assert peak_growth(paths) < 64 * 1024**2
    for path in paths:
        path.unlink()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("write", [write_pt, write_legacy, write_safe])
def test_reading_maps_the_file_instead_of_copying_it(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "mapped")
    tensors = read_tensors(tmp_path / "mapped")
    assert str(tmp_path / "mapped") in Path("/proc/self/maps").read_text()
    assert tensors.keys() == TENSORS.keys()
