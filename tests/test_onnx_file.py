""".onnx files are read as strictly as the strictest of their readers, and no other way."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from fuzz.mutators import join_fields, mutate, overlong, split_fields, varint, written
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper
from toys import WEIGHT, graph_model

from vkrt.errors import CheckpointError
from vkrt.onnx_file import FORMAT, parse_onnx, read_onnx
from vkrt.onnx_graph import External
from vkrt.protobuf import DamageError

ROOT = Path(__file__).resolve().parents[1]
# Numbers of fields.
GRAPH, NODE, INITIALIZER, EXTERNAL_DATA, LOCATION = 7, 1, 5, 13, 14
BYTES, NUMBER = 2, 0


def outside(location: str = "w.data", **entries: str) -> TensorProto:
    """Return a weight that is kept in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3], data_location=1)
    for key, value in ({"location": location} | entries).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model_of(tensor: TensorProto) -> onnx.ModelProto:
    return graph_model([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor])


def with_tensor(content: bytes) -> bytes:
    """Return a model whose only initializer has this content."""
    model = split_fields(model_of(outside()).SerializeToString())
    assert model is not None
    graph = split_fields(dict(model)[GRAPH << 3 | BYTES])
    assert graph is not None
    inner = [(t, content if t >> 3 == INITIALIZER else c) for t, c in graph]
    return join_fields([(t, join_fields(inner) if t >> 3 == GRAPH else c) for t, c in model])


def entry(key: str, value: str) -> bytes:
    return written(1 << 3 | BYTES, key.encode()) + written(2 << 3 | BYTES, value.encode())


# What it holds.


def test_the_format_is_that_of_onnx() -> None:
    """Every field has the kind that the package has for it, and none is missing."""
    messages = {
        **{"model": "ModelProto", "training": "TrainingInfoProto", "function": "FunctionProto"},
        **{"graph": "GraphProto", "node": "NodeProto", "attribute": "AttributeProto"},
        **{"sparse": "SparseTensorProto", "tensor": "TensorProto", "port": "ValueInfoProto"},
        **{"entry": "StringStringEntryProto", "type": "TypeProto"},
        **{"shape": "TensorShapeProto"},
    }
    kinds = {1: "eight", 2: "four", 3: "number", 4: "number", 5: "number", 14: "number"}
    for name, message in messages.items():
        stated = dict(item.split(":") for item in FORMAT[name].split())
        fields = getattr(onnx, message).DESCRIPTOR.fields
        found = {
            f"{f.number}{'*' if f.is_repeated else ''}": kinds.get(f.type, "bytes") for f in fields
        }
        assert stated.keys() == found.keys(), name
        for number, kind in stated.items():
            is_kind = kind in ("number", "four", "eight", "bytes")
            assert found[number] == (kind if is_kind else "bytes"), (name, number)


def test_a_graph_is_read() -> None:
    constant = helper.make_node("Constant", [], ["s"], value_ints=[-1, 2**62])
    gelu = helper.make_node("Gelu", ["x", "", "s"], ["y"], domain="com.microsoft")
    graph = parse_onnx(graph_model([constant, gelu], []).SerializeToString()).graph
    first, second = graph.nodes
    assert (first.operator, first.outputs, first.numbers["value_ints"]) == (
        *("Constant", ["s"]),
        [-1, 2**62],
    )
    assert (second.operator, second.inputs) == ("com.microsoft.Gelu", ["x", "", "s"])
    port = graph.inputs["x"]
    assert (port.dtype, port.shape, graph.outputs["y"].shape) == ("float32", ("n", 4), ("n", 3))


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "int8", "uint16", "int32", "int64", "bool"]
)
@pytest.mark.parametrize("is_raw", [True, False])
def test_small_constants_are_read(dtype: str, is_raw: bool) -> None:
    values = np.array([[0, 1], [1, 0]], dtype)
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    content = values.tobytes() if is_raw else values.ravel()
    tensor = helper.make_tensor("w", kind, [2, 2], content, raw=is_raw)
    found = parse_onnx(graph_model([], [tensor]).SerializeToString()).graph.constants["w"]
    assert (found.dtype, found.shape) == (dtype, (2, 2))
    assert found.values == (None if dtype == "bool" and is_raw else (0, 1, 1, 0))


def test_large_constants_are_only_measured() -> None:
    tensor = numpy_helper.from_array(np.ones((8, 8), np.float32), "w")
    assert parse_onnx(model_of(tensor).SerializeToString()).graph.constants["w"].values is None


def test_data_outside_is_found() -> None:
    found = parse_onnx(model_of(outside(offset="8", length="48")).SerializeToString())
    assert found.external == {External("w.data", 8, 48)}
    # Without a length it is as long as its shape says.
    found = parse_onnx(model_of(outside()).SerializeToString())
    assert found.external == {External("w.data", 0, 48)}


# What readers may take in different ways.

ENTRIES = written(EXTERNAL_DATA << 3 | BYTES, entry("location", "w.data"))
TENSOR = written(1 << 3, b"\4") + written(1 << 3, b"\3") + written(2 << 3, b"\1")
NAME = written(8 << 3 | BYTES, b"w")
AT = written(LOCATION << 3, b"\1")
SOUND = TENSOR + NAME + ENTRIES + AT
FIELD = EXTERNAL_DATA << 3 | BYTES
# A reader of 32-bit tags drops the highest bits of the fifth byte, one of 64-bit tags does not.
HIDDEN = varint(FIELD | 1 << 32) + written(FIELD, entry("location", "hidden"))[1:]
TRICKS = {
    "a tag beyond 32 bits": TENSOR + NAME + HIDDEN + AT,
    "a tag of six bytes": TENSOR + NAME + overlong(FIELD, 6) + ENTRIES[1:] + AT,
    "a tag of two bytes where one does": TENSOR + NAME + overlong(FIELD, 2) + ENTRIES[1:] + AT,
    "a long length": TENSOR
    + NAME
    + bytes([FIELD])
    + overlong(len(ENTRIES) - 2, 3)
    + ENTRIES[2:]
    + AT,
    "a length of 64 bits": TENSOR + NAME + bytes([FIELD]) + varint(2**64 - 1) + ENTRIES[2:] + AT,
    "a field of number 0": SOUND + b"\2\1a",
    "a group": SOUND + b"\x0b\x0c",
    "an unknown kind": SOUND + b"\x0e\1",
    "an unknown field": SOUND + written(100 << 3 | BYTES, b"a"),
    "two names": SOUND + NAME,
    "two places": SOUND + written(LOCATION << 3, b"\0"),
    "a place as bytes": TENSOR + NAME + ENTRIES + written(LOCATION << 3 | BYTES, b"\1"),
    "a place beyond 32 bits": TENSOR + NAME + ENTRIES + written(LOCATION << 3, varint(2**32)),
    "an unknown place": TENSOR + NAME + ENTRIES + written(LOCATION << 3, b"\2"),
    "entries as a number": TENSOR + NAME + varint(EXTERNAL_DATA << 3) + b"\1" + AT,
    "two locations": SOUND + written(FIELD, entry("location", "hidden")),
    "a key twice in an entry": TENSOR
    + NAME
    + written(FIELD, entry("location", "w.data") + written(1 << 3 | BYTES, b"offset"))
    + AT,
    "an unknown key": SOUND + written(FIELD, entry("basepath", "..")),
    "no location": TENSOR + NAME + AT,
    "data here and outside": SOUND + written(9 << 3 | BYTES, bytes(48)),
    "a sign": SOUND + written(FIELD, entry("offset", "-1")),
    "a space": SOUND + written(FIELD, entry("offset", " 1")),
    "a zero in front": SOUND + written(FIELD, entry("offset", "01")),
    "another digit": SOUND + written(FIELD, entry("offset", "\u0661")),
    "a huge offset": SOUND + written(FIELD, entry("offset", "9" * 25)),
    "another length": SOUND + written(FIELD, entry("length", "47")),
    "a location that is no text": TENSOR
    + NAME
    + written(FIELD, written(1 << 3 | BYTES, b"location") + written(2 << 3 | BYTES, b"\xff"))
    + AT,
    "texts": TENSOR + NAME + written(6 << 3 | BYTES, b"a"),
    "a segment": TENSOR + NAME + written(3 << 3 | BYTES, b"\x08\1"),
    "a type beyond 32 bits": written(1 << 3, b"\4") + written(2 << 3, varint(2**32 | 1)) + NAME,
    "too few bytes": TENSOR + NAME + written(9 << 3 | BYTES, bytes(47)),
    "too few numbers": TENSOR + NAME + written(4 << 3 | BYTES, bytes(44)),
    "no numbers": TENSOR + NAME,
    "numbers of two types": TENSOR + NAME + written(4 << 3 | BYTES, bytes(48)) + b"\x28\1",
}


def test_the_sound_tensor_is_read() -> None:
    content = with_tensor(SOUND)
    assert parse_onnx(content).external == {External("w.data", 0, 48)}
    assert onnx.ModelProto.FromString(content) == model_of(outside())


@pytest.mark.parametrize("trick", list(TRICKS))
def test_what_no_writer_writes_is_refused(trick: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(with_tensor(TRICKS[trick]))
    with pytest.raises(CheckpointError, match=r"m\.onnx is not a readable \.onnx file") as caught:
        read_onnx(path)
    assert "\n" not in str(caught.value)


def test_names_come_once() -> None:
    twice = graph_model([], [numpy_helper.from_array(WEIGHT, "w")] * 2)
    with pytest.raises(DamageError, match="comes twice"):
        parse_onnx(twice.SerializeToString())
    whole = graph_model([], []).SerializeToString()
    with pytest.raises(DamageError, match="field 1 comes twice"):
        parse_onnx(whole + whole)


def tensors_of(message: object) -> Iterator[TensorProto]:
    """Give every tensor below a message, as onnx reads it."""
    if isinstance(message, TensorProto):
        yield message
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                yield from tensors_of(each)


def in_branch() -> onnx.ModelProto:
    inner = helper.make_graph([], "g", [], [], [outside("inner")])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    return graph_model([node], [])


def in_constant() -> onnx.ModelProto:
    return graph_model([helper.make_node("Constant", [], ["w"], value=outside(length="48"))], [])


MODELS: tuple[Callable[[], onnx.ModelProto], ...] = (
    *(lambda: model_of(outside(offset="8")), in_branch, in_constant),
)


def test_nothing_that_onnx_finds_is_missed() -> None:
    """Of 5,000 damaged models each is refused, or its data outside is known to the last tensor."""
    seeds = [make().SerializeToString() for make in MODELS]
    read = same = 0
    for number in range(5000):
        content = mutate(random.Random(number), seeds, "protobuf")
        try:
            found = parse_onnx(content)
        except ValueError:
            continue
        read += 1
        locations = {each.location for each in found.external}
        try:
            model = onnx.ModelProto.FromString(content)
        except DecodeError:
            continue
        for tensor in tensors_of(model):
            stated = {each.value for each in tensor.external_data if each.key == "location"}
            if tensor.data_location == TensorProto.EXTERNAL:
                assert stated
            assert stated <= locations
            same += bool(stated)
    assert read > 500 and same > 500


# Small files that would take much.


def repeated(field: int, content: bytes, size: int) -> bytes:
    one = written(field << 3 | BYTES, content)
    return one * (size // len(one))


MANY = {
    "empty entries": lambda n: with_tensor(TENSOR + NAME + repeated(EXTERNAL_DATA, b"", n)),
    "sizes": lambda n: with_tensor(written(1 << 3, b"\1") * (n // 2) + NAME),
    "packed sizes": lambda n: with_tensor(written(1 << 3 | BYTES, b"\1" * n) + NAME),
    "nodes": lambda n: written(GRAPH << 3 | BYTES, repeated(NODE, b"\x22\1a", n)),
    "inputs": lambda n: written(
        GRAPH << 3 | BYTES, written(NODE << 3 | BYTES, repeated(1, b"", n) + b"\x22\1a")
    ),
    "attributes": lambda n: written(
        GRAPH << 3 | BYTES, written(NODE << 3 | BYTES, repeated(5, b"", n) + b"\x22\1a")
    ),
    "types": lambda n: written(GRAPH << 3 | BYTES, repeated(13, b"", n)),
    "opsets": lambda n: repeated(8, b"", n),
}


@pytest.mark.parametrize("what", list(MANY))
def test_a_small_file_takes_little(what: str) -> None:
    content = MANY[what](1_000_000)
    assert 990_000 < len(content) < 1_010_000
    tracemalloc.start()
    try:
        with pytest.raises(DamageError, match=r"than any file of its kind|twice"):
            parse_onnx(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000_000
