"""A stage that gives NaN in low precision runs in fp32 instead, once warned of."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vkrt.backends.base import Backend
from vkrt.backends.eager import EagerBackend
from vkrt.backends.fake import FakeBackend
from vkrt.backends.guard import GuardedBackend, is_finite
from vkrt.errors import BackendError, GenerationError
from vkrt.options import Options
from vkrt.stage import Port, Program, Stage

PORTS = (Port("x", ("n", 4)),)


class Squarer(nn.Module):
    """Overflow in fp16 from 256 on; numbers its calls by dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))
        self.dtypes: list[torch.dtype] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.dtypes.append(x.dtype)
        return (x * x * self.weight, torch.ones(2, dtype=torch.int64))


def squarer(name: str = "squarer") -> Stage:
    return Stage(name, Squarer(), PORTS, (*PORTS, Port("count", (2,), "int64")))


def eager(precision: str) -> EagerBackend:
    return EagerBackend(Options(device="cpu", precision=precision))


def guarded() -> GuardedBackend:
    return GuardedBackend(eager("fp16"), lambda: eager("fp32"))


SMALL, LARGE = torch.full((1, 4), 3.0), torch.full((1, 4), 1000.0)


def test_finite_outputs_pass_untouched() -> None:
    stage = squarer()
    outputs = guarded().prepare(stage)(SMALL)
    assert outputs[0].dtype == torch.float16 and (outputs[0] == 9).all()
    assert stage.module.dtypes == [torch.float16]


def test_an_overflow_reruns_in_fp32_and_stays_there() -> None:
    stage, backend = squarer(), guarded()
    program = backend.prepare(stage)
    with pytest.warns(RuntimeWarning, match="squarer gives NaN or infinity in fp16") as told:
        result = program(LARGE)[0]
    assert len(told) == 1 and "\n" not in str(told[0].message)
    assert result.dtype == torch.float32 and (result == 1e6).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert program(SMALL)[0].dtype == torch.float32
        # Evicted and prepared again, it still is in fp32; another stage is not.
        assert backend.prepare(stage)(LARGE)[0].dtype == torch.float32
        assert backend.prepare(squarer("other"))(SMALL)[0].dtype == torch.float16
    assert stage.module.dtypes == [torch.float16, *[torch.float32] * 3]


def test_a_streamed_stage_goes_over_within_its_budget() -> None:
    inside, wide = eager("fp16"), eager("fp32")
    stage = squarer()
    program = GuardedBackend(inside, lambda: wide).prepare(stage, budget=35_000)
    assert len(inside._streamers) == 1
    with pytest.raises(GenerationError, match="raise the memory limit"):
        GuardedBackend(wide).prepare(squarer(), budget=20_000)
    with pytest.warns(RuntimeWarning):
        assert (program(LARGE)[0] == 1e6).all()
    assert not inside._streamers and len(wide._streamers) == 1


def test_weights_are_loaded_anew_where_they_can_be() -> None:
    stage, fresh = squarer(), squarer()
    with torch.no_grad():
        fresh.module.weight.fill_(0.1)
    backend = GuardedBackend(eager("fp16"), lambda: eager("fp32"), {"squarer": fresh}.__getitem__)
    with pytest.warns(RuntimeWarning):
        (result, _) = backend.prepare(stage)(LARGE)
    # 0.1 in fp32, not rounded to fp16 in between.
    torch.testing.assert_close(result, torch.full((1, 4), 1e5), rtol=1e-6, atol=0)


def test_nan_that_comes_in_is_told_as_such() -> None:
    stage = squarer()
    program = guarded().prepare(stage)
    with pytest.raises(GenerationError, match="given NaN or infinity in x"):
        program(torch.full((1, 4), float("nan")))
    assert stage.module.dtypes == [torch.float16]


@pytest.mark.parametrize("backend", [GuardedBackend(eager("fp32")), guarded()])
def test_damaged_weights_are_told_in_one_line(backend: GuardedBackend) -> None:
    stage = squarer()
    with torch.no_grad():
        stage.module.weight[2] = float("inf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(GenerationError, match="check the checkpoint") as caught:
            backend.prepare(stage)(SMALL)
    assert "\n" not in str(caught.value)


class Nan(FakeBackend):
    """A backend of numpy arrays whose programs give NaN."""

    def prepare(self, stage: Stage) -> Program:
        return lambda *arrays: (arrays[0] * np.float32("nan"),)


def test_a_backend_of_numpy_arrays() -> None:
    stage = Stage("s", None, PORTS, PORTS)
    backend = GuardedBackend(FakeBackend())
    x = backend.from_host(np.ones((2, 4), np.float32))
    assert backend.to_host(backend.prepare(stage)(x)[0]).shape == (2, 4)
    assert (backend.name, backend.device) == ("fake", "cpu")
    with pytest.raises(GenerationError, match="gives NaN"):
        GuardedBackend(Nan()).prepare(stage)(x)
    with pytest.raises(GenerationError, match="fake backend can't stream"):
        backend.prepare(stage, budget=10)
    with pytest.warns(RuntimeWarning, match="in low precision"):
        GuardedBackend(Nan(), FakeBackend).prepare(stage)(x)


def test_a_closed_program_says_so() -> None:
    program: Any = guarded().prepare(squarer())
    program.close()
    with pytest.raises(BackendError, match="closed"):
        program(SMALL)


def test_it_is_a_backend() -> None:
    backend: Backend = guarded()
    assert tuple(backend.empty((2, 3)).shape) == (2, 3)
    backend.close()


HARD = [0.0, 65504.0, 3.3e38, -3.3e38, 1e-40, float("nan"), float("inf"), -float("inf")]


@given(st.lists(st.sampled_from(HARD), max_size=12))
def test_finite_is_what_numpy_says_of_each_number(values: list[float]) -> None:
    array = np.array(values, np.float32)
    assert is_finite(array) == bool(np.isfinite(array).all())
    assert is_finite(torch.from_numpy(array)) == is_finite(array)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_finite_in_every_dtype(dtype: torch.dtype) -> None:
    values = torch.full((70_000,), 60_000.0, dtype=dtype)
    assert is_finite(values)
    values[69_999] = float("-inf")
    assert not is_finite(values)


def test_whole_numbers_are_finite() -> None:
    assert is_finite(np.array([1, 2])) and is_finite(torch.tensor([1, 2]))
    assert is_finite(np.array([True])) and is_finite(torch.tensor([True]))
