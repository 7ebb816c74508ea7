"""Trigger: turns a score of hands at work, heard at known times, into decisions to take a picture.

A pure state machine: closed, it opens at a high score; open, it takes a picture now and then, and closes once the score
has stayed low. It knows no clock, no sound and no camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from edgemem.runtime.capture.audio import RATE_HZ
from edgemem.runtime.errors import SettingsError, shown

Cause = Literal["open", "interval", "heartbeat"]

_MOST_PRE_ROLL_S = 300.0  # a ring of pictures is held in memory
_HABITUATION = 0.5  # how much of what is usual is taken from a score
_HALF_SAMPLE_S = 0.5 / RATE_HZ  # times are whole samples, but the differences of their seconds are only nearly so


@dataclass(frozen=True)
class TriggerSettings:
    """When pictures are taken. Raises SettingsError for a value out of range.

    open_at, close_at: the smoothed score, 0 to 1, from which it opens, and below which it closes;
        0 < close_at < open_at.
    smoothing_s: time constant of the exponential average of scores; 0: none.
    habituation_s: what is heard for long counts less: from each score half of the average over this long (a time
        constant) before it is taken; 0: none.
    hold_s: how long the smoothed score stays below close_at before it closes; no more pictures are taken meanwhile.
    interval_s: while open, the time to the second picture; decisions fall on the times of scores.
    slowing: each interval is so many times the one before, up to longest_interval_s: what goes on for long looks alike.
        1: a picture every interval_s, on average. A score that fell below close_at and rises to open_at begins anew.
    refractory_s: no two pictures are closer than this; at most interval_s and heartbeat_s.
    heartbeat_s: a picture when there was none for this long, whatever is heard; 0: none.
    pre_roll_s: how far back the picture of an opening reaches; over 0 it wants a camera that keeps a ring of pictures.
    """

    open_at: float = 0.6
    close_at: float = 0.42
    smoothing_s: float = 0.0
    habituation_s: float = 30.0
    hold_s: float = 0.48
    interval_s: float = 1.0
    slowing: float = 2.0
    longest_interval_s: float = 8.0
    refractory_s: float = 0.5
    heartbeat_s: float = 60.0
    pre_roll_s: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise _bad(field.name, value, "a number from 0")
        if self.open_at > 1:
            raise _bad("open_at", self.open_at, "a number from 0 to 1")
        if not 0 < self.close_at < self.open_at:
            raise _bad("close_at", self.close_at, f"over 0 and less than open_at, {self.open_at}")
        if self.pre_roll_s > _MOST_PRE_ROLL_S:
            raise _bad("pre_roll_s", self.pre_roll_s, f"at most {_MOST_PRE_ROLL_S}")
        if self.interval_s == 0:
            raise _bad("interval_s", self.interval_s, "a number over 0")
        if self.slowing < 1:
            raise _bad("slowing", self.slowing, "a number from 1")
        if self.longest_interval_s < self.interval_s:
            raise _bad("longest_interval_s", self.longest_interval_s, f"at least interval_s, {self.interval_s}")
        for name in ("interval_s", "heartbeat_s"):
            if 0 < getattr(self, name) < self.refractory_s:
                raise _bad("refractory_s", self.refractory_s, f"at most {name}, {getattr(self, name)}")


@dataclass(frozen=True)
class Take:
    """A picture is to be taken. at_s: of when, which for an opening with pre-roll is before the decision. cause:
    "open" is the first picture of an opening, "interval" each later one. score: smoothed, at the decision."""

    at_s: float
    cause: Cause
    score: float

    @property
    def kind(self) -> Literal["trigger", "heartbeat"]:
        return "heartbeat" if self.cause == "heartbeat" else "trigger"


class Trigger:
    """Fed one score after the other. Closed at first; the first heartbeat is due heartbeat_s after the first score."""

    def __init__(self, settings: TriggerSettings) -> None:
        self.settings = settings
        self._now_s = -math.inf
        self._smoothed = 0.0
        self._usual = 0.0  # the average score over habituation_s
        self._open = False
        self._fell = False  # whether it has been below close_at since it opened
        self._low_since_s = math.inf  # since when the smoothed score is below close_at
        self._taken_s = -math.inf  # when the last picture was decided on
        self._due_s = math.inf  # while open: when the next picture is due
        self._interval_s = math.inf  # and how long after it the one behind it
        self._heartbeat_due_s = math.inf

    @property
    def is_open(self) -> bool:
        return self._open

    @property
    def smoothed(self) -> float:
        """The average of the scores so far, 0 to 1, less what is usual."""
        return self._smoothed

    def step(self, at_s: float, score: float | None) -> tuple[Take, ...]:
        """What to take at `at_s` seconds, having heard `score` since the step before.

        score: 0 to 1, or None when nothing to be believed was heard: it counts as 0 and takes no picture but a
        heartbeat. Raises ValueError for any other score, and for a time that is not after the one before; the state is
        then as it was.
        """
        if not (self._now_s < at_s and 0 <= at_s < math.inf):
            raise ValueError(f"time went from {self._now_s} s to {at_s} s")
        heard = 0.0 if score is None else float(score)
        if not 0.0 <= heard <= 1.0:
            raise ValueError(f"score {score} is not from 0 to 1")
        self._average(at_s, heard)
        self._open_or_close(at_s)
        is_wanted = self._due_s == -math.inf or self._smoothed >= self.settings.close_at
        if self._open and score is not None and is_wanted and self._is_due(at_s, self._due_s):
            return (self._triggered(at_s),)
        if self._is_due(at_s, self._heartbeat_due_s):
            self._note_taken(at_s)
            return (Take(at_s, "heartbeat", self._smoothed),)
        return ()

    def _average(self, at_s: float, heard: float) -> None:
        """The exponential average over time; the first score counts as if it had been heard for ever."""
        settings = self.settings
        if self._now_s < 0 and settings.heartbeat_s:
            self._heartbeat_due_s = at_s + settings.heartbeat_s
        unusual = max(0.0, heard - _HABITUATION * self._usual)
        if settings.habituation_s and self._now_s >= 0:
            self._usual += _newer(at_s - self._now_s, settings.habituation_s) * (heard - self._usual)
        if settings.smoothing_s:
            self._smoothed += _newer(at_s - self._now_s, settings.smoothing_s) * (unusual - self._smoothed)
        else:
            self._smoothed = unusual
        self._now_s = at_s

    def _open_or_close(self, at_s: float) -> None:
        rises = self._smoothed >= self.settings.open_at and (not self._open or self._fell)
        if self._smoothed >= self.settings.close_at:
            self._low_since_s = math.inf
        elif self._low_since_s == math.inf:
            self._low_since_s = at_s
            self._fell = True
        if rises:
            self._open, self._fell = True, False
            self._due_s, self._interval_s = -math.inf, self.settings.interval_s
        elif self._open and at_s - self._low_since_s >= self.settings.hold_s - _HALF_SAMPLE_S:
            self._open = False

    def _is_due(self, at_s: float, due_s: float) -> bool:
        soonest_s = max(due_s, self._taken_s + self.settings.refractory_s)
        return at_s >= soonest_s - _HALF_SAMPLE_S

    def _triggered(self, at_s: float) -> Take:
        settings = self.settings
        opening = self._due_s == -math.inf
        earliest_s = max(0.0, self._taken_s + settings.refractory_s)
        picture_s = max(at_s - settings.pre_roll_s, min(earliest_s, at_s)) if opening else at_s
        # From due time to due time, so that the average rate is kept; what was missed is not made up for.
        later_s = self._due_s + self._interval_s
        self._due_s = later_s if later_s > at_s else at_s + self._interval_s
        self._interval_s = min(self._interval_s * settings.slowing, settings.longest_interval_s)
        self._note_taken(at_s)
        return Take(picture_s, "open" if opening else "interval", self._smoothed)

    def _note_taken(self, at_s: float) -> None:
        self._taken_s = at_s
        if self.settings.heartbeat_s:
            self._heartbeat_due_s = at_s + self.settings.heartbeat_s


def _newer(step_s: float, constant_s: float) -> float:
    """The weight of what is heard now in an exponential average with this time constant."""
    return 1.0 - math.exp(-step_s / constant_s)


def _bad(name: str, got: object, wanted: str) -> SettingsError:
    return SettingsError(f"the trigger's {name} is out of range", got=shown(got), wanted=wanted)
