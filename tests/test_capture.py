"""Capture: real ear, trigger, shutter, camera and log over short sounds; only microphones and faults are scripted."""

from __future__ import annotations

import asyncio
import os
import threading
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemem import tools
from edgemem.runtime.capture.audio import RATE_HZ, Block, Gap, Lost, Piece, Samples
from edgemem.runtime.capture.audio_clips import AudioClips
from edgemem.runtime.capture.cameras.callable import CallableCamera
from edgemem.runtime.capture.capture import Capture
from edgemem.runtime.capture.event import Event
from edgemem.runtime.capture.event_log import EventLog
from edgemem.runtime.capture.head import Head
from edgemem.runtime.capture.jpeg import FrameWriter
from edgemem.runtime.capture.pause import CoveredCamera, PauseSwitch
from edgemem.runtime.capture.pending_takes import ShutterSettings
from edgemem.runtime.capture.picture import Picture
from edgemem.runtime.capture.reports import Captured, Hop
from edgemem.runtime.capture.settings import CaptureSettings
from edgemem.runtime.capture.sources.sound_file import SoundFile
from edgemem.runtime.capture.trigger import TriggerSettings
from edgemem.runtime.capture.yamnet import Ear
from edgemem.runtime.errors import DeviceError, EdgememError, FileError, SettingsError

SOUNDS = Path(tools.__path__[0], "demo_data", "sounds")
IMAGES = SOUNDS.parent / "images"
TRIGGER = TriggerSettings(smoothing_s=0.0, hold_s=0.96, heartbeat_s=0.0)
BEGAN = 1_700_000_000.0


def sound(name: str) -> Samples:
    return np.concatenate([block.samples for block in SoundFile(SOUNDS / f"{name}.flac", speed=None).pieces()])


FAN, HANDS = sound("stove-fan"), sound("cutlery-1")


class Script:
    """A microphone that gives what it is told, in blocks of a tenth of a second, and calls what it is told to."""

    name = "a scripted microphone"

    def __init__(self, *parts: Samples | Gap | Lost | Callable[[], object]) -> None:
        self._parts, self._closed = parts, threading.Event()

    def pieces(self) -> Iterator[Piece]:
        at = 0
        for part in self._parts:
            if callable(part):
                part()
            elif isinstance(part, (Gap, Lost)):
                yield replace(part, start=at)
                at += part.samples if isinstance(part, Gap) else 0
            else:
                for start in range(0, len(part), 1600):
                    if self._closed.is_set():
                        return
                    block = part[start : start + 1600]
                    yield Block(block, at)
                    at += len(block)

    def close(self) -> None:
        self._closed.set()


def gap(seconds: float) -> Gap:
    return Gap(0, round(seconds * RATE_HZ), "overflow")


@pytest.fixture(scope="module")
def ear() -> Ear:
    return Ear.open()


@pytest.fixture(scope="module")
def head(ear: Ear) -> Head:
    """Tells this cutlery from this fan: along the line from one mean to the other."""

    def mean(samples: Samples) -> Any:
        starts = range(0, len(samples) - 15_600, 1600)
        return np.mean([ear.hear(samples[start : start + 15_600]).embedding for start in starts], axis=0)

    fan, hands = mean(FAN), mean(HANDS)
    line = hands - fan
    weights = 8.0 * line / float(line @ line)
    return Head(weights.astype(np.float32), -float(weights @ (0.5 * (fan + hands))))


class _Ear:
    """The shared ear, which a capture's close leaves open."""

    def __init__(self, ear: Ear) -> None:
        self.hear, self.class_names = ear.hear, ear.class_names

    def close(self) -> None:
        pass


@pytest.fixture
def made(ear: Ear, head: Head, tmp_path: Path) -> Iterator[Callable[..., Capture]]:
    captures: list[Capture] = []

    def make(*parts: Any, settings: CaptureSettings | None = None, **rest: Any) -> Capture:
        rest.setdefault("camera", CallableCamera(picture))
        rest.setdefault("when", lambda position_s: BEGAN + position_s)
        rest.setdefault("waits", True)
        if "log" not in rest:
            rest["log"] = EventLog.open(tmp_path / "log")
        shared: Any = _Ear(ear)
        captures.append(Capture(Script(*parts), shared, head, settings or CaptureSettings(TRIGGER), **rest))
        return captures[-1]

    yield make
    for capture in captures:
        capture.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("edgemem-")]


def picture(at_s: float) -> Any:
    return np.full((24, 32, 3), int(at_s * 10) % 256, dtype=np.uint8)


def told(capture: Capture) -> tuple[list[Captured], list[Event], list[Hop]]:
    """Runs it."""
    captures: list[Captured] = []
    events: list[Event] = []
    hops: list[Hop] = []
    capture.on_capture(captures.append)
    capture.on_event(events.append)
    capture.on_hop(hops.append)
    capture.run()
    return captures, events, hops


def logged(folder: Path) -> list[Event]:
    with EventLog.open(folder, read_only=True) as log:
        return list(log.events())


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_pictures_are_taken_while_hands_are_at_work_and_logged_once(
    made: Callable[..., Capture], tmp_path: Path
) -> None:
    capture = made(FAN, HANDS, FAN, FAN)
    captures, events, hops = told(capture)
    first, last = captures[0].event.position_s, captures[-1].event.position_s
    assert 5.0 < first < 7.0
    assert 8.0 < last < 12.0
    assert 3 <= len(captures) <= 6
    assert events == logged(tmp_path / "log")
    assert [event.outcome for event in events] == ["taken"] * len(captures)
    assert [replace(event, id=0) for event in events] == [each.event for each in captures]
    for each, event in zip(captures, events, strict=True):
        assert event.at == BEGAN + event.position_s
        assert each.picture.at_s == event.position_s
        assert event.frame is not None
        assert (tmp_path / "log" / event.frame).read_bytes()[:2] == b"\xff\xd8"
    assert all(name in capture._listener._ear.class_names for event in events for name, _ in event.classes)
    statistics = capture.statistics
    assert (statistics.taken, statistics.hops, statistics.flawed) == (len(captures), len(hops), 0)
    assert statistics.elapsed_s == pytest.approx(20.0, abs=0.01)
    assert statistics.saved(1.0) == pytest.approx(1 - len(captures) / statistics.elapsed_s)
    assert [hop.is_open for hop in hops if 6.5 < hop.end_s < 9.5].count(False) == 0
    assert not any(hop.is_open for hop in hops if hop.end_s < 5 or hop.end_s > 13)
    assert not (tmp_path / "log" / "audio").exists()


def test_opened_by_names_it_plays_a_file_against_a_folder(tmp_path: Path, head: Head) -> None:
    from safetensors.numpy import save_file

    weights = {"weights": head.weights, "bias": np.array([head.bias], np.float32)}
    save_file(weights, tmp_path / "own.safetensors", metadata={"format": "edgemem-hands-1"})
    options: dict[str, Any] = {"speed": None, "head": tmp_path / "own.safetensors", "now": lambda: BEGAN}
    files = str(SOUNDS / "cutlery-1.flac"), str(IMAGES), tmp_path / "log"
    with Capture.open(*files, CaptureSettings(TRIGGER), **options) as capture:
        captures, _, _ = told(capture)
    assert len(captures) >= 3
    assert captures[0].picture.pixels.shape[2] == 3
    assert all(each.event.at == BEGAN + each.event.position_s for each in captures)


def test_what_cannot_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(FileError):
        Capture.open(str(SOUNDS / "dog.flac"), str(tmp_path / "none"), tmp_path / "log", speed=None)
    with pytest.raises(FileError):
        Capture.open(str(SOUNDS / "dog.flac"), None, tmp_path / "log", speed=None, head=tmp_path / "none")
    EventLog.open(tmp_path / "log").close()  # its lock was given back


def test_without_a_camera_triggers_are_dropped_and_there_is_no_heartbeat(made: Callable[..., Capture]) -> None:
    capture = made(FAN, HANDS, camera=None, settings=CaptureSettings(replace(TRIGGER, heartbeat_s=1.0)))
    captures, events, _ = told(capture)
    assert captures == []
    assert {(event.kind, event.outcome, event.reason) for event in events} == {("trigger", "dropped", "no camera")}


def test_a_heartbeat_is_taken_where_nothing_happens(made: Callable[..., Capture]) -> None:
    _, events, _ = told(made(FAN, FAN, settings=CaptureSettings(replace(TRIGGER, heartbeat_s=4.0))))
    assert [(event.kind, event.outcome) for event in events] == [("heartbeat", "taken")] * 2


def test_an_opening_looks_back_where_the_camera_keeps_a_ring(made: Callable[..., Capture]) -> None:
    settings = CaptureSettings(replace(TRIGGER, pre_roll_s=1.0))
    capture = made(FAN, lambda: threading.Event().wait(1.1), HANDS, settings=settings)  # the ring fills twice a second
    captures, events, hops = told(capture)
    opened_at = next(hop.end_s for hop in hops if hop.is_open)
    assert events[0].position_s == pytest.approx(opened_at - 1.0, abs=1e-3)
    assert captures[0].picture.at_s <= opened_at


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_what_a_callback_raises_is_the_events_reason(made: Callable[..., Capture], tmp_path: Path) -> None:
    def raises(captured: Captured) -> None:
        raise ValueError("no\nsuch thing")

    capture = made(FAN, HANDS)
    capture.on_capture(raises)
    capture.on_hop(lambda hop: 1 / 0)
    captures, events, _ = told(capture)
    assert len(captures) == len(events) >= 3
    assert {event.reason for event in logged(tmp_path / "log")} == {"a callback failed: ValueError: no"}
    assert capture.statistics.callback_failures == capture.statistics.hops + len(events)


@pytest.mark.parametrize(
    ("caption", "said", "reason"),
    [
        (lambda shown: f"{shown.pixels.shape[1]} wide", "32 wide", None),
        (lambda shown: 7, None, "no caption: int"),
        (lambda shown: {}["x"], None, "no caption: KeyError: 'x'"),
    ],
)
def test_a_caption_is_logged_or_why_there_is_none(
    made: Callable[..., Capture], caption: Any, said: str | None, reason: str | None
) -> None:
    captures, events, _ = told(made(FAN, HANDS, caption=caption))
    assert {(event.caption, event.reason) for event in events} == {(said, reason)}
    assert captures[0].event.caption == said


def test_a_camera_that_fails_and_comes_back_is_told_once_each(made: Callable[..., Capture]) -> None:
    taken: list[float] = []

    def unplugged(at_s: float) -> Any:
        taken.append(at_s)
        if len(taken) <= 1:
            raise DeviceError("the camera is gone")
        return picture(at_s)

    # The camera is tried again half a second later by the clock, so the script waits.
    rest = threading.Event().wait
    parts = [part for start in range(0, 64_000, 16_000) for part in (HANDS[start : start + 16_000], lambda: rest(0.3))]
    _, events, _ = told(made(FAN, *parts, camera=CallableCamera(unplugged)))
    kinds = [(event.kind, event.outcome) for event in events]
    assert kinds.count(("lost", None)) == kinds.count(("back", None)) == 1
    assert kinds.count(("trigger", "failed")) == 1
    assert kinds[-1] == ("trigger", "taken")
    assert next(event for event in events if event.kind == "lost").reason == "camera: the camera is gone"


def test_a_slow_camera_ends_every_trigger_all_the_same(made: Callable[..., Capture]) -> None:
    free = threading.Event()

    def slow(at_s: float) -> Any:
        free.wait(5)
        return picture(at_s)

    settings = CaptureSettings(replace(TRIGGER, hold_s=30.0), ShutterSettings(queue=1, deadline_s=0.1))
    capture = made(HANDS, HANDS, free.set, settings=settings, camera=CallableCamera(slow), waits=False)
    _, events, _ = told(capture)
    statistics = capture.statistics
    ended = statistics.taken + statistics.merged + statistics.dropped + statistics.failed
    assert ended == len([event for event in events if event.kind == "trigger"]) >= 4
    assert statistics.dropped > 0
    assert all(event.reason for event in events if event.outcome in ("dropped", "failed"))


def test_a_full_disk_does_not_end_it(
    made: Callable[..., Capture], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full = [False]
    add, write = EventLog.add, FrameWriter.write

    def refuse(real: Any) -> Any:
        def refusing(*what: Any) -> Any:
            if full[0]:
                raise FileError("the disk is full")
            return real(*what)

        return refusing

    monkeypatch.setattr(EventLog, "add", refuse(add))
    monkeypatch.setattr(FrameWriter, "write", refuse(write))
    problems: list[FileError | None] = []

    def fill(is_full: bool) -> Callable[[], object]:
        return lambda: full.__setitem__(0, is_full)

    capture = made(FAN, HANDS, fill(True), FAN, HANDS, fill(False), FAN, HANDS)
    capture.on_event(lambda event: problems.append(capture.log_problem))
    captures, events, _ = told(capture)
    unlogged = [event for event in events if not event.id]
    assert len(captures) == len(events)
    assert capture.statistics.unlogged == len(unlogged) >= 3
    assert {event.reason for event in unlogged} == {"the picture could not be stored"}
    assert [problem is not None for problem in problems] == [not event.id for event in events]
    assert capture.log_problem is None
    assert logged(tmp_path / "log") == [event for event in events if event.id]


def test_a_frame_alone_that_cannot_be_written_is_said_of_its_event(
    made: Callable[..., Capture], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(self: FrameWriter, shown: Picture) -> Any:
        raise FileError("the disk is full")

    monkeypatch.setattr(FrameWriter, "write", refuse)
    capture = made(FAN, HANDS)
    captures, events, _ = told(capture)
    assert len(captures) == len(events)
    assert {(event.frame, event.reason) for event in logged(tmp_path / "log")} == {
        (None, "the picture could not be stored")
    }
    assert str(capture.log_problem) == "the disk is full"


def test_without_a_log_pictures_stay_in_memory(made: Callable[..., Capture], tmp_path: Path) -> None:
    captures, events, _ = told(made(FAN, HANDS, log=None))
    assert len(captures) == len(events) >= 3
    assert {(event.id, event.frame, event.reason) for event in events} == {(0, None, None)}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "samples",
    [
        np.full(48_000, np.nan, np.float32),
        np.full(48_000, np.inf, np.float32),
        np.sign(np.sin(np.arange(48_000, dtype=np.float32))),
        np.zeros(48_000, np.float32),
        np.full(48_000, 1e30, np.float32),
    ],
    ids=["NaN", "infinite", "clipped", "silent", "huge"],
)
def test_sound_that_is_not_to_be_believed_takes_no_picture(made: Callable[..., Capture], samples: Samples) -> None:
    capture = made(samples)
    captures, events, hops = told(capture)
    assert (captures, events) == ([], [])
    assert capture.statistics.flawed == len(hops) >= 5
    assert all(hop.flaw and hop.score is None for hop in hops)


# --- gaps, losses and pauses ------------------------------------------------------------------------------------------


def test_gaps_and_a_lost_microphone_are_logged_once_and_add_up(made: Callable[..., Capture]) -> None:
    capture = made(FAN, gap(0.05), FAN, Lost(0, "unplugged"), gap(3.0), FAN, gap(1.0), FAN)
    _, events, _ = told(capture)
    assert [(event.kind, event.lost_s) for event in events] == [
        ("gap", 0.05),
        ("lost", None),
        ("back", 3.0),
        ("gap", 1.0),
    ]
    assert events[1].reason == "a scripted microphone: unplugged"
    assert events[2].position_s - events[1].position_s == pytest.approx(3.0)
    statistics = capture.statistics
    assert statistics.gaps_s == pytest.approx(4.05)
    assert statistics.elapsed_s == pytest.approx(4 * len(FAN) / RATE_HZ + 4.05)


def test_nothing_of_before_a_loss_takes_a_picture_after_it(made: Callable[..., Capture]) -> None:
    capture = made(HANDS, Lost(0, "unplugged"), gap(60.0), FAN)
    captures, _, hops = told(capture)
    assert all(each.event.position_s < 6 for each in captures)
    assert not any(hop.is_open for hop in hops if hop.end_s > 60)


def test_while_it_is_paused_nothing_is_heard_or_taken(made: Callable[..., Capture], tmp_path: Path) -> None:
    switch = PauseSwitch(tmp_path / "log")  # another process's
    capture = made(FAN, switch.turn_on, HANDS, gap(0.5), HANDS, switch.turn_off, FAN, HANDS)
    captures, events, hops = told(capture)
    resumed_s = (len(FAN) + 2 * len(HANDS)) / RATE_HZ + 0.5
    assert all(each.event.position_s > resumed_s + 5 for each in captures)
    assert captures
    assert not [hop for hop in hops if len(FAN) / RATE_HZ < hop.end_s < resumed_s + 0.9]
    pauses = [event for event in events if event.reason == "paused"]
    assert [(event.kind, event.lost_s) for event in pauses] == [("gap", pytest.approx(2 * len(HANDS) / RATE_HZ + 0.5))]
    statistics = capture.statistics
    assert statistics.paused_s == pytest.approx(2 * len(HANDS) / RATE_HZ)
    assert statistics.gaps_s == pytest.approx(0.5)
    assert statistics.elapsed_s == pytest.approx((2 * len(FAN) + 3 * len(HANDS)) / RATE_HZ + 0.5)


def test_a_pause_outlasts_the_process_and_is_logged_at_its_end(made: Callable[..., Capture], tmp_path: Path) -> None:
    PauseSwitch(tmp_path / "log").turn_on()
    captures, events, hops = told(made(HANDS))
    assert (captures, hops) == ([], [])
    assert [(event.kind, event.reason) for event in events] == [("gap", "paused")]


def test_a_pause_covers_the_camera_too() -> None:
    slept: list[bool] = []
    camera = CallableCamera(picture)
    camera.sleep = lambda: slept.append(True)  # type: ignore[method-assign]
    switch = PauseSwitch()
    covered = CoveredCamera(camera, switch)
    assert covered.take(1.0).at_s == 1.0
    switch.turn_on()
    with pytest.raises(EdgememError, match="paused"):
        covered.take(2.0)
    assert slept == [True]
    switch.turn_off()
    assert covered.take(3.0).at_s == 3.0


def test_a_pause_that_cannot_be_told_or_kept_is_on(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    switch = PauseSwitch(blocked)
    with pytest.raises(FileError, match="cannot be kept"):
        switch.turn_on()
    assert switch.is_on
    assert PauseSwitch(blocked).is_on


# --- recordings -------------------------------------------------------------------------------------------------------


def test_sound_is_stored_around_openings_where_it_is_asked_for(made: Callable[..., Capture], tmp_path: Path) -> None:
    told(made(FAN, HANDS, FAN, FAN, settings=CaptureSettings(TRIGGER, store_audio=True)))
    (clip,) = (tmp_path / "log" / "audio").iterdir()
    assert clip.stat().st_mode & 0o077 == 0
    with wave.open(str(clip)) as stored:
        assert (stored.getnchannels(), stored.getsampwidth(), stored.getframerate()) == (1, 2, RATE_HZ)
        frames = np.frombuffer(stored.readframes(stored.getnframes()), "<i2") / 32767
    assert 4.9 * RATE_HZ < len(frames) < 5.3 * RATE_HZ
    whole = np.concatenate([FAN, HANDS, FAN])
    apart = [np.abs(whole[at : at + 800] - frames[:800]).sum() for at in range(0, len(whole) - 800, 1600)]
    start = 1600 * int(np.argmin(apart))
    np.testing.assert_allclose(whole[start : start + len(frames)], frames, atol=1e-4)


def test_recordings_stay_below_their_cap(tmp_path: Path) -> None:
    clock = iter(range(100))
    clips = AudioClips(tmp_path, 200_000, now=lambda: float(next(clock)))
    for number in range(6):
        clips.hear(Block(np.full(32_000, 0.1, np.float32), number * 32_000))
        clips.want((number + 1) * 32_000)
        clips.finish()
    names = sorted(path.name for path in (tmp_path / "audio").iterdir())
    assert sum(path.stat().st_size for path in (tmp_path / "audio").iterdir()) <= 200_000
    assert names[-1].startswith("1970-01-01T000005")


def test_recordings_go_when_they_are_too_old_and_end_where_sound_is_missing(tmp_path: Path) -> None:
    clips = AudioClips(tmp_path, 1 << 30, days=1)
    old = tmp_path / "audio" / "1999-01-01T000000-1.wav"
    old.parent.mkdir()
    old.write_bytes(b"RIFF")
    os.utime(old, (0, 0))
    clips.hear(Block(np.full(32_000, 0.1, np.float32), 0))
    clips.want(32_000)
    first = clips.interrupt()
    assert first is not None
    assert first.stat().st_size == 44 + 2 * 32_000
    assert not old.exists()
    clips.hear(Block(np.full(16_000, 0.2, np.float32), 900_000))
    clips.want(916_000)
    second = clips.finish()
    assert second is not None
    assert second.stat().st_size == 44 + 2 * 16_000  # nothing of before the gap
    assert clips.interrupt() is None


def test_openings_without_end_give_recordings_of_about_a_minute(tmp_path: Path) -> None:
    clips, written = AudioClips(tmp_path, 1 << 30), []
    for second in range(150):
        written.append(clips.hear(Block(np.zeros(RATE_HZ, np.float32), second * RATE_HZ)))
        clips.want((second + 1) * RATE_HZ)
    lengths = [(path.stat().st_size - 44) / 2 / RATE_HZ for path in written if path is not None]
    assert len(lengths) == 2
    assert all(60 <= seconds <= 66 for seconds in lengths)


def test_a_recording_that_cannot_be_written_is_said_and_does_not_end_it(
    made: Callable[..., Capture], tmp_path: Path
) -> None:
    capture = made(FAN, HANDS, FAN, FAN, settings=CaptureSettings(TRIGGER, store_audio=True))
    (tmp_path / "log" / "audio").write_text("in the way")
    captures, _, _ = told(capture)
    assert captures
    assert "a recording cannot be written" in str(capture.log_problem)


# --- its life ---------------------------------------------------------------------------------------------------------


def test_captures_come_one_by_one(made: Callable[..., Capture], tmp_path: Path) -> None:
    async def collect() -> list[Captured]:
        return [captured async for captured in made(FAN, HANDS, FAN, FAN).captures()]

    captures = asyncio.run(collect())
    assert [captured.event for captured in captures] == logged(tmp_path / "log")
    assert all(captured.event.id and not captured.missed for captured in captures)


def test_captures_that_nobody_waited_for_are_counted(made: Callable[..., Capture]) -> None:
    ended = threading.Event()
    capture = made(FAN, HANDS, FAN, HANDS, FAN, FAN, ended.set)

    async def collect() -> list[Captured]:
        captures = []
        async for captured in capture.captures(waiting=2):
            if not captures:
                await asyncio.to_thread(ended.wait, 20)
                await asyncio.sleep(0.1)
            captures.append(captured)
        return captures

    captures = asyncio.run(collect())
    assert len(captures) == 3 - (captures[-1].missed > 0 and len(captures) == 2)
    assert len(captures) + sum(captured.missed for captured in captures) == capture.statistics.taken


def test_leaving_the_loop_stops_it_and_an_error_of_the_source_is_raised(made: Callable[..., Capture]) -> None:
    stopping = made(FAN, HANDS, *[FAN] * 40)

    async def leave() -> None:
        async for _ in stopping.captures():
            break

    asyncio.run(leave())
    assert stopping.statistics.elapsed_s < 200

    def fail() -> None:
        raise DeviceError("the microphone is gone for good")

    async def collect(capture: Capture) -> None:
        async for _ in capture.captures():
            pass

    stopping.close()
    with pytest.raises(DeviceError, match="gone for good"):
        asyncio.run(collect(made(FAN, fail, log=None)))


def test_it_stops_from_another_thread_and_runs_once(made: Callable[..., Capture]) -> None:
    capture = made(*[FAN] * 100)
    capture.on_hop(lambda hop: capture.stop())
    capture.run()
    assert capture.statistics.hops == 1
    with pytest.raises(SettingsError, match="runs once"):
        capture.run()


def test_closing_before_it_ran_closes_the_camera(made: Callable[..., Capture]) -> None:
    closed: list[bool] = []
    camera = CallableCamera(picture)
    camera.close = lambda: closed.append(True)  # type: ignore[method-assign]
    made(FAN, camera=camera).close()
    assert closed == [True]


@pytest.mark.parametrize(
    ("name", "value"), [("store_audio", 1), ("audio_cap_bytes", 5), ("audio_cap_bytes", True), ("audio_cap_bytes", 1e9)]
)
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=name):
        CaptureSettings(**{name: value})  # type: ignore[arg-type]
