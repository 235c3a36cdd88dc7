"""An .onnx file as far as vkrt has to know it before a runtime reads it; needs no onnx package."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TypeVar

from vkrt.errors import CheckpointError
from vkrt.onnx_graph import External, Graph, GraphPort, Node, OnnxFile, Tensor
from vkrt.protobuf import BYTES, DamageError, Data, Reader, schema
from vkrt.weights.safety_limits import MAX_DIMENSIONS, MAX_GRAPH_DEPTH, MAX_GRAPH_FIELDS, shown

__all__ = ["parse_onnx", "read_onnx"]

T = TypeVar("T")

# The messages of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto: all that lead to tensors.
# Types, notes and devices are bytes here: nothing in them names a file.
FORMAT = {
    "model": "1:number 2:bytes 3:bytes 4:bytes 5:number 6:bytes 7:graph 8*:bytes 14*:bytes"
    " 20*:training 25*:function 26*:bytes",
    "training": "1:graph 2:graph 3*:bytes 4*:bytes",
    "function": "1:bytes 4*:bytes 5*:bytes 6*:bytes 7*:node 8:bytes 9*:bytes 10:bytes"
    " 11*:attribute 12*:bytes 13:bytes 14*:bytes",
    "graph": "1*:node 2:bytes 5*:tensor 10:bytes 11*:port 12*:port 13*:bytes 14*:bytes 15*:sparse"
    " 16*:bytes",
    "node": "1*:bytes 2*:bytes 3:bytes 4:bytes 5*:attribute 6:bytes 7:bytes 8:bytes 9*:bytes"
    " 10*:bytes",
    "attribute": "1:bytes 2:four 3:number 4:bytes 5:tensor 6:graph 7*:four 8*:number 9*:bytes"
    " 10*:tensor 11*:graph 13:bytes 14:bytes 15*:bytes 20:number 21:bytes 22:sparse 23*:sparse",
    "sparse": "1:tensor 2:tensor 3*:number",
    "tensor": "1*:number 2:number 3:bytes 4*:four 5*:number 6*:bytes 7*:number 8:bytes 9:bytes"
    " 10*:eight 11*:number 12:bytes 13*:entry 14:number 16*:bytes",
    "entry": "1:bytes 2:bytes",
    "port": "1:bytes 2:type 3:bytes 4*:bytes",
    "type": "1:tensor_type 4:bytes 5:bytes 6:bytes 7:bytes 8:bytes 9:bytes",
    "tensor_type": "1:number 2:shape",
    "shape": "1*:dimension",
    "dimension": "1:number 2:bytes 3:bytes",
}
MESSAGES = {name: schema(text) for name, text in FORMAT.items()}

# Bytes of an element of a tensor, by the number of its type, and numpy's name of the type.
SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
DTYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"},
    **{9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16"},
}
EXTERNAL = 1
# What an entry of external data may say.
LOCATION, OFFSET, LENGTH, CHECKSUM = "location", "offset", "length", "checksum"
ENTRIES = (LOCATION, OFFSET, LENGTH, CHECKSUM)
# A node of this kind has a provider's own file loaded, by a path in its attributes.
FOREIGN = "EPContext"
# Fields of a tensor that hold its numbers one by one, and the struct of those of fixed size.
TYPED = (4, 5, 7, 10, 11)
TYPED_FORMATS = {4: ("f", 4), 10: ("d", 8)}
FORMATS = {1: "f", 2: "B", 3: "b", 4: "H", 5: "h", 6: "i", 7: "q", 11: "d", 12: "I", 13: "Q"}
NOTES = (12, 16)
# Contents of tensors of at most so many numbers are kept: shapes have no more.
FEW = 16


@dataclass
class Draft:
    """Gather the fields of a tensor: `raw` from where to where, `typed` as the reader gave it."""

    name: str = ""
    type: int = 0
    location: int = 0
    shape: list[int] = field(default_factory=list)
    raw: tuple[int, int] | None = None
    entries: list[tuple[str, str]] = field(default_factory=list)
    typed: list[tuple[int, int, int, int]] = field(default_factory=list)


def read_onnx(path: Path) -> OnnxFile:
    """Return what an .onnx file says.

    Raises:
        CheckpointError: it is no readable .onnx file, or one that runtimes may read otherwise.
    """
    try:
        return parse_onnx(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable .onnx file ({error}); export the bundle again"
        ) from None


def parse_onnx(data: Data) -> OnnxFile:
    """Return what the content of an .onnx file says.

    Raises:
        ValueError: it is damaged, nested too deeply, has a node that loads files, or is such that
            readers may differ in what they make of it.
    """
    return Parser(data).model()


class Parser:
    """Read one file; each method reads a message at [at, end)."""

    def __init__(self, data: Data) -> None:
        self._reader = Reader(data, MAX_GRAPH_FIELDS)
        self._size = len(data)
        self._depth = 0
        self._found = OnnxFile()

    def model(self) -> OnnxFile:
        graphs = 0
        for _, message, _, first, last in self._fields(0, self._size, "model"):
            if message == "graph":
                graphs += 1
                self._found.graph = self._graph(first, last)
            elif message:
                self._found.extras.add(message)
                self._inside(message, first, last)
        if not graphs:
            raise DamageError("it has no graph")
        return self._found

    def _fields(self, at: int, end: int, name: str) -> Iterator[tuple[int, str, int, int, int]]:
        return self._reader.fields(at, end, MESSAGES[name])

    def _inside(self, message: str, at: int, end: int) -> None:
        """Read a message only for the tensors that it leads to."""
        self._enter()
        if message == "graph":
            self._graph(at, end)
        elif message == "node":
            self._node(at, end)
        elif message == "attribute":
            self._attribute(at, end, Node())
        elif message == "tensor":
            self._tensor(at, end)
        elif message == "port":
            self._port(at, end)
        else:
            for _, inner, _, first, last in self._fields(at, end, message):
                if inner:
                    self._inside(inner, first, last)
        self._depth -= 1

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_GRAPH_DEPTH:
            raise DamageError("nested too deeply")

    def _graph(self, at: int, end: int) -> Graph:
        self._enter()
        graph = Graph()
        for number, message, _, first, last in self._fields(at, end, "graph"):
            if message == "node":
                graph.nodes.append(self._node(first, last))
            elif message == "tensor":
                tensor = self._tensor(first, last)
                add_once(graph.constants, tensor.name, tensor)
            elif message == "port":
                port = self._port(first, last)
                add_once(graph.inputs if number == 11 else graph.outputs, port.name, port)
            elif message:
                self._found.extras.add(message)
                self._inside(message, first, last)
        self._depth -= 1
        return graph

    def _node(self, at: int, end: int) -> Node:
        node, kind, domain, text = Node(), "", "", self._reader.text
        for number, _, _, first, last in self._fields(at, end, "node"):
            if number == 1:
                node.inputs.append(text(first, last))
            elif number == 2:
                node.outputs.append(text(first, last))
            elif number == 4:
                kind = text(first, last)
            elif number == 5:
                self._attribute(first, last, node)
            elif number == 7:
                domain = text(first, last)
        if not kind:
            raise DamageError("a node has no operator")
        if kind == FOREIGN:
            raise ValueError(f"a node {FOREIGN} loads files of its own")
        node.operator = kind if domain in ("", "ai.onnx") else f"{domain}.{kind}"
        return node

    def _attribute(self, at: int, end: int, node: Node) -> None:
        name, numbers, tensor = "", [], None
        for number, message, kind, first, last in self._fields(at, end, "attribute"):
            if number == 1:
                name = self._reader.text(first, last)
            elif number in (3, 8):
                numbers += self._reader.numbers(kind, first, last)
            elif number == 5:
                tensor = self._tensor(first, last)
            elif message:
                node.has_graphs |= message == "graph"
                self._inside(message, first, last)
        if name in node.numbers or name in node.tensors:
            raise DamageError("an attribute comes twice")
        if numbers:
            node.numbers[name] = [signed(value) for value in numbers]
        if tensor is not None:
            node.tensors[name] = tensor

    def _tensor(self, at: int, end: int) -> Tensor:
        draft = Draft()
        for number, _, kind, first, last in self._fields(at, end, "tensor"):
            if number == 1:
                draft.shape += self._reader.numbers(kind, first, last)
            elif number == 2:
                draft.type = first
            elif number == 8:
                draft.name = self._reader.text(first, last)
            elif number == 9:
                draft.raw = first, last
            elif number == 13:
                draft.entries.append(self._entry(first, last))
            elif number == 14:
                draft.location = first
            elif number in TYPED:
                draft.typed.append((number, kind, first, last))
            elif number not in NOTES:
                raise DamageError("a tensor is one of texts, or in segments")
        return self._finish(draft)

    def _entry(self, at: int, end: int) -> tuple[str, str]:
        """Return the key and the value of what is said of a tensor outside."""
        found = {1: "", 2: ""}
        for number, _, _, first, last in self._fields(at, end, "entry"):
            found[number] = self._reader.text(first, last)
        return found[1], found[2]

    def _finish(self, draft: Draft) -> Tensor:
        """Return a tensor; what it holds has to be what it says, here or in another file."""
        if draft.type not in SIZES:
            raise DamageError(f"a tensor has the unknown type {draft.type}")
        shape = tuple(draft.shape)
        if len(shape) > MAX_DIMENSIONS or any(size >= 2**63 for size in shape):
            raise DamageError("a tensor has no possible shape")
        size = prod(shape) * SIZES[draft.type]
        if draft.location not in (0, EXTERNAL):
            raise DamageError(f"a tensor is at the unknown place {draft.location}")
        # Some readers go by the place, others by the entries.
        if draft.entries or draft.location == EXTERNAL:
            self._found.external.add(external(draft, size))
            return Tensor(draft.name, DTYPES[draft.type], shape, None)
        return Tensor(draft.name, DTYPES[draft.type], shape, self._content(draft, size))

    def _content(self, draft: Draft, size: int) -> tuple[float, ...] | None:
        """Return the numbers of a tensor if they are few."""
        count = prod(draft.shape)
        if draft.raw is not None:
            first, last = draft.raw
            if last - first != size or draft.typed:
                raise DamageError("a tensor has more or fewer bytes than its shape")
            if count > FEW or draft.type not in FORMATS:
                return None
            return struct.unpack(f"<{count}{FORMATS[draft.type]}", self._reader.data[first:last])
        if len({number for number, *_ in draft.typed}) > 1:
            raise DamageError("a tensor has numbers of two types")
        if count > FEW:
            # Of each number there is a byte at least.
            held = sum(last - first if kind == BYTES else 1 for _, kind, first, last in draft.typed)
            if held < count:
                raise DamageError("a tensor has fewer numbers than its shape")
            return None
        found = [value for each in draft.typed for value in self._typed(*each)]
        if len(found) != count:
            raise DamageError("a tensor has more or fewer numbers than its shape")
        return tuple(found)

    def _typed(self, number: int, kind: int, first: int, last: int) -> list[float]:
        """Return the numbers of a field of numbers of one type."""
        if number in TYPED_FORMATS:
            letter, size = TYPED_FORMATS[number]
            if (last - first) % size:
                raise DamageError("a tensor is cut off")
            count = (last - first) // size
            return list(struct.unpack(f"<{count}{letter}", self._reader.data[first:last]))
        return [signed(value) for value in self._reader.numbers(kind, first, last)]

    def _port(self, at: int, end: int) -> GraphPort:
        name, dtype, shape = "", "", None
        for number, message, _, first, last in self._fields(at, end, "port"):
            if number == 1:
                name = self._reader.text(first, last)
            elif message:
                dtype, shape = self._type(first, last)
        return GraphPort(name, dtype, shape)

    def _type(self, at: int, end: int) -> tuple[str, tuple[int | str | None, ...] | None]:
        """Return the type of the elements and the shape of a tensor."""
        dtype, shape = "", None
        for _, message, _, first, last in self._fields(at, end, "type"):
            if not message:
                raise DamageError("an input or output is no tensor")
            for _, inner, _, start, stop in self._fields(first, last, message):
                if inner:
                    shape = self._shape(start, stop)
                elif start not in DTYPES:
                    raise DamageError(f"an input or output has the unknown type {start}")
                else:
                    dtype = DTYPES[start]
        return dtype, shape

    def _shape(self, at: int, end: int) -> tuple[int | str | None, ...]:
        sizes: list[int | str | None] = []
        for *_, start, stop in self._fields(at, end, "shape"):
            size: int | str | None = None
            for number, _, _, first, last in self._fields(start, stop, "dimension"):
                if number == 3:
                    continue
                if size is not None:
                    raise DamageError("an axis has a size and a symbol")
                size = signed(first) if number == 1 else self._reader.text(first, last)
            sizes.append(size)
        if len(sizes) > MAX_DIMENSIONS:
            raise DamageError("an input or output has too many axes")
        return tuple(sizes)


def external(draft: Draft, size: int) -> External:
    """Return where a tensor of so many bytes is."""
    said = dict(draft.entries)
    if len(said) != len(draft.entries) or not said.keys() <= set(ENTRIES):
        raise DamageError("a tensor outside has entries that no writer writes")
    if draft.raw is not None or draft.typed or LOCATION not in said:
        raise DamageError("a tensor is both here and outside, or nowhere")
    offset, length = digits(said.get(OFFSET, "0")), digits(said.get(LENGTH, str(size)))
    if length != size:
        raise DamageError("a tensor outside has more or fewer bytes than its shape")
    return External(said[LOCATION], offset, length)


def digits(text: str) -> int:
    """Return a whole number that is written in the plainest way."""
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or str(int(text)) != text:
        raise DamageError(f"{text!r:.40} is no size")
    return int(text)


def signed(value: int) -> int:
    """Return a number of 64 bits that may be below zero."""
    return value - 2**64 if value >= 2**63 else value


def add_once(known: dict[str, T], name: str, value: T) -> None:
    """Add a value under a name that is new."""
    if name in known:
        raise DamageError(f"the name {shown(name, 60)} comes twice")
    known[name] = value
