"""`edgemem listen`: what it prints, logs and refuses, over short recordings."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pytest

from edgemem import tools
from edgemem.runtime.capture.event import Event
from edgemem.runtime.capture.event_log import EventLog
from edgemem.runtime.capture.reports import Hop, Statistics
from edgemem.runtime.capture.sources import portaudio
from edgemem.runtime.capture.sources.portaudio import MicrophoneInfo
from edgemem.runtime.capture.trigger import TriggerSettings
from edgemem.runtime.errors import DeviceError, FileError, SettingsError
from edgemem.tools import listen_view
from edgemem.tools.commands import listen
from edgemem.tools.event_export import event_facts
from edgemem.tools.listen_view import StatusLine, clock_text, event_text, status_text, summary_facts

DATA = Path(tools.__path__[0], "demo_data")
CUTLERY, IMAGES = DATA / "sounds" / "cutlery-1.flac", DATA / "images"
EAGER = ("--open", "0.02", "--close", "0.01", "--speed", "max")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs it, logging into tmp_path / "log" unless told otherwise."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run(*argv: object) -> int:
        parser = argparse.ArgumentParser("edgemem listen")
        parser.set_defaults(run=listen.run, usage_error=parser.error)
        listen.configure(parser)
        args = parser.parse_args([*map(str, argv)])
        return int(args.run(args))

    return run


def logged(folder: Path) -> list[Event]:
    with EventLog.open(folder, read_only=True) as log:
        return list(log.events())


# --- its help ---------------------------------------------------------------------------------------------------------


def test_the_help_tells_the_triggers_own_defaults() -> None:
    parser = argparse.ArgumentParser("edgemem listen")
    listen.configure(parser)
    helps = {action.dest: action.help or "" for action in parser._actions}
    for setting in fields(TriggerSettings):
        assert helps[setting.name].endswith(f"({setting.default:g})"), setting.name


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_recording_is_heard_against_a_folder_of_images(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command("--audio", CUTLERY, "--camera", IMAGES, "--log", tmp_path / "log", *EAGER) == 0
    out, err = capsys.readouterr()
    events = logged(tmp_path / "log")
    lines = out.splitlines()
    assert len(events) >= 3
    assert lines[: len(events)] == [event_text(event) for event in events]
    assert lines[-1].startswith("CPU")
    assert f"{len(events)} taken, 0 merged, 0 dropped, 0 failed" in out
    assert "of the 5 pictures of a camera that takes one every 1 s" in out
    assert f"go to {tmp_path / 'log'}, and nothing leaves this device" in err
    assert "STORED" not in err
    assert not (tmp_path / "log" / "audio").exists()


def test_json_is_one_object_for_each_event_and_the_sums_are_for_people(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command("--audio", CUTLERY, "--camera", "none", "--json", *EAGER, "--interval", 2, "--heartbeat", 0) == 0
    out, err = capsys.readouterr()
    events = logged(tmp_path / "state" / "edgemem" / "listen")
    assert [json.loads(line) for line in out.splitlines()] == [
        json.loads(json.dumps(event_facts(event))) for event in events
    ]
    assert {(event.outcome, event.reason) for event in events} == {("dropped", "no camera")}
    assert "pictures: 0 taken" in err
    assert "no camera" in err


def test_raw_sound_comes_on_standard_input(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import soundfile

    samples, _ = soundfile.read(CUTLERY, dtype="int16")
    (tmp_path / "raw").write_bytes(samples.tobytes())
    with (tmp_path / "raw").open("rb") as raw, _standard_input(raw.fileno()):
        assert command("--audio", "-", "--rate", 16000, "--camera", IMAGES, "--log", tmp_path / "log", *EAGER) == 0
    assert "audio     0:00:05" in capsys.readouterr().out
    assert len(logged(tmp_path / "log")) >= 3


def test_sound_is_stored_where_it_is_asked_for_and_that_is_said(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command("--audio", CUTLERY, "--camera", "none", "--log", tmp_path / "log", "--store-audio", *EAGER) == 0
    assert f"SOUND IS STORED: 5 s around each opening, in {tmp_path / 'log' / 'audio'}" in capsys.readouterr().err
    assert list((tmp_path / "log" / "audio").glob("*.wav"))


def test_an_interrupt_ends_it_with_the_sums(
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hear = StatusLine.hear

    def interrupted(status: StatusLine, hop: Hop) -> None:
        hear(status, hop)
        if hop.end_s > 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(StatusLine, "hear", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command("--audio", CUTLERY, "--camera", IMAGES, "--log", tmp_path / "log", *EAGER)
    assert "windows   4, 0 of them not to be believed" in capsys.readouterr().out
    EventLog.open(tmp_path / "log").close()  # its lock was given back


def test_a_log_that_refuses_is_said_once(
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(log: EventLog, event: Event) -> Event:
        raise FileError("the disk is full")

    monkeypatch.setattr(EventLog, "add", refuse)
    assert command("--audio", CUTLERY, "--camera", IMAGES, "--log", tmp_path / "log", *EAGER) == 0
    out, err = capsys.readouterr()
    assert err.count("the disk is full; listening goes on, in memory alone") == 1
    assert "not logged" in out


# --- instead of a run -------------------------------------------------------------------------------------------------


def test_pause_and_resume_are_a_file_in_the_logs_folder(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recording = ("--audio", CUTLERY, "--camera", IMAGES, "--log", tmp_path / "log", *EAGER)
    assert command("--pause", "--log", tmp_path / "log") == 0
    assert "paused" in capsys.readouterr().out
    assert (tmp_path / "log" / "PAUSED").exists()
    assert command(*recording) == 0
    assert "0:00:05 paused" in capsys.readouterr().out
    assert [event.reason for event in logged(tmp_path / "log")] == ["paused"]
    assert command("--resume", "--log", tmp_path / "log") == 0
    assert command(*recording) == 0
    assert len(logged(tmp_path / "log")) > 3


def test_list_shows_microphones_or_why_there_are_none(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (MicrophoneInfo(3, "USB audio", 2, 44100, True),)
    monkeypatch.setattr(portaudio, "list_microphones", lambda: found)
    assert command("--list") == 0
    assert "3  USB audio         2  44100 Hz  mic" in capsys.readouterr().out

    def missing() -> None:
        raise DeviceError("a microphone needs PortAudio", do="apt install libportaudio2")

    monkeypatch.setattr(portaudio, "list_microphones", missing)
    assert command("--list") == 1
    assert "apt install libportaudio2" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [("--audio", "-"), ("--speed", "fast"), ("--speed", "0"), ("--pause", "--list")])
def test_wrong_usage_ends_with_2(command: Callable[..., int], argv: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stop:
        command(*argv)
    assert stop.value.code == 2


def test_thresholds_out_of_order_and_missing_files_are_clear_errors(
    command: Callable[..., int], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="close_at"):
        command("--audio", CUTLERY, "--close", "0.9")
    with pytest.raises(FileError):
        command("--audio", tmp_path / "none.wav", "--camera", "none", "--speed", "max")
    with pytest.raises(FileError):
        command("--audio", CUTLERY, "--camera", "none", "--head", tmp_path / "none", "--speed", "max")


# --- what it shows ----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def _standard_input(descriptor: int) -> Iterator[None]:
    before = os.dup(0)
    os.dup2(descriptor, 0)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_the_line_shows_level_score_state_and_counts() -> None:
    statistics = Statistics(heard_s=100.0, taken=3)
    hop = Hop(100.0, -30.0, 0.9, 0.72, True)
    assert status_text(hop, statistics, 1.0, paused=False) == (
        "▕██████      ▏ -30 dB  hands 0.72 open      3 taken, 97 % saved  0:01:40"
    )
    assert "closed" in status_text(Hop(1.0, -90.0, 0.1, 0.1, False), statistics, 1.0, paused=False)
    assert "clipped" in status_text(Hop(1.0, 3.0, None, 0.1, False, "clipped"), statistics, 1.0, paused=False)
    assert status_text(hop, statistics, 1.0, paused=True).startswith("paused ")
    assert status_text(None, Statistics(), 1.0, paused=False).startswith("no sound yet")


def test_on_a_terminal_the_line_is_drawn_below_the_events_and_cleared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    out = Terminal()
    with StatusLine(Statistics(), 1.0, lambda: False, out=out) as status:
        status.hear(Hop(1.0, -30.0, 0.9, 0.72, True))
        status.write("an event")
    drawn = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert out.getvalue() == "an event\n"
    assert drawn.startswith("\r\x1b[K\r▕")
    assert drawn.endswith("\r\x1b[K")


def test_a_pause_is_told_once_when_it_begins_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listen_view, "_EVERY_S", 0.01)
    states, asked = iter([False, True, True, False]), threading.Event()

    def is_paused() -> bool:
        state = next(states, None)
        if state is None:
            asked.set()
        return bool(state)

    with StatusLine(Statistics(), 1.0, is_paused, live=False):
        assert asked.wait(10)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "[paused: nothing is heard or taken]\n[listening again]\n")


def test_events_are_lines_that_a_terminal_does_not_obey() -> None:
    seen = Event(0.0, 1.0, "s", "trigger", "taken", None, 0.5, (("Speech", 0.9),), "frames/1.jpg", "\x1b[31m\nred")
    line = event_text(seen)
    assert line.isprintable()
    assert line.endswith("speech;  [31m red; frames/1.jpg")
    assert "trigger failed" in event_text(Event(0.0, 1.0, "s", "trigger", "failed", "no picture in 2 s", 0.5))
    assert event_text(Event(0.0, 1.0, "s", "gap", reason="overflow", lost_s=1.25)).endswith("1.25 s; overflow")


def test_the_sums_say_what_was_saved() -> None:
    statistics = Statistics(3000.0, 60.0, 540.0, 36.0, 6000, 7, 45, 1, 2, 3, 4, 5)
    facts = dict(summary_facts(statistics, 2.0))
    assert facts["audio"] == "1:00:00; 60.0 s lost in gaps; 0:09:00 paused"
    assert facts["windows"] == "6000, 7 of them not to be believed"
    assert facts["pictures"] == "45 taken, 1 merged, 2 dropped, 3 failed"
    assert str(facts["saved"]).startswith("98 % of the 1800 pictures")  # 1 - 45 / 1800 = 0.975
    assert str(facts["CPU"]).startswith("1.00 % of one core")
    assert facts["not logged"] == "4 events"
    assert clock_text(3725.4) == "1:02:05"


# --- a reader that went away ------------------------------------------------------------------------------------------


def test_listening_ends_where_nobody_reads_what_it_writes(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def closed(_: StatusLine, __: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(StatusLine, "write", closed)
    argv = ("--audio", CUTLERY, "--camera", IMAGES, "--log", tmp_path / "log", "--json", *EAGER)
    with pytest.raises(BrokenPipeError):
        command(*argv)
    assert 1 <= len(logged(tmp_path / "log")) < 3  # it would be 3 had it gone on


def test_pre_roll_is_refused_where_sound_is_not_played_as_fast_as_it_was(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        command("--audio", CUTLERY, "--camera", IMAGES, "--log", tmp_path / "log", "--pre-roll", "2", *EAGER)
    assert "--pre-roll needs --speed 1" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "value"), [("--rate", "8000"), ("--channels", "2"), ("--encoding", "f32")])
def test_what_raw_sound_is_like_is_refused_of_other_sources(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: str, value: str
) -> None:
    with pytest.raises(SystemExit):
        command("--audio", CUTLERY, "--camera", IMAGES, "--log", tmp_path / "log", flag, value, *EAGER)
    assert f"{flag} is for --audio -" in capsys.readouterr().err
