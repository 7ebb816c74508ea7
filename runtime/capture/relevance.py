"""Which events a question is about, by the times and the words in it. Plain matching: it understands nothing."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta, tzinfo

from edgemem.runtime.capture.event import Event

_WORD = re.compile(r"[a-z0-9]+")
_ENDINGS = ("ings", "ing", "ed", "es", "s")
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "a about after ago am an and any are at be been before being between by can could day did do does during for "
        "from had has have hear heard here hour how i in into is it last like long many me minute my now of off on one "
        "or our out over past pm put saw second see seen since so that the then there these they thing this those time "
        "to today until up us was we were what when where which while who why with yesterday you your",
    )
)
_CLOCK = re.compile(r"\b([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?(?:\s*([ap])\.?m\b)?|\b(1[0-2]|[1-9])\s*([ap])\.?m\b")
_SPAN = re.compile(r"\b(?:(last|past)\s+)?(\d{1,4}|an?|the)?\s*(second|minute|hour)s?\b(\s+ago\b)?")
_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0}
_BEFORE, _AFTER = re.compile(r"\b(before|until|till)\b"), re.compile(r"\b(after|since|from)\b")


def relevant_events(
    question: str, events: Iterable[Event], *, most: int = 6, now: float | None = None, zone: tzinfo | None = None
) -> list[Event]:
    """At most `most` of the events, in their order: of the times that the question names, those that share words with
    it; all of those times if none do; the newest if it names no times either.

    Times are clock times (14:03, 2 pm; before, after, between), spans (the last 10 minutes, an hour ago), today and
    yesterday. now: seconds since 1970, by default the last event's. zone: the local one by default.
    """
    known = list(events)
    if not known or most < 1:
        return []
    text = question.lower()
    ranges = _times(text, known[-1].at if now is None else now, zone)
    found = [place for place, event in enumerate(known) if all(start <= event.at <= end for start, end in ranges)]
    scores = _scores(text, [known[place] for place in found])
    matched = [place for place, score in zip(found, scores, strict=True) if score > 0]
    if matched:
        by_score = dict(zip(found, scores, strict=True))
        found = sorted(matched, key=lambda place: (by_score[place], place))
    return [known[place] for place in sorted(found[-most:])]


def stems(text: str) -> set[str]:
    """The words of a text that say something, without their endings."""
    return {_stem(word) for word in _WORD.findall(text.lower()) if word not in _COMMON and _stem(word) not in _COMMON}


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            stem = word.removesuffix(ending)
            return stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] else stem  # chopping, chop
    return word.removesuffix("e") if len(word) > 4 else word


def _scores(question: str, events: Sequence[Event]) -> list[float]:
    """Of each event: what the words count that it shares with the question, rare ones more."""
    words = [stems(" ".join([*(name for name, _ in event.classes), event.caption or ""])) for event in events]
    frequency = Counter(word for each in words for word in each)
    asked = stems(question)
    return [sum(math.log1p(len(events) / frequency[word]) for word in asked & each) for each in words]


def _times(text: str, now: float, zone: tzinfo | None) -> list[tuple[float, float]]:
    """The ranges of time that a question names; an event is to be in all of them."""
    here = datetime.fromtimestamp(now, zone)
    day = here.date() - timedelta(days=1) if "yesterday" in text else here.date()
    ranges = []
    if "yesterday" in text or "today" in text:
        start = datetime.combine(day, datetime.min.time(), zone).timestamp()
        ranges.append((start, start + 86_400.0))
    for span in _SPAN.finditer(text):
        last, count, unit, ago = span.groups()
        seconds = _SECONDS[unit] * (int(count) if count and count.isdigit() else 1)
        if ago:
            ranges.append((now - 1.5 * seconds, now - 0.5 * seconds))
        elif last:
            ranges.append((now - seconds, now))
    return ranges + _clock_ranges(text, day, zone)


def _clock_ranges(text: str, day: date, zone: tzinfo | None) -> list[tuple[float, float]]:
    """Of clock times: around each, between two, before or after one."""
    clocks = [_clock(match, day, zone) for match in _CLOCK.finditer(text)]
    if len(clocks) >= 2 and re.search(r"\b(between|from)\b", text):
        return [(clocks[0][0], clocks[1][0])]
    ranges = []
    for at, about in clocks[:1]:
        if _BEFORE.search(text):
            ranges.append((-math.inf, at))
        elif _AFTER.search(text):
            ranges.append((at, math.inf))
        else:
            ranges.append((at - about, at + about))
    return ranges


def _clock(match: re.Match[str], day: date, zone: tzinfo | None) -> tuple[float, float]:
    """When that is, and how far around it is meant, in seconds."""
    hours, minutes, seconds, half, whole, other_half = match.groups()
    hour = int(hours or whole)
    if half := half or other_half:
        hour = hour % 12 + 12 * (half == "p")
    moment = datetime(day.year, day.month, day.day, hour, int(minutes or 0), int(seconds or 0), tzinfo=zone)
    return moment.timestamp(), 30.0 if seconds else 300.0 if minutes else 1800.0
