"""The exported graph computes the same with fewer passes over its arrays."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.errors import BackendError
from vkrt.export import marks
from vkrt.export.check import check_stage, refuse_failures
from vkrt.export.to_onnx import stage_to_onnx
from vkrt.models.sam2.hiera import MultiScaleAttention
from vkrt.models.sam2.windows import Windows
from vkrt.stage import Port, Stage

HEADS, TOKENS, WIDTH = 2, 12, 8


class Attend(nn.Module):
    """Run one attention over heads of WIDTH."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Tensor) -> tuple[Tensor]:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in x.chunk(3, dim=-1))
        return (F.scaled_dot_product_attention(q, k, v, **self.options),)


def attend(**options: Any) -> Stage:
    return Stage(
        "attend",
        Attend(**options).eval(),
        (Port("x", ("n", TOKENS, 3 * HEADS * WIDTH)),),
        (Port("y", ("n", HEADS, TOKENS, WIDTH)),),
    )


class Products(nn.Module):
    """Split one product, as fused queries, keys and values are."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.linear = nn.Linear(WIDTH, 3 * WIDTH)
        nn.init.constant_(self.linear.bias[WIDTH:], bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c = self.linear(x).chunk(3, dim=-1)
        return a * b, c - a


def products(bias: float) -> Stage:
    shape = ("n", 5, WIDTH)
    module = Products(bias).eval().requires_grad_(False)
    return Stage("products", module, (Port("x", shape),), (Port("y", shape), Port("z", shape)))


def operators(stage: Stage, path: Path) -> Counter[str]:
    """Export and check a stage, and return how often each operator is there."""
    stage_to_onnx(stage, path)
    refuse_failures(check_stage(stage, path))
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 0.3}, {"scale": 1.0}, {"attn_mask": torch.linspace(-3, 3, TOKENS)[None]}],
    ids=["plain", "scale", "no scale", "bias"],
)
def test_attention_is_two_products_and_a_softmax(options: dict[str, Any], tmp_path: Path) -> None:
    found = operators(attend(**options), tmp_path / "a.onnx")
    assert (found["MatMul"], found["Softmax"]) == (2, 1)
    assert found["Mul"] == (options.get("scale") != 1.0)


@pytest.mark.parametrize(("pairs", "parts"), [(144, 1), (143, 2), (40, 4), (1, 4)])
def test_long_attention_comes_in_parts(
    pairs: int, parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "PAIRS_AT_ONCE", pairs)
    found = operators(attend(), tmp_path / "a.onnx")
    assert found["Softmax"] == parts and found["Concat"] == (parts > 1)


def test_attention_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="torch can't export attend"):
        stage_to_onnx(attend(is_causal=True), tmp_path / "a.onnx")


@pytest.mark.parametrize(("bias", "additions"), [(0.5, 3), (0.0, 1)])
def test_a_product_that_is_split_becomes_several(
    bias: float, additions: int, tmp_path: Path
) -> None:
    found = operators(products(bias), tmp_path / "p.onnx")
    assert (found["MatMul"], found["Split"], found["Add"]) == (3, 0, additions)
    weights = onnx.load(tmp_path / "p.onnx").graph.initializer
    # The whole weight is not kept beside its parts.
    assert sorted(tuple(w.dims) for w in weights if len(w.dims) == 2) == [(WIDTH, WIDTH)] * 3
    assert {"linear.weight_0", "linear.bias_0"} <= {w.name for w in weights}


@pytest.mark.parametrize("pool", [False, True])
@torch.inference_mode()
def test_folded_attention_gives_the_same(pool: bool) -> None:
    torch.manual_seed(0)
    module = MultiScaleAttention(16, 32, num_heads=4, is_global=False, pool_queries=pool)
    nn.init.normal_(module.qkv.bias)
    folded = deepcopy(module)
    folded.fold_constants()
    assert not np.any(folded.qkv.bias.chunk(3)[1].numpy()) and folded.scale == 1.0
    windows = Windows(10, 8, 4)
    x = torch.randn(2, 80, 16)
    torch.testing.assert_close(folded(x, windows), module(x, windows), rtol=1e-5, atol=1e-5)
