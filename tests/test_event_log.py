"""The event log: what was added is there, after every end; it stays small; hostile files are refused."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem.runtime.capture.event import Event, Kind, Outcome
from edgemem.runtime.capture.event_database import DATABASE, VERSION
from edgemem.runtime.capture.event_log import EventLog
from edgemem.runtime.capture.event_pruning import FRAME_MISSING, FRAME_PRUNED, Pruned
from edgemem.runtime.capture.log_settings import LogSettings
from edgemem.runtime.errors import EdgememError, FileError, SettingsError

DAY_S = 86_400.0
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
NOW = 1_800_000_000.0
TRIGGER = Event(
    at=NOW,
    position_s=12.5,
    session="a1",
    kind="trigger",
    outcome="taken",
    score=0.75,
    classes=(("Drawer open or close", 0.5), ("Dishes, pots, and pans", 0.25)),
)
GAP = Event(at=NOW + 1, position_s=14.0, session="a1", kind="gap", reason="overflow", lost_s=0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "log"


def open_log(folder: Path, days: int = 0, cap: int = 0, now: float = NOW) -> EventLog:
    return EventLog.open(folder, LogSettings(days, cap), now=lambda: now)


def with_frame(folder: Path, name: str, size: int = 1000, event: Event = TRIGGER) -> Event:
    """The event with a frame of that size, which is written."""
    path = folder / "frames" / f"{name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xff" * size)
    return replace(event, frame=f"frames/{name}.jpg")


def frames_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in (folder / "frames").rglob("*") if path.is_file()}


# --- what was added is there ----------------------------------------------------------------------------------------

seconds = st.floats(0, 1e9)
shares = st.floats(0, 1)
texts = st.text(max_size=60)
outcomes: dict[str, st.SearchStrategy[Any]] = dict.fromkeys(get_args(Kind), st.none())
outcomes |= dict.fromkeys(("trigger", "heartbeat"), st.sampled_from(get_args(Outcome)))
made_events = st.sampled_from(get_args(Kind)).flatmap(
    lambda kind: st.builds(
        Event,
        at=seconds,
        position_s=seconds,
        session=texts,
        kind=st.just(kind),
        outcome=outcomes[kind],
        reason=st.none() | texts,
        score=st.none() | shares,
        classes=st.lists(st.tuples(texts, shares), max_size=5).map(tuple),
        caption=st.none() | texts,
        lost_s=st.none() | seconds,
    )
)


@given(st.lists(made_events, max_size=8))
@settings(deadline=None, max_examples=60)
def test_events_come_back_as_they_were(events: list[Event]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as holder:
        folder = Path(holder) / "log"
        with open_log(folder) as log:
            added = [log.add(event) for event in events]
            assert [replace(event, id=0) for event in added] == events
            assert [log.find(event.id) for event in added] == added
        with EventLog.open(folder, read_only=True) as log:
            assert list(log.events()) == added


def test_a_file_stays_private_and_nothing_else_is_made(folder: Path) -> None:
    with open_log(folder) as log:
        log.add(TRIGGER)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
    assert {path.name for path in folder.iterdir()} == {DATABASE, "frames", "lock"}


def test_choice_order_and_limit_are_those_of_a_plain_list(folder: Path) -> None:
    source = random.Random(3)
    with open_log(folder) as log:
        added = []
        for number in range(700):  # more than two pages
            kind = source.choice(get_args(Kind))
            outcome = source.choice(get_args(Outcome)) if kind in ("trigger", "heartbeat") else None
            at = NOW + source.randint(-50, 50)  # a clock that jumps
            added.append(log.add(Event(at=at, position_s=float(number), session="s", kind=kind, outcome=outcome)))
        assert list(log.events()) == added
        assert list(log.events(newest_first=True)) == added[::-1]
        for _ in range(60):
            since, until = (source.choice((None, NOW + source.randint(-60, 60))) for _ in range(2))
            kinds = source.sample(get_args(Kind), source.randint(0, 3))
            ends = source.sample(get_args(Outcome), source.randint(0, 2))
            newest, limit = source.random() < 0.5, source.choice((None, 0, 1, 300))
            wanted = [
                event
                for event in added[:: -1 if newest else 1]
                if (since is None or event.at >= since)
                and (until is None or event.at < until)
                and (not kinds or event.kind in kinds)
                and (not ends or event.outcome in ends)
            ]
            assert list(log.events(since, until, kinds, ends, newest_first=newest, limit=limit)) == wanted[:limit]


def test_counts_are_what_was_added(folder: Path) -> None:
    source, added = random.Random(5), Counter[tuple[str, str | None]]()
    with open_log(folder) as log:
        for number in range(2000):
            outcome: Outcome = source.choice(get_args(Outcome))
            log.add(replace(TRIGGER, position_s=number / 2, outcome=outcome, reason="busy"))
            added["trigger", outcome] += 1
            if number % 100 == 0:
                log.add(GAP)
                added["gap", None] += 1
        assert log.counts() == added
    with EventLog.open(folder, read_only=True) as log:
        assert log.counts() == added
        assert sum(count for (kind, _), count in log.counts().items() if kind == "trigger") == 2000


def test_events_from_several_threads_are_all_there(folder: Path) -> None:
    with open_log(folder) as log:

        def add(thread: int) -> None:
            for number in range(100):
                said = f"{thread} {number}"
                log.add(replace(TRIGGER, session=f"thread {thread}", position_s=float(number), caption=said))

        threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        seen = sum(1 for _ in log.events())  # while they write
        for thread in threads:
            thread.join()
        assert seen <= 400
        assert Counter(event.session for event in log.events()) == {f"thread {n}": 100 for n in range(4)}
        assert all(event.caption == f"{event.session[7:]} {event.position_s:.0f}" for event in log.events())


def test_a_text_that_cannot_be_written_is_kept_escaped(folder: Path) -> None:
    with open_log(folder) as log:
        added = log.add(replace(TRIGGER, caption="a cup \ud800 on the table"))
        assert log.find(added.id) == replace(added, caption="a cup \\ud800 on the table")


def test_long_texts_are_cut(folder: Path) -> None:
    with open_log(folder) as log:
        added = log.add(replace(TRIGGER, reason="r" * 9000, caption="c" * 90_000, classes=(("n" * 900, 0.5),)))
        assert log.find(added.id) == added
        lengths = [len(text or "") for text in (added.reason, added.caption, added.classes[0][0])]
        assert lengths == [500, 10_000, 100]
        assert (added.reason or "").endswith("r…")


@pytest.mark.parametrize(
    "bad",
    [
        {"score": float("nan")},
        {"score": 1.01},
        {"score": True},
        {"at": float("inf")},
        {"at": -1.0},
        {"at": 1e12},
        {"position_s": float("nan")},
        {"kind": "noise"},
        {"kind": "gap"},
        {"outcome": None},
        {"outcome": "lost"},
        {"classes": (("Dishes", float("nan")),)},
        {"classes": (("Dishes", 2.0),)},
        {"classes": (("Dishes", 0.5),) * 17},
        {"frame": "/etc/passwd"},
        {"frame": "../secret.jpg"},
        {"frame": "frames/../../secret.jpg"},
        {"frame": "frames/a/../../../secret.jpg"},
        {"frame": "frames//a.jpg"},
        {"frame": "frames/a/b/c/d.jpg"},
        {"frame": "frames/.hidden.jpg"},
        {"frame": "frames/a.jpg\n"},
        {"frame": "frames/a.png"},
        {"lost_s": float("inf")},
    ],
    ids=str,
)
def test_events_with_bad_values_are_refused(folder: Path, bad: dict[str, Any]) -> None:
    with open_log(folder) as log:
        with pytest.raises(SettingsError, match="cannot be logged"):
            log.add(replace(TRIGGER, **bad))
        assert list(log.events()) == []
        log.add(TRIGGER)


@pytest.mark.parametrize(
    "call",
    [
        lambda log: log.events(kinds=["noise"]),
        lambda log: log.events(outcomes=["lost"]),
        lambda log: log.events(limit=-1),
        lambda log: log.find(0),
        lambda log: log.find(1 << 70),
        lambda log: log.find(True),
    ],
)
def test_bad_arguments_are_refused(folder: Path, call: Callable[[EventLog], object]) -> None:
    with open_log(folder) as log, pytest.raises(SettingsError):
        call(log)


@pytest.mark.parametrize("bad", [{"retention_days": -1}, {"retention_days": True}, {"size_cap_bytes": 999_999}])
def test_settings_refuse_bad_values(bad: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="out of range"):
        LogSettings(**bad)


# --- what leaves it -------------------------------------------------------------------------------------------------


def test_old_events_go_with_their_frames(folder: Path) -> None:
    with open_log(folder) as log:
        log.add(with_frame(folder, "old/1", event=replace(TRIGGER, at=NOW - 31 * DAY_S)))
        log.add(with_frame(folder, "old/shared", event=replace(TRIGGER, at=NOW - 31 * DAY_S)))
        shared = log.add(with_frame(folder, "old/shared", event=replace(TRIGGER, at=NOW - 29 * DAY_S)))
        newest = log.add(GAP)
    with open_log(folder, days=30) as log:
        assert log.prune() == Pruned(events=2, frames=1, frame_bytes=1000)
        assert list(log.events()) == [shared, newest]
        assert frames_in(folder) == {"frames/old/shared.jpg"}
        assert log.prune() == Pruned()
        assert log.add(TRIGGER).id == newest.id + 1


def test_ids_are_not_given_again(folder: Path) -> None:
    with open_log(folder, days=1) as log:
        first = log.add(replace(TRIGGER, at=NOW - 2 * DAY_S))
        assert log.prune().events == 1
        assert log.find(first.id) is None
        assert log.add(TRIGGER).id == first.id + 1


def test_events_are_pruned_hourly_as_others_are_added(folder: Path) -> None:
    clock = [NOW]
    with EventLog.open(folder, LogSettings(1, 0), now=lambda: clock[0]) as log:
        old = log.add(replace(TRIGGER, at=NOW - DAY_S + 60))
        clock[0] += 3500
        log.add(TRIGGER)
        assert log.find(old.id) is not None
        clock[0] += 200
        log.add(TRIGGER)
        assert log.find(old.id) is None
        old = log.add(replace(TRIGGER, at=NOW - 3 * DAY_S))
        clock[0] = NOW - 60  # set back: it must not wait until the clock is there again
        log.add(TRIGGER)
        assert log.find(old.id) is None


def test_the_oldest_frames_make_room_and_their_events_say_so(folder: Path) -> None:
    with open_log(folder, cap=1_000_000) as log:
        added = []
        for number in range(40):
            event = replace(TRIGGER, reason="late" if number % 2 else None)
            added.append(log.add(with_frame(folder, f"day/{number}", 100_000, event)))
            sizes = log.sizes()
            assert sizes.frame_bytes + sizes.database_bytes <= 1_000_000
        found = list(log.events())
        kept = [event.frame is not None for event in found]
        assert kept == sorted(kept)
        assert 7 <= sum(kept) <= 9
        assert frames_in(folder) == {event.frame for event in found if event.frame}
        for before, after in zip(added, found, strict=True):
            if after.frame is None:
                reason = f"late; {FRAME_PRUNED}" if before.reason else FRAME_PRUNED
                assert after == replace(before, frame=None, reason=reason)
            else:
                assert after == before


def test_where_events_alone_are_too_many_the_oldest_go(folder: Path) -> None:
    long = replace(TRIGGER, caption="c" * 9000)
    with open_log(folder, cap=1_000_000) as log:
        log.add(with_frame(folder, "first", event=long))
        last = [log.add(long) for _ in range(300)][-1]
        assert log.sizes().database_bytes <= 1_000_000
        found = list(log.events())
        assert found[-1] == last
        assert 50 < len(found) < 120
        assert [event.id for event in found] == list(range(found[0].id, last.id + 1))
    assert (folder / DATABASE).stat().st_size <= 1_000_000


def test_frames_removed_by_hand_cost_no_event_its_place(folder: Path) -> None:
    with open_log(folder, cap=1_000_000) as log:
        for number in range(9):
            log.add(with_frame(folder, f"day/{number}", 100_000))
        for path in (folder / "frames" / "day").iterdir():
            path.unlink()
        last = log.add(with_frame(folder, "day/new", 100_000))
        assert log.counts() == {("trigger", "taken"): 10}
        assert log.find(last.id) == last
        assert frames_in(folder) == {last.frame}


def test_a_frame_that_went_with_an_older_event_is_not_promised(folder: Path) -> None:
    clock = [NOW]
    with EventLog.open(folder, LogSettings(1, 0), now=lambda: clock[0]) as log:
        shared = with_frame(folder, "shared")
        assert log.add(shared).frame == log.add(shared).frame == "frames/shared.jpg"
        clock[0] += 2 * DAY_S
        late = log.add(replace(shared, at=clock[0]))
        assert late == replace(shared, id=3, at=clock[0], frame=None, reason=FRAME_MISSING)
        assert list(log.events()) == [late]
        assert not frames_in(folder)


def test_what_is_pruned_cannot_be_read_in_the_files(folder: Path) -> None:
    secret = "the keys are under the blue pot"
    with open_log(folder, days=1) as log:
        log.add(replace(TRIGGER, at=NOW - 2 * DAY_S, caption=secret))
        log.add(TRIGGER)
        assert log.prune().events == 1
        assert not any(secret.encode() in path.read_bytes() for path in folder.iterdir() if path.is_file())


def test_rows_and_frames_that_lost_each_other_are_settled_at_opening(folder: Path) -> None:
    with open_log(folder) as log:
        kept, removed, emptied = (log.add(with_frame(folder, f"2026-03-01/{name}")) for name in "abc")
        absent = log.add(replace(TRIGGER, frame="frames/never.jpg"))
        assert absent == replace(TRIGGER, id=4, reason=FRAME_MISSING)
    (folder / "frames/2026-03-01/b.jpg").unlink()
    (folder / "frames/2026-03-01/c.jpg").write_bytes(b"")
    with_frame(folder, "2026-03-02/orphan")
    (folder / "frames/2026-03-03").mkdir()
    (folder / "frames/2026-03-01/d.jpg.tmp").write_bytes(b"half")
    (folder / "frames/notes.txt").write_text("the user's own")
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "photo.jpg").write_bytes(b"precious")
    (folder / "frames/link").symlink_to(outside)
    (folder / "frames/photo.jpg").symlink_to(outside / "photo.jpg")
    with open_log(folder) as log:
        lost = [replace(event, frame=None, reason=FRAME_MISSING) for event in (removed, emptied)]
        assert list(log.events()) == [kept, *lost, absent]
        assert log.sizes().frame_bytes == 1000
    assert frames_in(folder) == {"frames/2026-03-01/a.jpg", "frames/notes.txt", "frames/photo.jpg"}
    assert sorted(path.name for path in (folder / "frames").iterdir()) == [
        "2026-03-01",
        "link",
        "notes.txt",
        "photo.jpg",
    ]
    assert (outside / "photo.jpg").read_bytes() == b"precious"


def test_a_folder_with_frames_and_no_log_is_left_alone(folder: Path) -> None:
    with_frame(folder, "holiday")
    with pytest.raises(FileError, match="without an event log"):
        open_log(folder)
    assert frames_in(folder) == {"frames/holiday.jpg"}


# --- one writer, many readers ---------------------------------------------------------------------------------------


def test_one_writer_and_readers_at_any_time(folder: Path) -> None:
    with open_log(folder) as log:
        added = [log.add(TRIGGER)]
        with EventLog.open(folder, read_only=True) as reader:
            assert list(reader.events()) == added
            added.append(log.add(GAP))
            assert list(reader.events()) == added
            with pytest.raises(SettingsError, match="for reading only"):
                reader.add(TRIGGER)
            with pytest.raises(FileError, match=f"another process is writing this event log.*\n.*{os.getpid()}"):
                open_log(folder)
        assert [log.add(TRIGGER).id, *(event.id for event in log.events(limit=2))] == [3, 1, 2]
    with open_log(folder) as log:
        assert len(list(log.events())) == 3
        log.close()
        log.close()
        with pytest.raises(FileError, match="closed"):
            log.counts()


def test_reading_makes_nothing(folder: Path) -> None:
    with pytest.raises(FileError, match="there is no event log"):
        EventLog.open(folder, read_only=True)
    assert not folder.exists()


def test_what_a_kill_left_of_making_it_is_made_anew(folder: Path) -> None:
    folder.mkdir(parents=True)
    for end in ("", "-journal", "-wal"):
        (folder / f"{DATABASE}.new{end}").write_bytes(b"torn")
    with open_log(folder) as log:
        log.add(TRIGGER)
    assert {path.name for path in folder.iterdir()} == {DATABASE, "frames", "lock"}


CHILD = """
import sys
from pathlib import Path
from edgemem.runtime.capture.event import Event
from edgemem.runtime.capture.event_log import EventLog
from edgemem.runtime.capture.log_settings import LogSettings

folder, life = Path(sys.argv[1]), sys.argv[2]
with EventLog.open(folder, LogSettings(0, 1_000_000)) as log:
    number = 0
    while True:
        number += 1
        frame = f"frames/{life}/{number}.jpg"
        (folder / frame).parent.mkdir(exist_ok=True)
        (folder / frame).write_bytes(bytes([255]) * 30_000)
        event = log.add(Event(1.8e9, float(number), life, "trigger", "taken", frame=frame))
        print(event.id, flush=True)
"""


def test_twenty_kills_lose_no_event_that_was_acknowledged(folder: Path) -> None:
    source, known = random.Random(7), set[int]()
    for life in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder), str(life)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(source.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        lines = [first, *child.stdout.read().splitlines(keepends=True)]
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        known |= {int(line) for line in lines if line.endswith("\n")}
        with EventLog.open(folder, read_only=True) as log:  # the write-ahead log is as the kill left it
            assert known <= {event.id for event in log.events()}
    with open_log(folder) as log:
        events = list(log.events())
        assert known <= {event.id for event in events}
        assert frames_in(folder) == {event.frame for event in events if event.frame}
    assert len(known) > 60


# --- errors of the disk ---------------------------------------------------------------------------------------------


@contextmanager
def no_room(folder: Path) -> Iterator[None]:
    """No file of this process grows any more, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in folder.iterdir() if path.name.startswith(f"{DATABASE}-wal"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_a_clean_error_and_the_log_goes_on(folder: Path) -> None:
    with open_log(folder) as log:
        added = [log.add(TRIGGER) for _ in range(5)]
        with no_room(folder):
            for _ in range(20):
                with pytest.raises(FileError, match="cannot be logged"):
                    log.add(replace(TRIGGER, caption="c" * 9000))
            assert list(log.events()) == added
        added.append(log.add(GAP))
        assert list(log.events()) == added
    with EventLog.open(folder, read_only=True) as log:
        assert list(log.events()) == added


def test_the_words_for_a_full_database(folder: Path) -> None:
    with open_log(folder) as log:
        pages = log._connection.execute("PRAGMA page_count").fetchone()[0]
        log._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(FileError, match=r"a full disk\n.*make room"):
            log.add(replace(TRIGGER, caption="c" * 10_000))
        log._connection.execute("PRAGMA max_page_count = 1000000")
        log.add(TRIGGER)


def test_a_program_that_holds_the_database_is_named_as_that(folder: Path) -> None:
    with open_log(folder) as log:
        log._connection.execute("PRAGMA busy_timeout = 10")
        with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(FileError, match="another program holds the database"):
                log.add(TRIGGER)
            other.execute("ROLLBACK")
        log.add(TRIGGER)


# --- hostile files --------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(folder: Path) -> Path:
    """A folder with a log of three events, closed."""
    with open_log(folder) as log:
        log.add(with_frame(folder, "a"))
        log.add(GAP)
        log.add(TRIGGER)
    return folder


def altered(folder: Path, *statements: str) -> None:
    """Change the stored database behind the log's back, its schema too."""
    with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            connection.execute(statement)


def assert_refused(folder: Path, words: str) -> None:
    for read_only in (True, False):
        with pytest.raises(FileError, match=words):
            EventLog.open(folder, read_only=read_only)
    assert (folder / "frames/a.jpg").read_bytes() == b"\xff" * 1000


def test_a_newer_log_is_refused_with_both_versions(stored: Path) -> None:
    altered(stored, f"PRAGMA user_version = {VERSION + 1}")
    assert_refused(stored, f"got: {VERSION + 1}\n  wanted: {VERSION}\n  do: update edgemem")


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (["PRAGMA application_id = 0"], "no event log"),
        (["CREATE VIEW more AS SELECT 1"], "tables are not ours"),
        (["CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM events; END"], "tables are not ours"),
        (["CREATE TABLE other (x)"], "tables are not ours"),
        (["ALTER TABLE events RENAME TO old", "CREATE VIEW events AS SELECT * FROM old"], "tables are not ours"),
        (["ALTER TABLE events ADD COLUMN x TEXT"], "tables are not ours"),
        (["CREATE INDEX more ON events (at)"], "tables are not ours"),
        (["DROP INDEX events_with_frame"], "tables are not ours"),
        (["UPDATE sqlite_master SET sql = replace(sql, ' STRICT', '')"], "tables are not ours|opened|damaged"),
        (["UPDATE sqlite_master SET name = 'x' WHERE type = 'index'"], "tables are not ours|opened|damaged"),
        (["UPDATE sqlite_master SET rootpage = 900 WHERE name = 'events'"], "damaged|opened"),
    ],
    ids=str,
)
def test_other_schemas_are_refused(stored: Path, statements: list[str], words: str) -> None:
    altered(stored, *statements)
    assert_refused(stored, words)


@pytest.mark.parametrize(
    "data",
    [b"", b"no database at all" * 1000, b"SQLite format 3\0", b"SQLite format 3\0" + b"\xff" * 5000],
    ids=["empty", "text", "magic", "header"],
)
def test_other_files_are_refused(stored: Path, data: bytes) -> None:
    (stored / DATABASE).write_bytes(data)
    assert_refused(stored, "no event log|damaged|cannot be opened")


def test_damage_in_the_pages_is_found_at_opening(stored: Path) -> None:
    data = bytearray((stored / DATABASE).read_bytes())
    with closing(sqlite3.connect(stored / DATABASE)) as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'events'").fetchone()[0]
    data[(page - 1) * 4096 : (page - 1) * 4096 + 64] = b"\xaa" * 64
    (stored / DATABASE).write_bytes(data)
    assert_refused(stored, "damaged")


def test_a_file_cut_short_is_refused(stored: Path) -> None:
    data = (stored / DATABASE).read_bytes()
    (stored / DATABASE).write_bytes(data[: len(data) // 2])
    assert_refused(stored, "damaged")


@pytest.mark.parametrize("end", ["", "-wal", "-shm"])
@pytest.mark.parametrize("make", [lambda path, victim: path.symlink_to(victim), lambda path, _: os.mkfifo(path)])
def test_links_and_pipes_are_not_opened(stored: Path, end: str, make: Callable[[Path, Path], None]) -> None:
    victim, path = stored.parent / "victim", stored / f"{DATABASE}{end}"
    victim.write_bytes(b"precious")
    path.unlink(missing_ok=True)
    make(path, victim)
    assert_refused(stored, "a link or no file")
    assert victim.read_bytes() == b"precious"


def test_a_rollback_journal_removes_no_file_elsewhere(stored: Path) -> None:
    """SQLite deletes the super-journal that a hot journal names, wherever it lies."""
    victim = stored.parent / "victim"
    victim.write_bytes(b"precious")
    name, magic = os.fsencode(victim), bytes.fromhex("d9d505f920a163d7")
    pages = (stored / DATABASE).stat().st_size // 4096
    header = magic + _big_endian(0, 0, pages, 512, 4096)
    tail = _big_endian(0x4000_0000 // 4096 + 1) + name + _big_endian(len(name), sum(name)) + magic
    (stored / f"{DATABASE}-journal").write_bytes(header.ljust(512, b"\0") + tail)
    assert_refused(stored, "journal lies there")
    assert victim.read_bytes() == b"precious"
    with closing(sqlite3.connect(stored / DATABASE)) as connection:  # the danger is real
        connection.execute("SELECT * FROM sqlite_master").fetchall()
    assert not victim.exists()


def _big_endian(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "big") for number in numbers)


def test_a_folder_of_frames_that_is_a_link_is_refused(stored: Path) -> None:
    elsewhere = stored.parent / "elsewhere"
    (stored / "frames").rename(elsewhere)
    (stored / "frames").symlink_to(elsewhere)
    assert_refused(stored, "frames of the event log cannot be opened")


@pytest.mark.parametrize(
    "change",
    [
        "frame = '../victim.jpg'",
        "frame = '/etc/passwd'",
        "frame = 'frames/../../victim.jpg'",
        "frame = 'frames/' || char(0) || '.jpg'",
        "at = 9e999",
        "at = -1",
        "position_s = -9e999",
        "kind = 'noise'",
        "kind = 'trigger', outcome = 'gone'",
        "outcome = 'taken'",
        "score = 1e300",
        "session = hex(zeroblob(400000))",
        "reason = hex(zeroblob(2000))",
        "caption = hex(zeroblob(6000))",
        "caption = CAST(x'ff' AS TEXT)",
        "classes = ''",
        "classes = '[[\"a\",NaN]]'",
        "classes = '[[\"a\",1e999]]'",
        "classes = '[[\"a\",true]]'",
        "classes = '[[\"a\",1]]'",
        "classes = '[[1,0.5]]'",
        "classes = '[\"ab\"]'",
        "classes = '{\"ab\":[]}'",
        "classes = replace(hex(zeroblob(2000)), '0', '[')",
        "id = -5",
    ],
)
def test_rows_that_no_event_made_are_refused(stored: Path, change: str) -> None:
    victim = stored.parent / "victim.jpg"
    victim.write_bytes(b"precious")
    altered(stored, f"UPDATE events SET {change} WHERE id = 2")
    with EventLog.open(stored, read_only=True) as log:
        with pytest.raises(FileError, match=r"damaged|cannot be read"):
            list(log.events(newest_first=True))
        assert log.find(3) is not None
    for days, cap in ((0, 1_000_000), (1, 0)):
        try:
            with open_log(stored, days, cap, now=NOW + 9 * DAY_S) as log:
                log.prune()
        except EdgememError as problem:
            assert isinstance(problem, FileError)  # noqa: PT017 - whether it gets that far depends on the row
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("change", ["at = NULL", "score = 'high'", "classes = x'05'", "caption = x'00'"])
def test_a_row_of_other_types_is_refused_at_opening(stored: Path, change: str) -> None:
    """STRICT keeps them out; a table that was not strict while they went in is found out by SQLite's own check."""
    with closing(sqlite3.connect(stored / DATABASE, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        sql = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'events'").fetchone()[0]
        lax = sql.replace(" STRICT", "").replace(" NOT NULL", "")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'events'", (lax,))
    with closing(sqlite3.connect(stored / DATABASE, isolation_level=None)) as connection:
        connection.execute(f"UPDATE events SET {change} WHERE id = 2")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'events'", (sql,))
    assert_refused(stored, "damaged")
