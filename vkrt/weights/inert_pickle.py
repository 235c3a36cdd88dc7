"""Read a pickle without running it: plain values and stand-ins, in time and memory of its size."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

from vkrt.weights.safety_limits import MAX_INTEGER_BYTES, MAX_PICKLE_STEPS, shown

__all__ = ["CodeFoundError", "Inert", "Reader", "read_pickle"]

# What training scripts keep beside weights and what can do no harm where it is really built;
# anything else of Python itself means code: no file of weights has a use for it.
HARMLESS = frozenset(
    {
        *(f"builtins.{name}" for name in ("set", "frozenset", "complex", "slice", "range")),
        *(f"builtins.{name}" for name in ("object", "list", "tuple", "int", "float", "str")),
        *(f"builtins.{name}" for name in ("bool", "bytes", "dict")),
        *(f"collections.{name}" for name in ("OrderedDict", "defaultdict", "Counter", "deque")),
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        *(
            f"pathlib.{system}{kind}Path"
            for system in ("Posix", "Windows")
            for kind in ("", "Pure")
        ),
        *("pathlib.PurePosixPath", "pathlib.PureWindowsPath", "pathlib.Path"),
        *("argparse.Namespace", "types.SimpleNamespace", "decimal.Decimal", "fractions.Fraction"),
        *("uuid.UUID", "copyreg._reconstructor", "copyreg.__newobj__", "_codecs.encode"),
    }
)
# As Python 2 called them, which pickles up to protocol 2 keep.
OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
MAX_NAME_BYTES = 300
# Their hashes are their values: larger integers can be made to have one hash all together.
MAX_KEY = 2**60


class CodeFoundError(Exception):
    """Raised for a pickle that names code; the message is the name."""


class Inert:
    """Stand for an object of a class that is not built, or for the class.

    Attributes:
        name: the class, as "module.name".
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


Call = Callable[..., Any]


class Reader:
    """Say what a pickle's names mean: what is not in here becomes an Inert.

    Args:
        calls: functions by "module.name", for what is called or built.
        persistent: makes something of a persistent id.
    """

    def __init__(self, calls: Mapping[str, Call], persistent: Call | None = None) -> None:
        self.calls = calls
        self.persistent = persistent
        self.allowed = HARMLESS | calls.keys()


def read_pickle(data: bytes, reader: Reader, start: int = 0) -> tuple[Any, int]:
    """Return what a pickle (protocol 2 to 5) holds, and where it ends.

    Nothing is imported or called but `reader`'s functions. Every step of the pickle makes at most
    one small object, so that neither the time nor the memory grows faster than the file: there is
    no nesting that would be walked, and a dict's key is a string or a small integer, or else an
    Inert, as the hash of a nested tuple would take for ever.

    Raises:
        CodeFoundError: it names code.
        ValueError, IndexError, TypeError, ...: it is damaged, or beyond the limits.
    """
    machine = Machine(data, reader, start)
    for _ in range(MAX_PICKLE_STEPS):
        if machine.step():
            return machine.stack.pop(), machine.at
    raise ValueError(f"its pickle takes more than {MAX_PICKLE_STEPS:,} steps")


class Machine:
    """Hold the state of a pickle that is read: a stack, marks in it, and a memo."""

    def __init__(self, data: bytes, reader: Reader, start: int) -> None:
        self.data = data
        self.at = start
        self.reader = reader
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self) -> bool:
        """Do one step; return whether it was the last."""
        code = self.data[self.at]
        self.at += 1
        if code == STOP:
            return True
        operation = OPERATIONS.get(code)
        if operation is None:
            raise ValueError(f"its pickle has the step {code:#x}, which weights do not need")
        operation(self)
        return False

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        end = self.at + size
        if end > len(self.data):
            raise ValueError("its pickle ends too early")
        part = self.data[self.at : end]
        self.at = end
        return part

    def number(self, size: int) -> int:
        """Return an unsigned number of so many bytes."""
        return int.from_bytes(self.take(size), "little")

    def text(self, size: int) -> str:
        """Return a string whose length takes so many bytes."""
        return self.take(self.number(size)).decode("utf-8", "surrogatepass")

    def line(self) -> str:
        """Return a line of a name."""
        end = self.data.index(b"\n", self.at, self.at + MAX_NAME_BYTES)
        part = self.data[self.at : end]
        self.at = end + 1
        return part.decode("utf-8")

    def since_mark(self) -> list[Any]:
        """Take off the stack what lies above the last mark."""
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def top(self, size: int) -> list[Any]:
        """Take the uppermost values off the stack."""
        if len(self.stack) < size:
            raise ValueError("its pickle takes more than it has")
        taken = self.stack[-size:]
        del self.stack[-size:]
        return taken

    def integer(self, size: int) -> int:
        """Return a signed integer whose length takes so many bytes."""
        length = self.number(size)
        if length > MAX_INTEGER_BYTES:
            raise ValueError(f"its pickle has an integer of {length:,} bytes")
        return int.from_bytes(self.take(length), "little", signed=True)

    def find(self, module: str, name: str) -> Inert:
        """Return what stands for a class or function."""
        full = f"{OLD_NAMES.get(module, module)}.{name}"
        if len(full) > MAX_NAME_BYTES:
            raise ValueError("its pickle has an endless name")
        top = full.partition(".")[0]
        if top in sys.stdlib_module_names and full not in self.reader.allowed:
            raise CodeFoundError(shown(full))
        return Inert(full)

    def call(self, what: Any, arguments: Any) -> Any:
        """Return what a call is to give."""
        if not isinstance(what, Inert) or not isinstance(arguments, tuple):
            raise ValueError("its pickle calls what is no function")
        known = self.reader.calls.get(what.name)
        return Inert(what.name) if known is None else known(*arguments)

    def persistent(self, saved_id: Any) -> Any:
        """Return what a persistent id stands for."""
        if self.reader.persistent is None:
            raise ValueError("its pickle refers to something outside")
        return self.reader.persistent(saved_id)

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values, one after the other, into the dict on the stack."""
        target = self.stack[-1]
        if len(items) % 2:
            raise ValueError("its pickle has a key without a value")
        if isinstance(target, dict):
            target.update(zip(map(as_key, items[::2]), items[1::2], strict=True))
        elif not isinstance(target, Inert):
            raise ValueError("its pickle sets items of what has none")

    def append(self, items: list[Any]) -> None:
        """Put values behind those of the list on the stack."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise ValueError("its pickle appends to what is no list")


def as_key(value: Any) -> Any:
    """Return a key for a dict, a stand-in for one that is expensive to hash or to compare."""
    if isinstance(value, str) or (isinstance(value, int) and abs(value) < MAX_KEY):
        return value
    return Inert(type(value).__name__)


Operation = Callable[[Machine], None]
STOP = ord(".")


def push(make: Callable[[Machine], Any]) -> Operation:
    """Return the step that puts a value onto the stack."""

    def operation(machine: Machine) -> None:
        machine.stack.append(make(machine))

    return operation


def do(act: Callable[[Machine], object]) -> Operation:
    """Return the step that only acts."""

    def operation(machine: Machine) -> None:
        act(machine)

    return operation


def memoize(machine: Machine, index: int) -> None:
    """Keep the top of the stack under a number."""
    machine.memo[index] = machine.stack[-1]


def reduce(machine: Machine) -> Any:
    """Return the result of calling the second value from the top with the top."""
    what, arguments = machine.top(2)
    return machine.call(what, arguments)


def frozen(machine: Machine) -> Inert:
    """Return what stands for a frozenset: its values would have to be hashed."""
    machine.since_mark()
    return Inert("builtins.frozenset")


def float_of(machine: Machine) -> float:
    """Return a float of 8 bytes, big-endian."""
    (value,) = struct.unpack(">d", machine.take(8))
    return float(value)


def signed(machine: Machine) -> int:
    """Return a signed integer of 4 bytes."""
    return int.from_bytes(machine.take(4), "little", signed=True)


def found(machine: Machine) -> Any:
    """Return what two strings on the stack name."""
    module, name = machine.top(2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("its pickle has a name that is no text")
    return machine.find(module, name)


# https://docs.python.org/3/library/pickletools.html; steps of protocols 0 and 1, of extensions and
# of buffers outside the pickle are left out: torch.save writes none.
OPERATIONS: dict[int, Operation] = {
    ord("\x80"): do(lambda m: m.take(1)),
    ord("\x95"): do(lambda m: m.take(8)),
    ord("("): do(lambda m: m.marks.append(len(m.stack))),
    ord("0"): do(lambda m: m.top(1)),
    ord("1"): do(lambda m: m.since_mark()),
    ord("2"): push(lambda m: m.stack[-1]),
    ord("N"): push(lambda m: None),
    ord("\x88"): push(lambda m: True),
    ord("\x89"): push(lambda m: False),
    ord("K"): push(lambda m: m.number(1)),
    ord("M"): push(lambda m: m.number(2)),
    ord("J"): push(signed),
    ord("\x8a"): push(lambda m: m.integer(1)),
    ord("\x8b"): push(lambda m: m.integer(4)),
    ord("G"): push(float_of),
    ord("\x8c"): push(lambda m: m.text(1)),
    ord("X"): push(lambda m: m.text(4)),
    ord("\x8d"): push(lambda m: m.text(8)),
    ord("U"): push(lambda m: m.take(m.number(1)).decode("latin-1")),
    ord("T"): push(lambda m: m.take(m.number(4)).decode("latin-1")),
    ord("C"): push(lambda m: m.take(m.number(1))),
    ord("B"): push(lambda m: m.take(m.number(4))),
    ord("\x8e"): push(lambda m: m.take(m.number(8))),
    ord("\x96"): push(lambda m: m.take(m.number(8))),
    ord(")"): push(lambda m: ()),
    ord("\x85"): push(lambda m: tuple(m.top(1))),
    ord("\x86"): push(lambda m: tuple(m.top(2))),
    ord("\x87"): push(lambda m: tuple(m.top(3))),
    ord("t"): push(lambda m: tuple(m.since_mark())),
    ord("]"): push(lambda m: []),
    ord("a"): do(lambda m: m.append(m.top(1))),
    ord("e"): do(lambda m: m.append(m.since_mark())),
    ord("}"): push(lambda m: {}),
    ord("s"): do(lambda m: m.set_items(m.top(2))),
    ord("u"): do(lambda m: m.set_items(m.since_mark())),
    ord("\x8f"): push(lambda m: Inert("builtins.set")),
    ord("\x90"): do(lambda m: m.since_mark()),
    ord("\x91"): push(frozen),
    ord("q"): do(lambda m: memoize(m, m.number(1))),
    ord("r"): do(lambda m: memoize(m, m.number(4))),
    ord("\x94"): do(lambda m: memoize(m, len(m.memo))),
    ord("h"): push(lambda m: m.memo[m.number(1)]),
    ord("j"): push(lambda m: m.memo[m.number(4)]),
    ord("c"): push(lambda m: m.find(m.line(), m.line())),
    ord("\x93"): push(found),
    ord("R"): push(reduce),
    ord("\x81"): push(reduce),
    ord("\x92"): push(lambda m: m.call(*m.top(3)[:2])),
    # What an object was like is of no use without its class.
    ord("b"): do(lambda m: m.top(1)),
    ord("Q"): push(lambda m: m.persistent(*m.top(1))),
}
