"""Shutter: turns decisions into pictures on disk, and tells how each ended. Whoever asks never waits.

One thread uses the camera, another tells and watches the deadlines; there are never more. The rules are in
pending_takes.py.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from edgemem.runtime.capture.jpeg import Frame
from edgemem.runtime.capture.pending_takes import CameraChange, Ended, Job, PendingTakes, ShutterSettings
from edgemem.runtime.capture.picture import Camera, Picture
from edgemem.runtime.capture.trigger import Take


class Shutter:
    """Use as a context manager. The camera is the shutter's from now on, which closes it. Any thread may call.

    on_outcome and on_change are called by one thread, in order. What they raise stops nothing: the first such error is
    raised by `close`, as is one of the camera's `sleep` or `close`.
    """

    def __init__(
        self,
        camera: Camera,
        write: Callable[[Picture], Frame],
        settings: ShutterSettings | None = None,
        *,
        on_outcome: Callable[[Ended], None],
        on_change: Callable[[CameraChange], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._camera, self._write, self._clock = camera, write, clock
        self._on_outcome, self._on_change = on_outcome, on_change
        self._settings = settings or ShutterSettings()
        self._pending = PendingTakes(self._settings)
        self._changed = threading.Condition()
        self._closing, self._telling_ended = False, False
        self._problem: Exception | None = None
        self._camera_thread = threading.Thread(target=self._use_camera, name="edgemem-camera", daemon=True)
        self._telling_thread = threading.Thread(target=self._tell, name="edgemem-shutter", daemon=True)
        self._camera_thread.start()
        self._telling_thread.start()

    def take(self, take: Take) -> None:
        """Ask for a picture. It is told exactly once how that ended, of a closed shutter as well."""
        with self._changed:
            if not self._telling_ended:
                self._pending.ask(take, self._clock())
                self._changed.notify_all()
                return
        self._on_outcome(Ended(take, "dropped", "closing"))

    def settle(self, timeout_s: float) -> bool:
        """Wait until every take so far has ended and was told; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(self._is_settled, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """End what is pending: waiting takes are dropped, the one at the camera has `timeout_s` to be finished.

        A camera or listener that hangs for longer is left to its thread, which ends with the process.
        """
        with self._changed:
            self._closing = True
            self._pending.close()
            self._changed.notify_all()
        self._camera_thread.join(timeout_s)
        with self._changed:
            self._pending.abandon()
            self._changed.notify_all()
        self._telling_thread.join(timeout_s)
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def __enter__(self) -> Shutter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_settled(self) -> bool:
        return not self._pending.open_takes and not self._pending.reports

    def _use_camera(self) -> None:
        """The camera's thread."""
        awake = False
        try:
            while not self._closing:
                job = self._next_job(self._settings.sleep_after_s if awake else None)
                if job is not None:
                    self._serve(job)
                    awake = True
                elif awake and not self._closing:
                    self._guard(self._camera.sleep)
                    awake = False
        finally:  # whatever ended it, nothing is left waiting for it
            with self._changed:
                self._pending.close()
                self._pending.abandon()
                self._changed.notify_all()
            self._guard(self._camera.close)

    def _next_job(self, timeout_s: float | None) -> Job | None:
        """None after `timeout_s` without one, or when closing."""

        def look() -> Job | bool:
            job = self._pending.next_job(self._clock())
            if self._pending.reports:  # of takes that were dropped or merged on the way
                self._changed.notify_all()
            return job or self._closing

        with self._changed:
            found = self._changed.wait_for(look, timeout_s)
        return found if isinstance(found, Job) else None

    def _serve(self, job: Job) -> None:
        try:
            picture = self._camera.take(job.take.at_s)
            with self._changed:
                wanted = self._pending.came(job, self._clock())
            if wanted:
                frame = self._write(picture)
                with self._changed:
                    self._pending.wrote(job, picture, frame)
        except Exception as problem:  # noqa: BLE001 - a user's camera may raise anything; the log says what
            with self._changed:
                self._pending.failed(job, problem, self._clock())
        finally:
            with self._changed:
                self._changed.notify_all()

    def _tell(self) -> None:
        """The telling thread."""
        while (report := self._next_report()) is not None:
            if isinstance(report, Ended):
                self._guard(self._on_outcome, report)
            else:
                self._guard(self._on_change, report)
            with self._changed:
                self._pending.reports.popleft()
                self._changed.notify_all()

    def _next_report(self) -> Ended | CameraChange | None:
        """Stays among the reports until it was told. None: closed, and all is told."""
        with self._changed:
            while True:
                self._pending.expire(self._clock())
                if self._pending.reports:
                    return self._pending.reports[0]
                if self._closing and not self._pending.open_takes:
                    self._telling_ended = True
                    return None
                wait_s = self._pending.expires_at() - self._clock()
                self._changed.wait(None if wait_s == math.inf else max(0.0, wait_s))

    def _guard(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            call(*arguments)
        except Exception as problem:  # noqa: BLE001 - raised by `close`
            with self._changed:
                self._problem = self._problem or problem
