"""Memory attention gives what upstream's form gives, and does not see what is not there."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.sam2_video.modeling_sam2_video import (
    Sam2VideoPositionEmbeddingSine,
    get_1d_sine_pe,
)
from video_oracle import relative_error, small_config, video_oracle, video_twin

from vkrt.kernels import host_attention as host
from vkrt.kernels.memory_attention import memory_attention, reference
from vkrt.kernels.memory_attention.reference import attend, memory_attention_layer
from vkrt.models.sam2.conditioning import ConditionFrame
from vkrt.models.sam2.memory_attention import CrossAttention, MemoryAttentionLayer, MemoryTokens
from vkrt.models.sam2.positions import encode_distances, encode_grid
from vkrt.models.sam2.rotary import Rotary

RELATIVE = 1e-4
FRAME = 20
POINTERS_USED = 16


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# The kernel.


def plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    logits = query @ key.transpose(1, 2) / query.shape[2] ** 0.5 + bias.unsqueeze(1)
    return logits.softmax(dim=-1) @ value


@pytest.mark.parametrize("pairs", [2**24, 100, 1], ids=["whole", "parts", "rows"])
@pytest.mark.parametrize(("objects", "queries", "keys"), [(1, 1, 1), (3, 37, 11), (2, 63, 123)])
def test_the_kernel_is_attention(
    monkeypatch: pytest.MonkeyPatch, pairs: int, objects: int, queries: int, keys: int
) -> None:
    monkeypatch.setattr(reference, "PAIRS_AT_ONCE", pairs)
    torch.manual_seed(keys)
    inputs = draw(objects, queries, 8), draw(objects, keys, 8), draw(objects, keys, 5)
    bias = draw(objects, keys)
    torch.testing.assert_close(memory_attention(*inputs, bias), plain(*inputs, bias))


class LargestTensor(TorchDispatchMode):
    """Note the most values that any operation made."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.values = max(self.values, out.numel())
        return out


def test_logits_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "PAIRS_AT_ONCE", 5000)
    query, key, value = draw(4, 500, 2), draw(4, 300, 2), draw(4, 300, 2)
    with LargestTensor() as largest:
        memory_attention(query, key, value, draw(4, 300))
    # Queries have 4 * 500 * 3 values with the bias' channel; all logits were 600 000.
    assert largest.values == 6000


def test_rows_at_once_never_hold_more_logits_than_stated() -> None:
    for objects, keys in ((1, 28_736), (8, 28_736), (3, 10**9), (1, 1), (0, 5)):
        rows = reference.rows_at_once(objects, 4096, keys)
        assert 1 <= rows <= 4096
        assert rows == 1 or rows * objects * keys <= reference.PAIRS_AT_ONCE


def test_absent_keys_have_no_weight() -> None:
    torch.manual_seed(0)
    query, key, value = draw(2, 9, 4), draw(2, 7, 4) * 5, draw(2, 7, 3)
    bias = torch.tensor([0.0, -3e4, 0.0, -3e4, -3e4, 0.0, 0.0], dtype=torch.float64).expand(2, -1)
    kept = bias[0] == 0
    got = memory_attention(query, key, value, bias)
    few = plain(query, key[:, kept], value[:, kept], bias[:, kept])
    torch.testing.assert_close(got, few)
    assert memory_attention(query, key, value, bias * 0 - 3e4).isfinite().all()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 3, 4), (2, 5, 6), (2, 5, 1), (2, 5)], "one width"),
        ([(2, 3, 4), (1, 5, 4), (2, 5, 1), (2, 5)], "as many of each"),
        ([(2, 3, 4), (2, 5, 4), (2, 6, 1), (2, 5)], "a value and a bias"),
        ([(2, 3, 4), (2, 5, 4), (2, 5, 1), (2, 1)], "a value and a bias"),
        ([(3, 4), (2, 5, 4), (2, 5, 1), (2, 5)], "3 dimensions"),
        ([(2, 3, 4), (2, 5, 4), (2, 5, 1), (2, 1, 5)], "bias of 2"),
    ],
)
def test_shapes_that_do_not_fit(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        memory_attention(*map(torch.zeros, shapes))


# Positions.


@pytest.mark.parametrize("channels", [8, 64, 256])
@pytest.mark.parametrize("side", [2, 6, 64])
def test_grid_encoding(side: int, channels: int) -> None:
    theirs = Sam2VideoPositionEmbeddingSine(channels // 2, normalize=True)
    wanted = theirs(torch.Size((1, channels, side, side)), "cpu", torch.float32)
    wanted = wanted.flatten(2).transpose(1, 2)[0]
    torch.testing.assert_close(encode_grid(side, channels), wanted, rtol=0, atol=1e-5)


def test_distance_encoding() -> None:
    distances = torch.rand(3, 5)
    wanted = get_1d_sine_pe(distances, 32)
    torch.testing.assert_close(encode_distances(distances, 32), wanted)


# One layer, in float64.

SIDE, DIM, MEM_DIM, OBJECTS, SLOTS, OTHERS = 5, 24, 8, 3, 4, 7


def turns() -> Tensor:
    """Return what pixel (y, x) turns channel pairs by: half of them tell x, half y."""
    frequencies = [10_000.0 ** (-4 * i / DIM) for i in range(DIM // 4)]
    angles = [
        [f * place for place in (x, y) for f in frequencies]
        for y in range(SIDE)
        for x in range(SIDE)
    ]
    angle = torch.tensor(angles, dtype=torch.float64)
    return torch.polar(torch.ones_like(angle), angle)


@pytest.fixture
def rotary() -> Rotary:
    """Return ours in float64; its angles were float32."""
    made = Rotary(SIDE, DIM).double()
    exact = turns()
    torch.testing.assert_close(torch.complex(made.cosine, made.sine), exact, rtol=0, atol=1e-6)
    made.cosine, made.sine = exact.real.clone(), exact.imag.clone()
    return made


def tokens() -> tuple[MemoryTokens, Tensor, Tensor]:
    """Return tokens for our layer, and as upstream lists them, (N, K, M) with their encodings."""
    memories, others = draw(OBJECTS, SLOTS, SIDE**2, MEM_DIM), draw(OBJECTS, OTHERS, MEM_DIM)
    place = draw(1, 1, SIDE**2, MEM_DIM) + draw(OBJECTS, SLOTS, 1, MEM_DIM)
    time = draw(OBJECTS, OTHERS, MEM_DIM)
    listed = torch.cat((memories.flatten(1, 2), others), dim=1)
    memory = MemoryTokens(listed, memories + place, others + time, torch.zeros(listed.shape[:2]))
    return memory, listed, torch.cat((place.flatten(1, 2), time), dim=1)


@torch.inference_mode()
def test_a_layer_is_upstreams_layer(rotary: Rotary) -> None:
    torch.manual_seed(0)
    layer = MemoryAttentionLayer(DIM, MEM_DIM, 32).double()
    for parameter in layer.parameters():
        parameter.normal_(std=0.4)
    memory, listed, places = tokens()
    x = draw(1, SIDE**2, DIM)
    many = x.expand(OBJECTS, -1, -1)
    wanted = memory_attention_layer(
        many, listed, places, layer.state_dict(), turns(), unturned=OTHERS
    )
    torch.testing.assert_close(layer(x, memory, rotary), wanted)
    torch.testing.assert_close(layer(many, memory, rotary), wanted)


@torch.inference_mode()
def test_keys_of_a_memory_may_be_kept(rotary: Rotary) -> None:
    torch.manual_seed(0)
    attention = CrossAttention(DIM, MEM_DIM).double()
    memory, time = draw(1, 1, SIDE**2, MEM_DIM), draw(1, 1, 1, MEM_DIM).expand(-1, -1, SIDE**2, -1)
    kept, later = attention.pixel_keys(memory, rotary), attention.pixel_keys(memory + time, rotary)
    attention.k_proj.bias.zero_()
    torch.testing.assert_close(kept + attention.pixel_keys(time, rotary), later)


# The stage, against transformers.


@dataclass
class History:
    """Hold what an object left on earlier frames: memories (L, M) and pointers (C,)."""

    prompted: tuple[int, ...]
    tracked: tuple[int, ...]
    memories: dict[int, Tensor] = field(default_factory=dict)
    pointers: dict[int, Tensor] = field(default_factory=dict)


HISTORIES = [((0,), tuple(range(1, 20))), ((3, 11), (14, 16, 18, 19)), ((19,), ())]


def histories(pixels: int, mem_dim: int, dim: int) -> list[History]:
    torch.manual_seed(5)
    made = [History(*frames) for frames in HISTORIES]
    for history in made:
        for frame in (*history.prompted, *history.tracked):
            history.memories[frame] = torch.randn(pixels, mem_dim)
            history.pointers[frame] = torch.randn(dim)
    return made


Bank = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def bank(made: list[History], slots: int = 9, room: int = 18) -> Bank:
    """Return memories, ages, pointers, offsets and present at FRAME; NaN where nothing is."""
    one = next(iter(made[0].memories.values()))
    dim = len(next(iter(made[0].pointers.values())))
    memories = torch.full((len(made), slots, *one.shape), torch.nan)
    ages = torch.full((len(made), slots), -1, dtype=torch.int32)
    pointers = torch.full((len(made), room, dim), torch.nan)
    offsets = torch.full((len(made), room), torch.nan)
    present = torch.zeros(len(made), room, dtype=torch.int32)
    for index, history in enumerate(made):
        recent = [frame for frame in history.tracked if FRAME - frame < 7]
        for slot, frame in enumerate((*recent, *history.prompted)):
            memories[index, slot + index] = history.memories[frame]
            ages[index, slot + index] = 0 if frame in history.prompted else FRAME - frame
        near = [frame for frame in history.tracked if FRAME - frame < POINTERS_USED]
        for place, frame in enumerate((*history.prompted, *near)):
            pointers[index, place + index] = history.pointers[frame]
            offsets[index, place + index] = (FRAME - frame) / (POINTERS_USED - 1)
            present[index, place + index] = 1
    return memories, ages, pointers, offsets, present


def oracle_features(oracle: torch.nn.Module, history: History, raw: Tensor) -> Tensor:
    """Return the conditioned picture (L, C) that transformers makes of raw (L, C)."""
    side = oracle.backbone_feature_sizes[-1][0]
    encode = oracle.memory_encoder.position_encoding

    def place(channels: int, encoding: torch.nn.Module) -> Tensor:
        found = encoding(torch.Size((1, channels, side, side)), "cpu", torch.float32)
        return found.flatten(2).permute(2, 0, 1)

    outputs = {
        frame: {
            "maskmem_features": history.memories[frame].unsqueeze(1),
            "maskmem_pos_enc": place(oracle.mem_dim, encode),
            "object_pointer": history.pointers[frame].unsqueeze(0),
        }
        for frame in history.memories
    }
    kinds = {"cond_frame_outputs": history.prompted, "non_cond_frame_outputs": history.tracked}
    kept = {kind: {frame: outputs[frame] for frame in frames} for kind, frames in kinds.items()}
    found = oracle._prepare_memory_conditioned_features(
        SimpleNamespace(output_dict_per_obj={0: kept}, dtype=torch.float32),
        frame_idx=FRAME,
        obj_idx=0,
        is_initial_conditioning_frame=False,
        current_vision_features=raw.unsqueeze(1),
        current_vision_positional_embeddings=place(
            oracle.hidden_dim, oracle.vision_encoder.neck.position_encoding
        ),
        num_total_frames=40,
    )
    return found.flatten(2)[0].transpose(0, 1)


@dataclass
class Case:
    """Hold a stage of memory_attention, its inputs and transformers' answer (N, L, C)."""

    stage: ConditionFrame
    image: Tensor
    bank: Bank
    wanted: Tensor


@pytest.fixture(scope="module", params=[("2.1", 96), ("2.0", 64)], ids=["2.1", "2.0"])
def case(request: pytest.FixtureRequest) -> Case:
    config = small_config(*request.param)
    oracle = video_oracle(config)
    stage = ConditionFrame(video_twin(oracle, config)).eval()
    pixels, dim = config.embed_size**2, config.hidden_dim
    made = histories(pixels, config.memory.mem_dim, dim)
    raw = torch.randn(pixels, dim)
    with torch.inference_mode():
        wanted = torch.stack([oracle_features(oracle, history, raw) for history in made])
        image = raw + stage.model.no_mem_embed
    return Case(stage, image, bank(made), wanted)


@torch.inference_mode()
def test_objects_condition_a_frame_as_in_transformers(case: Case) -> None:
    (got,) = case.stage(case.image, *case.bank)
    assert relative_error(got, case.wanted) < RELATIVE
    # The objects differ by more than the error: each has its own memories.
    assert relative_error(got[0], case.wanted[1]) > 100 * RELATIVE


@torch.inference_mode()
def test_many_objects_are_as_many_single_ones(case: Case) -> None:
    (together,) = case.stage(case.image, *case.bank)
    for index in range(len(together)):
        alone = (part[index : index + 1] for part in case.bank)
        (got,) = case.stage(case.image, *alone)
        assert relative_error(got, together[index : index + 1]) < RELATIVE / 10


@torch.inference_mode()
def test_the_order_of_slots_and_pointers_does_not_count(case: Case) -> None:
    (wanted,) = case.stage(case.image, *case.bank)
    memories, ages, *rest = case.bank
    torch.manual_seed(0)
    slots, places = torch.randperm(ages.shape[1]), torch.randperm(rest[0].shape[1])
    shuffled = memories[:, slots], ages[:, slots], *(part[:, places] for part in rest)
    assert relative_error(case.stage(case.image, *shuffled)[0], wanted) < RELATIVE / 10


@torch.inference_mode()
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 1e30, 0.0])
def test_what_empty_slots_hold_does_not_count(case: Case, garbage: float) -> None:
    (wanted,) = case.stage(case.image, *case.bank)
    memories, ages, pointers, offsets, present = (part.clone() for part in case.bank)
    assert memories.isnan().any() and pointers.isnan().any() and offsets.isnan().any()
    memories[ages < 0] = garbage
    pointers[present == 0], offsets[present == 0] = garbage, garbage
    (got,) = case.stage(case.image, memories, ages, pointers, offsets, present)
    assert torch.equal(got, wanted)


@torch.inference_mode()
def test_a_bank_without_empty_slots_gives_the_same(case: Case) -> None:
    (wanted,) = case.stage(case.image, *case.bank)
    memories, ages, pointers, offsets, present = (part[:1] for part in case.bank)
    held, there = ages[0] >= 0, present[0] > 0
    assert not held.all() and not there.all()
    few = memories[:, held], ages[:, held], pointers[:, there], offsets[:, there], present[:, there]
    assert relative_error(case.stage(case.image, *few)[0], wanted[:1]) < RELATIVE / 10


@torch.inference_mode()
def test_ages_and_offsets_count(case: Case) -> None:
    (wanted,) = case.stage(case.image, *case.bank)
    memories, ages, pointers, offsets, present = case.bank
    other = torch.where(ages >= 0, 6 - ages, ages)
    assert relative_error(case.stage(case.image, memories, other, *case.bank[2:])[0], wanted) > 1e-3
    (got,) = case.stage(case.image, memories, ages, pointers, 1 - offsets, present)
    # Version 2.0 has no time of pointers.
    changed = relative_error(got, wanted) > 1e-3
    assert changed == (case.stage.model.config.version == "2.1")


@torch.inference_mode()
def test_nothing_remembered_gives_numbers(case: Case) -> None:
    memories, ages, pointers, offsets, present = case.bank
    nothing = torch.full_like(ages, -1), pointers, offsets, torch.zeros_like(present)
    (got,) = case.stage(case.image, memories, *nothing)
    assert got.isfinite().all() and relative_error(got[:1], got[1:2]) == 0


def test_the_host_kernel_serves_only_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives what plain PyTorch does, and leaves training and other dtypes to that."""
    rng = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(2, n, d, generator=rng) for n, d in ((9, 16), (70, 16), (70, 8))
    )
    bias = torch.zeros(2, 70)
    bias[1, 30:] = -1e9
    calls = []

    def spy(*given: Any) -> np.ndarray:
        *arrays, threads = given
        calls.append(threads)
        return host.stand_in(*arrays)

    monkeypatch.setattr(host, "attend", spy)
    monkeypatch.setattr(host, "IS_NATIVE", True)
    wanted = attend(query, key, value, bias)
    torch.testing.assert_close(memory_attention(query, key, value, bias), wanted)
    assert calls == [torch.get_num_threads()]
    learning = memory_attention(query.requires_grad_(), key, value, bias)
    assert learning.requires_grad and len(calls) == 1
    with torch.no_grad():
        memory_attention(query, key, value, bias)
        assert len(calls) == 2
        half = (t.bfloat16() for t in (query, key, value, bias))
        assert memory_attention(*half).dtype == torch.bfloat16 and len(calls) == 2
