"""What the tests of `vkrt` as a command share: run a command line, and hold what it gave."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from vkrt.cli import main

__all__ = ["Answer", "call"]


@dataclass
class Answer:
    """Hold what a command line gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Return a function that runs a command line in this process."""

    def run(*arguments: Any) -> Answer:
        code = main.main([str(a) for a in arguments])
        return Answer(code, *capsys.readouterr())

    return run
