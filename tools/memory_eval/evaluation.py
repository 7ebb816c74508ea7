"""All that is measured, in order, and the loop over it: what is done already is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone

from edgemem.profiles.plain import printable
from edgemem.runtime.errors import ContextError
from edgemem.tools.memory_eval.cells import Bench, Job
from edgemem.tools.memory_eval.choice_run import choice_jobs
from edgemem.tools.memory_eval.facts import facts_jobs
from edgemem.tools.memory_eval.record import Ledger, Result
from edgemem.tools.memory_eval.rps_run import rps_jobs
from edgemem.tools.memory_eval.settings import EvalSettings
from edgemem.tools.memory_eval.speed_run import speed_jobs
from edgemem.tools.memory_eval.stream_perplexity import stream_jobs


def plan(parts: Sequence[str], settings: EvalSettings, capacity: int) -> list[Job]:
    """The jobs of these of PARTS. capacity: slots for the policy that keeps everything."""
    makers: dict[str, Callable[[], Iterator[Job]]] = {
        "stream": lambda: stream_jobs(settings),
        "grocery": lambda: choice_jobs("grocery", settings, capacity),
        "dialogue": lambda: choice_jobs("dialogue", settings, capacity),
        "facts": lambda: facts_jobs(settings, capacity),
        "speed": lambda: speed_jobs(settings),
        "rps": lambda: rps_jobs(settings),
    }
    return [job for part in parts for job in makers[part]()]


def evaluate(jobs: Sequence[Job], bench: Bench, ledger: Ledger, progress: Callable[[str, float], None]) -> None:
    """Every job that the ledger has no result of. What does not fit into its slots is recorded as missing.

    progress: (part, share done of it). Raises what the engine raises; what was done until then is in the ledger.
    """
    counts = {part: sum(job.cell.part == part for job in jobs) for part in dict.fromkeys(job.cell.part for job in jobs)}
    done = dict.fromkeys(counts, 0)
    for job in jobs:
        part = job.cell.part

        def advance(share: float, part: str = part) -> None:
            progress(part, (done[part] + share) / counts[part])

        advance(0.0)
        if ledger.find(job.cell) is None:
            ledger.add(_result(job, bench, advance))
        done[part] += 1
        advance(0.0)


def _result(job: Job, bench: Bench, advance: Callable[[float], None]) -> Result:
    began, missing = time.perf_counter(), None
    try:
        values = job.run(bench, advance)
    except ContextError as problem:
        values, missing = {}, printable(str(problem))
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Result(job.cell, dict(values), missing, round(time.perf_counter() - began, 3), date)
