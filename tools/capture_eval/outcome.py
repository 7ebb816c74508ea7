"""What was captured of a stream: by the trigger over its scores, and by the clock or by chance at as many frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.capture.audio import HOP_SAMPLES, RATE_HZ, WINDOW_SAMPLES
from edgemem.runtime.capture.trigger import Trigger, TriggerSettings

Times = NDArray[np.float64]
WINDOW_S = WINDOW_SAMPLES / RATE_HZ


@dataclass(frozen=True)
class StreamKey:
    """Which stream. number: of those that are alike but for their seed."""

    mix: str
    snr_db: float
    fold: int
    number: int

    @property
    def name(self) -> str:
        return f"{self.mix}-{self.snr_db:g}dB-fold{self.fold}-{self.number}"


@dataclass(frozen=True)
class Event:
    """Hands at work from start_s, when their sound begins, to end_s."""

    kind: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class HeardStream:
    """scores: of hands at work, a window after the other; None where a window was not to be believed."""

    key: StreamKey
    seconds: float
    events: tuple[Event, ...]
    scores: tuple[float | None, ...]


@dataclass(frozen=True)
class Captured:
    """frames_s: when pictures were taken, in order. heartbeat: which of them only because none was for long.
    openings_s: when the trigger opened."""

    key: StreamKey
    seconds: float
    events: tuple[Event, ...]
    frames_s: tuple[float, ...]
    heartbeat: tuple[bool, ...]
    openings_s: tuple[float, ...]


def window_end_s(index: int) -> float:
    """When the window of this index has been heard to its end."""
    return (WINDOW_SAMPLES + index * HOP_SAMPLES) / RATE_HZ


def capture(heard: HeardStream, settings: TriggerSettings, delay_s: float) -> Captured:
    """By the trigger. delay_s: from the end of a window to its decision; a picture is no earlier than that."""
    trigger = Trigger(settings)
    frames, heartbeat, openings = [], [], []
    for index, score in enumerate(heard.scores):
        now_s = window_end_s(index)
        for take in trigger.step(now_s, score):
            frames.append(round(take.at_s + delay_s, 4))
            heartbeat.append(take.kind == "heartbeat")
            if take.cause == "open":
                openings.append(now_s)
    return Captured(heard.key, heard.seconds, heard.events, tuple(frames), tuple(heartbeat), tuple(openings))


def periodic(count: int, seconds: float, random: np.random.Generator) -> Times:
    """(count,): evenly over the stream, from a phase drawn evenly."""
    return np.arange(count, dtype=np.float64) * (seconds / max(count, 1)) + random.uniform(0, seconds / max(count, 1))


def at_random(count: int, seconds: float, random: np.random.Generator) -> Times:
    """(count,): each drawn evenly, sorted."""
    return np.sort(random.uniform(0.0, seconds, count))


def waits(frames_s: Sequence[float] | Times, events: Sequence[Event]) -> Times:
    """(events,): seconds from an event's start to the first frame in it; infinite where there is none."""
    starts = np.array([event.start_s for event in events])
    ends = np.array([event.end_s for event in events])
    times = np.append(np.asarray(frames_s, dtype=np.float64), np.inf)
    first = times[np.searchsorted(times, starts)]
    return np.where(first <= ends, first - starts, np.inf)


def false_openings(captured: Captured) -> int:
    """Openings at a window's end in whose window no hands were at work."""
    return sum(not _in_events(at_s - WINDOW_S, at_s, captured.events) for at_s in captured.openings_s)


def frames_in_events(captured: Captured) -> int:
    return sum(_in_events(at_s, at_s, captured.events) for at_s in captured.frames_s)


def _in_events(first_s: float, last_s: float, events: Sequence[Event]) -> bool:
    return any(event.start_s <= last_s and first_s <= event.end_s for event in events)
