"""The shutter: every take ends exactly once, whatever the camera, the disk and the listeners do."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from leftovers import threads

from edgemem.runtime.capture.backoff import Backoff
from edgemem.runtime.capture.cameras.callable import CallableCamera
from edgemem.runtime.capture.jpeg import Frame, FrameWriter
from edgemem.runtime.capture.pending_takes import CameraChange, Ended, Job, PendingTakes, ShutterSettings
from edgemem.runtime.capture.picture import Picture
from edgemem.runtime.capture.shutter import Shutter
from edgemem.runtime.capture.trigger import Take
from edgemem.runtime.errors import DeviceError, FileError, SettingsError

LOST = DeviceError("the camera gives no picture", got="nothing")
FRAME = Frame("frames/a.jpg", 10)
SOON_S = 10.0  # what should happen at once is waited for so long


def take_at(at_s: float) -> Take:
    return Take(at_s, "interval", 0.9)


def picture_at(at_s: float) -> Picture:
    return Picture(np.zeros((4, 4, 3), np.uint8), at_s)


# The rules


class Desk:
    """Pending takes, with what was told of them."""

    def __init__(self, **settings: Any) -> None:
        self.pending = PendingTakes(ShutterSettings(**settings))

    def ask(self, *times: float, now_s: float) -> None:
        for at_s in times:
            self.pending.ask(take_at(at_s), now_s)

    def job(self, now_s: float) -> Job:
        job = self.pending.next_job(now_s)
        assert job is not None
        return job

    def serve(self, now_s: float) -> None:
        job = self.job(now_s)
        assert self.pending.came(job, now_s)
        self.pending.wrote(job, picture_at(job.take.at_s), FRAME)

    def told(self) -> list[tuple[Any, ...]]:
        """And forgotten: (at, outcome, reason) or (kind, reason)."""
        reports, self.pending.reports = list(self.pending.reports), type(self.pending.reports)()
        return [
            (each.take.at_s, each.outcome, each.reason) if isinstance(each, Ended) else (each.kind, each.reason)
            for each in reports
        ]


def test_a_take_that_is_served_is_taken() -> None:
    desk = Desk()
    desk.ask(1, now_s=0)
    assert desk.pending.open_takes == 1
    desk.serve(0.5)
    ended = desk.pending.reports[0]
    assert isinstance(ended, Ended)
    assert (ended.frame, ended.picture is not None) == (FRAME, True)
    assert desk.told() == [(1, "taken", None)]
    assert desk.pending.open_takes == 0
    assert desk.pending.next_job(0.5) is None


def test_takes_beyond_the_queue_are_dropped() -> None:
    desk = Desk(queue=2)
    desk.ask(1, 2, 3, 4, now_s=0)
    assert desk.told() == [(3, "dropped", "queue full"), (4, "dropped", "queue full")]
    assert desk.pending.open_takes == 2


def test_a_take_near_the_last_picture_is_merged_with_it() -> None:
    desk = Desk(merge_s=0.25)
    desk.ask(1.0, 1.2, 1.25, now_s=0)
    desk.serve(0)
    desk.serve(0)
    assert desk.told() == [
        (1.0, "taken", None),
        (1.2, "merged", "the picture of 1.00 s serves it"),
        (1.25, "taken", None),
    ]
    never = Desk(merge_s=0)
    never.ask(1.0, 1.0, now_s=0)
    never.serve(0)
    never.serve(0)
    assert [outcome for _, outcome, _ in never.told()] == ["taken", "taken"]


def test_a_take_that_waited_too_long_is_dropped() -> None:
    desk = Desk(deadline_s=2)
    desk.ask(1, now_s=0)
    desk.ask(2, now_s=1)
    desk.pending.expire(1.9)
    assert desk.told() == []
    assert desk.pending.expires_at() == 2
    desk.pending.expire(2)
    assert desk.told() == [(1, "dropped", "too late")]
    assert desk.pending.next_job(3) is None
    assert desk.told() == [(2, "dropped", "too late")]


def test_a_camera_that_hangs_fails_its_take_and_is_busy_until_it_returns() -> None:
    desk = Desk(deadline_s=2)
    desk.ask(1, 2, now_s=0)
    job = desk.job(0)
    assert desk.pending.expires_at() == 2
    desk.pending.expire(2)
    desk.ask(3, now_s=2.5)
    assert desk.told() == [
        (1, "failed", "no picture in 2 s"),
        (2, "dropped", "camera busy"),
        (3, "dropped", "camera busy"),
    ]
    assert desk.pending.expires_at() == float("inf")
    assert not desk.pending.came(job, 9)  # late: thrown away
    desk.ask(4, now_s=9)
    desk.serve(9)
    assert desk.told() == [(4, "taken", None)]


def test_a_picture_that_comes_late_before_anyone_looked_is_thrown_away_too() -> None:
    desk = Desk(deadline_s=2)
    desk.ask(1, now_s=0)
    desk.ask(2, now_s=1)
    assert not desk.pending.came(desk.job(0), 2)
    assert desk.told() == [(1, "failed", "no picture in 2 s")]
    desk.serve(2)
    assert desk.told() == [(2, "taken", None)]


def test_writing_is_not_subject_to_the_deadline() -> None:
    desk = Desk(deadline_s=2)
    desk.ask(1, now_s=0)
    job = desk.job(0)
    assert desk.pending.came(job, 1)
    desk.pending.expire(100)
    desk.pending.wrote(job, picture_at(1), FRAME)
    assert desk.told() == [(1, "taken", None)]


def test_a_picture_that_cannot_be_written_fails_and_serves_no_other() -> None:
    desk = Desk()
    desk.ask(1, 1.1, now_s=0)
    job = desk.job(0)
    assert desk.pending.came(job, 0)
    desk.pending.failed(job, FileError("a picture cannot be written", got="a full disk"), 0)
    desk.serve(0)
    assert desk.told() == [(1, "failed", "a picture cannot be written: a full disk"), (1.1, "taken", None)]


def test_a_lost_camera_is_left_alone_longer_and_longer_and_told_once() -> None:
    desk, tries, told = Desk(), [], []
    for half in range(250):
        now_s = half / 2
        desk.ask(now_s, now_s=now_s)
        if job := desk.pending.next_job(now_s):
            tries.append(now_s)
            desk.pending.failed(job, LOST, now_s)
        told += desk.told()
    assert tries == [0, 0.5, *np.arange(1.5, 125, 2)]
    reason = "the camera gives no picture: nothing"
    assert told[:2] == [("lost", reason), (0.0, "failed", reason)]
    assert Counter(each[1] for each in told[2:]) == {"failed": len(tries) - 1, "dropped": 250 - len(tries)}
    assert {each[2] for each in told if each[1] == "dropped"} == {"camera lost"}

    desk.ask(200, now_s=200)
    desk.serve(200)
    desk.ask(201, 202, now_s=201)
    desk.pending.failed(desk.job(201), LOST, 201)
    assert desk.pending.next_job(201) is None
    desk.ask(203, now_s=201.5)  # half a second again
    desk.serve(201.5)
    assert desk.told() == [
        ("back", None),
        (200, "taken", None),
        ("lost", reason),
        (201, "failed", reason),
        (202, "dropped", "camera lost"),
        ("back", None),
        (203, "taken", None),
    ]


def test_a_bad_file_fails_one_take_and_loses_no_camera() -> None:
    desk = Desk()
    desk.ask(1, 2, 3, now_s=0)
    desk.pending.failed(desk.job(0), FileError("this is no image"), 0)
    desk.pending.failed(desk.job(0), ValueError("odd\nthing"), 0)
    desk.serve(0)
    assert desk.told() == [
        (1, "failed", "this is no image"),
        (2, "failed", r"ValueError: 'odd\nthing'"),
        (3, "taken", None),
    ]


def test_while_outcomes_wait_to_be_told_no_picture_is_taken() -> None:
    desk = Desk(queue=2)
    desk.ask(1, 2, 3, 4, now_s=0)
    assert desk.pending.next_job(0) is None  # two drops wait
    desk.told()
    desk.serve(0)


def test_closing_ends_what_is_pending() -> None:
    desk = Desk()
    desk.ask(1, 2, now_s=0)
    job = desk.job(0)
    desk.pending.close()
    desk.ask(3, now_s=0)
    assert desk.told() == [(2, "dropped", "closing"), (3, "dropped", "closing")]
    desk.pending.abandon()
    assert desk.told() == [(1, "failed", "closing")]
    assert not desk.pending.came(job, 1)
    desk.pending.abandon()
    assert desk.told() == []
    assert desk.pending.open_takes == 0


ACTIONS = st.sampled_from(["ask", "begin", "come", "write", "lose", "spoil", "expire", "tell"])


@given(st.lists(st.tuples(ACTIONS, st.integers(0, 8)), max_size=200), st.booleans())
def test_whatever_happens_every_take_ends_exactly_once(steps: list[tuple[str, int]], write_last: bool) -> None:
    pending = PendingTakes(ShutterSettings(queue=3, deadline_s=2, merge_s=0.3))
    told: list[Ended | CameraChange] = []
    asked: list[Take] = []
    job: Job | None = None
    came, now_s = False, 0.0

    def tell() -> None:
        told.extend(pending.reports)
        pending.reports.clear()

    for action, quarters in steps:
        now_s += quarters / 4
        if action == "ask":
            asked.append(take_at(now_s))
            pending.ask(asked[-1], now_s)
        elif action == "begin" and job is None:
            job, came = pending.next_job(now_s), False
        elif action == "come" and job is not None and not came:
            came = pending.came(job, now_s)
            job = job if came else None
        elif action == "write" and job is not None and came:
            pending.wrote(job, picture_at(job.take.at_s), FRAME)
            job = None
        elif action in ("lose", "spoil") and job is not None:
            pending.failed(job, LOST if action == "lose" else FileError("spoilt"), now_s)
            job = None
        elif action == "expire":
            pending.expire(now_s)
            assert pending.expires_at() > now_s
        elif action == "tell":
            tell()
        ended = [each for each in (*told, *pending.reports) if isinstance(each, Ended)]
        assert len(asked) == len(ended) + pending.open_takes
    pending.close()
    if job is not None and came and write_last:
        pending.wrote(job, picture_at(job.take.at_s), FRAME)
    pending.abandon()
    tell()
    ended = [each for each in told if isinstance(each, Ended)]
    assert sorted(map(id, asked)) == sorted(id(each.take) for each in ended)
    for each in ended:
        assert (each.reason is None) == (each.outcome == "taken")
        assert (each.frame is None) == (each.picture is None) == (each.outcome in ("dropped", "failed"))
    kinds = [each.kind for each in told if isinstance(each, CameraChange)]
    assert kinds == ["lost", "back"] * (len(kinds) // 2) + ["lost"] * (len(kinds) % 2)


def test_the_wait_for_a_lost_device_doubles_to_half_a_minute() -> None:
    backoff = Backoff()
    assert [backoff.failed() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    backoff.worked()
    assert backoff.failed() == 0.5
    shorter = Backoff(most_s=2.0)
    assert [shorter.failed() for _ in range(4)] == [0.5, 1, 2, 2]


@pytest.mark.parametrize(
    "change",
    [{"queue": 0}, {"queue": 1.0}, {"deadline_s": 0}, {"merge_s": -1}, {"sleep_after_s": float("inf")}],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(change))):
        ShutterSettings(**change)


# The threads


class Gate:
    """A camera that stays in `take` while the gate is shut. slept, closed: the threads that called those."""

    name = "gate"

    def __init__(self) -> None:
        self.open, self.entered = threading.Event(), threading.Semaphore(0)
        self.open.set()
        self.slept: Queue[str] = Queue()
        self.closed: Queue[str] = Queue()

    def take(self, at_s: float) -> Picture:
        self.entered.release()
        assert self.open.wait(60)
        return picture_at(at_s)

    def sleep(self) -> None:
        self.slept.put(threading.current_thread().name)

    def close(self) -> None:
        self.closed.put(threading.current_thread().name)


class Told:
    """Everything that a shutter says."""

    def __init__(self) -> None:
        self.outcomes: Queue[Ended] = Queue()
        self.changes: Queue[CameraChange] = Queue()

    def next(self) -> tuple[float, str, str | None]:
        ended = self.outcomes.get(timeout=SOON_S)
        return ended.take.at_s, ended.outcome, ended.reason


@contextmanager
def a_shutter(
    camera: Any, told: Told, write: Callable[[Picture], Frame] = lambda _: FRAME, **settings: Any
) -> Iterator[Shutter]:
    """Closed at the end, with no thread left behind."""
    shutter = Shutter(
        camera, write, ShutterSettings(**settings), on_outcome=told.outcomes.put, on_change=told.changes.put
    )
    try:
        yield shutter
    finally:
        shutter.close()
    assert not [thread for thread in threading.enumerate() if thread.name in ("edgemem-camera", "edgemem-shutter")]


def test_takes_become_files_in_order(tmp_path: Path) -> None:
    told = Told()
    camera = CallableCamera(lambda at_s: np.full((32, 32, 3), int(at_s) * 40, np.uint8))
    with a_shutter(camera, told, FrameWriter(tmp_path).write) as shutter:
        for at_s in (1.0, 2.0, 3.0):
            shutter.take(take_at(at_s))
        assert shutter.settle(SOON_S)
        ended = [told.outcomes.get_nowait() for _ in range(3)]
    assert [(each.take.at_s, each.outcome) for each in ended] == [(1, "taken"), (2, "taken"), (3, "taken")]
    assert len({each.frame.path for each in ended if each.frame}) == 3
    for each in ended:
        assert each.frame is not None
        assert (tmp_path / each.frame.path).stat().st_size == each.frame.size_bytes


def test_what_is_merged_is_told_at_once() -> None:
    told = Told()
    with a_shutter(Gate(), told, deadline_s=60) as shutter:
        for at_s in range(300):
            shutter.take(take_at(at_s))
            assert told.next()[1] == "taken"
            shutter.take(take_at(at_s + 0.1))
            assert told.next()[1] == "merged"


def test_a_hanging_camera_is_noticed_without_another_take_and_its_late_picture_is_thrown_away() -> None:
    camera, told, written = Gate(), Told(), []

    def write(picture: Picture) -> Frame:
        written.append(picture.at_s)
        return FRAME

    with a_shutter(camera, told, write, deadline_s=0.05) as shutter:
        camera.open.clear()
        shutter.take(take_at(1))
        assert told.next() == (1, "failed", "no picture in 0.05 s")
        for at_s in (2, 3):
            shutter.take(take_at(at_s))
            assert told.next() == (at_s, "dropped", "camera busy")
        camera.open.set()
        for _ in range(10_000):  # until it has returned
            shutter.take(take_at(4))
            if told.next()[1] == "taken":
                break
        else:
            pytest.fail("the camera never came back")
    assert set(written) == {4}


def test_a_camera_that_nobody_asks_is_put_to_sleep_once() -> None:
    camera, told = Gate(), Told()
    with a_shutter(camera, told, sleep_after_s=0.01) as shutter:
        for at_s in (1, 2):
            shutter.take(take_at(at_s))
            assert told.next() == (at_s, "taken", None)
            assert camera.slept.get(timeout=SOON_S) == "edgemem-camera"
        assert camera.slept.empty()
    assert camera.closed.get(timeout=SOON_S) == "edgemem-camera"
    assert camera.closed.empty()


def test_losing_the_camera_is_told_once_and_so_is_its_return() -> None:
    told, lost = Told(), threading.Event()

    def look(at_s: float) -> Any:
        if lost.is_set():
            raise DeviceError("unplugged")
        return np.zeros((4, 4, 3), np.uint8)

    now = [0.0]
    shutter = Shutter(
        CallableCamera(look),
        lambda _: FRAME,
        on_outcome=told.outcomes.put,
        on_change=told.changes.put,
        clock=lambda: now[0],
    )
    outcomes = []
    for second in range(1, 70):
        now[0] = float(second)
        lost.set() if second < 40 else lost.clear()
        shutter.take(take_at(second))
        outcomes.append(told.next()[1])
    shutter.close()
    tries = [second for second, outcome in enumerate(outcomes, 1) if outcome != "dropped"]
    assert tries == [1, 2, 3, *range(5, 41, 2), *range(41, 70)]
    assert [told.changes.get_nowait().kind for _ in range(told.changes.qsize())] == ["lost", "back"]


def test_closing_drops_what_waits_and_finishes_what_is_begun() -> None:
    camera, told = Gate(), Told()
    with a_shutter(camera, told, deadline_s=60) as shutter:
        camera.open.clear()
        shutter.take(take_at(1))
        assert camera.entered.acquire(timeout=SOON_S)
        shutter.take(take_at(2))
        closing = threading.Thread(target=shutter.close)
        closing.start()
        assert told.next() == (2, "dropped", "closing")
        camera.open.set()
        assert told.next() == (1, "taken", None)
        closing.join(SOON_S)
        shutter.take(take_at(3))  # too late, and told all the same
        assert told.next() == (3, "dropped", "closing")


def test_closing_does_not_wait_for_ever_for_a_camera_that_hangs() -> None:
    camera, told = Gate(), Told()
    with a_shutter(camera, told, deadline_s=60) as shutter:
        camera.open.clear()
        shutter.take(take_at(1))
        assert camera.entered.acquire(timeout=SOON_S)
        shutter.close(timeout_s=0.01)
        assert told.next() == (1, "failed", "closing")
        camera.open.set()
    assert told.outcomes.empty()


def test_what_a_listener_raises_is_raised_at_the_end_and_stops_nothing() -> None:
    told: Queue[float] = Queue()

    def hear(ended: Ended) -> None:
        told.put(ended.take.at_s)
        raise RuntimeError(f"at {ended.take.at_s:.0f}")

    shutter = Shutter(Gate(), lambda _: FRAME, on_outcome=hear, on_change=lambda _: None)
    for at_s in (1, 2, 3):
        shutter.take(take_at(at_s))
    assert shutter.settle(SOON_S)
    with pytest.raises(RuntimeError, match="at 1"):
        shutter.close()
    shutter.close()
    assert [told.get_nowait() for _ in range(3)] == [1, 2, 3]


def test_a_slow_listener_holds_a_bounded_number_of_pictures() -> None:
    camera, hears, told = Gate(), threading.Event(), Told()

    def hear(ended: Ended) -> None:
        assert hears.wait(60)
        told.outcomes.put(ended)

    shutter = Shutter(
        camera, lambda _: FRAME, ShutterSettings(queue=3, deadline_s=60), on_outcome=hear, on_change=told.changes.put
    )
    for at_s in range(3):
        shutter.take(take_at(at_s))
        assert camera.entered.acquire(timeout=SOON_S)
    for at_s in range(3, 100):
        shutter.take(take_at(at_s))
    assert not shutter.settle(0.05)
    assert not camera.entered.acquire(blocking=False)
    hears.set()
    shutter.close()
    assert told.outcomes.qsize() == 100


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_is_ended_by_its_camera_leaves_nothing_waiting() -> None:
    class Leaving(Gate):
        def take(self, at_s: float) -> Picture:
            raise SystemExit  # ends a thread without a word

    told = Told()
    with a_shutter(Leaving(), told) as shutter:
        shutter.take(take_at(1))
        assert told.next() == (1, "failed", "closing")
        shutter.take(take_at(2))
        assert told.next() == (2, "dropped", "closing")


class Faulty:
    """A camera that is lost, hangs for a while, gives bad files, or raises what it should not; at random."""

    name = "faulty"

    def __init__(self, pause: Callable[[], None]) -> None:
        self._random, self._pause = random.Random(7), pause

    def take(self, at_s: float) -> Picture:
        fate = self._random.random()
        if fate < 0.005:
            self._pause()
        elif fate < 0.04:
            raise DeviceError("unplugged")
        elif fate < 0.06:
            raise FileError("this is no image")
        elif fate < 0.08:
            raise ZeroDivisionError
        return picture_at(at_s)

    def sleep(self) -> None: ...

    def close(self) -> None: ...


def test_ten_thousand_takes_under_faults_end_exactly_once_each() -> None:
    chance, now, moved = random.Random(3), [0.0], threading.Semaphore(0)

    def pause() -> None:
        """Until the clock has moved past a deadline, if it still does."""
        while moved.acquire(blocking=False):
            pass
        for _ in range(8):
            moved.acquire(timeout=0.01)

    def write(_: Picture) -> Frame:
        if chance.random() < 0.05:
            raise FileError("a picture cannot be written", got="a full disk")
        return FRAME

    ended: list[Ended] = []
    changes: list[CameraChange] = []
    before = threads()
    shutter = Shutter(Faulty(pause), write, on_outcome=ended.append, on_change=changes.append, clock=lambda: now[0])
    takes = [take_at(number * 0.2 + (0.15 if number % 5 == 0 else 0)) for number in range(10_000)]
    most_threads = 0
    for number, take in enumerate(takes):
        now[0] += 0.3
        shutter.take(take)
        moved.release()
        most_threads = max(most_threads, len(threads() - before))
        if number % 40 < 6:  # at times it is calm, at times a storm
            shutter.settle(0.01)
    shutter.close()

    assert sorted(map(id, takes)) == sorted(id(each.take) for each in ended)
    sums = Counter(each.outcome for each in ended)
    assert sums.total() == 10_000
    assert set(sums) == {"taken", "merged", "dropped", "failed"}
    reasons = {each.reason for each in ended if each.outcome in ("dropped", "failed")}
    assert {"queue full", "camera busy", "camera lost", "no picture in 2 s", "unplugged", "this is no image"} <= reasons
    assert [each.kind for each in changes] == (["lost", "back"] * len(changes))[: len(changes)]
    assert most_threads == 2
    assert not threads() - before
