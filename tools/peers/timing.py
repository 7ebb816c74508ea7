"""Times one runtime in its own process: `python timing.py ADAPTER < JOB`, where ADAPTER is a module beside this file.

Imports nothing but the standard library, so that every peer's Python can run it. A repetition is one JSON line on
stdout: its seconds and, for decoding, the median and p99 step and the first greedy ids. What libraries print goes to
stderr.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from typing import Any, Protocol, TextIO

_IDS_TOLD = 16
_WARM_STEPS = 8


class Runtime(Protocol):
    """What an adapter's `open_runtime(job)` gives. Ids go in and ids come out; nothing is detokenised."""

    about: dict[str, Any]  # versions and settings; kv_element_bytes where it is known

    def prefill(self, ids: list[int]) -> float:
        """Forget everything and consume `ids`; seconds until the logits after the last are there."""
        ...

    def decode(self, prompt: list[int], steps: int) -> tuple[list[float], list[int]]:
        """Continue `prompt` greedily; steps + 1 clock readings, around each step, and the ids chosen.

        All but at most the last of `prompt` is consumed before the first reading.
        """
        ...


def p99(values: list[float]) -> float:
    """The value that 99 of 100 do not exceed, by nearest rank."""
    ordered = sorted(values)
    return ordered[-(-99 * len(ordered) // 100) - 1]


def measure(runtime: Runtime, job: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Every test of the job, each after a warm-up of its own, `repetitions` times."""
    tell({"about": runtime.about})
    for test in job["tests"]:
        prompt, steps = job["ids"][: test["prompt"]], test["steps"]
        if steps == 0:
            runtime.prefill(prompt)
        else:
            runtime.decode(prompt, min(steps, _WARM_STEPS))
        for _ in range(job["repetitions"]):
            line = {"test": test["name"]}
            if steps == 0:
                tell({**line, "seconds": runtime.prefill(prompt)})
                continue
            readings, ids = runtime.decode(prompt, steps)
            if len(readings) != steps + 1:
                raise RuntimeError(f"{test['name']}: {len(readings) - 1} steps were made, wanted {steps}")
            taken = [1e3 * (after - before) for before, after in pairwise(readings)]
            steps_ms = {"step_ms_median": statistics.median(taken), "step_ms_p99": p99(taken)}
            tell({**line, "seconds": readings[-1] - readings[0], **steps_ms, "ids": ids[:_IDS_TOLD]})


def main() -> None:
    channel = _private_stdout()
    job = json.load(sys.stdin)
    runtime: Runtime = import_module(sys.argv[1]).open_runtime(job)
    measure(runtime, job, lambda line: print(json.dumps(line), file=channel, flush=True))


def _private_stdout() -> TextIO:
    """Stdout for the lines alone: descriptor 1, which native code may write to, becomes stderr."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


if __name__ == "__main__":
    main()
