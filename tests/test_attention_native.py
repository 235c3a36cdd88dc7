"""Attention on host arrays: C++ for every instruction set here, and numpy, against float64."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vkrt.kernels import host_attention as host
from vkrt.media import native

Attend = Callable[..., np.ndarray]

if native.available():
    from vkrt import _native

    EXACT = _native.attention_instructions()
    ROUNDED = [name for name in _native.attention_instructions("bf16") if name not in EXACT]
else:
    EXACT, ROUNDED = [], []
INSTRUCTIONS = [*EXACT, *ROUNDED]
compiled = pytest.mark.skipif(not native.available(), reason=f"{native.why_missing()}")
every_form = pytest.mark.parametrize("form", [*INSTRUCTIONS, "numpy"])
EPSILON = float(np.finfo(np.float32).eps)
BF16_EPSILON = 2.0**-8  # its factors are rounded by half of that at most


HEADS = np.zeros((2, 6, 3, 8), np.float32)


def attend_as(form: str) -> Attend:
    """Return attention with one set of instructions, or in numpy."""
    if form == "numpy":
        return host.stand_in
    return lambda *inputs, threads=1: _native.attention(
        *inputs, threads=threads, precision=precision_of(form), instructions=form
    )


def precision_of(form: str) -> str:
    """Return what a form may round to."""
    return "bf16" if form in ROUNDED else "fp32"


def to_bf16(array: np.ndarray) -> np.ndarray:
    """Return float32 numbers rounded to bf16, to the nearest and ties to even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def seen_by(form: str, *inputs: np.ndarray | None) -> list[np.ndarray | None]:
    """Return query, key, value and maybe bias as a form has them once it has rounded them."""
    if form not in ROUNDED:
        return list(inputs)
    query, key, value, *bias = inputs
    assert query is not None and key is not None and value is not None
    # What is rounded of the queries has the logits' factor in it.
    scale = np.float32(np.log2(np.e)) / np.sqrt(np.float32(query.shape[2]))
    query = to_bf16(query * scale).astype(np.float64) / scale
    return [query, to_bf16(key), to_bf16(value), *bias]


def make_inputs(
    objects: int, queries: int, keys: int, depth: int, width: int, seed: int = 0, scale: float = 1
) -> list[np.ndarray]:
    """Return query, key, value and bias; logits grow with `scale`."""
    rng = np.random.default_rng(seed)
    sizes = [(objects, queries, depth), (objects, keys, depth), (objects, keys, width)]
    query, key, value = (rng.normal(size=size).astype(np.float32) for size in sizes)
    bias = rng.normal(size=(objects, keys)).astype(np.float32)
    return [query * np.float32(scale), key, value, bias]


def exact(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, bias: np.ndarray | None = None
) -> np.ndarray:
    """Compute attention in float64; an object all of whose keys are masked gets 0."""
    logits = query.astype(np.float64) @ key.astype(np.float64).swapaxes(1, 2)
    logits /= np.sqrt(query.shape[2])
    if bias is not None:
        logits += np.where(bias <= host.MASKED, -np.inf, bias.astype(np.float64))[:, None]
    largest = logits.max(axis=2, keepdims=True)
    weights = np.exp(logits - np.where(np.isfinite(largest), largest, 0))
    total = weights.sum(axis=2, keepdims=True)
    return weights @ value / np.where(total == 0, 1, total)


def tolerance(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, bias: np.ndarray | None = None
) -> float:
    """Return what rounding to float32 may cost: an error of a logit is one of a weight, relative.

    A sum in any order is wrong by a few roundings of the sum of its terms' magnitudes.
    """
    size = (np.abs(query) @ np.abs(key).swapaxes(1, 2)).max() / np.sqrt(query.shape[2])
    if bias is not None:
        size += np.abs(bias[bias > host.MASKED]).max(initial=0)
    return float(EPSILON * (8 + 4 * size) * np.abs(value).max())


def assert_exact(form: str, *inputs: np.ndarray | None) -> None:
    """Hold a form to float64; one in bf16 has weights that are rounded, too."""
    got = attend_as(form)(*inputs)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    seen = seen_by(form, *inputs)
    allowed = tolerance(*seen)
    if form in ROUNDED:
        allowed += BF16_EPSILON * np.abs(seen[2]).max()
    assert np.abs(got - exact(*seen)).max() <= allowed


MASKS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "none": lambda rng, shape: np.zeros(shape, bool),
    "some": lambda rng, shape: rng.random(shape) < 0.3,
    "most": lambda rng, shape: rng.random(shape) < 0.95,
    "end": lambda rng, shape: np.broadcast_to(np.arange(shape[1]) >= shape[1] // 2, shape),
    "all": lambda rng, shape: np.ones(shape, bool),
}


@every_form
@settings(max_examples=40, deadline=None)
@given(
    objects=st.integers(1, 3),
    queries=st.integers(1, 70),
    keys=st.integers(1, 300),
    depth=st.sampled_from([1, 3, 8, 16, 31, 64, 256]),
    width=st.sampled_from([1, 5, 8, 12, 63, 64]),
    mask=st.sampled_from(sorted(MASKS)),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(
    form: str,
    objects: int,
    queries: int,
    keys: int,
    depth: int,
    width: int,
    mask: str,
    scale: float,
    seed: int,
) -> None:
    *inputs, bias = make_inputs(objects, queries, keys, depth, width, seed, scale)
    assert_exact(form, *inputs)
    bias[MASKS[mask](np.random.default_rng(seed), bias.shape)] = -1e9
    assert_exact(form, *inputs, bias)


@every_form
@pytest.mark.parametrize("keys", [7, 8, 127, 128, 129, 257])
@pytest.mark.parametrize("queries", [1, 8, 24, 31, 33, 65])
def test_ends_of_blocks(form: str, queries: int, keys: int) -> None:
    assert_exact(form, *make_inputs(2, queries, keys, 16, 13))


@every_form
def test_sizes_of_the_model(form: str) -> None:
    assert_exact(form, *make_inputs(1, 96, 1000, 256, 64))


@pytest.mark.parametrize("form", [*EXACT, "numpy"])
def test_rounding_does_not_grow_with_the_keys(form: str) -> None:
    query, key, value, _ = make_inputs(1, 40, 30_000, 8, 8)
    value = 1 + np.tanh(value) / 2
    got = attend_as(form)(query, key, value)
    # One sum over all the keys, term by term, would be wrong by a hundred.
    assert np.abs(got - exact(query, key, value)).max() < 25 * EPSILON


@every_form
@pytest.mark.parametrize("mask", ["some", "most", "end"])
def test_masked_keys_are_not_there(form: str, mask: str) -> None:
    query, key, value, bias = make_inputs(1, 40, 700, 32, 16)
    masked = MASKS[mask](np.random.default_rng(1), bias.shape)
    kept = [np.ascontiguousarray(array[~masked][None]) for array in (key, value, bias)]
    wanted = attend_as(form)(query, *kept)
    key[masked], value[masked] = np.nan, np.inf
    for low in (-1e8, -1e30, -np.inf):
        bias[masked] = low
        assert np.array_equal(attend_as(form)(query, key, value, bias), wanted)


@every_form
def test_a_bias_short_of_masked_counts(form: str) -> None:
    query, key, value, bias = make_inputs(1, 5, 200, 8, 8)
    bias[:] = -9e7
    # So large a bias leaves of the logits what float32 has left; its spacing there is 8.
    got = attend_as(form)(query, key, value, bias)
    assert np.all(got >= value.min(axis=1)) and np.all(got <= value.max(axis=1))
    bias[:, 50] = 0
    got = attend_as(form)(query, key, value, bias)
    value = seen_by(form, query, key, value)[2]
    assert np.array_equal(got, np.broadcast_to(value[:, 50:51], got.shape))


@every_form
@pytest.mark.parametrize("place", [0, 127, 128, 299])
def test_one_key_left_gives_its_value(form: str, place: int) -> None:
    query, key, value, bias = make_inputs(2, 37, 300, 24, 9)
    bias[0] = -1e8
    bias[0, place] = 3
    got = attend_as(form)(query, key, value, bias)
    left = seen_by(form, query, key, value)[2][0, place]
    assert np.array_equal(got[0], np.broadcast_to(left, got[0].shape))
    assert_exact(form, query, key, value, bias)


@every_form
def test_no_key_left_gives_zeros(form: str) -> None:
    query, key, value, bias = make_inputs(2, 37, 300, 24, 9)
    bias[1] = -1e9
    got = attend_as(form)(query, key, value, bias)
    assert not got[1].any() and got[0].any()


@every_form
@pytest.mark.parametrize("scale", [1e3, 1e6, 1e30])
def test_large_logits_do_not_overflow(form: str, scale: float) -> None:
    query, key, value, _ = make_inputs(1, 33, 400, 16, 8, scale=scale)
    assert_exact(form, query, key, value)
    # Far below all others: exp of such a difference is nothing, not an error.
    got = attend_as(form)(query, key, value)
    best = np.argmax(query.astype(np.float64) @ key.astype(np.float64).swapaxes(1, 2), axis=2)
    if scale == 1e30:
        assert np.array_equal(got[0], seen_by(form, query, key, value)[2][0, best[0]])


@every_form
def test_rising_logits_rescale_what_was_summed(form: str) -> None:
    query, key, value, bias = make_inputs(1, 20, 1000, 8, 8, scale=0.1)
    bias[:] = np.linspace(-200, 300, 1000)
    assert_exact(form, query, key, value, bias)
    bias[:] = bias[:, ::-1].copy()
    assert_exact(form, query, key, value, bias)


@every_form
def test_nan_shows_in_its_own_row(form: str) -> None:
    query, key, value, bias = make_inputs(1, 40, 200, 16, 8)
    clean = attend_as(form)(query, key, value, bias)
    query[0, 7, 3] = np.nan
    got = attend_as(form)(query, key, value, bias)
    assert np.isnan(got[0, 7]).all()
    others = np.arange(40) != 7
    assert np.abs(got[0, others] - clean[0, others]).max() < 1e-6
    query[0, 7, 3], key[0, 150, 0] = 0, np.nan
    assert np.isnan(attend_as(form)(query, key, value, bias)).all()


@pytest.mark.parametrize("form", INSTRUCTIONS)
def test_threads_change_no_bit(form: str) -> None:
    inputs = make_inputs(3, 300, 500, 32, 24)
    one = attend_as(form)(*inputs)
    for threads in (2, 7):
        assert np.array_equal(attend_as(form)(*inputs, threads=threads), one)


@pytest.mark.parametrize("form", INSTRUCTIONS)
def test_exp2(form: str) -> None:
    rng = np.random.default_rng(0)
    steps = [np.linspace(-125, 0, 60_001), rng.uniform(-2, 0, 20_000), np.arange(-124.5, 0)]
    x = np.concatenate(steps).astype(np.float32)
    got = _native.attention_exp2(x, form)
    assert np.abs(got / np.exp2(x.astype(np.float64)) - 1).max() < 2.5e-7
    ends = np.array([0, -0.0, -1, -125, -126, -1e30, -np.inf, np.nan], np.float32)
    least = 2.0**-125
    wanted = [1, 1, 0.5, least, least, least, least, np.nan]
    assert np.array_equal(_native.attention_exp2(ends, form), wanted, equal_nan=True)


@every_form
@pytest.mark.parametrize("layout", ["dense", "packed", "heads first"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_heads_attend_by_themselves_wherever_they_lie(
    form: str, layout: str, with_bias: bool
) -> None:
    batch, heads, queries, keys, depth = 2, 3, 37, 150, 24
    rng = np.random.default_rng(7)
    packed = rng.normal(size=(batch, keys, 3, heads, depth)).astype(np.float32)
    query, key, value = (packed[:, :, part] for part in range(3))
    query = query[:, :queries]
    if layout == "dense":
        query, key, value = (np.ascontiguousarray(part) for part in (query, key, value))
    elif layout == "heads first":
        query, key, value = (
            np.ascontiguousarray(part.swapaxes(1, 2)).swapaxes(1, 2) for part in (query, key, value)
        )
    bias = rng.normal(size=(batch, keys)).astype(np.float32) if with_bias else None
    if bias is not None:
        bias[:, 5:60:7] = -1e9
    got = attend_as(form)(query, key, value, bias)
    assert got.shape == (batch, queries, heads, depth) and got.flags.c_contiguous
    for head in range(heads):
        alone = [np.ascontiguousarray(part[:, :, head]) for part in (query, key, value)]
        allowed = 1e-5 + (BF16_EPSILON if form in ROUNDED else 0) * np.abs(value).max()
        assert np.abs(got[:, :, head] - exact(*seen_by(form, *alone), bias)).max() < allowed
        # The same arithmetic in the same order: not a bit differs.
        np.testing.assert_array_equal(got[:, :, head], attend_as(form)(*alone, bias))


@every_form
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"key": HEADS[..., ::2]}, ValueError, "key must have rows without gaps; pass numpy."),
        ({"query": HEADS.astype(np.float64)}, TypeError, "query must be float32, not float64"),
        ({"value": HEADS[:, :, :1]}, ValueError, "of equally many objects"),
        ({"value": HEADS[:1]}, ValueError, "of equally many objects"),
        ({"query": HEADS[..., :4]}, ValueError, "equally deep, not 4 and 8"),
        ({"value": HEADS[:, :4]}, ValueError, "equally many, not 6 and 4"),
        ({"key": HEADS[:, :0]}, ValueError, "size of 0|equally many"),
        ({"bias": np.zeros((2, 5), np.float32)}, ValueError, r"bias must have shape \(2, 6\)"),
        ({"value": HEADS[0]}, ValueError, "dimensions"),
    ],
)
def test_bad_arrays_with_heads(
    form: str, change: dict[str, np.ndarray], error: type[Exception], message: str
) -> None:
    inputs = {"query": HEADS, "key": HEADS, "value": HEADS, "bias": None, **change}
    with pytest.raises(error, match=message) as caught:
        attend_as(form)(*inputs.values())
    assert "\n" not in str(caught.value)


def test_blocks_of_numpy_are_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(2, 30, 50, 16, 8)
    whole = host.stand_in(*inputs)
    monkeypatch.setattr(host, "PAIRS_AT_ONCE", 200)
    assert np.abs(host.stand_in(*inputs) - whole).max() < 1e-6


def test_the_public_function() -> None:
    query, key, value, bias = make_inputs(1, 9, 20, 8, 8)
    for threads in (None, 1, 2):
        got = host.attend(query, key, value, bias, threads)
        assert np.abs(got - exact(query, key, value, bias)).max() < 1e-5
    assert np.abs(host.attend(query, key, value) - exact(query, key, value)).max() < 1e-5


@compiled
def test_bf16_is_for_those_who_ask_for_it() -> None:
    inputs = make_inputs(1, 40, 300, 32, 16)
    exactly, rounded = host.attend(*inputs), host.attend(*inputs, precision="bf16")
    assert np.array_equal(exactly, attend_as(EXACT[0])(*inputs))
    # A machine that multiplies bf16 no faster rounds nothing.
    assert np.array_equal(rounded, attend_as([*ROUNDED, *EXACT][0])(*inputs))
    assert (host.instructions(), host.instructions("bf16")) == (EXACT[0], [*ROUNDED, *EXACT][0])
    for attend in (host.attend, host.stand_in):
        with pytest.raises(ValueError, match="precision must be fp32 or bf16, not fp16"):
            attend(*inputs, precision="fp16")


def test_the_reference_agrees() -> None:
    import torch

    from vkrt.kernels.memory_attention import reference

    inputs = make_inputs(2, 40, 150, 32, 16)
    wanted = reference.attend(*(torch.from_numpy(array).double() for array in inputs))
    assert np.abs(host.attend(*inputs) - wanted.numpy()).max() <= tolerance(*inputs)


def test_it_is_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(host.SWITCH, raising=False)
    if native.available():
        assert host.find() is _native.attention
    monkeypatch.setitem(sys.modules, "vkrt._native", None)
    assert host.find() is host.stand_in
    monkeypatch.undo()
    monkeypatch.setenv(host.SWITCH, "1")
    assert host.find() is host.stand_in


QUERY, KEY, VALUE, BIAS = make_inputs(2, 6, 10, 8, 4)


@every_form
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": QUERY.astype(np.float64)}, TypeError, "query must be float32, not float64"),
        ({"bias": BIAS.astype(np.int64)}, TypeError, "bias must be float32, not int64"),
        ({"key": KEY[0]}, ValueError, "key must have 3 dimensions, not 2"),
        ({"bias": BIAS[0]}, ValueError, "bias must have 2 dimensions, not 1"),
        ({"key": np.asfortranarray(KEY)}, ValueError, "key must be contiguous; pass numpy."),
        ({"value": VALUE[:, ::2]}, ValueError, "value must be contiguous; pass numpy."),
        ({"bias": BIAS[:, ::2]}, ValueError, "bias must be contiguous; pass numpy."),
        ({"query": QUERY[:, :0]}, ValueError, "size of 0"),
        ({"key": KEY[:, :0], "value": VALUE[:, :0]}, ValueError, "size of 0"),
        ({"query": QUERY[:1]}, ValueError, "of equally many objects"),
        ({"value": VALUE[:1]}, ValueError, "of equally many objects"),
        ({"query": QUERY[..., :4].copy()}, ValueError, "equally deep, not 4 and 8"),
        ({"value": VALUE[:, :4].copy()}, ValueError, "equally many, not 10 and 4"),
        ({"bias": BIAS[:, :4].copy()}, ValueError, r"bias must have shape \(2, 10\)"),
        ({"bias": BIAS[:1]}, ValueError, r"bias must have shape \(2, 10\)"),
    ],
)
def test_bad_arrays(
    form: str, change: dict[str, np.ndarray], error: type[Exception], message: str
) -> None:
    inputs = {"query": QUERY, "key": KEY, "value": VALUE, "bias": BIAS, **change}
    with pytest.raises(error, match=message) as caught:
        attend_as(form)(*inputs.values())
    assert "\n" not in str(caught.value)


@compiled
def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="threads must be 0"):
        host.attend(QUERY, KEY, VALUE, BIAS, -1)
    with pytest.raises(ValueError, match=r"instructions must be one of .*baseline, not abacus"):
        _native.attention(QUERY, KEY, VALUE, BIAS, 1, instructions="abacus")


@compiled
def test_same_arguments() -> None:
    wanted = list(inspect.signature(host.stand_in).parameters)
    signature = _native.attention.__doc__.splitlines()[0]
    got = [part.split(":")[0].strip() for part in signature.split("(", 1)[1].split(", ")]
    assert got[: len(wanted)] == wanted


@compiled
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_odd_shapes_never_crash(data: st.DataObject) -> None:
    sizes = st.lists(st.sampled_from([0, 1, 3, 8]), max_size=4)
    usual = st.lists(st.sampled_from([1, 8]), min_size=3, max_size=3)
    arrays = [
        np.zeros(data.draw(usual | sizes), data.draw(st.sampled_from(["f4", "f4", "f4", "f8"])))
        for _ in range(3)
    ]
    bias = data.draw(st.none() | sizes.map(lambda shape: np.zeros(shape, np.float32)))
    try:
        got = host.attend(*arrays, bias, 1)
    except (TypeError, ValueError) as error:
        assert "\n" not in str(error)
    else:
        assert got.shape == (*arrays[0].shape[:-1], arrays[2].shape[-1]) and not got.any()


def test_the_benchmark_compares_like_with_like() -> None:
    from benchmarks import attention as bench

    inputs = bench.Inputs.make(objects=2, queries=70, keys=90)
    assert inputs.flops(64) == 2 * 2 * 70 * 90 * (256 + 64)
    candidates = bench.make_candidates(inputs, threads=1)
    wanted = bench.exact_rows(inputs)
    assert wanted.shape == (2, 64, 256) and len(candidates) == 3 + len(ROUNDED)
    for candidate in candidates:
        assert bench.error_of(candidate, wanted) < bench.limit_of(candidate, inputs, wanted)
    broken = bench.Candidate("broken", lambda: candidates[0].run() * 1.01, 64)
    assert not bench.error_of(broken, wanted) < bench.limit_of(broken, inputs, wanted)
