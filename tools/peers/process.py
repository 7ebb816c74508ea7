"""Runs the timing program in a process of its own and reads its lines."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemem.profiles.process import run_process

_PROGRAM = Path(__file__).with_name("timing.py")


@dataclass
class Outcome:
    """What one process told. seconds: of each repetition, by test; steps: {median, p99} ms by test; ids: by test."""

    about: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    steps: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    ids: dict[str, list[int]] = field(default_factory=dict)


def run_adapter(python: Path, adapter: str, job: dict[str, Any], timeout_s: float) -> Outcome:
    """The job's outcome. EngineError, saying the process's last words, if it fails; it never outlives this call."""
    return read_lines(run_process([python, _PROGRAM, adapter], job, timeout_s))


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
