"""A module that is larger than its share of the device: blocks are copied in ahead of their use.

Some blocks stay on the device. The others live in host memory, pinned where the device is a GPU,
and share two slots on the device: while one block computes, the next is copied into the other
slot on a stream of its own. The arithmetic is that of the resident module, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Any
from weakref import WeakMethod

import torch
from torch import nn

from vkrt.errors import GenerationError

__all__ = ["Streamer", "choose_streamed", "find_blocks", "stream", "weight_bytes"]

SLOTS = 2
# As allocators align, so that a kernel finds a weight in a slot as it finds it elsewhere.
ALIGNMENT = 256
# Pinned memory comes in powers of two: in pieces of one, nothing is lost to rounding up.
PIECE = 16 * 1024**2


def stream(
    module: nn.Module, device: torch.device, budget: int, blocks: str | None = None
) -> Streamer | None:
    """Place a module on a device within a budget, with blocks on the host where it must be.

    Args:
        module: in its final dtype, on the host; its blocks are called as modules.
        device: where it runs.
        budget: bytes of weights that may lie on the device at once.
        blocks: path of the nn.ModuleList whose members may be streamed, such as
            "joint_blocks"; None takes the largest.

    Returns:
        What keeps the blocks coming, to be held as long as the module runs; None if all fits.

    Raises:
        GenerationError: the budget is too small; the message states the smallest that is not.
    """
    if weight_bytes(module) <= budget:
        module.to(device)
        return None
    found = find_blocks(module, blocks)
    own = own_tensors(module, found)
    sizes = [lay_out(tensors)[1] for tensors in own]
    inside = {id(tensor) for tensors in own for tensor in tensors}
    rest = sum(t.nbytes for t in tensors_of(module) if id(t) not in inside)
    chosen = choose_streamed(sizes, rest, budget)
    if not chosen:
        module.to(device)
        return None
    return Streamer(module, [(found[index], own[index]) for index in chosen], device)


def tensors_of(module: nn.Module) -> Iterable[torch.Tensor]:
    """Give every parameter and buffer of a module, each once."""
    yield from module.parameters()
    yield from module.buffers()


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    return sum(tensor.nbytes for tensor in tensors_of(module))


def find_blocks(module: nn.Module, name: str | None = None) -> nn.ModuleList:
    """Return the nn.ModuleList of a path, or the one with the most bytes.

    Raises:
        GenerationError: there is none.
    """
    if name is None:
        lists = [each for each in module.modules() if isinstance(each, nn.ModuleList)]
        if lists:
            return max(lists, key=weight_bytes)
    else:
        found = dict(module.named_modules()).get(name)
        if isinstance(found, nn.ModuleList):
            return found
    raise GenerationError(
        f"{type(module).__name__} has no list of blocks{f' {name!r}' if name else ''} to stream; "
        "raise the memory limit"
    )


def own_tensors(module: nn.Module, blocks: nn.ModuleList) -> list[list[torch.Tensor]]:
    """Return the tensors of each block that nothing else of the module uses."""
    groups = [list({id(t): t for t in tensors_of(block)}.values()) for block in blocks]
    users = Counter(id(tensor) for group in groups for tensor in group)
    within = set(blocks.modules())
    for outer in module.modules():
        if outer not in within:
            direct = (*outer.parameters(recurse=False), *outer.buffers(recurse=False))
            users.update(id(tensor) for tensor in direct)
    return [[tensor for tensor in group if users[id(tensor)] == 1] for group in groups]


def lay_out(tensors: Sequence[torch.Tensor]) -> tuple[list[int], int]:
    """Return where each tensor starts in one run of bytes, and the length of the run."""
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return starts, end


def choose_streamed(sizes: Sequence[int], rest: int, budget: int) -> tuple[int, ...]:
    """Return the blocks that live on the host, as few as the budget allows, evenly spread.

    Between two of them resident blocks compute, which gives the copies time.

    Args:
        sizes: bytes of each block.
        rest: bytes of the module outside its blocks.
        budget: bytes on the device.

    Returns:
        Indices in order; none if everything fits.

    Raises:
        GenerationError: the budget is too small for the rest and the slots.
    """
    count = len(sizes)
    ways: list[tuple[int, ...]] = [()]
    # As many streamed blocks as slots would hold no less than all of them resident.
    for away in range(SLOTS + 1, count + 1):
        ways.append(tuple((2 * i + 1) * count // (2 * away) for i in range(away)))
    needs = [held(sizes, rest, way) for way in ways]
    for way, need in zip(ways, needs, strict=True):
        if need <= budget:
            return way
    raise GenerationError(
        f"{budget / 2**20:.0f} MiB are too few for weights that need {min(needs) / 2**20:.0f} MiB "
        "on the device even when their blocks are streamed; raise the memory limit"
    )


def held(sizes: Sequence[int], rest: int, chosen: Sequence[int]) -> int:
    """Return the bytes on the device when the chosen blocks are streamed."""
    resident = sum(sizes) - sum(sizes[index] for index in chosen)
    slots = (max((sizes[i] for i in chosen[slot::SLOTS]), default=0) for slot in range(SLOTS))
    return rest + resident + sum(slots)


class HostBlock:
    """Hold a block's bytes in host memory.

    Args:
        tensors: of the block, on the host; their data is free to go afterwards.
        pin: whether a GPU is to read them.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], pin: bool) -> None:
        self.tensors = tensors
        self.starts, self.size = lay_out(tensors)
        whole = torch.zeros(self.size, dtype=torch.uint8)
        self.show(whole, fill=True)
        self._pieces = [(start, pinned(part) if pin else part) for start, part in cut(whole)]

    def show(self, memory: torch.Tensor, fill: bool = False) -> None:
        """Make the tensors views of memory, which is filled with what they hold if wanted."""
        for tensor, start in zip(self.tensors, self.starts, strict=True):
            part = memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            if fill:
                part.copy_(tensor.data)
            tensor.data = part

    def copy_to(self, memory: torch.Tensor) -> None:
        """Start copying the bytes to memory."""
        for start, piece in self._pieces:
            memory[start : start + piece.numel()].copy_(piece, non_blocking=True)


def cut(whole: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """Return the pieces of a run of bytes, with their starts."""
    return [(start, whole[start : start + PIECE]) for start in range(0, whole.numel(), PIECE)]


def pinned(piece: torch.Tensor) -> torch.Tensor:
    """Return a pinned copy, or the piece itself where the system has no more memory to pin."""
    try:
        return piece.pin_memory()
    except RuntimeError:
        # It can be copied all the same, only not while something else computes.
        return piece


class Streamer:
    """Bring the blocks of a module to its device ahead of their use.

    The calls of the module must not overlap: hold `lock` around each.

    Args:
        module: the whole; what is not streamed of it moves to the device.
        streamed: the blocks that live on the host, in the order of use, and their own tensors.
        device: where it runs.

    Attributes:
        lock: of a call.
        device_bytes: what the weights and the slots take on the device.
        copies: how many blocks were copied so far.
    """

    def __init__(
        self,
        module: nn.Module,
        streamed: Sequence[tuple[nn.Module, Sequence[torch.Tensor]]],
        device: torch.device,
    ) -> None:
        self.lock = Lock()
        self.copies = 0
        on_gpu = device.type == "cuda"
        self._side = torch.cuda.Stream(device) if on_gpu else None
        self._ready = [torch.cuda.Event() for _ in range(SLOTS)] if on_gpu else []
        self._device = device
        away = {id(tensor) for _, tensors in streamed for tensor in tensors}
        self._resident = [tensor for tensor in tensors_of(module) if id(tensor) not in away]
        for tensor in self._resident:
            tensor.data = tensor.data.to(device)
        self._hosts = [HostBlock(tensors, on_gpu) for _, tensors in streamed]
        self._slots = [self._make_slot(self._hosts[slot::SLOTS]) for slot in range(SLOTS)]
        self._holds: list[int | None] = [None] * SLOTS
        slots = sum(slot.nbytes for slot in self._slots)
        self.device_bytes = sum(tensor.nbytes for tensor in self._resident) + slots
        self._handles = self._hook([block for block, _ in streamed])
        for index in range(SLOTS):
            self._load(index)

    def _make_slot(self, users: Sequence[HostBlock]) -> torch.Tensor:
        """Return memory on the device that these blocks share, and make it theirs."""
        size = max(host.size for host in users)
        slot = torch.empty(size, dtype=torch.uint8, device=self._device)
        if self._side is not None:
            slot.record_stream(self._side)
        for host in users:
            host.show(slot)
        return slot

    def _hook(self, blocks: Sequence[nn.Module]) -> list[Any]:
        """Have each block brought in before it, or a part of it alone, runs."""
        handles = []
        for index, block in enumerate(blocks):
            before, after = weak_hook(self._bring, index), weak_hook(self._go_on, index)
            # A part may be called from elsewhere: T5 asks its first block for everyone's bias.
            handles += [each.register_forward_pre_hook(before) for each in block.modules()]
            handles.append(block.register_forward_hook(after))
        return handles

    def _bring(self, index: int) -> None:
        """Make sure that a block is in its slot when the device comes to it."""
        slot = index % SLOTS
        if self._holds[slot] != index:
            self._load(index)
        if self._side is not None:
            torch.cuda.current_stream(self._device).wait_event(self._ready[slot])

    def _go_on(self, index: int) -> None:
        """Start to bring the block that comes next in the slot of a block that ran."""
        following = index + SLOTS
        self._load(following if following < len(self._hosts) else index % SLOTS)

    def _load(self, index: int) -> None:
        """Start copying a block into its slot, behind all that the device was given to do."""
        slot = index % SLOTS
        if self._holds[slot] == index:
            return
        self._holds[slot] = index
        self.copies += 1
        if self._side is None:
            self._hosts[index].copy_to(self._slots[slot])
            return
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            self._hosts[index].copy_to(self._slots[slot])
            self._ready[slot].record(self._side)

    def release(self) -> None:
        """Give the module back all its weights in host memory, and the device its memory."""
        with self.lock:
            for handle in self._handles:
                handle.remove()
            if self._side is not None:
                self._side.synchronize()
            for tensor in self._resident:
                tensor.data = tensor.data.cpu()
            for host in self._hosts:
                memory = torch.empty(host.size, dtype=torch.uint8)
                host.copy_to(memory)
                host.show(memory)
            self._handles, self._resident, self._hosts, self._slots = [], [], [], []
            self.device_bytes = 0


def weak_hook(method: Callable[[int], None], index: int) -> Callable[..., None]:
    """Return a hook that calls a method, and does not keep its object and the slots alive."""
    reference = WeakMethod(method)

    def hook(*_: Any) -> None:
        bound = reference()
        if bound is not None:
            bound(index)

    return hook
