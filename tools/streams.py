"""Standard streams as a command may find them: closed, or in an encoding that cannot say everything."""

from __future__ import annotations

import io
import os
import sys


def settle_streams() -> None:
    """Closed streams become the null device; what cannot be decoded or encoded is replaced, never an error."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for the process's life
        elif isinstance(stream, io.TextIOWrapper) and name != "stderr":  # stderr escapes what it cannot encode
            stream.reconfigure(errors="replace")


def abandon_stdout() -> None:
    """Drop what stdout still holds: Python would complain once more when it flushes it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
