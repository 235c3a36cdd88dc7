"""Pickles of unknown origin: read like torch's own, or refused, at the cost of their size."""

from __future__ import annotations

import argparse
import collections
import datetime
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from bounded import MEGABYTE, outcomes

from vkrt.errors import CheckpointError
from vkrt.weights.checkpoint import read_shapes, read_tensors
from vkrt.weights.inert_pickle import CodeFoundError, Inert, Reader, read_pickle
from vkrt.weights.safety_limits import MAX_PICKLE_STEPS

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, 2.0])}
PLAIN = Reader({"collections.OrderedDict": lambda *_: {}})


class Meter:
    """Stand for what a training script keeps of its own."""

    def __init__(self) -> None:
        self.best = {"score": 0.5}


def plain(value: Any, protocol: int) -> Any:
    return read_pickle(pickle.dumps(value, protocol), PLAIN)[0]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_as_pickle_reads_them(protocol: int) -> None:
    shared = [1, 2]
    value = {
        "numbers": [0, 255, 256, 65536, -1, 2**31, -(2**70), 1.5, float("inf"), True, False, None],
        "texts": ["", "ä\n", "x" * 300, "\ud800", "y" * 70_000],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((1,), [2])],
        "shared": [shared, shared],
        7: {"deep": {"deeper": {}}},
        "ordered": collections.OrderedDict([]),
    }
    found = plain(value, protocol)
    assert found == value and list(found) == list(value)
    assert found["shared"][0] is found["shared"][1]
    assert plain({"b": b"\x00\xff"}, 3) == {"b": b"\x00\xff"}


def test_objects_become_stand_ins() -> None:
    for value, name in (
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (Meter(), f"{Meter.__module__}.Meter"),
        ({1, 2}, "builtins.set"),
        (datetime.timedelta(1), "datetime.timedelta"),
        (PurePosixPath("x"), "pathlib.PurePosixPath"),
        (np.float64(1.5), type(np.float64(1).__reduce__()[0]).__name__),
    ):
        for protocol in (2, 4):
            found = plain([value, 1], protocol)
            assert isinstance(found[0], Inert) and found[1] == 1
            assert name in found[0].name or name == "builtin_function_or_method"
    # A key that is costly to hash is one too.
    (key,) = plain({(1, 2): 3}, 2)
    assert isinstance(key, Inert)


@pytest.mark.parametrize(
    "call",
    [
        (eval, ("1",)),
        (exec, ("1",)),
        (getattr, (1, "real")),
        (bytearray, (2_500_000_000,)),
        (open, ("x", "w")),
        (__import__, ("os",)),
    ],
)
def test_code_is_named_and_not_run(call: tuple[Callable[..., Any], tuple[Any, ...]]) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return call

    for protocol in (2, 4, 5):
        with pytest.raises(CodeFoundError, match=call[0].__name__):
            plain([Evil()], protocol)


def test_what_lies_beside_the_weights_is_left_out(tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(lr=1),
        "best": np.float64(0.5),
        "curve": np.arange(5),
        "meter": Meter(),
        "when": datetime.datetime(2024, 1, 1),
        "loss": {"mask": torch.tensor(0.1)},
        "optimizer": {
            "state": {i: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 2)} for i in (0, 1)},
            "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0, 1]}],
        },
        "seen": {1, 2},
        "names": frozenset({"a"}),
        "place": PurePosixPath("x"),
        "rng": torch.random.get_rng_state(),
    }
    for new in (True, False):
        torch.save({"model": WEIGHTS, **beside}, tmp_path / "x.pt", None or pickle, 2, new)
        found = read_tensors(tmp_path / "x.pt")
        assert found.keys() == WEIGHTS.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in WEIGHTS.items())


def test_every_kind_of_tensor_comes_as_it_was(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    marked = torch.nn.Parameter(torch.ones(2))
    marked.note = 1
    state = {
        **{
            str(dtype): torch.arange(3).to(dtype)
            for dtype in (
                *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64),
                *(torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint16),
                *(torch.float8_e4m3fn, torch.float8_e5m2),
            )
        },
        "parameter": torch.nn.Parameter(base[0].clone()),
        "parameter with a note": marked,
        "view": base[1, :, 1:3],
        "turned": base.permute(2, 0, 1),
        "same": base,
        "scalar": torch.tensor(7.0),
        "nothing": torch.zeros(0, 3),
    }
    for new in (True, False):
        path = tmp_path / f"{new}.pt"
        torch.save(state, path, _use_new_zipfile_serialization=new)
        found, shapes = read_tensors(path), read_shapes(path)
        assert found.keys() == state.keys()
        for name, tensor in state.items():
            assert found[name].dtype == tensor.dtype, name
            assert torch.equal(found[name].float(), tensor.detach().float()), name
            assert shapes[name] == tuple(tensor.shape)


def program(*steps: bytes) -> bytes:
    return b"\x80\x02" + b"".join(steps) + b"."


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def function(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def storage(key: str = "0", count: bytes = b"K\x04", kind: str = "FloatStorage") -> bytes:
    return (
        b"(" + text("storage") + function("torch", kind) + text(key) + text("cpu") + count + b"tQ"
    )


def tensor(shape: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85", of: bytes = b"") -> bytes:
    made = function("torch._utils", "_rebuild_tensor_v2") + b"(" + (of or storage())
    return made + b"K\x00" + shape + stride + b"\x89}tR"


LONG = b"\x8a\x08" + struct.pack("<q", 2**62)
MANY = 200_000
# A small program each; what it would cost a reader that does as it is told is beside it.
HOSTILE: dict[str, bytes] = {
    "2.5 GB by one call": program(
        function("__builtin__", "bytearray"), b"\x8a\x05" + struct.pack("<q", 2_500_000_000)[:5],
        b"\x85R",
    ),
    "a key that takes for ever": program(b"}", b"K\x01", b"q\x002\x86" * 45, b"K\x01s"),
    "the same by memo": program(b"}K\x01q\x00", b"h\x00h\x00\x86q\x00" * 60, b"K\x01s"),
    "in a frozenset": program(b"(K\x01", b"2\x86" * 60, b"\x91"),
    "in a set": program(b"\x8f(K\x01", b"2\x86" * 60, b"\x90"),
    "lists of lists, doubled": program(b"]q\x00", b"](h\x00h\x00eq\x00" * 60),
    "a nest": program(b"]" * MANY, b"a" * (MANY - 1)),
    "a nest of tuples": program(b")", b"\x85" * MANY),
    "a nest of keys": program(b"}", b")", b"\x85" * MANY, b"Ns"),
    "marks": program(b"(" * MANY, b"N"),
    "memo": program(b"N", b"".join(b"r" + struct.pack("<I", i) for i in range(MANY))),
    "memo far out": program(b"N", b"r\xff\xff\xff\xff"),
    "many dicts": program(b"(", b"}" * MANY, b"t"),
    "too many steps": program(b"N0" * MAX_PICKLE_STEPS),
    "no end": b"\x80\x02" + b"N" * 1000,
    "an integer of a megabyte": program(b"\x8b" + struct.pack("<i", MEGABYTE), b"\x7f" * MEGABYTE),
    "an integer of -1 bytes": program(b"\x8b\xff\xff\xff\xff"),
    "text beyond the file": program(b"X\xff\xff\xff\xff"),
    "bytes beyond the file": program(b"\x8e" + b"\xff" * 8),
    "keys of one hash": program(
        b"}(",
        b"".join(b"\x8a\x0c" + (i * (2**61 - 1) + 2**62).to_bytes(12, "little") + b"N"
                 for i in range(1, 200_000)),
        b"u",
    ),
    "extension": program(b"\x82\x01"),
    "a buffer outside": program(b"\x97"),
    "an instance of old": program(b"(i__builtin__\neval\n"),
    "a number as text": program(b"L" + b"9" * 100_000 + b"L\n"),
    "a name without end": program(b"c" + b"x" * MEGABYTE),
    "a call of a list": program(b"])R"),
    "nothing to call": program(b"R"),
    "a class from a number": program(b"K\x01K\x02\x93"),
    "a call within": program(
        function("torch._tensor", "_rebuild_from_type_v2") * 2, b"N", b"(NNNNt", b"N(tR"
    ),
    "a call in itself": program(
        function("torch._tensor", "_rebuild_from_type_v2"), b"q\x00", b"(h\x00Nq\x01(h\x00NNNtNtR"
    ),
    "a dict in itself": program(
        b"}q\x00(" + text("model") + b"h\x00" + text("net") + b"h\x00" + text("ema") + b"h\x00",
        b"".join(text(f"k{i}") + b"h\x00" for i in range(5000)),
        b"u",
    ),
    "dicts in dicts": program(
        b"}q\x00" + (b"}(" + b"".join(text(f"k{i}") + b"h\x00" for i in range(50)) + b"uq\x00") * 8
    ),
    "4 GB by a stride of 0": program(b"}", text("a"), tensor(LONG + b"\x85", b"K\x00\x85"), b"s"),
    "a product beyond 64 bits": program(
        b"}", text("a"), tensor(b"(" + LONG * 60 + b"t", b"(" + b"K\x00" * 60 + b"t"), b"s"
    ),
    "100,000 dimensions": program(
        b"}", text("a"), tensor(b"(" + b"K\x01" * 100_000 + b"t", b"(" + b"K\x01" * 100_000 + b"t"),
        b"s",
    ),
    "a storage of 2**62 values": program(b"}", text("a"), tensor(of=storage(count=LONG)), b"s"),
    "a negative size": program(b"}", text("a"), tensor(number(-4) + b"\x85"), b"s"),
    "a negative stride": program(b"}", text("a"), tensor(stride=number(-1) + b"\x85"), b"s"),
    "a stride beyond": program(b"}", text("a"), tensor(stride=b"K\x02\x85"), b"s"),
    "a storage that is not there": program(b"}", text("a"), tensor(of=storage("1")), b"s"),
    "a key with slashes": program(b"}", text("a"), tensor(of=storage("../data.pkl")), b"s"),
    "a storage of no kind": program(b"}", text("a"), tensor(of=storage(kind="load")), b"s"),
    "two names of one": program(
        b"}(", text("a") + tensor() + text("module.a") + tensor() + b"u"
    ),
}  # fmt: skip


def write(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/byteorder", "little")
        archive.writestr("x/data/0", struct.pack("<4f", 1, 2, 3, 4))
    return path


def test_the_programs_are_built_right(tmp_path: Path) -> None:
    """Without the hostile part, the same steps give a tensor, to torch too."""
    path = write(tmp_path / "x.pt", program(b"}", text("a"), tensor(), b"s"))
    assert read_tensors(path)["a"].tolist() == [1, 2, 3, 4]
    assert pickle.loads(HOSTILE["lists of lists, doubled"][:14] + b".") == [[], []]


def test_hostile_programs_cost_little(tmp_path: Path) -> None:
    """Each is refused or read within 10 s of CPU a dozen and 100 MB, whatever it asks for."""
    paths = [write(tmp_path / f"{i}.pt", data) for i, data in enumerate(HOSTILE.values())]
    legacy = tmp_path / "legacy.pt"
    torch.save(WEIGHTS, legacy, _use_new_zipfile_serialization=False)
    start = legacy.read_bytes().index(b"\x80\x02}q", 40)
    for i, data in enumerate(HOSTILE.values()):
        paths.append(tmp_path / f"legacy{i}.pt")
        paths[-1].write_bytes(legacy.read_bytes()[:start] + data)
    setup = "from vkrt.weights.checkpoint import read_tensors as read"
    results = outcomes(setup, paths)
    assert len(results) == 2 * len(HOSTILE)
    for name, (grown, said) in zip([*HOSTILE, *HOSTILE], results, strict=True):
        assert said.startswith("CheckpointError"), (name, said)
        assert grown < 100 * MEGABYTE, (name, grown)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("2.5 GB by one call", "holds Python code beside tensors (builtins.bytearray)"),
        ("a key that takes for ever", "holds no tensors by name but tuple"),
        ("4 GB by a stride of 0", "save it dense"),
        ("a stride beyond", "truncated or damaged"),
        ("two names of one", "a comes twice"),
    ],
)
def test_it_is_said_what_is_wrong(tmp_path: Path, kind: str, words: str) -> None:
    path = write(tmp_path / "x.pt", HOSTILE[kind])
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    assert words in str(caught.value)


def test_tied_weights_are_read(tmp_path: Path) -> None:
    tied = torch.arange(5000.0)
    torch.save({"a": tied, "b": tied, "c": tied[10:]}, tmp_path / "x.pt")
    found = read_tensors(tmp_path / "x.pt")
    assert torch.equal(found["b"], tied) and torch.equal(found["c"], tied[10:])


def test_a_tensor_under_many_names_is_refused(tmp_path: Path) -> None:
    """Each copy that a caller makes of them would take its memory anew."""
    tied = torch.arange(5000.0)
    torch.save({str(i): tied for i in range(10)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="save each once"):
        read_tensors(tmp_path / "x.pt")
