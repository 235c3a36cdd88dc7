"""Requests to end the process become exceptions, so that what is being written is cleaned up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["STOPS", "Stopped", "stop_by_exception"]

# What `kill` and a service manager send, and what a terminal sends when it is closed.
STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(BaseException):
    """Raised in the main thread when the process is asked to end; not for `except Exception`.

    Attributes:
        signal: the number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


@contextmanager
def stop_by_exception() -> Iterator[None]:
    """Raise Stopped on a signal of STOPS while the block runs; a second one changes nothing.

    Signals that are ignored, as under nohup, or handled by somebody else stay so.
    """
    # Python lets only the main thread handle signals.
    handles = threading.current_thread() is threading.main_thread()
    own = [each for each in STOPS if handles and signal.getsignal(each) is signal.SIG_DFL]

    def stop(number: int, _frame: Any) -> None:
        for each in own:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    for each in own:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each in own:
            signal.signal(each, signal.SIG_DFL)
