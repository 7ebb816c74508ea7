"""What Capture tells: each hop that was heard, each picture that was taken, and what it all came to."""

from __future__ import annotations

from dataclasses import dataclass

from edgemem.runtime.capture.event import Event
from edgemem.runtime.capture.picture import Picture


@dataclass(frozen=True)
class Hop:
    """One window of sound. end_s: its end on the audio's time line. level_db: of full scale, -120 at least.

    score: of hands at work, 0 to 1, None where the sound is not to be believed, and `flaw` says why. smoothed, is_open:
    the trigger's, after it. classes: the ear's highest, (name, 0 to 1).
    """

    end_s: float
    level_db: float
    score: float | None
    smoothed: float
    is_open: bool
    flaw: str | None = None
    classes: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Captured:
    """A picture, and its event. missed: captures before this one that whoever iterates was too slow for."""

    event: Event
    picture: Picture
    missed: int = 0


@dataclass
class Statistics:
    """Counts so far. heard_s, gaps_s, paused_s: of the audio's time, which they add up to; cpu_s: of the process.

    hops: windows heard, of which `flawed` were not believed. taken, merged, dropped, failed: how triggers and
    heartbeats ended. unlogged: events that the log could not take. callback_failures: of anyone who was told something.
    """

    heard_s: float = 0.0
    gaps_s: float = 0.0
    paused_s: float = 0.0
    cpu_s: float = 0.0
    hops: int = 0
    flawed: int = 0
    taken: int = 0
    merged: int = 0
    dropped: int = 0
    failed: int = 0
    unlogged: int = 0
    callback_failures: int = 0

    @property
    def elapsed_s(self) -> float:
        return self.heard_s + self.gaps_s + self.paused_s

    def saved(self, interval_s: float) -> float:
        """The share of frames not taken, of those of a camera that takes one every `interval_s` all the time."""
        always_on = self.elapsed_s / interval_s
        return max(0.0, 1.0 - self.taken / always_on) if always_on else 0.0
