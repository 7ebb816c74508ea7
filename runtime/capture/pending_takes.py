"""PendingTakes: what becomes of every picture that is asked for, as a pure state machine over times that it is told.

Each take ends exactly once: taken, merged, dropped or failed. Knows no threads, no clock and no camera; see shutter.py.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

from edgemem.runtime.capture.backoff import Backoff
from edgemem.runtime.capture.event import Outcome
from edgemem.runtime.capture.jpeg import Frame
from edgemem.runtime.capture.picture import Picture
from edgemem.runtime.capture.trigger import Take
from edgemem.runtime.errors import DeviceError, EdgememError, SettingsError, shown

_RETRY_MOST_S = 2.0  # between tries of a lost camera: one that is plugged in again is soon used again


@dataclass(frozen=True)
class ShutterSettings:
    """Raises SettingsError for a value out of range.

    queue: takes that wait for the camera, and outcomes that wait to be told, before more are dropped.
    deadline_s: from the moment a picture is asked for until it is there; later it is of something else.
    merge_s: a take nearer than this to the time of the last picture is served by that.
    sleep_after_s: the camera is put to sleep when no picture was asked for so long.
    """

    queue: int = 8
    deadline_s: float = 2.0
    merge_s: float = 0.25
    sleep_after_s: float = 5.0

    def __post_init__(self) -> None:
        if type(self.queue) is not int or not 1 <= self.queue <= 1000:
            raise SettingsError("the shutter's queue is out of range", got=shown(self.queue), wanted="1 to 1000")
        for each in fields(self)[1:]:
            value, least = getattr(self, each.name), "from 0" if each.name == "merge_s" else "over 0"
            if type(value) not in (int, float) or not 0 <= value < math.inf or (value == 0 and least == "over 0"):
                wanted = f"seconds {least}"
                raise SettingsError(f"the shutter's {each.name} is out of range", got=shown(value), wanted=wanted)


@dataclass(frozen=True, eq=False)
class Ended:
    """How a take ended. reason: of all but "taken". frame, picture: of "taken" and "merged"; None otherwise."""

    take: Take
    outcome: Outcome
    reason: str | None = None
    frame: Frame | None = None
    picture: Picture | None = None


@dataclass(frozen=True)
class CameraChange:
    """The camera was lost, or is back: told once each. at_s: of the take that found out. reason: of a loss."""

    kind: Literal["lost", "back"]
    at_s: float
    reason: str | None = None


@dataclass(eq=False)
class Job:
    """A take that the camera is busy with. until_s: its deadline. has_picture: it only remains to be written."""

    take: Take
    until_s: float
    has_picture: bool = False
    ended: bool = False


class Waiting(NamedTuple):
    take: Take
    until_s: float


class PendingTakes:
    """`now_s` is any clock that never goes back, the same in every call. reports: to be told in order; whoever tells
    them takes them out."""

    def __init__(self, settings: ShutterSettings) -> None:
        self.settings = settings
        self.reports: deque[Ended | CameraChange] = deque()
        self._queue: deque[Waiting] = deque()
        self._job: Job | None = None
        self._last: tuple[Picture, Frame] | None = None
        self._closing = self._lost = False
        self._retry_at_s = -math.inf
        self._backoff = Backoff(_RETRY_MOST_S)

    @property
    def open_takes(self) -> int:
        """How many have not ended yet."""
        return len(self._queue) + (self._job is not None and not self._job.ended)

    def ask(self, take: Take, now_s: float) -> None:
        """It waits for the camera, or is dropped at once."""
        if reason := self._refusal(now_s):
            self._end(take, "dropped", reason)
        else:
            self._queue.append(Waiting(take, now_s + self.settings.deadline_s))

    def next_job(self, now_s: float) -> Job | None:
        """What the camera is to do now; `came` or `failed` follows before the next. None: nothing, for now."""
        while self._queue and len(self.reports) < self.settings.queue:
            take, until_s = self._queue.popleft()
            if now_s >= until_s:
                self._end(take, "dropped", "too late")
            elif now_s < self._retry_at_s:
                self._end(take, "dropped", "camera lost")
            elif self._last is not None and abs(take.at_s - self._last[0].at_s) < self.settings.merge_s:
                picture, frame = self._last
                self._end(take, "merged", f"the picture of {picture.at_s:.2f} s serves it", picture, frame)
            else:
                self._job = Job(take, until_s)
                return self._job
        return None

    def came(self, job: Job, now_s: float) -> bool:
        """The camera gave a picture. Whether it is still wanted: then `wrote` or `failed` follows."""
        if self._lost:
            self._lost = False
            self.reports.append(CameraChange("back", job.take.at_s))
        self._backoff.worked()
        if now_s >= job.until_s:
            self._finish(job, "failed", self._late)
        job.has_picture = True
        return not job.ended

    def wrote(self, job: Job, picture: Picture, frame: Frame) -> None:
        """The picture is on disk."""
        self._last = picture, frame
        self._finish(job, "taken", None, picture, frame)

    def failed(self, job: Job, problem: Exception, now_s: float) -> None:
        """The camera gave no picture, or it could not be written. A DeviceError means that the camera is lost."""
        reason = _reason(problem)
        if isinstance(problem, DeviceError):
            self._retry_at_s = now_s + self._backoff.failed()
            if not self._lost:
                self._lost = True
                self.reports.append(CameraChange("lost", job.take.at_s, reason))
        self._finish(job, "failed", reason)

    def expire(self, now_s: float) -> None:
        """End what is past its deadline by now."""
        job = self._job
        if job is not None and not job.has_picture and now_s >= job.until_s and not job.ended:
            job.ended = True
            self._end(job.take, "failed", self._late)
            self._drop_all("camera busy")
        while self._queue and now_s >= self._queue[0].until_s:
            self._end(self._queue.popleft().take, "dropped", "too late")

    def expires_at(self) -> float:
        """When `expire` has something to do next; inf: nothing so far."""
        deadlines = [self._queue[0].until_s] if self._queue else []
        if self._job is not None and not self._job.has_picture and not self._job.ended:
            deadlines.append(self._job.until_s)
        return min(deadlines, default=math.inf)

    def close(self) -> None:
        """Nothing more is begun."""
        self._closing = True
        self._drop_all("closing")

    def abandon(self) -> None:
        """The camera is not waited for any longer."""
        if self._job is not None and not self._job.ended:
            self._job.ended = True
            self._end(self._job.take, "failed", "closing")

    @property
    def _late(self) -> str:
        return f"no picture in {self.settings.deadline_s:g} s"

    def _refusal(self, now_s: float) -> str | None:
        if self._closing:
            return "closing"
        if self._job is not None and self._job.ended:
            return "camera busy"
        if now_s < self._retry_at_s:
            return "camera lost"
        return "queue full" if len(self._queue) >= self.settings.queue else None

    def _drop_all(self, reason: str) -> None:
        while self._queue:
            self._end(self._queue.popleft().take, "dropped", reason)

    def _finish(
        self, job: Job, outcome: Outcome, reason: str | None, picture: Picture | None = None, frame: Frame | None = None
    ) -> None:
        if not job.ended:
            job.ended = True
            self._end(job.take, outcome, reason, picture, frame)
        self._job = None

    def _end(
        self,
        take: Take,
        outcome: Outcome,
        reason: str | None,
        picture: Picture | None = None,
        frame: Frame | None = None,
    ) -> None:
        self.reports.append(Ended(take, outcome, reason, frame, picture))


def _reason(problem: Exception) -> str:
    """One line for the log."""
    if isinstance(problem, EdgememError):
        return problem.what if problem.got is None else f"{problem.what}: {problem.got}"
    return f"{type(problem).__name__}: {shown(str(problem))}"
