"""Small files that would cost much: every parser of weights files reads or refuses them cheaply."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from bounded import MEGABYTE, outcomes
from lora_files import write as write_lora
from safetensors.torch import save_file

from vkrt.errors import CheckpointError
from vkrt.weights.bounded_json import parse_json
from vkrt.weights.checkpoint import read_shapes, read_tensors
from vkrt.weights.folder import read_index
from vkrt.weights.lora_file import read_lora
from vkrt.weights.safety_limits import (
    MAX_HEADER_BYTES,
    MAX_INDEX_BYTES,
    MAX_JSON_DEPTH,
    MAX_JSON_VALUES,
    MAX_TENSOR_DIMENSIONS,
)
from vkrt.weights.tensor_index import read_entries

ENTRY = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'


def header(text: bytes, data: bytes = b"") -> bytes:
    """Return a safetensors file of a header, which may be no JSON."""
    return struct.pack("<Q", len(text)) + text + data


def one(fields: bytes) -> bytes:
    """Return a header of one tensor with these fields besides its own."""
    return b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]%s}}' % fields


def listing(items: Iterable[bytes]) -> bytes:
    return b"{%s}" % b",".join(items)


SPACE = MAX_HEADER_BYTES - 1000
HEADERS: dict[str, Callable[[], bytes]] = {
    "a deep nest": lambda: header(b'{"a":' * 3_000_000),
    "a deep nest of lists": lambda: header(b"{" + b"[" * SPACE),
    "lists beside the fields": lambda: header(one(b',"z":[%s[]]' % (b"[]," * 5_000_000)), bytes(4)),
    "objects beside the fields": lambda: header(one(b',"z":[%s{}]' % (b"{}," * 5_000_000))),
    "numbers beside the fields": lambda: header(one(b',"z":[%s1]' % (b"1e9," * 4_000_000))),
    "millions of dimensions": lambda: header(
        b'{"a":{"dtype":"F32","shape":[%s0],"data_offsets":[0,0]}}' % (b"1," * 8_000_000)
    ),
    "a hundred dimensions": lambda: header(
        b'{"a":{"dtype":"F32","shape":[%s1],"data_offsets":[0,4]}}' % (b"1," * 100), bytes(4)
    ),
    "a number of a million digits": lambda: header(
        b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % (b"9" * MEGABYTE)
    ),
    "notes by the million": lambda: header(
        b'{"__metadata__":%s}' % listing(b'"%d":""' % i for i in range(1_200_000))
    ),
    "a long note": lambda: header(
        b'{"__metadata__":{"a":"%s"},%s}' % (b"x" * SPACE, ENTRY % 1)
    ),
    "a long name": lambda: header(b'{"%s":{}}' % (b"x." * 7_000_000)),
    "names in other spelling": lambda: header(
        listing((ENTRY % i).replace(b"data_", b"data\\u005f") for i in range(200_000))
    ),
    "quotes without an end": lambda: header(b'{"' + b'\\"' * 8_000_000),
    "backslashes": lambda: header(b'{"' + b"\\" * SPACE),
    "one name again and again": lambda: header(listing([ENTRY % 1] * 100_000)),
    "whitespace": lambda: header(b"{" + b" " * SPACE),
    "zeros": lambda: header(bytes(SPACE)),
}  # fmt: skip


def test_headers_cost_little(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.safetensors" for i in range(len(HEADERS))]
    for path, make in zip(paths, HEADERS.values(), strict=True):
        path.write_bytes(make())
        assert path.stat().st_size < MAX_HEADER_BYTES + 1000
    setup = (
        "from vkrt.weights.lora_file import read_lora\n"
        "from vkrt.weights.tensor_index import read_entries\n"
        "def read(path):\n"
        "    try:\n"
        "        read_entries(path)\n"
        "    except VkrtError:\n"
        "        pass\n"
        "    read_lora(path)\n"
    )
    for name, (grown, said) in zip(HEADERS, outcomes(setup, paths, 90), strict=True):
        assert said.startswith("CheckpointError") or name == "a long note", (name, said)
        # The header itself, and what is left of it without its strings.
        assert grown < 8 * MAX_HEADER_BYTES, (name, grown)


JSONS: dict[str, Callable[[], bytes]] = {
    "a deep nest": lambda: b'{"weight_map":' * 250_000,
    "lists": lambda: b'{"weight_map":{"a":[%s]}}' % (b"[]," * 1_300_000),
    "names by the million": lambda: b'{"weight_map":%s}' % listing(
        b'"%d":"a"' % i for i in range(330_000)
    ),
    "metadata": lambda: b'{"metadata":%s,"weight_map":{"a":"a"}}' % listing(
        b'"%d":1' % i for i in range(400_000)
    ),
    "a number": lambda: b'{"weight_map":%s}' % (b"9" * 4_000_000),
    "no end": lambda: b'{"weight_map":"' + b'\\"' * 2_000_000,
    "too long": lambda: b'{"a":"%s"}' % (b"x" * MAX_INDEX_BYTES),
}  # fmt: skip


def test_json_files_cost_little(tmp_path: Path) -> None:
    """An index of shards, a config of diffusers and the settings of a LoRA."""
    indexes, configs, settings = [], [], []
    for i, make in enumerate(JSONS.values()):
        text = make()
        folder = tmp_path / str(i)
        (folder / "vae").mkdir(parents=True)
        save_file({"decoder.conv_in.weight": torch.ones(1)}, folder / "vae" / "model.safetensors")
        indexes.append(folder / "x.index.json")
        configs.append(folder / "vae" / "config.json")
        settings.append(folder / "adapter_model.safetensors")
        write_lora(settings[-1], {"a.lora_A.weight": torch.ones(1, 1)})
        for path in (indexes[-1], configs[-1], folder / "adapter_config.json"):
            path.write_bytes(text)
        (folder / "model_index.json").write_bytes(text)
    setup = (
        "from vkrt.weights.checkpoint import read_tensors\n"
        "from vkrt.weights.lora_file import read_lora\n"
        "from vkrt.weights.sd35_sources import settings_of\n"
        "from vkrt.weights.family import holds_sd35, named_pipeline\n"
        "def read(path):\n"
        "    path = Path(path)\n"
        "    holds_sd35(path)\n"
        "    named_pipeline(path.parent)\n"
        "    if path.name == 'config.json':\n"
        "        return settings_of(path.parent)\n"
        "    return read_lora(path) if 'adapter' in path.name else read_tensors(path)\n"
    )
    results = outcomes(setup, [*indexes, *configs, *settings])
    names = list(JSONS) * 3
    for name, (grown, said) in zip(names, results, strict=True):
        assert said.startswith("CheckpointError"), (name, said)
        assert grown < 64 * MEGABYTE, (name, grown)


def many_records(path: Path, count: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            archive.writestr(f"x/data/{i}", b"")


def one_record_many_times(path: Path) -> None:
    """Write a zip whose directory names one record 20,000 times: each is as long as the file."""
    body = bytes(2_000_000)
    name = b"x/data/0"
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, len(body), len(body), 8, 0)
    sizes = (0, len(body), len(body), len(name), 0, 0, 0, 0, 0, 0)
    listed = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, *sizes) + name
    directory = listed * 20_000
    end = (b"PK\5\6", 0, 0, 20_000, 20_000, len(directory), len(local + name + body), 0)
    path.write_bytes(local + name + body + directory + struct.pack("<4s4H2IH", *end))


def test_zips_cost_little(tmp_path: Path) -> None:
    many_records(tmp_path / "many.pt", 30_000)
    one_record_many_times(tmp_path / "over.pt")
    setup = "from vkrt.weights.checkpoint import read_tensors as read"
    results = outcomes(setup, [tmp_path / "many.pt", tmp_path / "over.pt"])
    for (grown, said), words in zip(results, ("more than the 20,000", "damaged"), strict=True):
        assert words in said and grown < 64 * MEGABYTE, (grown, said)


def test_json_is_read_up_to_the_limits() -> None:
    flat = b"[%s1]" % (b"1," * (MAX_JSON_VALUES - 2))
    assert len(parse_json(flat)) == MAX_JSON_VALUES - 1
    with pytest.raises(ValueError, match="more than 200,000 values"):
        parse_json(flat[:-1] + b",1]")
    nest = b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH
    parse_json(nest)
    with pytest.raises(ValueError, match="nested deeper than 64"):
        parse_json(b"[" + nest + b"]")
    # What stands in strings does not count.
    text = json.dumps({'a"[{': "[{,\\" * 100_000, "b\\": ["\\", '"', "\ud800"]})
    assert parse_json(text) == json.loads(text)
    assert parse_json(text.encode()) == json.loads(text)
    for bad in (b"", b'"', b'"\\', b"{", b"\xff", b'{"a":1}x'):
        with pytest.raises(ValueError, match=r".+"):
            parse_json(bad)


def test_dimensions_have_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for count in (MAX_TENSOR_DIMENSIONS, MAX_TENSOR_DIMENSIONS + 1):
        shape = [1] * count
        fields = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}
        path.write_bytes(header(json.dumps({"a": fields}).encode(), bytes(4)))
        for reader in (read_shapes, read_tensors, read_entries):
            if count <= MAX_TENSOR_DIMENSIONS:
                assert len(reader(path)) == 1
            else:
                with pytest.raises(CheckpointError, match="65 dimensions"):
                    reader(path)


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0", "C64", "BOOL", "I64", "F6_E2M3"])
def test_every_dtype_is_read_or_refused(tmp_path: Path, dtype: str) -> None:
    """Dtypes that torch can't convert are no bare errors of torch."""
    path = tmp_path / "x.safetensors"
    fields = {"dtype": dtype, "shape": [8, 8], "data_offsets": [0, 0]}
    for size in (32, 48, 64, 512):
        names = ("a.lora_A.weight", "a.lora_B.weight")
        entries = {
            name: fields | {"data_offsets": [i * size, (i + 1) * size]}
            for i, name in enumerate(names)
        }
        path.write_bytes(header(json.dumps(entries).encode(), bytes(2 * size)))
        for reader in (read_lora, read_tensors, read_entries):
            try:
                reader(path)
            except CheckpointError as error:
                assert str(error).isprintable()


def test_the_limits_leave_room_for_real_files(tmp_path: Path) -> None:
    """As many tensors as are read at all, each of four dimensions, with a trainer's notes."""
    tensors = {f"model.blocks.{i}.attn.weight": torch.zeros(1, 1, 1, 1) for i in range(20_000)}
    notes = {"ss_tags": json.dumps({f"tag {i}": i for i in range(50_000)})}
    save_file(tensors, tmp_path / "x.safetensors", notes)
    assert len(read_shapes(tmp_path / "x.safetensors")) == len(tensors)
    assert len(read_entries(tmp_path / "x.safetensors")) == len(tensors)
    torch.save({"model": tensors, "optimizer": {"state": {}}}, tmp_path / "x.pt")
    assert len(read_shapes(tmp_path / "x.pt")) == len(tensors)
    index = tmp_path / "x.index.json"
    index.write_text(json.dumps({"metadata": {"a": 1}, "weight_map": dict.fromkeys(tensors, "x")}))
    assert len(read_index(index)) == len(tensors)
