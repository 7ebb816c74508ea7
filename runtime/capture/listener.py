"""Listener: from sound to what is to be taken. It joins framer, ear, head and trigger, and counts what it heard.

It knows no camera, no log and no clock but the audio's; a device that was lost, and a pause, begin it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from edgemem.runtime.capture.audio import RATE_HZ, Block, Lost, Piece, Window
from edgemem.runtime.capture.flaws import level_db
from edgemem.runtime.capture.head import Head
from edgemem.runtime.capture.reports import Hop, Statistics
from edgemem.runtime.capture.trigger import Take, Trigger, TriggerSettings
from edgemem.runtime.capture.windows import Framer
from edgemem.runtime.capture.yamnet import Ear, Heard
from edgemem.runtime.errors import NumericError

_CLASSES, _LEAST_SCORE = 3, 0.1  # of the ear's classes, how many are worth telling


@dataclass(frozen=True)
class Decision:
    """position_s: where it was made. classes: what was heard there, as Event has them."""

    take: Take
    position_s: float
    classes: tuple[tuple[str, float], ...]


class Listener:
    """Fed one piece after the other, by one thread."""

    def __init__(
        self, ear: Ear, head: Head, settings: TriggerSettings, statistics: Statistics, told: Callable[[Hop], None]
    ) -> None:
        """statistics: heard_s, hops and flawed are counted there. told: every hop."""
        self._ear, self._head, self._settings = ear, head, settings
        self._statistics, self._told = statistics, told
        self._framer, self._trigger = Framer(), Trigger(settings)

    def take_in(self, piece: Piece) -> Iterator[Decision]:
        """Raises DeviceError for a piece that does not follow the one before."""
        if isinstance(piece, Block):
            self._statistics.heard_s += len(piece.samples) / RATE_HZ
        for window in self._framer.push(piece):
            yield from self._hear(window)
        if isinstance(piece, Lost):
            self._trigger = Trigger(self._settings)

    def finish(self) -> Iterator[Decision]:
        """The source has ended."""
        for window in self._framer.finish():
            yield from self._hear(window)

    def _hear(self, window: Window) -> Iterator[Decision]:
        statistics, flaw, score = self._statistics, window.flaw, None
        classes: tuple[tuple[str, float], ...] = ()
        if flaw is None:
            try:
                heard = self._ear.hear(window.samples)
                score, classes = self._head.score(heard.embedding), self._classes(heard)
            except NumericError as problem:
                flaw = problem.what
        statistics.hops += 1
        statistics.flawed += flaw is not None
        takes = self._trigger.step(window.end_s, score)
        level = level_db(window.samples)
        self._told(Hop(window.end_s, level, score, self._trigger.smoothed, self._trigger.is_open, flaw, classes))
        for take in takes:
            yield Decision(take, window.end_s, classes)

    def _classes(self, heard: Heard) -> tuple[tuple[str, float], ...]:
        highest = np.argsort(heard.scores)[: -_CLASSES - 1 : -1].tolist()
        named = ((self._ear.class_names[place], round(float(heard.scores[place]), 4)) for place in highest)
        return tuple((name, score) for name, score in named if score >= _LEAST_SCORE)
