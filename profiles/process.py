"""A program in a process of its own: one JSON document in, lines out, and nothing of it left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from edgemem.runtime.errors import EngineError

_OUR_ERROR = re.compile(r"^edgemem\.runtime\.errors\.\w+: ")


def run_process(command: Sequence[str | Path], job: Any, timeout_s: float) -> str:
    """The program's stdout, `job` being its stdin as JSON.

    EngineError, saying the process's last words, if it fails; it never outlives this call.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        start_new_session=True,  # the terminal's Ctrl-C reaches this process alone, which then ends that one
    ) as process:
        try:
            out, said = process.communicate(json.dumps(job), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise EngineError("the process took too long", got=f"more than {timeout_s:.0f} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()  # after Ctrl-C the with statement would not
    if process.returncode != 0:
        raise EngineError(last_words(said, process.returncode))
    return out


def last_words(said: str, status: int) -> str:
    """One line from a failed process's stderr: its last message, continuation lines joined, or how it ended."""
    lines = [line for line in said.splitlines() if line.strip()]
    starts = [index for index, line in enumerate(lines) if not line[0].isspace()]
    message = "; ".join(line.strip() for line in lines[starts[-1] :]) if starts else ""
    message = _OUR_ERROR.sub("", message)
    if status < 0:
        message = f"ended by {signal.Signals(-status).name}{f': {message}' if message else ''}"
    return message or f"exit status {status}"


def private_stdout() -> TextIO:
    """In such a program, stdout for its lines alone: descriptor 1, which native code may write to, becomes stderr."""
    sys.stdout.flush()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel
