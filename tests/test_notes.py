"""Notes of captures: their words, which of them a question is about, and their way into a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.runtime.capture.event import Event
from edgemem.runtime.capture.notes import SessionNotes, note_of, question_about
from edgemem.runtime.capture.picture import Picture
from edgemem.runtime.capture.relevance import relevant_events, stems
from edgemem.runtime.capture.reports import Captured
from edgemem.runtime.errors import ContextError
from edgemem.runtime.session import Session

ZONE = timezone.utc
PICTURE = Picture(np.zeros((2, 2, 3), np.uint8), 0.0)


def at(clock: str, day: int = 10) -> float:
    hour, minute, second = map(int, clock.split(":"))
    return datetime(2026, 3, day, hour, minute, second, tzinfo=ZONE).timestamp()


def event(clock: str, heard: str = "", seen: str | None = None, day: int = 10) -> Event:
    classes = tuple((name, 0.5) for name in heard.split("; ") if name)
    return Event(at(clock, day), 1.0, "s", "trigger", "taken", classes=classes, caption=seen)


DAY = [
    event("08:10:00", "Cutlery, silverware; Inside, small room", "plates on the table"),
    event("14:03:10", "Drawer open or close", "keys in the top drawer"),
    event("14:20:00", "Dishes, pots, and pans", "a cup of coffee"),
    event("18:45:00", "Water tap, faucet", "a ginger cat"),
    event("19:00:00", "Chopping (food)", "onions"),
]


def found(question: str, events: list[Event] = DAY, **options: object) -> list[str | None]:
    return [each.caption for each in relevant_events(question, events, zone=ZONE, **options)]  # type: ignore[arg-type]


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "note"),
    [
        (DAY[0], "[08:10:00] heard: cutlery; seen: plates on the table"),
        (DAY[1], "[14:03:10] heard: drawer open or close; seen: keys in the top drawer"),
        (event("14:03:10", "Silence; Speech"), "[14:03:10] heard: speech"),
        (event("14:03:10", "", " two\nlines \t here"), "[14:03:10] seen: two lines here"),
        (event("14:03:10", "Cutlery, silverware; Cutlery, knife"), "[14:03:10] heard: cutlery"),
        (event("14:03:10", "Inside, small room"), "[14:03:10] a picture was taken"),
    ],
)
def test_a_note_is_one_line(given: Event, note: str) -> None:
    assert note_of(given, zone=ZONE) == note
    assert note_of(given, zone=ZONE, dated=True) == note.replace("[", "[2026-03-10 ")


# --- which a question is about ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("Where did I put my keys?", ["keys in the top drawer"]),
        ("When did I open the drawers?", ["keys in the top drawer"]),
        ("Was there a plate?", ["plates on the table"]),
        ("What did I chop?", ["onions"]),
        ("What happened at 14:03?", ["keys in the top drawer"]),
        ("What did I do at 2:20 pm?", ["a cup of coffee"]),
        ("And at 8 p.m.?", []),
        ("And at 7 p.m.?", ["a ginger cat", "onions"]),
        ("What was there before 9:00?", ["plates on the table"]),
        ("What did I see after 18:00?", ["a ginger cat", "onions"]),
        ("Between 14:00 and 15:00, what was it?", ["keys in the top drawer", "a cup of coffee"]),
        ("What did I see in the last 20 minutes?", ["a ginger cat", "onions"]),
        ("What was it 15 minutes ago?", ["a ginger cat"]),
        ("What did I see in the past hour?", ["a ginger cat", "onions"]),
        ("Did I see a cat after 18:00?", ["a ginger cat"]),
        ("Did I see a dog after 18:00?", ["a ginger cat", "onions"]),
        ("Did I see anything before 7:00?", []),
    ],
)
def test_what_a_question_is_about(question: str, wanted: list[str]) -> None:
    assert found(question) == wanted


def test_days_are_told_apart() -> None:
    days = [*DAY, event("09:00:00", "Drawer open or close", "spoons", day=11)]
    assert found("What was in the drawer?", days) == ["keys in the top drawer", "spoons"]
    assert found("What was in the drawer yesterday?", days) == ["keys in the top drawer"]
    assert found("What was in the drawer today?", days) == ["spoons"]
    assert found("What happened yesterday at 19:00?", days) == ["onions"]


def test_the_newest_come_where_nothing_fits_and_no_more_than_were_asked_for() -> None:
    assert found("Hello there, friend?", most=2) == ["a ginger cat", "onions"]
    many = [event(f"10:00:{second:02}", "Dishes, pots, and pans", f"cup {second}") for second in range(20)]
    assert found("Where is the cup?", many, most=3) == ["cup 17", "cup 18", "cup 19"]
    assert found("Where is cup 4?", many, most=1) == ["cup 4"]
    assert found("Where is the cup?", [], most=3) == found("Where is the cup?", many, most=0) == []


def test_words_that_say_nothing_have_no_stem() -> None:
    assert stems("Where did I put the Plates, and the knives?") == stems("plate knive")
    assert stems("What was it that I did?") == set()


@given(st.text(max_size=60), st.integers(0, 7))
def test_any_question_gives_some_of_the_events_in_order(question: str, most: int) -> None:
    got = relevant_events(question, DAY, most=most, zone=ZONE)
    assert len(got) <= most
    assert [DAY.index(each) for each in got] == sorted(DAY.index(each) for each in got)


def test_the_question_stands_behind_its_notes() -> None:
    prompt = question_about(DAY, "Where did I put my keys?", zone=ZONE)
    assert prompt == f"{note_of(DAY[1], zone=ZONE)}\n\nWhere did I put my keys?"
    assert question_about([], "Where?") == "Where?"
    two_days = [event("14:00:00", seen="keys"), event("14:00:00", seen="keys", day=11)]
    assert question_about(two_days, "keys?", zone=ZONE).startswith("[2026-03-10 14:00:00] seen: keys\n[2026-03-11")


def test_what_says_nothing_new_is_not_put_before_a_question() -> None:
    again = [event(f"14:00:{second:02}", "Dishes, pots, and pans", "a cup") for second in range(5)]
    less = event("14:00:30", "", "a cup")
    later = event("14:01:01", "Dishes, pots, and pans", "a cup")
    prompt = question_about([*again, less, later], "cup?", zone=ZONE)
    assert prompt.splitlines()[:-2] == [note_of(again[0], zone=ZONE), note_of(later, zone=ZONE)]


# --- into a session ---------------------------------------------------------------------------------------------------


@pytest.fixture
def session(tiny_package: Path) -> Callable[..., Session]:
    return lambda **rest: Session.open(tiny_package, threads=1, **rest)


def test_captures_become_notes_of_the_conversation(session: Callable[..., Session], tmp_path: Path) -> None:
    with session(store=tmp_path / "store") as talk:
        write = SessionNotes(talk, zone=ZONE)
        for each in (DAY[1], replace(DAY[1], at=DAY[1].at + 3), DAY[2], event("00:00:05", "Speech", "a lamp", day=11)):
            write(Captured(each, PICTURE))
    with session(store=tmp_path / "store") as talk:
        assert [message["content"] for message in talk.messages] == [
            note_of(DAY[1], dated=True, zone=ZONE),
            note_of(DAY[2], zone=ZONE),
            "[2026-03-11 00:00:05] heard: speech; seen: a lamp",
        ]
        list(talk.stream("Where are my keys?", max_tokens=2, ignore_eos=True))
        assert [message["role"] for message in talk.messages] == ["note", "note", "note", "user", "assistant"]


def test_a_note_that_finds_no_room_is_raised_for_the_event(session: Callable[..., Session]) -> None:
    with session(context=16) as talk, pytest.raises(ContextError):
        SessionNotes(talk, zone=ZONE)(Captured(DAY[1], PICTURE))
