"""Which settings of the trigger do best on streams that are kept apart for choosing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from edgemem.runtime.capture.trigger import TriggerSettings
from edgemem.tools.capture_eval.figures import saved
from edgemem.tools.capture_eval.outcome import HeardStream, capture, false_openings, waits
from edgemem.tools.capture_eval.settings import RARE, USUAL

COVERED, WAIT_S = 0.97, 0.9  # what is asked of settings: a little more than of the figures themselves
_OPEN_AT = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_CLOSE_SHARES = (0.4, 0.7)
_SMOOTHING_S = (0.0, 0.25, 0.5)
_HOLD_S = (0.48, 0.96, 1.92)
_HABITUATION_S = (0.0, 30.0)
GRID = repr((_OPEN_AT, _CLOSE_SHARES, _SMOOTHING_S, _HOLD_S, _HABITUATION_S))
_TOLD = 10


@dataclass(frozen=True)
class Candidate:
    """Settings with their figures: covered, wait_s (median, None where nothing was covered) and false_per_hour on the
    streams of both mixes together, saved and saved_rare on those of either."""

    settings: TriggerSettings
    covered: float
    wait_s: float | None
    saved: float
    saved_rare: float
    false_per_hour: float

    @property
    def good_enough(self) -> bool:
        return self.covered >= COVERED and self.wait_s is not None and self.wait_s <= WAIT_S

    @property
    def worth(self) -> tuple[bool, float]:
        """Of those good enough the one that saves most; else the one that covers most."""
        return self.good_enough, (self.saved + self.saved_rare) / 2 if self.good_enough else self.covered


@dataclass(frozen=True)
class Sweep:
    """The best first. tried: all of them."""

    candidates: tuple[Candidate, ...]
    tried: int


def candidates(start: TriggerSettings) -> Iterator[TriggerSettings]:
    """The grid that is searched. All else stays as it is in `start`: how often a long event is looked at cannot be
    judged by streams whose events are short."""
    grid = product(_OPEN_AT, _CLOSE_SHARES, _SMOOTHING_S, _HOLD_S, _HABITUATION_S)
    for open_at, share, smoothing_s, hold_s, habituation_s in grid:
        yield replace(
            start,
            open_at=open_at,
            close_at=round(share * open_at, 3),
            smoothing_s=smoothing_s,
            hold_s=hold_s,
            habituation_s=habituation_s,
        )


def judged(streams: Sequence[HeardStream], settings: TriggerSettings, delay_s: float) -> Candidate:
    """streams: of one signal-to-noise ratio, of both mixes."""
    shares: dict[str, list[float]] = {USUAL: [], RARE: []}
    found = []
    false = 0
    for heard in streams:
        captured = capture(heard, settings, delay_s)
        shares[heard.key.mix].append(saved(captured, settings.interval_s))
        found.append(waits(captured.frames_s, heard.events))
        false += false_openings(captured)
    each = np.concatenate(found)
    known = each[np.isfinite(each)]
    return Candidate(
        settings,
        covered=len(known) / len(each),
        wait_s=float(np.median(known)) if len(known) else None,
        saved=float(np.mean(shares[USUAL])),
        saved_rare=float(np.mean(shares[RARE])),
        false_per_hour=false * 3600 / sum(heard.seconds for heard in streams),
    )


def swept(
    streams: Sequence[HeardStream], start: TriggerSettings, delay_s: float, advance: Callable[[float], None]
) -> Sweep:
    """Over `start` and all of the grid; the best ten are told, and `start` wherever it stands."""
    grid = list(dict.fromkeys([start, *candidates(start)]))
    found = []
    for index, settings in enumerate(grid):
        advance(index / len(grid))
        found.append(judged(streams, settings, delay_s))
    ordered = sorted(found, key=lambda one: one.worth, reverse=True)
    told = [one for rank, one in enumerate(ordered) if rank < _TOLD or one.settings == start]
    return Sweep(tuple(told), len(grid))
