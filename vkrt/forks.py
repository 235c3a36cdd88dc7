"""Forks of a process: a child has the parent's memory, but none of its threads.

Runtimes hand work to threads that they started, and wait for them: in a child of os.fork that would
be for ever, and so would be the end of a session, which waits for its threads to stop.
"""

from __future__ import annotations

import ctypes
import os
from threading import RLock
from types import TracebackType
from typing import Any
from weakref import WeakSet

from vkrt.errors import BackendError

__all__ = ["Home", "HomeLock", "keep_in_children"]

# What must not end in a child.
_threaded: WeakSet[Any] = WeakSet()


class Home:
    """Remember the process in which something was made.

    Args:
        made: what that process did, for the error: "loaded the model".
    """

    def __init__(self, made: str = "loaded the model") -> None:
        self._made = made
        self._process = os.getpid()

    @property
    def is_here(self) -> bool:
        """Tell whether this is that process; costs next to nothing."""
        return self._process == os.getpid()

    def check(self) -> None:
        """Refuse to go on in a child of that process.

        Raises:
            BackendError: this is one.
        """
        if not self.is_here:
            raise BackendError(
                f"this process was forked from the one that {self._made}, whose threads it lacks: "
                'load in this process, or start processes with multiprocessing.get_context("spawn")'
            )


class HomeLock:
    """Take turns within one process; in its children refuse, for who holds the lock may be gone.

    Args:
        made: as for Home.
    """

    def __init__(self, made: str = "loaded the model") -> None:
        self.home = Home(made)
        self._lock = RLock()

    def __enter__(self) -> None:
        self.home.check()
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()


def keep_in_children(threaded: Any) -> None:
    """See to it that an object with threads of its own never ends in a child of this process."""
    _threaded.add(threaded)


def _keep_all() -> None:
    """Let no object that has threads end: a reference too many keeps it, also at the exit."""
    kept = list(_threaded)
    for threaded in kept:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(threaded))
    if kept:
        _exit_at_once()


def _exit_at_once() -> None:
    """Let this process exit without what C++ libraries do then: they wait for their threads too."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc has it, which passes the status on
        # What is registered last runs first: C streams are written out before.
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)
        libc.on_exit(ctypes.cast(libc.fcloseall, ctypes.c_void_p), None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_all)
