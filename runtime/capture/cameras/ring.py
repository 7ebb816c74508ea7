"""RingCamera: a camera whose pictures of the last seconds are still at hand, for pre-roll.

A thread of its own takes them all the time: the camera never sleeps, which costs the power that a trigger saves.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from edgemem.runtime.capture.backoff import Backoff
from edgemem.runtime.capture.cameras.opencv import decode_image, encode_jpeg
from edgemem.runtime.capture.picture import Camera, Picture
from edgemem.runtime.errors import DeviceError, EdgememError, SettingsError, shown

_RETRY_MOST_S = 2.0  # between tries of a lost camera: one that is plugged in again is soon used again
_QUALITY = 90
_CLOSE_S = 5.0


@dataclass(frozen=True)
class RingSettings:
    """Raises SettingsError for a value out of range.

    seconds: how far the ring looks back. per_s: pictures a second. most_bytes: of the pictures, which are held as JPEG;
    beyond it the oldest go sooner.
    """

    seconds: float = 3.0
    per_s: float = 2.0
    most_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for name, most in (("seconds", 3600), ("per_s", 120), ("most_bytes", 1 << 40)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value <= most:
                raise SettingsError(f"the ring's {name} is out of range", got=shown(value), wanted=f"over 0, to {most}")

    @property
    def slots(self) -> int:
        return math.ceil(self.seconds * self.per_s) + 1


class Kept(NamedTuple):
    at_s: float
    jpeg: bytes


class Ring:
    """The last pictures, bounded in number and bytes. Not for two threads at once."""

    def __init__(self, settings: RingSettings) -> None:
        self._settings = settings
        self._kept: deque[Kept] = deque()
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, kept: Kept) -> None:
        """The newest stays, whatever its size."""
        self._kept.append(kept)
        self.held_bytes += len(kept.jpeg)
        while len(self._kept) > 1 and (
            len(self._kept) > self._settings.slots or self.held_bytes > self._settings.most_bytes
        ):
            self.held_bytes -= len(self._kept.popleft().jpeg)

    def nearest(self, at_s: float) -> Kept | None:
        """None if there is none, or if the newest is so old that pictures must have been missed since."""
        if not self._kept or at_s - self._kept[-1].at_s > 2 / self._settings.per_s:
            return None
        return min(self._kept, key=lambda kept: abs(kept.at_s - at_s))


class RingCamera:
    """A Camera over another, which is its own from now on and used by its thread alone."""

    def __init__(self, camera: Camera, now_s: Callable[[], float], settings: RingSettings | None = None) -> None:
        """now_s: seconds of the audio's positions, at any moment and from any thread."""
        self.name = camera.name
        self._camera, self._now_s, self._settings = camera, now_s, settings or RingSettings()
        self._ring = Ring(self._settings)
        self._problem: EdgememError | None = None
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._fill, name="edgemem-ring", daemon=True)
        self._thread.start()

    def take(self, at_s: float) -> Picture:
        """The picture nearest to `at_s`, the oldest if it is further back. Raises DeviceError if pictures have stopped,
        for the reason that the camera gave."""
        with self._lock:
            kept, problem = self._ring.nearest(at_s), self._problem
        if kept is None:
            got = "no reason given" if problem is None else problem.what
            raise DeviceError("the ring has no picture of that time", where=self.name, got=got) from problem
        return Picture(decode_image(kept.jpeg, self.name), kept.at_s)

    def sleep(self) -> None:
        """It stays awake: what will be asked for later is of before that."""

    def close(self) -> None:
        """Ends the thread, and the camera with it. One that hangs is left behind after 5 s."""
        self._closing.set()
        self._thread.join(_CLOSE_S)

    def _fill(self) -> None:
        backoff, wait_s = Backoff(_RETRY_MOST_S), 0.0
        try:
            while not self._closing.wait(wait_s):
                problem = self._add_one()
                wait_s = backoff.failed() if problem else 1 / self._settings.per_s
                if not problem:
                    backoff.worked()
        finally:
            self._camera.close()

    def _add_one(self) -> EdgememError | None:
        problem: EdgememError | None = None
        kept: Kept | None = None
        try:
            picture = self._camera.take(self._now_s())
            kept = Kept(picture.at_s, encode_jpeg(picture.pixels, _QUALITY))
        except EdgememError as raised:
            problem = raised
        except Exception as raised:  # noqa: BLE001 - a user's camera may raise anything, and the next picture may come
            problem = DeviceError(f"{type(raised).__name__}: {shown(str(raised))}", where=self.name)
        with self._lock:
            self._problem = problem
            if kept is not None:
                self._ring.add(kept)
        return problem
