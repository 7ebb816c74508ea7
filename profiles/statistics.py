"""Figures from samples: pure functions over a record. What is timed, and how, is in worker.py."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgemem.profiles.bootstrap import Interval, interval, resampled_medians
from edgemem.profiles.peaks import best, block_shares, resampled_shares, session_peak
from edgemem.profiles.record import Cell, DeviceRecord, Record, Session, StepBytes
from edgemem.runtime.token_prefix import common_prefix

CACHE_TIMES = 4  # a step that streams less than this many last-level caches may be served by them in part
CLOCK_MOVE = 0.05
BUSY_ELSEWHERE = 0.05  # more of the processors' time than this in other hands, and a session is no clean one
PEAK_MOVE = 0.1
EAGER, GRAPH = "eager", "graph"  # arms of an engine with CUDA graphs; what the second saves is launch time


@dataclass(frozen=True)
class Versus:
    """This cell against another of the same target, context and threads, over the sessions that both finished.

    times_as_fast: median over sessions of the ratio of medians; equal_tokens: the fewest first greedy tokens in common.
    """

    engine: str
    arm: str
    sessions: int
    times_as_fast: float
    interval: Interval
    equal_tokens: int


@dataclass(frozen=True)
class Figures:
    """Of one measured cell. Intervals hold 95 % (percentile bootstrap over sessions, blocks, steps).

    step_ms: median of session medians; p50_ms, p99_ms: of all steps together; cv: of session medians, None for one.
    bytes_per_s: useful bytes of a step over its time. peak_bytes_per_s: the best sweep beside a block, right before or
    after it; of_measured: a block's bandwidth over that; both are medians over blocks, then over sessions.
    of_best_sweep, the cautious one: bandwidth of a session's median step over the best of all its sweeps.
    floor_ms: streamed floor at the measured peak; footprint_floor_ms: at the peak that footprint_peak names. launch_ms:
    None without arms to tell by; step_ms = floor_ms + launch_ms + residual_ms. watts, joules_per_token, celsius,
    clocks_moved, counted_bytes: None if not read; the last, of a step by the memory's own counters, is the check on
    `useful` and counts other processes too. busy_elsewhere: the highest of all sessions.
    """

    step_ms: float
    step_interval_ms: Interval
    p50_ms: float
    p99_ms: float
    steps_together: int
    cv: float | None
    tokens_per_s: float
    bytes_per_s: float
    peak_bytes_per_s: float
    copy_bytes_per_s: float | None
    of_datasheet: float | None
    of_measured: float
    of_measured_interval: Interval
    of_best_sweep: float
    floor_ms: float
    footprint_floor_ms: float
    footprint_peak: Literal["datasheet", "measured"]
    launch_ms: float | None
    residual_ms: float
    watts: float | None
    joules_per_token: float | None
    celsius: float | None
    clocks_moved: bool | None
    counted_bytes: float | None
    busy_elsewhere: float | None
    flags: tuple[str, ...]
    versus: tuple[Versus, ...]


def figures(record: Record, cell: Cell) -> Figures | None:
    """All figures of one cell of the record; None if it was not measured."""
    if cell.bytes is None or not cell.sessions:
        return None
    sessions, device = cell.sessions, record.device
    medians = [statistics.median(session.step_ms) for session in sessions]
    resampled = resampled_medians([session.step_ms for session in sessions])
    shares = [block_shares(cell.bytes.useful, session) for session in sessions]
    share_interval = interval(np.array([resampled_shares(cell.bytes.useful, session) for session in sessions]))
    step_ms, peak = statistics.median(medians), statistics.median(map(session_peak, sessions))
    floor_ms, launch_ms = milliseconds(cell.bytes.useful, peak), launch(record, cell)
    pooled = [step for session in sessions for step in session.step_ms]
    datasheet, rate = device.datasheet_bytes_per_s, cell.bytes.useful / step_ms * 1e3
    copies = [best(session.copies) for session in sessions if session.copies]
    counted = [session.counted_bytes for session in sessions if session.counted_bytes is not None]
    watts, joules_per_token = power(sessions)
    return Figures(
        step_ms=step_ms,
        step_interval_ms=interval(resampled),
        p50_ms=statistics.median(pooled),
        p99_ms=percentile(pooled, 99),
        steps_together=max(session.steps_together for session in sessions),
        cv=statistics.stdev(medians) / statistics.fmean(medians) if len(medians) > 1 else None,
        tokens_per_s=1e3 / step_ms,
        bytes_per_s=rate,
        peak_bytes_per_s=peak,
        copy_bytes_per_s=statistics.median(copies) if copies else None,
        of_datasheet=None if datasheet is None else rate / datasheet,
        of_measured=statistics.median(map(statistics.median, shares)),
        of_measured_interval=share_interval,
        of_best_sweep=statistics.median(_shares_of_best(cell.bytes.useful, sessions)),
        floor_ms=floor_ms,
        footprint_floor_ms=milliseconds(cell.bytes.footprint, datasheet or peak),
        footprint_peak="measured" if datasheet is None else "datasheet",
        launch_ms=launch_ms,
        residual_ms=step_ms - floor_ms - (launch_ms or 0.0),
        watts=watts,
        joules_per_token=joules_per_token,
        celsius=hottest(sessions),
        clocks_moved=clocks_moved(sessions),
        counted_bytes=statistics.median(counted) if counted else None,
        busy_elsewhere=busy_elsewhere(sessions),
        flags=flags(record, cell, share_interval),
        versus=tuple(versus(cell, other) for other in _beside(record, cell) if _paired(cell, other)),
    )


def _shares_of_best(step_bytes: int, sessions: Iterable[Session]) -> list[float]:
    rates = [(step_bytes / statistics.median(session.step_ms) * 1e3, session.sweeps) for session in sessions]
    return [rate / best(sweeps) for rate, sweeps in rates]


def versus(cell: Cell, other: Cell) -> Versus:
    """`cell` against `other`, over their paired sessions, of which there is at least one."""
    pairs = _paired(cell, other)
    ours = resampled_medians([mine.step_ms for mine, _ in pairs])
    theirs = resampled_medians([its.step_ms for _, its in pairs])
    ratios = [statistics.median(its.step_ms) / statistics.median(mine.step_ms) for mine, its in pairs]
    return Versus(
        engine=other.key.engine,
        arm=other.key.arm,
        sessions=len(pairs),
        times_as_fast=statistics.median(ratios),
        interval=interval(theirs / ours),
        equal_tokens=min(common_prefix(mine.tokens, its.tokens) for mine, its in pairs),
    )


def launch(record: Record, cell: Cell) -> float | None:
    """Milliseconds a step that graphs save the eager arm (0 for the other arms), median over paired sessions; None
    where the engine has not both arms."""
    arms = {other.key.arm: other for other in (cell, *_beside(record, cell)) if other.key.engine == cell.key.engine}
    if EAGER not in arms or GRAPH not in arms or not (pairs := _paired(arms[EAGER], arms[GRAPH])):
        return None
    if cell.key.arm != EAGER:
        return 0.0
    return statistics.median(statistics.median(e.step_ms) - statistics.median(g.step_ms) for e, g in pairs)


def flags(record: Record, cell: Cell, share_interval: Interval) -> tuple[str, ...]:
    """What makes the figures doubtful; empty is good."""
    throttled = any(session.telemetry and session.telemetry.throttled for session in cell.sessions)
    peaks = [session_peak(session) for session in cell.sessions]
    found = {
        "fits_in_cache": cell.bytes is not None and fits_in_cache(cell.bytes, record.device),
        "clocks_moved": clocks_moved(cell.sessions) is True,
        "throttled": throttled,
        "machine_busy": (busy_elsewhere(cell.sessions) or 0.0) > BUSY_ELSEWHERE,
        "peak_moved": min(peaks) < (1 - PEAK_MOVE) * max(peaks),
        "over_peak": share_interval[0] > 1,
        "tokens_differ": tokens_differ(record, cell),
    }
    return tuple(name for name, holds in found.items() if holds)


def fits_in_cache(step: StepBytes, device: DeviceRecord) -> bool:
    """Whether the last-level cache may serve a part of the step worth telling; False where its size is not known."""
    return device.llc_bytes is not None and step.useful < CACHE_TIMES * device.llc_bytes


def clocks_moved(sessions: Iterable[Session]) -> bool | None:
    """Whether any clock moved by more than 5 % while steps were timed; None if none was read."""
    ranges = [clock for session in sessions if session.telemetry for clock in session.telemetry.clocks_mhz.values()]
    return any(high - low > CLOCK_MOVE * high for low, high in ranges) if ranges else None


def tokens_differ(record: Record, cell: Cell) -> bool:
    """Whether the greedy tokens of the arms of this cell's engine, in all sessions, are not all the same."""
    arms = [other for other in (cell, *_beside(record, cell)) if other.key.engine == cell.key.engine]
    return len({session.tokens for arm in arms for session in arm.sessions}) > 1


def power(sessions: Iterable[Session]) -> tuple[float | None, float | None]:
    """Watts, and joules a token, over the sessions whose energy was read."""
    read = [session for session in sessions if session.telemetry and session.telemetry.energy_j is not None]
    energy = sum(session.telemetry.energy_j or 0.0 for session in read if session.telemetry)
    seconds = sum(session.telemetry.seconds for session in read if session.telemetry)
    if not read:
        return None, None
    return energy / seconds, energy / sum(len(session.step_ms) for session in read)


def hottest(sessions: Iterable[Session]) -> float | None:
    """Degrees Celsius, None if none was read."""
    read = [session.telemetry.temperature_c for session in sessions if session.telemetry]
    return max((value for value in read if value is not None), default=None)


def busy_elsewhere(sessions: Iterable[Session]) -> float | None:
    """The largest share of the processors' time that others took; None if it was not read."""
    read = (session.busy_elsewhere for session in sessions)
    return max((share for share in read if share is not None), default=None)


def percentile(values: Sequence[float], share: int) -> float:
    """The value that `share` of 100 do not exceed, by nearest rank."""
    return sorted(values)[-(-share * len(values) // 100) - 1]


def milliseconds(bytes_: int, bytes_per_s: float) -> float:
    return bytes_ / bytes_per_s * 1e3


def by_number(cell: Cell) -> Mapping[int, Session]:
    return {session.number: session for session in cell.sessions}


def _beside(record: Record, cell: Cell) -> list[Cell]:
    """Other cells of the same target, context and threads."""
    key = cell.key
    return [
        other
        for other in record.cells
        if other.key != key
        and (other.key.target, other.key.context, other.key.threads) == (key.target, key.context, key.threads)
    ]


def _paired(cell: Cell, other: Cell) -> list[tuple[Session, Session]]:
    """Sessions of both that ran one after another, or in one process."""
    theirs = by_number(other)
    return [(mine, theirs[mine.number]) for mine in cell.sessions if mine.number in theirs]
