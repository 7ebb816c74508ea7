"""DeviceCamera: a camera of the machine, which sleeps. It is opened for a picture and closed when left alone.

How long to leave it alone before `sleep`, and what to do about a lost one, is for its caller.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from edgemem.runtime.capture.cameras.opencv import Pixels, open_device
from edgemem.runtime.capture.picture import Picture
from edgemem.runtime.errors import DeviceError, SettingsError, shown


@dataclass(frozen=True)
class DeviceSettings:
    """Raises SettingsError for a value out of range.

    warm_up_frames: discarded after opening, while exposure and white balance settle.
    stale_frames: discarded before each further picture: drivers hand out what they had stored since the one before.
    frozen_frames: so many pictures in a row, equal in every pixel, are a fault and no scene; 0: never.
    """

    warm_up_frames: int = 8
    stale_frames: int = 4
    frozen_frames: int = 5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or not 0 <= value <= 1000:
                raise SettingsError(f"the camera's {field.name} is out of range", got=shown(value), wanted="0 to 1000")
        if self.frozen_frames == 1:
            raise SettingsError("the camera's frozen_frames is out of range", got=1, wanted="0, or from 2")


class DeviceStream(Protocol):
    """An open device."""

    def skip(self, frames: int) -> bool: ...

    def read(self) -> Pixels | None: ...

    def close(self) -> None: ...


class DeviceCamera:
    """A Camera. device: its number, or its path such as /dev/video0. Nothing is opened before the first picture."""

    def __init__(
        self,
        device: int | str,
        settings: DeviceSettings | None = None,
        open_stream: Callable[[int | str], DeviceStream] = open_device,
    ) -> None:
        self.name = f"camera {device}"
        self._device, self._settings, self._open_stream = device, settings or DeviceSettings(), open_stream
        self._stream: DeviceStream | None = None
        self._checksum, self._equal = 0, 0  # of the last picture, and how many were equal up to it

    def take(self, at_s: float) -> Picture:
        """The picture of now. Raises DeviceError if the camera is missing, in use, unplugged or frozen; it is closed
        then, and the next picture begins with opening it."""
        try:
            pixels = self._read()
            self._check_alive(pixels)
        except BaseException:
            self.sleep()
            raise
        return Picture(pixels, at_s)

    def sleep(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.close()

    def close(self) -> None:
        self.sleep()

    def _read(self) -> Pixels:
        skipped = self._settings.stale_frames
        if self._stream is None:
            self._stream = self._open_stream(self._device)
            skipped = self._settings.warm_up_frames
        pixels = self._stream.read() if self._stream.skip(skipped) else None
        if pixels is None:
            raise DeviceError("the camera gives no picture", where=self.name, do="check that it is still plugged in")
        return pixels

    def _check_alive(self, pixels: Pixels) -> None:
        checksum = zlib.crc32(np.ascontiguousarray(pixels).data)
        self._equal = self._equal + 1 if checksum == self._checksum else 1
        self._checksum = checksum
        if 0 < self._settings.frozen_frames <= self._equal:
            raise DeviceError(
                "the camera is frozen, or its lens is covered",
                where=self.name,
                got=f"{self._equal} pictures that are equal in every pixel",
                do="uncover the lens, or plug the camera in again",
            )
