"""Speed over an endless stream: whether a step, and the process's memory, stay what they were; and what scores cost.

It goes through runtime.memory, as a session does: 192 tokens of text are read, 64 are decoded, over and over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import psutil
from numpy.typing import NDArray

from edgemem.profiles.stepping import step_times
from edgemem.runtime.memory import Memory
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.runtime.store import Role
from edgemem.tools.memory_eval.cells import Bench, Cell, Job, Progress, Values, setup_text
from edgemem.tools.memory_eval.feed import Tokens
from edgemem.tools.memory_eval.settings import ENTROPY, EvalSettings, retention

Matrix = NDArray[np.float64]
READ, DECODED = 192, 64  # tokens of a turn: more than are made room for at once, so that decoding evicts too
SCORES = "scores"  # in the place of a policy: the run with surprisals and without
_DECAY = 0.9
_WINDOWS = 100  # of the stream, each with its median step


def speed_jobs(settings: EvalSettings) -> Iterator[Job]:
    budget = max(settings.budgets)
    kept = replace(retention(ENTROPY, budget, decay=_DECAY, turns=False), margin=None)
    stream = Cell("speed", ENTROPY, budget, 0, setup_text(kept, tokens=settings.stream_tokens))
    yield Job(stream, partial(_stream, settings.stream_tokens, kept))
    cost = Cell("speed", SCORES, budget, 0, setup_text(None, pairs=settings.pairs))
    yield Job(cost, partial(_cost, settings.pairs, budget))


def _stream(total: int, kept: RetentionSettings, bench: Bench, progress: Progress) -> Values:
    """The readings of every turn are kept in arrays made at once: a record that grows would count as a leak."""
    bench.engine.truncate(0)
    memory = Memory(bench.engine, kept, clock=bench.clock)
    turns = max(1, total // (READ + DECODED))
    steps, decode_evicts = np.zeros((turns, DECODED)), np.zeros(turns, dtype=np.bool_)
    resident, eviction_ms = np.zeros(turns), np.full(turns, np.nan)
    text, process = _endless(bench.text), psutil.Process()
    for turn in range(turns):
        made, spent = memory.evictions, memory.eviction_ms
        memory.begin_turn([], whole=False)
        read = text(turn * READ, READ)
        while len(read):
            read = read[memory.consume(read, Role.USER) :]
        before = memory.evictions
        steps[turn] = _decoded(memory, bench.clock)
        decode_evicts[turn] = memory.evictions > before
        memory.end_turn(None)
        if memory.evictions > made:
            eviction_ms[turn] = (memory.eviction_ms - spent) / (memory.evictions - made)
        resident[turn] = process.memory_info().rss / 2**20
        progress((turn + 1) / turns)
    return {
        **_step_values(steps, decode_evicts),
        **_memory_values(resident),
        "eviction ms": tuple(eviction_ms[np.isfinite(eviction_ms)].tolist()),
        "evictions": (float(memory.evictions),),
        "evicted": (float(memory.evicted),),
        "tokens": (float(turns * (READ + DECODED)),),
    }


def _decoded(memory: Memory, clock: Callable[[], float]) -> list[float]:
    """Milliseconds of each step, the room made for it included."""
    readings = [clock()]
    for _ in memory.decode(Sampler(Sampling()), DECODED):
        readings.append(clock())
    return step_times(readings)[0]


def _step_values(steps: Matrix, decode_evicts: NDArray[np.bool_]) -> dict[str, tuple[float, ...]]:
    """steps: (turns, DECODED) milliseconds. decode_evicts: (turns,) whether room was made while decoding."""
    tenth = max(1, len(steps) // 10)
    quiet = steps[~decode_evicts]
    quiet_spread = (float(np.percentile(quiet, 99) / np.median(quiet)),) if len(quiet) else ()
    return {
        "step ms": tuple(float(np.median(window)) for window in np.array_split(steps, min(_WINDOWS, len(steps)))),
        "p99 over median": (float(np.percentile(steps, 99) / np.median(steps)),),
        "p99 over median without evictions": quiet_spread,
        "last over first": (float(np.median(steps[-tenth:]) / np.median(steps[:tenth])),),
    }


def _memory_values(resident: Matrix) -> dict[str, tuple[float, ...]]:
    """resident: (turns,) MiB. The slope is of the line of least squares, after the first tenth of the stream."""
    settled = resident[len(resident) // 10 :]
    slope = float(np.polyfit(np.arange(len(settled)), settled, 1)[0]) if len(settled) > 1 else 0.0
    windows = np.array_split(resident, min(_WINDOWS, len(resident)))
    return {
        "resident MiB": tuple(float(window.mean()) for window in windows),
        "MiB per 10k tokens": (slope * 10_000 / (READ + DECODED),),
    }


def _cost(pairs: int, budget: int, bench: Bench, progress: Progress) -> Values:
    """How many times as long reading, and decoding, takes with surprisals: in pairs, each way first in turn."""
    text = _endless(bench.text)(0, budget)
    ratios = []
    for pair in range(pairs):
        took = {scored: _timed(bench, text, scored) for scored in (pair % 2 == 0, pair % 2 == 1)}
        ratios.append([with_ / without for with_, without in zip(took[True], took[False], strict=True)])
        progress((pair + 1) / pairs)
    prefill, decode = zip(*ratios, strict=True)
    return {"prefill ratio": prefill, "decode ratio": decode}


def _timed(bench: Bench, text: Tokens, scored: bool) -> tuple[float, float]:
    """Seconds for the second half of the text after the first, and for DECODED tokens in its place."""
    engine, half = bench.engine, len(text) // 2
    engine.truncate(0)
    engine.extend(text[:half])
    began = bench.clock()
    engine.extend(text[half:], surprisal=scored)
    read = bench.clock() - began
    engine.truncate(half)
    engine.extend(text[half : half + 1])
    began = bench.clock()
    for _ in engine.decode(Sampler(Sampling()), DECODED, surprisal=scored):
        pass
    return read, bench.clock() - began


def _endless(text: Tokens) -> Callable[[int, int], Tokens]:
    """So many tokens from a place on of the text repeated without end."""
    return lambda start, count: np.take(text, range(start, start + count), mode="wrap")
