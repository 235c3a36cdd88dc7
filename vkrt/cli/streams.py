"""stdout and stderr that can be written to, whatever they are and whatever is to be said."""

from __future__ import annotations

import errno
import os
import sys

from vkrt.errors import OutputError

__all__ = ["flush", "make_writable"]


def make_writable() -> None:
    """Have characters that stdout or stderr can't show escaped, and closed ones swallow all."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Closed by whoever started this process.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Write out what stdout still holds.

    Raises:
        OutputError: it can't be written; nothing more is then tried when Python ends.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        # Whoever reads only the first lines, such as `head`, needs no word on the rest.
        if error.errno != errno.EPIPE:
            raise OutputError(f"stdout can't be written ({error.strerror})") from None
