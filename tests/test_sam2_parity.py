"""Our SAM 2 equals transformers' with the same random weights, in fp32, at full depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from oracle import oracle_model, twin
from torch import Tensor
from transformers import Sam2Model

from vkrt import catalog
from vkrt.engines.embedding import feature_maps
from vkrt.media.masks import choose
from vkrt.models.sam2.stages import image_stages

RELATIVE = 1e-4
SIZES = [
    ("sam2.1-nano", 256),
    ("sam2.1-tiny", 1024),
    ("sam2.1-small", 256),
    ("sam2.1-base-plus", 224),
    ("sam2.1-large", 256),
]


def relative_error(got: Tensor | np.ndarray, wanted: Tensor | np.ndarray) -> float:
    """Return the largest difference relative to the largest wanted value."""
    got, wanted = torch.as_tensor(got), torch.as_tensor(wanted)
    assert got.shape == wanted.shape
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


@dataclass
class Pair:
    """Hold an oracle and our stages on the same picture."""

    oracle: Sam2Model
    encoder: torch.nn.Module
    decoder: torch.nn.Module
    refiner: torch.nn.Module
    size: int
    embeddings: list[Tensor]
    ours: tuple[Tensor, ...]


@pytest.fixture(scope="module", params=SIZES, ids=[name for name, _ in SIZES])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    name, size = request.param
    config = catalog.find(name, size).config
    oracle = oracle_model(config)
    stages = image_stages(twin(oracle, config))
    encoder, decoder, refiner = (
        stages[name].module for name in ("image_encoder", "mask_decoder", "mask_refiner")
    )
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        embeddings = oracle.get_image_embeddings(pixels)
        yield Pair(oracle, encoder, decoder, refiner, size, embeddings, encoder(pixels))


def prompts(size: int, count: int, points: int, box: bool) -> dict[str, Tensor]:
    """Return random prompts in pixels of the model's input."""
    rng = torch.Generator().manual_seed(7)
    given = {}
    if points:
        given["points"] = torch.rand(count, points, 2, generator=rng) * size
        given["labels"] = torch.arange(points).add(1).remainder(2).expand(count, -1).int()
    if box:
        corners = torch.rand(count, 2, 2, generator=rng) * size
        given["box"] = torch.cat((corners.amin(1), corners.amax(1)), dim=1)
    return given


def ask_oracle(pair: Pair, given: dict[str, Tensor], mask: Tensor | None, multimask: bool):
    """Return low-res logits (N, M, h, w), IoU (N, M) and object scores (N, 1)."""
    out = pair.oracle(
        image_embeddings=[e.clone() for e in pair.embeddings],
        input_points=given["points"][None] if "points" in given else None,
        input_labels=given["labels"][None] if "labels" in given else None,
        input_boxes=given["box"][None] if "box" in given else None,
        input_masks=mask,
        multimask_output=multimask,
    )
    return out.pred_masks[0], out.iou_scores[0], out.object_score_logits[0]


def ask_ours(pair: Pair, given: dict[str, Tensor], mask: Tensor | None, multimask: bool):
    """Return the same from our stages: all four masks, then the choice."""
    count = next(iter(given.values())).shape[0] if given else 1
    pad = torch.zeros(count, 1, 2), torch.full((count, 1), -1, dtype=torch.int32)
    points, labels = [pad[0]], [pad[1]]
    if "points" in given:
        points.insert(0, given["points"])
        labels.insert(0, given["labels"])
    if "box" in given:
        points.insert(0, given["box"].view(count, 2, 2))
        labels.insert(0, torch.tensor([[2, 3]], dtype=torch.int32).expand(count, -1))
    if not given:  # transformers pads an empty prompt twice
        points, labels = points * 2, labels * 2
    joined = torch.cat(points, 1), torch.cat(labels, 1)
    if mask is None:
        logits, iou, score = pair.decoder(*pair.ours, *joined)
    else:
        masks = mask.expand(count, -1, -1, -1)
        logits, iou, score = pair.refiner(*pair.ours[:3], *joined, masks)
    chosen = choose(logits.numpy(), iou.numpy(), multimask)
    return *chosen, score


def test_embeddings(pair: Pair) -> None:
    names = "image", "high_res_s0", "high_res_s1"
    maps = feature_maps({n: t.numpy() for n, t in zip(names, pair.ours, strict=False)})
    for name, wanted in zip((*names[1:], names[0]), pair.embeddings, strict=True):
        assert relative_error(maps[name], wanted) < RELATIVE


@pytest.mark.parametrize("multimask", [True, False], ids=["multimask", "single"])
@pytest.mark.parametrize(
    ("count", "points", "box", "mask"),
    [
        (1, 1, False, False),
        (3, 4, False, False),
        (2, 0, True, False),
        (2, 3, True, False),
        (1, 20, False, False),
        (1, 2, False, True),
        (1, 0, False, True),
    ],
    ids=["click", "points", "boxes", "points-and-boxes", "many-points", "points-and-mask", "mask"],
)
def test_masks(pair: Pair, count: int, points: int, box: bool, mask: bool, multimask: bool) -> None:
    given = prompts(pair.size, count, points, box)
    side = pair.size // 4
    low_res = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(3)) * 5
    with torch.inference_mode():
        wanted = ask_oracle(pair, given, low_res if mask else None, multimask)
        got = ask_ours(pair, given, low_res if mask else None, multimask)
    for ours, theirs in zip(got, wanted, strict=True):
        assert relative_error(ours, theirs) < RELATIVE


def test_dynamic_choice_takes_both_ways() -> None:
    """The stability rule is only tested if some prompts are stable and some are not."""
    rng = np.random.default_rng(0)
    noisy = rng.standard_normal((1, 4, 16, 16)).astype(np.float32) * 0.01
    firm = np.sign(rng.standard_normal((1, 4, 16, 16))).astype(np.float32) * 9
    iou = np.array([[0.1, 0.2, 0.9, 0.3]], np.float32)
    assert choose(firm, iou, multimask=False)[1].item() == pytest.approx(0.1)
    assert choose(noisy, iou, multimask=False)[1].item() == pytest.approx(0.9)
    assert choose(noisy, iou, multimask=False, dynamic=False)[1].item() == pytest.approx(0.1)
