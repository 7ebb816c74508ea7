"""Events as rows of the database: the table, and the one check that events pass on their way in and out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, NoReturn, get_args

from edgemem.runtime.capture.event import Event, Kind, Outcome
from edgemem.runtime.capture.frame_folder import checked_frame

KINDS: tuple[str, ...] = get_args(Kind)
OUTCOMES: tuple[str, ...] = get_args(Outcome)
REASON_CHARACTERS, CAPTION_CHARACTERS = 500, 10_000
COLUMNS = "id, at, position_s, session, kind, outcome, reason, score, classes, frame, caption, lost_s"
SCHEMA = (
    """CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at REAL NOT NULL,
  position_s REAL NOT NULL,
  session TEXT NOT NULL,
  kind TEXT NOT NULL,
  outcome TEXT,
  reason TEXT,
  score REAL,
  classes TEXT NOT NULL,
  frame TEXT,
  caption TEXT,
  lost_s REAL
) STRICT""",
    "CREATE INDEX events_with_frame ON events (frame) WHERE frame IS NOT NULL",
)

_LATEST_AT = 32_503_680_000.0  # the year 3000
_LONGEST_S = 1e10
_NAME_CHARACTERS = 100
_CLASSES = 16
_CLASSES_CHARACTERS = 4096
LARGEST_ID = (1 << 63) - 1
_OUTCOME_OF = ("trigger", "heartbeat")  # kinds that end in an outcome

Row = tuple[Any, ...]


def kept(event: Event) -> Event:
    """The event as the log keeps it: long texts cut, what is no Unicode spelled out. ValueError for bad values."""
    return checked(
        replace(
            event,
            at=_as_float(event.at),
            position_s=_as_float(event.position_s),
            session=kept_text(event.session, _NAME_CHARACTERS),
            score=_as_float(event.score),
            lost_s=_as_float(event.lost_s),
            classes=tuple((kept_text(name, _NAME_CHARACTERS), _as_float(score)) for name, score in event.classes),
            reason=event.reason and kept_text(event.reason, REASON_CHARACTERS),
            caption=event.caption and kept_text(event.caption, CAPTION_CHARACTERS),
        )
    )


def kept_text(text: str, most: int) -> str:
    """At most so many characters of a text, all of which UTF-8 can hold."""
    text = text[: most + 1].encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= most else f"{text[: most - 1]}…"


def row_of(event: Event) -> Row:
    """The columns but the id, of an event that was `kept`."""
    classes = json.dumps(event.classes, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    outcome = (event.kind, event.outcome, event.reason, event.score)
    return (event.at, event.position_s, event.session, *outcome, classes, event.frame, event.caption, event.lost_s)


def event_of(row: Row) -> Event:
    """The event in the row, whose columns may hold anything. Raises ValueError for what no event was."""
    number, at, position_s, session, kind, outcome, reason, score, classes, frame, caption, lost_s = row
    event = Event(at, position_s, session, kind, outcome, reason, score, (), frame, caption, lost_s, number)
    return checked(replace(event, classes=_classes_of(classes)))


def checked(event: Event) -> Event:
    """The event itself. Raises ValueError for a value that is of another type or out of range."""
    if type(event.id) is not int or not 0 <= event.id <= LARGEST_ID:
        raise ValueError(f"id {event.id!a:.80}")
    _check_number("at", event.at, _LATEST_AT)
    _check_number("position_s", event.position_s, _LONGEST_S)
    _check_text("session", event.session, _NAME_CHARACTERS)
    if event.kind not in KINDS:
        raise ValueError(f"kind {event.kind!a:.80}, wanted one of {', '.join(KINDS)}")
    outcomes = OUTCOMES if event.kind in _OUTCOME_OF else (None,)
    if event.outcome not in outcomes:
        raise ValueError(f"a {event.kind} with outcome {event.outcome!a:.80}")
    if event.reason is not None:
        _check_text("reason", event.reason, 2 * REASON_CHARACTERS)  # with why its frame is gone
    if event.score is not None:
        _check_number("score", event.score, 1.0)
    if not isinstance(event.classes, tuple) or len(event.classes) > _CLASSES:
        raise ValueError(f"classes that are no tuple of at most {_CLASSES}")
    for name, score in event.classes:
        _check_text("class", name, _NAME_CHARACTERS)
        _check_number("score of a class", score, 1.0)
    if event.frame is not None:
        _check_text("frame", event.frame, 400)
        checked_frame(event.frame)
    if event.caption is not None:
        _check_text("caption", event.caption, CAPTION_CHARACTERS)
    if event.lost_s is not None:
        _check_number("lost_s", event.lost_s, _LONGEST_S)
    return event


def _classes_of(text: object) -> tuple[tuple[str, float], ...]:
    if not isinstance(text, str) or len(text) > _CLASSES_CHARACTERS:
        raise ValueError("classes that are no text, or a long one")
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("classes in too many brackets") from None
    if not isinstance(found, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in found):
        raise ValueError(f"classes {text!a:.80}, wanted pairs of name and score")
    return tuple((name, score) for name, score in found)


def _as_float(value: Any) -> Any:
    return float(value) if type(value) is int else value


def _check_number(name: str, value: object, most: float) -> None:
    if not isinstance(value, float) or not math.isfinite(value) or not 0 <= value <= most:
        raise ValueError(f"{name} {value!a:.80}, wanted a number from 0 to {most:.12g}")


def _check_text(name: str, value: object, most: int) -> None:
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{name} {value!a:.80}, wanted a text of at most {most} characters")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"a score of {name}")
