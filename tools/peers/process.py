"""Runs the timing program in a process of its own and reads its lines."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemem.runtime.errors import EngineError

_PROGRAM = Path(__file__).with_name("timing.py")
_OUR_ERROR = re.compile(r"^edgemem\.runtime\.errors\.\w+: ")


@dataclass
class Outcome:
    """What one process told. seconds: of each repetition, by test; steps: {median, p99} ms by test; ids: by test."""

    about: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    steps: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    ids: dict[str, list[int]] = field(default_factory=dict)


def run_adapter(python: Path, adapter: str, job: dict[str, Any], timeout_s: float) -> Outcome:
    """The job's outcome. EngineError, saying the process's last words, if it fails; it never outlives this call."""
    with subprocess.Popen(
        [python, _PROGRAM, adapter],
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
    if process.returncode != 0:
        raise EngineError(last_words(said, process.returncode))
    return read_lines(out)


def read_lines(text: str) -> Outcome:
    """The outcome of these lines of JSON."""
    outcome = Outcome()
    for line in map(json.loads, text.splitlines()):
        if "about" in line:
            outcome.about = line["about"]
            continue
        test = line["test"]
        outcome.seconds.setdefault(test, []).append(line["seconds"])
        if "ids" in line:
            outcome.ids[test] = line["ids"]
            spread = {"median": line["step_ms_median"], "p99": line["step_ms_p99"]}
            outcome.steps.setdefault(test, []).append(spread)
    return outcome


def last_words(said: str, status: int) -> str:
    """One line from a failed process's stderr: its last message, continuation lines joined, or how it ended."""
    lines = [line for line in said.splitlines() if line.strip()]
    starts = [index for index, line in enumerate(lines) if not line[0].isspace()]
    message = "; ".join(line.strip() for line in lines[starts[-1] :]) if starts else ""
    message = _OUR_ERROR.sub("", message)
    if status < 0:
        message = f"ended by {signal.Signals(-status).name}{f': {message}' if message else ''}"
    return message or f"exit status {status}"
