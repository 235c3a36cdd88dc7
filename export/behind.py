"""An export that runs behind a model in use, in a process of its own; imports no torch here.

The process has a low priority and a pipe from this one. It ends, and leaves nothing, once the pipe
is closed: when the model is closed or this process ends, however that happens.
"""

from __future__ import annotations

import _thread
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event, Lock, Thread
from typing import IO, Any

from vkrt.bundle import Bundle
from vkrt.errors import VkrtError
from vkrt.export.cache import Exportable
from vkrt.export.progress import ignore
from vkrt.options import exports_forbidden
from vkrt.weights.folder import find_parts

__all__ = ["ExportBehind", "can_run_behind", "main"]

log = logging.getLogger("vkrt")

# Of a busy process' own share of a core, this leaves it nine tenths.
NICENESS = 10
# How often it is looked whether exports were forbidden meanwhile.
POLL_SECONDS = 1.0
# What torch takes, and how often an export holds the weights: the encoder as it is, traced, as a
# file, and in ONNX Runtime, each with room to optimize.
BASE_BYTES, COPIES = 2 * 2**30, 8
# How often it is looked whether there is memory for an export now.
RETRY_SECONDS = 60.0
# The first that the kernel ends where memory runs out.
EXPENDABLE = "1000"
MEMORY, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
# What the process gets to tidy up in before it is killed.
GRACE_SECONDS = 15.0
FAILED = 3
CODE = "from vkrt.export.behind import main; main()"


def can_run_behind() -> bool:
    """Tell whether another Python process can be started: not where this one is a frozen app."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


class ExportBehind:
    """Export a checkpoint in a process of its own once its model was in use for a while.

    Args:
        wanted: what to export.
        ready: is called in a thread of its own with the bundle.
        after: seconds from now; the first use of the model after them starts the export.
    """

    def __init__(
        self, wanted: Exportable, ready: Callable[[Bundle], None], after: float = 0.0
    ) -> None:
        self._wanted = wanted
        self._ready = ready
        self._due = time.monotonic() + after
        self._lock = Lock()
        self._stopped = Event()
        self._thread: Thread | None = None
        self._switching = False

    def touch(self) -> None:
        """Start the export, if it is time and nothing speaks against it."""
        if self._thread is None and time.monotonic() >= self._due:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._stopped.is_set() or exports_forbidden():
                return
            if available_bytes() < needed_bytes(self._wanted.weights):
                self._due = time.monotonic() + RETRY_SECONDS
                return
            # A thread that ends with the process: nobody waits for an export at the end.
            self._thread = Thread(target=self._run, name="vkrt export", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the export; its process is told so and ends soon."""
        self._stopped.set()
        # A runtime that is being opened while the interpreter ends would crash it.
        if self._switching and self._thread not in (None, threading.current_thread()):
            self.join(GRACE_SECONDS)

    @property
    def started(self) -> bool:
        """Tell whether the export was started."""
        return self._thread is not None

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end of an export that was started; return whether it has ended."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is not None and not self._thread.is_alive()

    def _run(self) -> None:
        wanted = self._wanted
        log.info("exporting %s in the background", wanted.weights)
        try:
            code = run_export(wanted, self._stopped)
            if self._stopped.is_set():
                return
            bundle = wanted.find()
            if bundle is not None:
                self._switch(bundle)
                return
            # Whatever it was that it could not say itself: it was killed, or could not start.
            wanted.refuse(f"the export in the background ended with code {code}", lasting=False)
            self._complain()
        except (OSError, VkrtError) as error:
            wanted.refuse(str(error), lasting=False)
            self._complain()

    def _switch(self, bundle: Bundle) -> None:
        self._switching = True
        try:
            if not self._stopped.is_set():
                self._ready(bundle)
                log.info("%s runs as a bundle now", self._wanted.weights)
        finally:
            self._switching = False

    def _complain(self) -> None:
        refusal = self._wanted.refusal()
        if refusal is not None and self._wanted.note_told():
            warnings.warn(
                f"eager PyTorch goes on running {self._wanted.weights}: {refusal.reason}",
                RuntimeWarning,
                stacklevel=1,
            )


def needed_bytes(weights: Path) -> int:
    """Return what an export of weights may take of memory, roughly and rather too much."""
    with suppress(OSError, VkrtError):
        return BASE_BYTES + COPIES * sum(file.stat().st_size for file in find_parts(weights).files)
    return BASE_BYTES


def available_bytes() -> float:
    """Return the memory that is free for another process; infinity where that can't be told."""
    free = float("inf")
    with suppress(OSError, ValueError, StopIteration):
        lines = MEMORY.read_text().splitlines()
        free = 1024 * int(next(line for line in lines if "MemAvailable" in line).split()[1])
    with suppress(OSError, ValueError):
        limit, used = (int((GROUP / f"memory.{n}").read_text()) for n in ("max", "current"))
        free = min(free, limit - used)
    return free


def run_export(wanted: Exportable, stopped: Event) -> int:
    """Export in a process of low priority, and return its exit code.

    Args:
        wanted: what to export.
        stopped: once it is set the process ends.

    Raises:
        OSError: it can't be started.
    """
    wanted.cache.mkdir(parents=True, exist_ok=True)
    job = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(wanted).items()}
    job["weights"], job["cache"] = map(os.path.abspath, (wanted.weights, wanted.cache))
    with subprocess.Popen([sys.executable, "-c", CODE], **surroundings(wanted.cache)) as process:
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        while process.poll() is None and not stopped.is_set():
            if exports_forbidden():
                stopped.set()
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
        end(process, process.stdin)
        return process.returncode


def surroundings(cache: Path) -> dict[str, Any]:
    """Return how the process is started: in the cache, silent, beyond the reach of Ctrl-C."""
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    return {
        # `-c` looks for modules in the current folder first; there is none in the cache.
        "cwd": cache,
        "env": {**os.environ, "PYTHONPATH": path},
        "stdin": subprocess.PIPE,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "start_new_session": True,
        "creationflags": getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0),
    }


def end(process: subprocess.Popen[bytes], pipe: IO[bytes]) -> None:
    """Let a process end, and end it where it does not."""
    with suppress(OSError):
        pipe.close()
    try:
        process.wait(GRACE_SECONDS + 5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# What runs in the other process.


def main() -> None:
    """Export what the first line of stdin says; end once stdin does."""
    job = json.loads(sys.stdin.readline())
    # A parent that runs in the background of a shell may have handed on that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Thread(target=end_with_parent, daemon=True).start()
    with suppress(AttributeError, OSError):
        os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(EXPENDABLE)
    job.update(weights=Path(job["weights"]), cache=Path(job["cache"]))
    wanted = Exportable(**job)
    try:
        wanted.export(report=ignore)
    except KeyboardInterrupt:
        sys.exit(FAILED)
    except VkrtError:
        # It was remembered.
        sys.exit(FAILED)
    except Exception as error:
        wanted.refuse(f"{type(error).__name__}: {error}"[:500], lasting=False)
        sys.exit(FAILED)


def end_with_parent() -> None:
    """End this process, tidily if that is possible, once nobody holds the other end of stdin."""
    sys.stdin.buffer.read()
    if hasattr(signal, "pthread_kill"):
        # Unlike a simulated one, it also ends a wait.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()
    time.sleep(GRACE_SECONDS)
    os._exit(FAILED)
