"""Simulated users click inside what they mean, and draw boxes around it."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vkrt.demo.losses import grouping_loss, mask_loss, overlap_of
from vkrt.demo.prompts import boxes_of, interior_weight, noisy_boxes, sample_clicks
from vkrt.demo.rounds import BOX_SHARE, correction, first_prompts


def discs(count: int, size: int = 64) -> torch.Tensor:
    """Return discs (count, size, size) bool that grow."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([(x - 30) ** 2 + (y - 26) ** 2 < (6 + 3 * i) ** 2 for i in range(count)])


@given(seed=st.integers(0, 2**31), left=st.integers(0, 50), top=st.integers(0, 50))
def test_clicks_fall_inside(seed: int, left: int, top: int) -> None:
    region = torch.zeros(1, 64, 64, dtype=torch.bool)
    region[0, top : top + 9, left : left + 6] = True
    x, y = sample_clicks(region, torch.Generator().manual_seed(seed))[0].long()
    assert region[0, y, x]


def test_an_empty_region_gives_the_middle() -> None:
    region = torch.zeros(2, 64, 64, dtype=torch.bool)
    clicks = sample_clicks(region, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(clicks, [[32, 32]] * 2)


def test_half_of_the_clicks_are_near_the_middle() -> None:
    region = discs(1, 64).expand(400, -1, -1)
    clicks = sample_clicks(region, torch.Generator().manual_seed(0))
    distance = (clicks - torch.tensor([30.0, 26.0])).norm(dim=1)
    # Of uniform clicks a quarter would be within half of the radius.
    assert 0.5 < (distance < 3).float().mean() < 0.95


def test_the_interior_weighs_more() -> None:
    weight = interior_weight(discs(1))[0]
    assert weight[26, 30] > weight[26, 30 + 5] > 0
    assert weight[0, 0] == 0


def test_boxes_are_tight() -> None:
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 10:20, 5:50] = True
    np.testing.assert_array_equal(boxes_of(mask), [[5, 10, 50, 20]])
    noisy = noisy_boxes(mask.expand(100, -1, -1), torch.Generator().manual_seed(0))
    error = (noisy - torch.tensor([5.0, 10, 50, 20])).abs()
    assert 0 < error.max() <= 20 / 1024 * 64 + 1e-4


def test_first_prompts_mix_clicks_and_boxes() -> None:
    points, labels, is_click = first_prompts(discs(4).repeat(30, 1, 1), torch.Generator())
    assert points.shape == (120, 2, 2)
    # Three standard deviations of 120 draws.
    assert abs(is_click.float().mean() - (1 - BOX_SHARE)) < 0.11
    assert (labels[is_click] == torch.tensor([1, -1])).all()
    assert (labels[~is_click] == torch.tensor([2, 3])).all()


def test_corrections_point_at_the_larger_error() -> None:
    wanted = torch.zeros(2, 64, 64, dtype=torch.bool)
    wanted[:, 10:30, 10:30] = True
    shown = torch.zeros_like(wanted)
    shown[1, 10:60, 10:60] = True
    points, labels = correction(shown, wanted, torch.Generator().manual_seed(0))
    assert labels.flatten().tolist() == [1, 0]
    for index, (x, y) in enumerate(points[:, 0].long()):
        assert wanted[index, y, x] != shown[index, y, x]


def test_losses_prefer_the_right_mask() -> None:
    target = discs(2).float()
    right = (target * 20 - 10).unsqueeze(1)
    assert (mask_loss(right, target) < 0.01).all()
    assert (mask_loss(-right, target) > 5).all()
    np.testing.assert_allclose(overlap_of(right, target), 1)
    np.testing.assert_allclose(overlap_of(-right, target), 0)


def test_grouping_is_perfect_where_features_are_the_object() -> None:
    target = discs(1)
    features = torch.stack((target[0].float(), 1 - target[0].float())).unsqueeze(0) + 0.01
    click = torch.tensor([[[30.0, 26.0]]])
    loss, iou = grouping_loss((features, features, features), click, target.float())
    inverse, none = grouping_loss(
        (features, features, features), torch.tensor([[[1.0, 1.0]]]), target.float()
    )
    assert iou == 1
    assert none == 0
    assert loss < inverse
