"""Timeline: what was heard, how it was judged and what was taken, second by second, as rows of characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgemem.runtime.capture.event import Event
from edgemem.runtime.capture.reports import Hop

QUIETEST_DB = -60.0
_STEPS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Span:
    """A sound that is known to be heard. hands: whether it is hands at work."""

    name: str
    start_s: float
    end_s: float
    hands: bool


@dataclass
class Timeline:
    """open_at, close_at: the trigger's thresholds. known: what is known to be heard, if anything is."""

    seconds: float
    open_at: float
    close_at: float
    known: Sequence[Span] = ()
    hops: list[Hop] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def taken(self) -> list[Event]:
        return [event for event in self.events if event.outcome == "taken"]

    @property
    def covered(self) -> list[tuple[Span, int]]:
        """Each span of hands at work, with how many pictures were taken during it."""
        return [
            (span, sum(span.start_s <= event.position_s <= span.end_s for event in self.taken))
            for span in self.known
            if span.hands
        ]


def timeline_rows(timeline: Timeline, columns: int) -> list[tuple[str, str]]:
    """(name, row of `columns` characters): each character is an equal part of the time."""
    step_s = timeline.seconds / columns

    def row(value: Callable[[float, float], str]) -> str:
        return "".join(value(column * step_s, (column + 1) * step_s) for column in range(columns))

    def hops(start_s: float, end_s: float) -> list[Hop]:
        middle_s = (start_s + end_s) / 2
        within = [hop for hop in timeline.hops if start_s < hop.end_s <= end_s]
        return within or sorted(timeline.hops, key=lambda hop: abs(hop.end_s - middle_s))[:1]

    def level(start_s: float, end_s: float) -> str:
        loudest = max((hop.level_db for hop in hops(start_s, end_s)), default=QUIETEST_DB)
        return _step(1 - loudest / QUIETEST_DB)

    def score(start_s: float, end_s: float) -> str:
        return _step(max((hop.smoothed for hop in hops(start_s, end_s)), default=0.0))

    def known(start_s: float, end_s: float) -> str:
        heard = [span for span in timeline.known if span.start_s < end_s and span.end_s > start_s]
        return "█" if any(span.hands for span in heard) else "░" if heard else " "

    def is_open(start_s: float, end_s: float) -> str:
        return "━" if any(hop.is_open for hop in hops(start_s, end_s)) else " "

    def frames(start_s: float, end_s: float) -> str:
        count = sum(start_s < event.position_s <= end_s for event in timeline.taken)
        return " " if not count else "│" if count == 1 else "║"

    rows = [("level", level), ("score of hands", score), ("camera awake", is_open), ("pictures", frames)]
    if timeline.known:
        rows.insert(0, ("known: █ hands", known))
    return [(name, row(value)) for name, value in rows]


def time_axis(seconds: float, columns: int) -> str:
    """`0:00      0:30      1:00`, its marks at their columns."""
    step_s = next((step for step in (5, 10, 15, 30, 60, 300, 600, 3600) if columns * step / seconds >= 8), 3600)
    axis = [" "] * columns
    for mark_s in range(0, int(seconds) + 1, step_s):
        text = f"{mark_s // 60}:{mark_s % 60:02}"
        at = int(mark_s / seconds * columns)
        if at + len(text) <= columns:
            axis[at : at + len(text)] = text
    return "".join(axis).rstrip()


def _step(share: float) -> str:
    return _STEPS[round(min(max(share, 0.0), 1.0) * (len(_STEPS) - 1))]
