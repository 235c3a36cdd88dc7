"""The C++ part: it is there, refuses bad arrays, and gives what its stand-ins give."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vkrt.media import fallback, native

compiled = pytest.mark.skipif(not native.available(), reason=f"{native.why_missing()}")
ROOT = Path(__file__).resolve().parent.parent
operations = native.operations
UNIT = (1.0, 1.0, 1.0)
NONE = (0.0, 0.0, 0.0)
PHOTO = np.zeros((4, 5, 3), np.uint8)
LOGITS = np.zeros((1, 4, 5), np.float32)
MASKS = np.zeros((1, 4, 5), bool)


@pytest.mark.skipif(
    shutil.which("g++") is None or bool(os.environ.get(native.SWITCH)),
    reason="no compiler, or the C++ part is turned off",
)
def test_it_is_built_where_a_compiler_is() -> None:
    assert native.available(), native.why_missing()
    assert native.why_missing() is None


def test_switch_turns_it_off() -> None:
    code = (
        "import numpy as np, vkrt.media.image as image, vkrt.media.native as native;"
        "print(native.available(), native.operations.__name__, image.operations.__name__);"
        "print(native.why_missing());"
        "print(image.to_input(np.zeros((3, 4, 3), np.uint8), 8).shape)"
    )
    environment = {**os.environ, native.SWITCH: "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "False vkrt.media.fallback vkrt.media.fallback"
    assert native.SWITCH in lines[1] and lines[2] == "(3, 8, 8)"


def test_a_broken_library_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(native.SWITCH, raising=False)
    monkeypatch.setitem(sys.modules, "vkrt._native", None)
    module, reason = native.find()
    assert module is None and reason is not None
    assert "did not load" in reason and "install" in reason and "\n" not in reason


def test_install_goes_on_without_a_compiler(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "vkrt").mkdir()
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        env={**os.environ, "CC": "no-such-compiler", "CXX": "no-such-compiler"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("vkrt: ")]
    assert len(said) == 1 and "without its C++ part" in said[0] and "no-such-compiler" in said[0]
    assert not list(tmp_path.glob("vkrt/_native*"))


@compiled
@pytest.mark.parametrize("name", fallback.__all__)
def test_same_arguments(name: str) -> None:
    wanted = list(inspect.signature(getattr(fallback, name)).parameters)
    signature = getattr(operations, name).__doc__.splitlines()[0]
    got = [part.split(":")[0].strip() for part in signature.split("(", 1)[1].split(", ")]
    assert [part for part in got if part in wanted] == wanted


@compiled
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_same_results(threads: int) -> None:
    rng = np.random.default_rng(threads)
    photo = rng.integers(0, 256, (47, 33, 3), np.uint8)
    logits = rng.normal(0, 2, (3, 21, 34)).astype(np.float32)
    masks = rng.random((3, 41, 29)) < 0.45
    one = operations.resize(photo, 32, UNIT, NONE, threads=threads)
    assert np.abs(one - fallback.resize(photo, 32, UNIT, NONE)).max() < 1e-3  # of 0..255
    # Neither shrinks more down than across, for the stand-in has Pillow's own order of passes.
    one = operations.resize_bicubic(photo[:33], 32, UNIT, NONE, threads=threads)
    assert np.array_equal(one, fallback.resize_bicubic(photo[:33], 32, UNIT, NONE))
    got = operations.binarize(logits, 90, 70, 0.0, 1.0, threads)
    for mine, other in zip(got, fallback.binarize(logits, 90, 70, 0.0, 1.0), strict=True):
        assert mine.dtype == other.dtype and np.array_equal(mine, other)
    for value in (False, True):
        flipped = operations.flip_small(masks, value, 5, threads)
        assert np.array_equal(flipped, fallback.flip_small(masks, value, 5))
    cleaned = operations.clean_logits(logits, 0.5, 4, 4, threads)
    assert np.array_equal(cleaned, fallback.clean_logits(logits, 0.5, 4, 4))
    packed = operations.binarize(logits, 90, 70, 0.0, 1.0, threads, True)[0]
    assert np.array_equal(packed, fallback.binarize(logits, 90, 70, 0.0, 1.0, packed=True)[0])
    for mine, other in zip(
        operations.measure(masks, threads), fallback.measure(masks), strict=True
    ):
        assert mine.dtype == other.dtype and np.array_equal(mine, other)


@compiled
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_same_runs(threads: int) -> None:
    rng = np.random.default_rng(threads)
    logits = rng.normal(0, 2, (3, 21, 34)).astype(np.float32)
    masks = rng.random((3, 141, 29)) < 0.45
    runs, *rest = operations.encode_logits(logits, 190, 70, 0.0, 1.0, threads)
    wanted, *measured = fallback.encode_logits(logits, 190, 70, 0.0, 1.0)
    assert all(map(np.array_equal, [*runs, *rest], [*wanted, *measured]))
    runs = operations.encode_masks(masks, threads)
    assert all(map(np.array_equal, runs, fallback.encode_masks(masks)))
    assert np.array_equal(operations.decode_masks(runs, 141, 29, threads), masks)


@compiled
def test_many_callers_at_once() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2, 32, 32)).astype(np.float32)
    wanted = operations.binarize(logits, 211, 157, 0.0, 1.0, 1)[0]
    results: list[np.ndarray] = []

    def call() -> None:
        for _ in range(10):
            results.append(operations.binarize(logits, 211, 157, 0.0, 1.0, 2)[0])

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 40 and all(np.array_equal(wanted, result) for result in results)


@compiled
@pytest.mark.parametrize(
    ("photo", "error", "message"),
    [
        (PHOTO.astype(np.float32), TypeError, "photo must be uint8, not float32"),
        (PHOTO[:, :, 0], ValueError, "3 dimensions"),
        (np.zeros((4, 5, 4), np.uint8), ValueError, "3 channels"),
        (PHOTO[:, ::2], ValueError, "contiguous"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, "size of 0"),
        (np.broadcast_to(PHOTO[:1, :1], (60000, 60000, 3)), ValueError, "contiguous"),
    ],
)
def test_bad_photos(photo: np.ndarray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        operations.resize(photo, 8, UNIT, NONE)


@compiled
@pytest.mark.parametrize("size", [0, -1, 2**31, 2**62])
def test_bad_sizes(size: int) -> None:
    with pytest.raises(ValueError, match="is not between 1 and"):
        operations.resize(PHOTO, size, UNIT, NONE)
    with pytest.raises(ValueError, match="is not between 1 and"):
        operations.upsample(LOGITS, size, 8)
    with pytest.raises(ValueError, match="is not between 1 and"):
        operations.binarize(LOGITS, 8, size, 0.0, 1.0)


@compiled
def test_products_do_not_wrap() -> None:
    largest = 2**31 - 1
    with pytest.raises(ValueError, match="too large"):
        operations.upsample(np.zeros((4, 1, 1), np.float32), largest, largest)
    with pytest.raises((ValueError, MemoryError), match=r"too large|[Uu]nable to allocate"):
        operations.resize(PHOTO, largest, UNIT, NONE)


@compiled
@pytest.mark.parametrize(
    "out",
    [
        np.zeros((3, 8, 8), np.float64),
        np.zeros((3, 8, 9), np.float32),
        np.zeros((3, 8, 16), np.float32)[:, :, ::2],
    ],
)
def test_bad_buffers(out: np.ndarray) -> None:
    with pytest.raises((TypeError, ValueError), match="out must"):
        operations.resize(PHOTO, 8, UNIT, NONE, out)


@compiled
def test_read_only_buffer_is_left_alone() -> None:
    out = np.zeros((3, 8, 8), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        operations.resize(PHOTO + 9, 8, UNIT, NONE, out)
    assert not out.any()


@compiled
@pytest.mark.parametrize(
    ("name", "good", "rest"),
    [
        ("upsample", LOGITS, (8, 8)),
        ("binarize", LOGITS, (8, 8, 0.0, 1.0)),
        ("encode_logits", LOGITS, (8, 8, 0.0, 1.0)),
        ("clean_logits", LOGITS, (0.0, 3, 3)),
        ("flip_small", MASKS, (True, 3)),
        ("measure", MASKS, ()),
        ("encode_masks", MASKS, ()),
    ],
)
def test_bad_masks(name: str, good: np.ndarray, rest: tuple[float, ...]) -> None:
    call = getattr(operations, name)
    call(good, *rest)
    with pytest.raises(TypeError, match="must be"):
        call(good.astype(np.float64), *rest)
    with pytest.raises(ValueError, match="3 dimensions"):
        call(good[0], *rest)
    with pytest.raises(ValueError, match="contiguous"):
        call(np.asfortranarray(np.repeat(good, 2, axis=0)), *rest)
    with pytest.raises(ValueError, match="size of 0"):
        call(good[:0], *rest)
    with pytest.raises(ValueError, match="threads"):
        call(good, *rest, threads=-1)
    with pytest.raises(TypeError):
        call(None, *rest)


@compiled
def test_bad_runs() -> None:
    runs = np.array([3, 1], np.uint32)
    assert operations.decode_masks([runs], 2, 2).sum() == 1
    for bad, error, message in (
        ([runs.astype(np.int64)], TypeError, "runs must be uint32, not int64"),
        ([runs[None]], ValueError, "1 dimensions, not 2"),
        ([np.repeat(runs, 2)[::2]], ValueError, "contiguous"),
        ([], ValueError, "size of 0"),
        ([runs + 1], ValueError, "longer than the mask"),
    ):
        with pytest.raises(error, match=message):
            operations.decode_masks(bad, 2, 2)
    with pytest.raises(TypeError, match="runs must be uint32"):
        operations.runs_to_text(runs.astype(np.float32))
    with pytest.raises(TypeError):
        operations.text_to_runs("12")


@compiled
def test_bad_boxes() -> None:
    boxes, scores = np.zeros((2, 4), np.float32), np.zeros(2, np.float32)
    for arguments, error, message in (
        ((boxes.astype(np.float64), scores, 0.5), TypeError, "boxes must be float32, not float64"),
        ((boxes[0], scores, 0.5), ValueError, "2 dimensions"),
        ((boxes[:, ::2], scores, 0.5), ValueError, "contiguous"),
        ((boxes[:1], scores, 0.5), ValueError, "equally many, not 1 and 2"),
        ((np.zeros((2, 5), np.float32), scores, 0.5), ValueError, r"shape \(N, 4\)"),
        ((boxes + np.nan, scores, 0.5), ValueError, "boxes must not be NaN"),
        ((boxes, scores + np.nan, 0.5), ValueError, "scores must not be NaN"),
        ((boxes, scores, float("nan")), ValueError, "threshold must not be NaN"),
    ):
        with pytest.raises(error, match=message):
            operations.nms(*arguments)


def odd_arrays() -> st.SearchStrategy[np.ndarray]:
    """Give arrays of all kinds of dtype, rank, layout and content, few of them fit for use."""
    dtypes = ["u1", "?", "f4", ">f4", "f8", "i8", "u4", "c8", "U3", "O", "M8[s]", "V6"]
    shapes = st.lists(st.sampled_from([0, 1, 3, 4, 33]), max_size=4).map(tuple)
    turns: list[Callable[[np.ndarray], np.ndarray]] = [
        np.asarray,
        np.asfortranarray,
        lambda array: array[..., ::2],
        lambda array: array[::-1],
        lambda array: np.ma.masked_array(array),
        lambda array: np.broadcast_to(array, (2, *array.shape)),
    ]

    def make(shape: tuple[int, ...], dtype: str, turn: int, fill: float) -> np.ndarray:
        array = np.zeros(shape, dtype)
        if array.dtype.kind in "fc":
            array[...] = fill
        return turns[turn](array) if array.ndim else array

    return st.builds(
        make,
        shapes,
        st.sampled_from(dtypes),
        st.integers(0, len(turns) - 1),
        st.sampled_from([0.0, 1.0, np.nan, np.inf, -1e38]),
    )


RUNS, BOXES = np.ones(3, np.uint32), np.ones((3, 4), np.float32)
FITTING = st.sampled_from([PHOTO, LOGITS, MASKS, RUNS, BOXES, BOXES[:, 0].copy()])
ODD = st.one_of(
    odd_arrays(),
    FITTING,
    st.sampled_from([-1, 0, 1, 3, 8, 40, 2**31 - 1, 2**31, 2**40, 2**62, 2**64]),
    st.sampled_from([0.0, 0.5, -1e30, 1e300, float("nan"), float("inf")]),
    st.sampled_from([None, True, "text", b"12PP", (1.0, 1.0, 1.0), [], [RUNS]]),
)


@compiled
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", fallback.__all__)
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_odd_arguments_never_crash(name: str, data: st.DataObject) -> None:
    count = len(inspect.signature(getattr(fallback, name)).parameters)
    if data.draw(st.booleans()):
        arguments = [data.draw(ODD) for _ in range(data.draw(st.integers(0, count + 1)))]
    else:  # an array that fits, then numbers: what gets past the types
        arguments = [data.draw(FITTING | odd_arrays())]
        arguments += [data.draw(st.sampled_from([-1, 0, 1, 8, 2**31 - 1, 2**40])) for _ in range(4)]
        arguments = arguments[:count]
    try:
        getattr(operations, name)(*arguments)
    except (TypeError, ValueError, MemoryError) as error:
        types_fit = "incompatible function arguments" not in str(error)
        assert not types_fit or "\n" not in str(error)


@compiled
def test_others_run_meanwhile() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (1, 512, 512)).astype(np.float32)
    masks = rng.random((1, 2000, 2000)) < 0.5
    runs = operations.encode_masks(masks, 1)
    text = operations.runs_to_text(runs[0])
    corners = np.sort(rng.random((20_000, 2, 2)).astype(np.float32), axis=1).reshape(-1, 4)
    calls: dict[str, Callable[[], object]] = {
        "binarize": lambda: operations.binarize(noise, 6000, 6000, 0.0, 1.0, 1),
        "encode_logits": lambda: operations.encode_logits(noise, 3000, 3000, 0.0, 1.0, 1),
        "encode_masks": lambda: operations.encode_masks(masks, 1),
        "decode_masks": lambda: operations.decode_masks(runs, 2000, 2000, 1),
        "text": lambda: operations.text_to_runs(text * 4),
        "nms": lambda: operations.nms(corners, corners[:, 0].copy(), 0.9),
    }
    held = [name for name, call in calls.items() if not any(runs_beside(call) for _ in range(5))]
    assert not held


def runs_beside(call: Callable[[], object]) -> bool:
    """Return whether this thread ran while another one was inside a call."""
    ticks: list[int] = []
    seen: list[int] = []
    inside = threading.Event()

    def work() -> None:
        inside.set()
        call()
        seen.append(len(ticks))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # so that only who gives the lock away loses it
    try:
        thread = threading.Thread(target=work)
        thread.start()
        inside.wait()
        while thread.is_alive():
            ticks.append(0)
            time.sleep(0.0002)
    finally:
        sys.setswitchinterval(interval)
    return seen[0] > 0
