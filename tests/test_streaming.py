"""Blocks that are copied in ahead of use give what resident ones give, within the budget."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vkrt.backends import streaming
from vkrt.backends.eager import EagerBackend
from vkrt.backends.streaming import (
    SLOTS,
    Streamer,
    choose_streamed,
    find_blocks,
    held,
    stream,
    weight_bytes,
)
from vkrt.errors import GenerationError
from vkrt.options import Options
from vkrt.stage import Port, Program, Stage

CPU = torch.device("cpu")
DIM = 32


class Block(nn.Module):
    """A block of a size of its own, with a buffer and an inner list."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(DIM, width)
        self.down = nn.ModuleList([nn.Linear(width, DIM)])
        self.register_buffer("bias", torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down[0](torch.tanh(self.up(x))) + self.bias[1]


class Tower(nn.Module):
    """Blocks in a row; the first one's inner layer also serves all the others, as T5's does."""

    def __init__(self, count: int = 7) -> None:
        super().__init__()
        torch.manual_seed(count)
        self.first = nn.Linear(DIM, DIM)
        self.small = nn.ModuleList([nn.Linear(2, 2)])
        self.blocks = nn.ModuleList(Block(40 + 3 * i) for i in range(count))
        self.tied = self.blocks[count // 2].up.weight
        self.backward = False

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = self.first(x)
        # Not through the block itself.
        shared = self.blocks[0].up(x).mean()
        for block in reversed(self.blocks) if self.backward else self.blocks:
            x = block(x) * shared
        return (x + self.tied.sum(),)


STAGE_PORTS = (Port("x", ("n", DIM)),)


def stage(module: nn.Module, name: str = "tower") -> Stage:
    return Stage(name, module, STAGE_PORTS, STAGE_PORTS)


def device_bytes(module: nn.Module) -> int:
    """Return the bytes that a module's tensors really hold, memory that several share once."""
    tensors = (*module.parameters(), *module.buffers())
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def run(program: Program, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return program(torch.randn(5, DIM, generator=generator))[0]


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the index of each block whose copying begins."""
    begun: list[int] = []
    real = Streamer._load

    def load(self: Streamer, index: int) -> None:
        before = self.copies
        real(self, index)
        if self.copies > before:
            begun.append(index)

    monkeypatch.setattr(Streamer, "_load", load)
    return begun


@pytest.mark.parametrize("share", [0.55, 0.7, 0.95])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_streamed_is_resident_bit_for_bit(share: float, precision: str) -> None:
    backend = EagerBackend(Options(device="cpu", precision=precision))
    whole = Tower()
    resident = backend.prepare(stage(whole))
    budget = int(share * weight_bytes(whole))
    module = Tower()
    program = backend.prepare(stage(module), budget=budget)
    (streamer,) = backend._streamers.values()
    for seed in range(3):
        assert torch.equal(run(program, seed), run(resident, seed))
        assert device_bytes(module) == streamer.device_bytes <= budget
    assert streamer.copies > SLOTS


def test_copies_run_ahead(copied: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[int] = []
    real = Streamer._bring

    def bring(self: Streamer, index: int) -> None:
        before = len(copied)
        real(self, index)
        late.extend(copied[before:])

    monkeypatch.setattr(Streamer, "_bring", bring)
    module = Tower(9)
    backend = EagerBackend(Options(device="cpu"))
    program = backend.prepare(stage(module), budget=weight_bytes(module) * 6 // 10)
    count = len(next(iter(backend._streamers.values()))._hosts)
    assert copied == [0, 1] and SLOTS < count < 9
    run(program, 0)
    run(program, 1)
    # Every block was there before it was needed, in the second call too.
    assert late == [] and copied[:count] == list(range(count)) and len(copied) >= 2 * count


def test_another_order_gives_the_same() -> None:
    backend = EagerBackend(Options(device="cpu"))
    whole, module = Tower(), Tower()
    resident = backend.prepare(stage(whole))
    program = backend.prepare(stage(module), budget=weight_bytes(module) * 6 // 10)
    for backward in (True, False, True):
        whole.backward = module.backward = backward
        assert torch.equal(run(program, 1), run(resident, 1))


def test_blocks_of_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "PIECE", 1024)
    backend = EagerBackend(Options(device="cpu"))
    module = Tower()
    program = backend.prepare(stage(module), budget=weight_bytes(module) * 6 // 10)
    assert torch.equal(run(program, 2), run(backend.prepare(stage(Tower())), 2))


def test_release_gives_the_weights_back() -> None:
    backend = EagerBackend(Options(device="cpu"))
    module, wanted = Tower(), Tower().state_dict()
    kept = stage(module)
    program = backend.prepare(kept, budget=weight_bytes(module) * 6 // 10)
    (streamer,) = backend._streamers.values()
    run(program, 0)
    backend.release(kept)
    assert streamer.device_bytes == 0 and not backend._streamers
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    assert not any(block._forward_hooks for block in module.blocks)
    # A change between release and prepare counts, as that of a LoRA.
    with torch.no_grad():
        for each in (module, whole := Tower()):
            each.blocks[2].up.weight.mul_(2)
    again = backend.prepare(kept, budget=weight_bytes(module) * 6 // 10)
    assert torch.equal(run(again, 3), run(backend.prepare(stage(whole)), 3))


def test_prepared_again_in_another_way() -> None:
    backend = EagerBackend(Options(device="cpu"))
    module = Tower()
    budget = weight_bytes(module) * 6 // 10
    wanted = run(backend.prepare(stage(Tower())), 4)
    assert torch.equal(run(backend.prepare(stage(module), budget=budget), 4), wanted)
    assert torch.equal(run(backend.prepare(stage(module)), 4), wanted)
    assert not backend._streamers

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return self.inner(x)

    # Another stage on the same blocks takes them over.
    backend.prepare(stage(module), budget=budget)
    around = stage(Around(), "around")
    assert torch.equal(run(backend.prepare(around, budget=budget), 4), wanted)
    assert len(backend._streamers) == 1
    assert torch.equal(run(backend.prepare(stage(module)), 4), wanted)
    assert not backend._streamers


def test_what_is_dropped_is_freed() -> None:
    backend = EagerBackend(Options(device="cpu"))
    module = Tower()
    program = backend.prepare(stage(module), budget=weight_bytes(module) * 6 // 10)
    run(program, 0)
    (streamer,) = backend._streamers.values()
    gone = weakref.ref(streamer)
    gc.disable()
    try:
        del module, program, streamer
        assert gone() is None and not backend._streamers
    finally:
        gc.enable()


def test_all_that_fits_is_resident() -> None:
    module = Tower()
    assert stream(module, CPU, weight_bytes(module)) is None
    assert not any(block._forward_pre_hooks for block in module.blocks)


def test_a_budget_too_small_names_one_that_is_not() -> None:
    module = Tower()
    with pytest.raises(GenerationError, match="raise the memory limit") as caught:
        EagerBackend(Options(device="cpu")).prepare(stage(module), budget=1024)
    assert "\n" not in str(caught.value)
    with pytest.raises(GenerationError, match="no list of blocks"):
        stream(nn.Linear(8, 8), CPU, 16)
    with pytest.raises(GenerationError, match="no list of blocks 'first'"):
        stream(module, CPU, 1024, "first")


def test_blocks_by_name_or_the_largest() -> None:
    module = Tower()
    assert find_blocks(module) is module.blocks
    assert find_blocks(module, "small") is module.small
    assert find_blocks(module, "blocks.3.down") is module.blocks[3].down


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=40),
    st.integers(0, 500),
    st.floats(0, 1.2),
)
def test_the_choice_fits_and_streams_no_more_than_it_must(
    sizes: list[int], rest: int, share: float
) -> None:
    budget = int(share * (rest + sum(sizes)))
    try:
        chosen = choose_streamed(sizes, rest, budget)
    except GenerationError:
        everything = tuple(range(len(sizes)))
        assert held(sizes, rest, ()) > budget
        assert len(sizes) <= SLOTS or held(sizes, rest, everything) > budget
        return
    assert held(sizes, rest, chosen) <= budget
    assert all(a < b for a, b in pairwise(chosen)) and set(chosen) <= set(range(len(sizes)))
    assert bool(chosen) == (held(sizes, rest, ()) > budget)


def test_equal_blocks_are_evenly_spread() -> None:
    # 24 blocks of 10, 8 of which the budget has room for beside the slots.
    assert choose_streamed([10] * 24, 5, 5 + 20 + 80) == tuple(
        (2 * i + 1) * 24 // 32 for i in range(16)
    )
    gaps = {b - a for a, b in pairwise(choose_streamed([10] * 24, 5, 5 + 20 + 180))}
    assert gaps == {4}
