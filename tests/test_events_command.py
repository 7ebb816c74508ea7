"""`edgemem events`, over a log that the event log wrote: what is shown is what is stored, and safe to print."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

import pytest

from edgemem.runtime.capture.event import Event
from edgemem.runtime.capture.event_database import DATABASE
from edgemem.runtime.capture.event_log import EventLog
from edgemem.runtime.capture.log_settings import LogSettings
from edgemem.runtime.errors import FileError, SettingsError
from edgemem.tools.commands import events as command
from edgemem.tools.log_folder import default_log_folder
from edgemem.tools.moments import local_text, moment_of

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc).timestamp()
HOSTILE = "\x1b[31mred\x9b2J \u202eback\n[/bold] [red]=1+1"
EVENTS = [
    Event(
        NOON,
        1.5,
        "s1",
        "trigger",
        "taken",
        None,
        0.75,
        (("Drawer open or close", 0.5), (HOSTILE, 0.25)),
        "frames/d/1.jpg",
    ),
    Event(NOON + 60, 61.5, "s1", "gap", reason="overflow", lost_s=0.25),
    Event(NOON + 3600, 3601.5, "s1", "trigger", "merged", "cooldown", 0.5),
    Event(NOON + 7200, 7201.5, "s1", "trigger", "taken", None, 1.0, (), "frames/d/2.jpg", '=HYPERLINK("x")'),
]
Run = Callable[..., int]


@pytest.fixture(autouse=True)
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    with EventLog.open(folder, LogSettings(0, 0)) as log:
        for event in EVENTS:
            if event.frame is not None:
                (folder / event.frame).parent.mkdir(parents=True, exist_ok=True)
                (folder / event.frame).write_bytes(event.frame.encode() * 100_000)
            log.add(event)
    return folder


@pytest.fixture
def run() -> Run:
    def run(*words: object) -> int:
        parser = argparse.ArgumentParser(prog="edgemem events")
        parser.set_defaults(usage_error=parser.error)
        command.configure(parser)
        return command.run(parser.parse_args([str(word) for word in words]))

    return run


def test_list_shows_the_newest_first_in_local_time(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--log", folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["id", "time", "kind", "outcome", "score", "heard", "what"]
    assert [line.split()[0] for line in lines[1:]] == ["4", "3", "2", "1"]
    assert "2026-03-01T15:00:00+01:00" in lines[1]
    assert lines[2].split() == ["3", "2026-03-01T14:00:00+01:00", "trigger", "merged", "0.50", "cooldown"]
    assert "0.25 s lost; overflow" in lines[3]
    assert "frames/d/1.jpg" in lines[4]


def test_what_strangers_wrote_is_shown_and_not_obeyed(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["list"], ["show", 1]):
        assert run(*words, "--log", folder) == 0
        out = capsys.readouterr().out
        assert "␛[31mred<U+009B>2J <U+202E>back⏎[/bold]" in out
        assert not set(out) & {"\x1b", "\x9b", "\u202e"}


@pytest.mark.parametrize(
    ("flags", "ids"),
    [
        (["-n", "1"], [4]),
        (["--kind", "trigger"], [4, 3, 1]),
        (["--kind", "trigger", "--kind", "gap", "-n", "3"], [4, 3, 2]),
        (["--outcome", "taken"], [4, 1]),
        (["--since", "2026-03-01T14:00"], [4, 3]),
        (["--since", "2026-03-01T13:00:00Z"], [4, 3]),
        (["--until", "2026-03-01T13:01"], [1]),
        (["--since", "2026-03-01", "--until", "2026-03-02"], [4, 3, 2, 1]),
        (["--since", "2h"], []),
    ],
    ids=str,
)
def test_list_chooses(
    run: Run, folder: Path, flags: list[str], ids: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("list", "--log", folder, "--json", *flags) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["log"] == str(folder)
    assert [event["id"] for event in found["events"]] == ids


def test_json_says_all_of_an_event(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "--log", folder, "1", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "id": 1,
        "time": "2026-03-01T13:00:00+01:00",
        "at": NOON,
        "position_s": 1.5,
        "session": "s1",
        "kind": "trigger",
        "outcome": "taken",
        "reason": None,
        "score": 0.75,
        "classes": [["Drawer open or close", 0.5], [HOSTILE, 0.25]],
        "frame": "frames/d/1.jpg",
        "caption": None,
        "lost_s": None,
        "frame_path": str(folder / "frames/d/1.jpg"),
    }


def test_show_says_where_the_frame_is_and_when_it_is_not(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("show", "--log", folder, "4") == 0
    out = capsys.readouterr().out
    assert f"{folder}/frames/d/2.jpg\n" in out
    assert "lost_s" not in out
    (folder / "frames/d/2.jpg").unlink()
    assert run("show", "--log", folder, "4") == 0
    assert f"{folder}/frames/d/2.jpg (missing)" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="no such event"):
        run("show", "--log", folder, "5")


def test_json_lines_and_frames_are_exported(
    run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "frames/d/2.jpg").unlink()
    target, album = tmp_path / "out" / "events.jsonl", tmp_path / "album"
    assert run("export", "--log", folder, "--frames", album, "-o", target) == 0
    assert "4 events, 1 frames copied" in capsys.readouterr().err
    found = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [event["id"] for event in found] == [1, 2, 3, 4]
    assert found[3]["caption"] == EVENTS[3].caption
    assert [path.name for path in target.parent.iterdir()] == ["events.jsonl"]
    copies = [path.relative_to(album).as_posix() for path in album.rglob("*.jpg")]
    assert copies == ["frames/d/1.jpg"]
    assert (album / "frames/d/1.jpg").read_bytes() == (folder / "frames/d/1.jpg").read_bytes()


def test_csv_is_read_back_and_runs_nothing_in_a_spreadsheet(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", "--log", folder, "--format", "csv", "--kind", "trigger") == 0
    out, err = capsys.readouterr()
    assert err == "3 events\n"
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["id"] for row in rows] == ["1", "3", "4"]
    assert rows[0]["classes"] == f"Drawer open or close 0.5000; {HOSTILE} 0.2500"
    assert rows[1]["reason"] == "cooldown"
    assert rows[2]["caption"] == '\'=HYPERLINK("x")'
    assert rows[2]["time"] == "2026-03-01T15:00:00+01:00"


def test_an_export_that_cannot_be_written_leaves_what_was_there(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileError, match="cannot be written"):
        run("export", "--log", folder, "-o", tmp_path / "file" / "events.jsonl")
    with pytest.raises(FileError, match="cannot be written"):
        run("export", "--log", folder, "--frames", tmp_path / "file", "-o", tmp_path / "out.jsonl")
    assert (tmp_path / "file").read_text() == "mine"
    assert not list(tmp_path.glob("*out.jsonl*"))


def test_a_frame_that_is_a_link_is_not_copied(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "frames/d/1.jpg").unlink()
    (folder / "frames/d/1.jpg").symlink_to(tmp_path / "secret")
    with pytest.raises(FileError, match="unsafe"):
        run("export", "--log", folder, "--frames", tmp_path / "album", "-o", tmp_path / "out.jsonl")
    assert not (tmp_path / "album").exists()


def test_prune_asks_and_then_removes(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("prune", "--log", folder)
    assert "--days N, --size SIZE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("prune", "--log", folder, "--days", "1")
    assert "give --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", _Terminal("n\n"))
    assert run("prune", "--log", folder, "--days", "1") == 1
    assert "nothing was removed" in capsys.readouterr().out
    assert run("prune", "--log", folder, "--size", "2MB", "--yes") == 0
    assert "removed: 0 events, 1 frames of 1.4 MB" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", _Terminal("y\n"))
    assert run("prune", "--log", folder, "--days", "1") == 0
    assert "removed: 4 events, 1 frames of 1.4 MB" in capsys.readouterr().out
    assert run("list", "--log", folder) == 0
    assert f"nothing has been logged yet in {folder}" in capsys.readouterr().out


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_stats_count_what_is_there(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("stats", "--log", folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == [
        {"kind": "trigger", "outcome": "merged", "count": 1},
        {"kind": "trigger", "outcome": "taken", "count": 2},
        {"kind": "gap", "outcome": None, "count": 1},
    ]
    assert (found["events"], found["frames"], found["frame_bytes"]) == (4, 2, 2_800_000)
    assert (found["first"], found["last"]) == ("2026-03-01T13:00:00+01:00", "2026-03-01T15:00:00+01:00")
    assert run("stats", "--log", folder) == 0
    out = capsys.readouterr().out
    assert "4, from 2026-03-01T13:00:00+01:00 to 2026-03-01T15:00:00+01:00" in out
    assert "2, 2.8 MB" in out


def test_an_empty_choice_and_an_empty_log_are_told_apart(
    run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("list", "--log", folder, "--kind", "heartbeat") == 0
    assert "no event is of that choice" in capsys.readouterr().out
    with EventLog.open(tmp_path / "new"):
        pass
    assert run("list", "--log", tmp_path / "new") == 0
    assert "nothing has been logged yet" in capsys.readouterr().out
    assert run("stats", "--log", tmp_path / "new") == 0
    assert "none yet" in capsys.readouterr().out


def test_no_verb_makes_a_log(run: Run, tmp_path: Path) -> None:
    for words in (["list"], ["show", 1], ["export"], ["stats"], ["prune", "--days", 1, "--yes"]):
        with pytest.raises(FileError, match="edgemem listen makes one"):
            run(*words, "--log", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_default_folder_is_read(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "state" / "edgemem").mkdir(parents=True)
    folder.rename(default_log_folder())
    assert run("list", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["events"]) == 4
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_log_folder() == tmp_path / ".local/state/edgemem/listen"


def test_a_damaged_log_is_one_clear_error(run: Run, folder: Path) -> None:
    with closing(sqlite3.connect(folder / DATABASE)) as connection, connection:
        connection.execute("UPDATE events SET frame = '../../secret.jpg' WHERE id = 1")
    with pytest.raises(FileError, match="damaged"):
        run("export", "--log", folder, "--frames", folder / "album")
    assert not (folder / "album").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["list", "--since", "yesterday"],
        ["list", "--since", "2026-13-01"],
        ["list", "--kind", "noise"],
        ["list", "-n", "0"],
        ["show", "x"],
        ["prune", "--size", "500"],
        ["prune", "--size", "0MB"],
        ["export", "--format", "xml"],
        [],
    ],
    ids=str,
)
def test_bad_words_are_usage_errors(run: Run, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", NOON - 90),
        ("2h", NOON - 7200),
        ("1w", NOON - 604_800),
        ("2026-03-01T12:00:00+00:00", NOON),
        ("2026-03-01T12:00:00Z", NOON),
        ("2026-03-01 13:00", NOON),
        ("2026-03-01", NOON - 13 * 3600),
        ("2026-07-01T14:00", datetime(2026, 7, 1, 12, tzinfo=timezone.utc).timestamp()),
    ],
)
def test_moments_are_read(text: str, seconds: float) -> None:
    assert moment_of(text, NOON) == seconds


@pytest.mark.parametrize("text", ["", "h", "-2h", "2.5h", "2 h", "1234567s", "2026-02-30", "0001-01-01", "٣h"])
def test_other_texts_are_no_moments(text: str) -> None:
    with pytest.raises(ValueError, match=r"isoformat|out of range"):
        moment_of(text, NOON)


def test_moments_are_shown_with_their_zone() -> None:
    assert local_text(NOON) == "2026-03-01T13:00:00+01:00"
    assert local_text(0.0) == "1970-01-01T01:00:00+01:00"
    assert moment_of(local_text(NOON), 0.0) == NOON
