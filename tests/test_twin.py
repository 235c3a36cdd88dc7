"""A module computed with more or fewer bits, held to a copy of it."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.export.half import LEAST_VALUES, round_half
from vkrt.export.twin import InFloat64, WithHalfWeights
from vkrt.kernels.attention import attention


class Odd(nn.Module):
    """Use weights in every way that a model does: by a layer, by a function, cut and viewed."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 64)
        self.conv = nn.Conv2d(64, 64, 1)
        self.norm = nn.RMSNorm(64)
        self.register_buffer("table", torch.randn(3, 32, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # x: (B, T, 64)
        made = torch.zeros(x.shape[1], 64)
        made[:] = self.table[1, : x.shape[1]]
        x = F.linear(self.norm(x + made), self.conv.weight.flatten(1), self.conv.bias)
        x = self.conv(x.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)
        x = x.to(torch.promote_types(x.dtype, torch.float32)) @ self.layer.weight.T
        heads = x.unflatten(-1, (4, 16)).transpose(1, 2)
        return attention(heads, heads, heads), F.silu(self.layer(x), inplace=True)


@torch.inference_mode()
def test_more_bits_are_those_of_a_copy_in_float64() -> None:
    module, x = Odd().eval(), torch.randn(2, 5, 64)
    with InFloat64():
        found = module(x)
    wanted = deepcopy(module).double()(x.double())
    for ours, copy, single in zip(found, wanted, module(x), strict=True):
        assert ours.dtype == torch.float64
        error = (ours - copy).abs().max()
        assert error < 1e-2 * (single - copy).abs().max()
    assert module.layer.weight.dtype == torch.float32


@torch.inference_mode()
def test_fewer_bits_are_those_of_a_rounded_copy() -> None:
    module, x = Odd().eval(), torch.randn(2, 5, 64)
    before = module.layer.weight.clone()
    assert module.layer.bias.numel() < LEAST_VALUES <= before.numel()
    with WithHalfWeights(module):
        found = module(x)
    wanted = round_half(deepcopy(module))(x)
    for ours, copy, single in zip(found, wanted, module(x), strict=True):
        torch.testing.assert_close(ours, copy, rtol=1e-6, atol=1e-6)
        assert (ours - single).abs().max() > 1e-5
    assert torch.equal(module.layer.weight, before)
