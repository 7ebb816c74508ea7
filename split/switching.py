"""When the answers come from the server, and when from this device: a pure state machine over (event, time).

It touches neither clock nor link. A lost link or a missed deadline sends the work to the local back stage at once; it
returns only after several good probes in a row, and when the server was brought up to date. Without a local back stage
the server is tried again, at growing intervals, and a late answer is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from edgemem.runtime.engine import Route
from edgemem.runtime.errors import SettingsError, shown

Mode = Literal["remote", "degraded", "local", "returning"]
# answered, late, lost: an operation on the server: in time, after its deadline, or given up. probed, missed: a probe of
# it, while this device answers.
# current: the server has done all that was done here meanwhile.
Event = Literal["answered", "late", "lost", "probed", "missed", "current"]


@dataclass(frozen=True)
class SwitchSettings:
    """deadline_s: for the answer to one token, and for a probe. prompt_deadline_s: for that to a chunk of a prompt.
    connect_s: for a new link, if the answer that wants it is not due earlier.
    probe_s: between probes. good_probes: in a row, before the work returns. warm: the local back stage does what the
    server did, a moment later, so that it can go on at once; else it does so when it is needed, which saves energy.

    Without a local back stage: stall_s: an answer is waited for so long. patience_s: the server is tried again for so
    long. first_retry_s, last_retry_s: the pause before the first try, and at most; it doubles.
    Raises SettingsError for anything but positive numbers, and true or false.
    """

    deadline_s: float = 2.0
    prompt_deadline_s: float = 20.0
    connect_s: float = 10.0
    probe_s: float = 1.0
    good_probes: int = 3
    warm: bool = False
    stall_s: float = 30.0
    patience_s: float = 60.0
    first_retry_s: float = 0.1
    last_retry_s: float = 5.0

    def __post_init__(self) -> None:
        if type(self.warm) is not bool:
            raise SettingsError("warm is out of range", got=shown(self.warm), wanted="true or false")
        for field in fields(self):
            value, whole = getattr(self, field.name), field.name == "good_probes"
            number = type(value) is int or (isinstance(value, float) and not whole)
            if field.name != "warm" and not (number and 0 < value < 1e6):
                wanted = f"a {'whole ' if whole else ''}number over 0"
                raise SettingsError(f"{field.name} is out of range", got=shown(value), wanted=wanted)


@dataclass(frozen=True)
class Switch:
    """mode: "remote" and "degraded": the server answers, or is tried again; "local" and "returning": this device does.

    good: probes, or answers while degraded, that were good in a row. tries, since: how often, and since when, the
    server was lost without an answer in between; due: when the next try is. In seconds of the caller's clock.
    """

    mode: Mode = "remote"
    good: int = 0
    due: float = 0.0
    tries: int = 0
    since: float = 0.0

    @property
    def here(self) -> bool:
        """Whether this device answers."""
        return self.mode in ("local", "returning")

    @property
    def route(self) -> Route:
        return "local" if self.mode == "returning" else self.mode

    def given_up(self, now: float, settings: SwitchSettings) -> bool:
        """Whether the server was tried again for long enough."""
        return self.tries > 0 and now - self.since >= settings.patience_s

    def after(self, event: Event, now: float, settings: SwitchSettings, *, local: bool) -> Switch:
        """The state after an event. local: whether there is a local back stage. An event that comes too late, of a
        probe while the server answers or the other way round, changes nothing."""
        if self.here:
            return self._after_probe(event, settings)
        if event == "answered":
            good = self.good + 1
            return Switch() if self.mode == "remote" or good >= settings.good_probes else Switch("degraded", good)
        if event == "late":
            return Switch("degraded")
        return self._after_loss(now, settings, local) if event == "lost" else self

    def _after_loss(self, now: float, settings: SwitchSettings, local: bool) -> Switch:
        if local:
            return Switch("local")
        pause = min(settings.first_retry_s * 2.0 ** min(self.tries, 60), settings.last_retry_s)
        return Switch("degraded", 0, now + pause, self.tries + 1, self.since if self.tries else now)

    def _after_probe(self, event: Event, settings: SwitchSettings) -> Switch:
        if event == "probed":
            good = self.good + 1
            return Switch("returning" if good >= settings.good_probes else "local", good)
        if event == "missed":
            return Switch("local")
        return Switch() if event == "current" and self.mode == "returning" else self
