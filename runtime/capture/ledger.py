"""Ledger: every event goes into the log once, or is told without it where the disk refuses; and is counted."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from edgemem.runtime.capture.audio import RATE_HZ
from edgemem.runtime.capture.event import Event, Kind
from edgemem.runtime.capture.event_log import EventLog
from edgemem.runtime.capture.reports import Statistics
from edgemem.runtime.errors import FileError

Stored = TypeVar("Stored")


class Ledger:
    """Any thread may call."""

    def __init__(self, log: EventLog | None, statistics: Statistics, when: Callable[[float], float]) -> None:
        """when: seconds since 1970 at a position in seconds of the audio, which is now."""
        self.session = secrets.token_hex(4)
        self._log, self._statistics, self._when = log, statistics, when
        self._listeners: list[Callable[[Event], object]] = []
        self._problems: dict[str, FileError] = {}  # of what was refused last, by its kind
        self._lock = threading.Lock()

    @property
    def problem(self) -> FileError | None:
        """Why the last event, frame or recording was not stored; None where each was."""
        return next(iter([*self._problems.values()]), None)

    def tell(self, listener: Callable[[Event], object]) -> None:
        """Tell every later event."""
        self._listeners.append(listener)

    def enter(self, event: Event) -> Event:
        """The event as it was logged, or with the id 0."""
        if self._log is not None:
            logged = self.try_to("event", self._log.add, event)
            self.count("unlogged", logged is None)
            event = logged or event
        for listener in self._listeners:
            self.guard(listener, event)
        return event

    def enter_change(self, kind: Kind, position_s: float, reason: str, lost_s: float | None = None) -> None:
        """Of a device, or of what was not heard."""
        at = self._when(position_s)
        self.enter(Event(at, position_s, self.session, kind, reason=reason, lost_s=lost_s))

    def enter_gap(self, start: int, end: int, reason: str, kind: Kind = "gap") -> None:
        """Samples that were not heard, by their positions; it is entered where they end."""
        self.enter_change(kind, end / RATE_HZ, reason, (end - start) / RATE_HZ)

    def try_to(self, kind: str, store: Callable[..., Stored], *what: object) -> Stored | None:
        """What `store` gives, something where it has stored; None where the disk refuses, and listening goes on."""
        try:
            stored = store(*what)
        except FileError as refused:
            self._problems[kind] = refused
            return None
        if stored is not None:
            self._problems.pop(kind, None)
        return stored

    def guard(self, listener: Callable[[Any], object], value: object) -> str | None:
        """Tell someone; what he raised, in a line, or None."""
        try:
            listener(value)
        except Exception as problem:  # noqa: BLE001 - a user's function may raise anything, and listening goes on
            self.count("callback_failures")
            return f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
        return None

    def count(self, name: str, more: int = 1) -> None:
        with self._lock:
            setattr(self._statistics, name, getattr(self._statistics, name) + more)
