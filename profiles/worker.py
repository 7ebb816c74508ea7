"""One session of one group, in a process of its own: `python -m edgemem.profiles.worker < JOB`.

Opens the package and every arm's engine, fills the context, and lets the arms take turns in blocks of timed steps, with
sweeps of the memory between them. One JSON line an arm on stdout; what libraries print goes to stderr.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from edgemem.profiles.arms import ENGINES
from edgemem.profiles.bandwidth import Sweeping, open_engine_sweep
from edgemem.profiles.cells import SETTLE_STEPS, WARM_STEPS, block_sizes, slots_needed
from edgemem.profiles.environment import engine_counter, engine_reader
from edgemem.profiles.floors import engine_step, footprint_bytes
from edgemem.profiles.job import ArmResult, Job
from edgemem.profiles.moved import moved_bytes
from edgemem.profiles.perf_counters import MemoryCounter
from edgemem.profiles.plain import from_plain, printable, to_plain
from edgemem.profiles.process import private_stdout
from edgemem.profiles.processor_time import ProcessorTime, processor_time, share_of_others
from edgemem.profiles.record import Block, CellKey, Session, StepBytes, Sweep, Telemetry
from edgemem.profiles.stepping import decode_steps, step_times
from edgemem.profiles.targets import package_sha256
from edgemem.profiles.telemetry import Reader, Watch, together
from edgemem.profiles.unavailable import Unavailable
from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import EdgememError, PackageError
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package

_READ_PASSES, _COPY_PASSES = 3, 1  # each time that the memory is swept


@dataclass(frozen=True)
class Instruments:
    """clock: seconds. reader: of power, heat and clocks. counter: of bytes read from memory, or why there is none.
    processors: of the time that they spent."""

    clock: Callable[[], float]
    reader: Reader
    counter: MemoryCounter | Unavailable
    processors: Callable[[], ProcessorTime]


@dataclass
class _Arm:
    """One arm while it runs."""

    key: CellKey
    engine: Engine | None = None
    failure: str | None = None
    prefill_ms: float = 0.0
    blocks: list[Block] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    together: int = 1
    watched: list[Telemetry] = field(default_factory=list)  # block by block, as the next
    counted: list[float | Unavailable] = field(default_factory=list)  # bytes


@dataclass(frozen=True)
class _Shared:
    """What all arms of the session have in common: as in record.Session."""

    sweeps: tuple[Sweep, ...]
    copies: tuple[Sweep, ...]
    busy_elsewhere: float | None


def main() -> None:
    channel = private_stdout()
    job = from_plain(Job, json.load(sys.stdin))
    engine = job.keys[0].engine
    with engine_reader(engine) as reader:
        instruments = Instruments(time.perf_counter, reader, engine_counter(engine), processor_time)
        for result in measure(job, instruments):
            print(json.dumps(to_plain(result), allow_nan=False), file=channel, flush=True)


def measure(job: Job, instruments: Instruments) -> list[ArmResult]:
    """The whole session. An arm that fails leaves the others alone.

    Raises what opening the package raises, PackageError for another package, BudgetError without memory to sweep.
    """
    arms = [_Arm(key) for key in job.keys]
    with ExitStack() as stack:
        package = stack.enter_context(Package.open(job.package, verify=False))  # the profiler has verified it
        if package_sha256(package.manifest) != job.sha256:
            raise PackageError("the package changed while it was profiled", where=job.package, do="begin anew")
        sweep = open_engine_sweep(job.keys[0].engine, job.keys[0].threads)
        for arm in arms:
            with _failing(arm):
                _prepare(arm, package, job, instruments.clock)
            if arm.engine is not None:
                stack.callback(arm.engine.close)
        before = instruments.processors()
        reads, copies = _take_turns(arms, job, sweep, instruments)
        others = share_of_others(before, instruments.processors())
        shared = _Shared(tuple(reads), tuple(copies), others)
        return [_result(arm, package, job, shared) for arm in arms]


def _prepare(arm: _Arm, package: Package, job: Job, clock: Callable[[], float]) -> None:
    """Open the arm's engine, fill its context, and warm it up."""
    key = arm.key
    settings = ENGINES[key.engine].settings(key.arm, key.kv)
    capacity = slots_needed(key.context, job.steps)
    arm.engine = open_engine(package, key.engine, capacity=capacity, threads=key.threads, **settings)
    prompt = np.random.default_rng(job.seed).integers(0, package.model.vocabulary, key.context, dtype=np.int32)
    started = clock()
    arm.engine.extend(prompt)
    arm.prefill_ms = 1e3 * (clock() - started)
    arm.tokens += decode_steps(arm.engine, WARM_STEPS, clock).tokens


def _take_turns(
    arms: list[_Arm], job: Job, sweep: Sweeping, instruments: Instruments
) -> tuple[list[Sweep], list[Sweep]]:
    """All blocks, in an order drawn anew for each round; the sweeps and copies made before, between and after them."""
    order, draw = count(), random.Random(f"{job.seed}/{job.number}")
    reads: list[Sweep] = []
    copies: list[Sweep] = []

    def measure_memory() -> None:
        reads.extend(Sweep(next(order), rate) for rate in sweep.read(_READ_PASSES))
        copies.extend(Sweep(next(order), rate) for rate in sweep.copy(_COPY_PASSES))

    measure_memory()
    for size in block_sizes(job.steps):
        for arm in draw.sample(arms, len(arms)):
            if arm.engine is not None and arm.failure is None:
                with _failing(arm):
                    _run_block(arm, arm.engine, size, next(order), instruments)
                measure_memory()
    return reads, copies


def _run_block(arm: _Arm, engine: Engine, size: int, order: int, instruments: Instruments) -> None:
    clock, counter = instruments.clock, instruments.counter
    settling = decode_steps(engine, SETTLE_STEPS, clock)
    counted: float | Unavailable
    with Watch(instruments.reader, clock=clock) as watch:
        if isinstance(counter, Unavailable):
            steps, counted = decode_steps(engine, size, clock), counter
        else:
            steps, counted = counter.measure(lambda: decode_steps(engine, size, clock))
    arm.watched.append(watch.summary)
    arm.counted.append(counted)
    step_ms, together = step_times(steps.readings)
    arm.blocks.append(Block(order, 1e3 * (steps.readings[-1] - steps.readings[0]), tuple(step_ms)))
    arm.tokens += (*settling.tokens, *steps.tokens)
    arm.together = max(arm.together, together)


def _result(arm: _Arm, package: Package, job: Job, shared: _Shared) -> ArmResult:
    if arm.failure is not None:
        return ArmResult(arm.key, job.number, None, None, arm.failure)
    session = Session(
        number=job.number,
        prefill_ms=arm.prefill_ms,
        blocks=tuple(arm.blocks),
        steps_together=arm.together,
        sweeps=shared.sweeps,
        copies=shared.copies,
        tokens=tuple(arm.tokens),
        telemetry=together(arm.watched),
        counted_bytes=_counted_bytes(arm.counted, job.steps),
        busy_elsewhere=shared.busy_elsewhere,
    )
    return ArmResult(arm.key, job.number, session, _step_bytes(package, arm.key, job.steps), None)


def _counted_bytes(blocks: Sequence[float | Unavailable], steps: int) -> float | None:
    """Of a step; None where any block was not counted."""
    counted = [block for block in blocks if not isinstance(block, Unavailable)]
    return sum(counted) / steps if len(counted) == len(blocks) else None


def _step_bytes(package: Package, key: CellKey, steps: int) -> StepBytes:
    """Of the middle timed step: the bytes of the steps grow evenly."""
    manifest, middle = package.manifest, (key.context + WARM_STEPS + slots_needed(key.context, steps)) // 2
    cost = engine_step(manifest, middle, key.engine, key.kv)
    return StepBytes(
        useful=cost.streamed_bytes,
        moved=moved_bytes(manifest.model, manifest.precision_of, middle, key.engine, key.kv).total,
        weights=cost.weight_bytes,
        kv_read=cost.kv_read_bytes,
        kv_write=cost.kv_write_bytes,
        footprint=round(footprint_bytes(manifest, middle, key.engine, key.kv)),
    )


@contextmanager
def _failing(arm: _Arm) -> Iterator[None]:
    """What goes wrong with one arm is that arm's own."""
    try:
        yield
    except (EdgememError, MemoryError) as problem:
        lines = (str(problem) or "no memory is left").splitlines()
        arm.failure = printable("; ".join(line.strip() for line in lines if not line.startswith("    ")))  # no tables


if __name__ == "__main__":
    main()
