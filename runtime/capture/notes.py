"""Notes: what a capture heard and saw, as a line that a model can read, for a Session's memory or before a question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, datetime, tzinfo
from typing import TYPE_CHECKING

from edgemem.runtime.capture.event import Event
from edgemem.runtime.capture.relevance import relevant_events
from edgemem.runtime.capture.reports import Captured

if TYPE_CHECKING:
    from edgemem.runtime.session import Session

_AGAIN_S = 60.0
_PLACES = ("inside", "outside", "silence")


def note_of(event: Event, *, dated: bool = False, zone: tzinfo | None = None) -> str:
    """`[14:03:10] heard: drawer open or close, cutlery; seen: a caption`. dated: the date too. zone: local if None."""
    form = "%Y-%m-%d %H:%M:%S" if dated else "%H:%M:%S"
    when = datetime.fromtimestamp(event.at, zone).strftime(form)
    said = [f"heard: {heard}"] if (heard := ", ".join(_short_names(event))) else []
    if event.caption:
        said.append(f"seen: {' '.join(event.caption.split())}")
    return f"[{when}] {'; '.join(said) or 'a picture was taken'}"


def question_about(
    events: Iterable[Event], question: str, *, most: int = 6, now: float | None = None, zone: tzinfo | None = None
) -> str:
    """The question behind the notes of the events that it is about, as relevant_events finds them: a prompt for a model
    that was told nothing. The question alone where there are no events."""
    found = relevant_events(question, _without_repeats(events), most=most, now=now, zone=zone)
    dated = len({datetime.fromtimestamp(event.at, zone).date() for event in found}) > 1
    notes = [note_of(event, dated=dated, zone=zone) for event in found]
    return "\n".join([*notes, "", question]) if notes else question


class SessionNotes:
    """Give it to Capture.on_capture: each capture becomes a note in the session's conversation, for later questions.

    What says nothing new after the note before is left out for a minute: hands at work give a picture a second.
    """

    def __init__(self, session: Session, *, pinned: bool = False, zone: tzinfo | None = None) -> None:
        """pinned: the memory is to keep the notes, whatever else goes. zone: of the times in them, local if None."""
        self._session, self._pinned, self._zone = session, pinned, zone
        self._last: Event | None = None

    def __call__(self, captured: Captured) -> None:
        """Raises what Session.note raises, and its note_problem."""
        event, last = captured.event, self._last
        if _repeats(event, last):
            return
        dated = last is None or self._day(event) != self._day(last)
        self._session.note(note_of(event, dated=dated, zone=self._zone), pinned=self._pinned)
        self._last = event
        if self._session.note_problem is not None:
            raise self._session.note_problem

    def _day(self, event: Event) -> date:
        return datetime.fromtimestamp(event.at, self._zone).date()


def _without_repeats(events: Iterable[Event]) -> Iterator[Event]:
    last: Event | None = None
    for event in events:
        if not _repeats(event, last):
            yield event
            last = event


def _repeats(event: Event, last: Event | None) -> bool:
    """Whether the event says nothing that the last note did not say, within a minute of it."""
    if last is None or not 0 <= event.at - last.at < _AGAIN_S:
        return False
    return event.caption == last.caption and set(_short_names(event)) <= set(_short_names(last))


def _short_names(event: Event) -> list[str]:
    """The classes without their synonyms, `Cutlery, silverware` being `cutlery`, and without those of the place."""
    names = (name.partition(",")[0].strip().lower() for name, _ in event.classes)
    return [name for name in dict.fromkeys(names) if name not in _PLACES]
