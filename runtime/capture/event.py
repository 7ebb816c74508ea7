"""Event: what the log says of one thing that was heard, taken or lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["trigger", "heartbeat", "gap", "lost", "back"]  # the last two of a device
Outcome = Literal["taken", "merged", "dropped", "failed"]


@dataclass(frozen=True)
class Event:
    """at: UTC, seconds since 1970. position_s: on the audio's time line; it alone orders events of one session.

    session: which run of the listener. outcome: how a trigger or heartbeat ended; None for the other kinds. reason:
    why, for all but "taken". score: of hands at work, 0 to 1, smoothed. classes: the ear's highest, (name, 0 to 1).
    frame: path of the JPEG relative to the log's folder. caption: what a user's callable said of it. lost_s: seconds of
    a gap. id: by the log, 0 before.
    """

    at: float
    position_s: float
    session: str
    kind: Kind
    outcome: Outcome | None = None
    reason: str | None = None
    score: float | None = None
    classes: tuple[tuple[str, float], ...] = ()
    frame: str | None = None
    caption: str | None = None
    lost_s: float | None = None
    id: int = 0
