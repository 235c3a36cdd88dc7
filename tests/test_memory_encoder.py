"""Memories are those that transformers encodes, from logits and from masks that a user gives."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Sam2VideoModel
from video_oracle import maps, relative_error, small_config, video_oracle, video_twin

from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.shrinking import shrinking_matrix
from vkrt.models.sam2.video_stages import video_stages

RELATIVE = 1e-4
OBJECTS = 3
# transformers rounds memories to bfloat16: half a unit of the last of its 8 bits.
ROUNDING = 2.0**-8


@dataclass
class Pair:
    """Hold an oracle, our model, a picture without and with no_mem_embed, logits and scores."""

    oracle: Sam2VideoModel
    model: Sam2
    raw: Tensor
    image: Tensor
    logits: Tensor
    scores: Tensor

    def encode(self, binary: bool | Tensor) -> Tensor:
        """Return what our stage remembers of all objects."""
        flags = torch.as_tensor(binary).expand(OBJECTS).int()
        stage = video_stages(self.model)["memory_encoder"].module
        return stage(self.image, self.logits, self.scores, flags)[0]


@pytest.fixture(scope="module", params=[("2.1", 96), ("2.0", 64)], ids=["2.1", "2.0"])
def pair(request: pytest.FixtureRequest) -> Pair:
    config = small_config(*request.param)
    oracle = video_oracle(config)
    model = video_twin(oracle, config)
    raw = torch.randn(1, config.embed_size**2, config.hidden_dim)
    logits = torch.randn(OBJECTS, 1, config.mask_size, config.mask_size) * 3
    scores = torch.tensor([[2.0], [-1.0], [0.0]])
    logits[1:] = -1024.0
    return Pair(oracle, model, raw, raw + model.no_mem_embed, logits, scores)


@torch.inference_mode()
def test_memory_encoder(pair: Pair) -> None:
    size = pair.model.config.image_size
    masks = torch.randn(OBJECTS, 1, size, size) * 5
    wanted, _ = pair.oracle.memory_encoder(maps(pair.raw).expand(OBJECTS, -1, -1, -1), masks)
    for image in (pair.raw, pair.raw.expand(OBJECTS, -1, -1)):
        got = pair.model.memory_encoder(image, masks)
        assert relative_error(maps(got), wanted) < RELATIVE


@pytest.mark.parametrize("binary", [False, True], ids=["logits", "binary"])
@torch.inference_mode()
def test_memories_of_logits(pair: Pair, binary: bool) -> None:
    size = pair.model.config.image_size
    large = F.interpolate(pair.logits, (size, size), mode="bilinear", align_corners=False)
    wanted, _ = pair.oracle._encode_new_memory(
        pair.raw.transpose(0, 1).expand(-1, OBJECTS, -1), large, pair.scores.unsqueeze(2), binary
    )
    wanted = wanted.transpose(0, 1).float()
    got = pair.encode(binary)
    allowed = ROUNDING * wanted.abs() + RELATIVE * wanted.abs().max()
    assert ((got - wanted).abs() <= allowed).all()
    # Where the object is not there, version 2.1 says so in the memory, and 2.0 does not.
    newer = pair.model.config.version == "2.1"
    encoder = pair.model.memory_encoder(pair.raw, torch.full((1, 1, size, size), -10.0))
    assert (relative_error(got[1:2], encoder) > 1e-2) == newer


@torch.inference_mode()
def test_each_object_has_its_own_kind(pair: Pair) -> None:
    soft, hard = pair.encode(False), pair.encode(True)
    mixed = pair.encode(torch.tensor([1, 0, 1]))
    assert relative_error(soft[:1], hard[:1]) > 1e-2
    for index, wanted in enumerate((hard, soft, hard)):
        assert relative_error(mixed[index], wanted[index]) < RELATIVE


@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 12).map(lambda count: 32 * count), seed=st.integers(0, 99))
def test_shrinking_is_antialiased_interpolation(size: int, seed: int) -> None:
    pictures = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(seed))
    matrix = shrinking_matrix(size, 4)
    wanted = F.interpolate(
        pictures, (size // 4, size // 4), mode="bilinear", align_corners=False, antialias=True
    )
    torch.testing.assert_close(matrix @ pictures @ matrix.T, wanted, rtol=0, atol=2e-6)
    # A band of 8 pixels, each row a mean.
    assert (matrix > 0).sum(dim=1).max() <= 8
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(size // 4))
