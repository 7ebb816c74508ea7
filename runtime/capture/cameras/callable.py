"""CallableCamera: a user's own function as a camera; what it returns or raises is not trusted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.capture.cameras.opencv import MAX_PIXELS
from edgemem.runtime.capture.picture import Picture
from edgemem.runtime.errors import DeviceError, EdgememError, shown


class CallableCamera:
    """A Camera. picture: given the time in seconds of audio, returns pixels (height, width, 3) uint8, RGB."""

    def __init__(self, picture: Callable[[float], NDArray[np.uint8]], name: str = "a function") -> None:
        self.name = name
        self._picture = picture

    def take(self, at_s: float) -> Picture:
        """Raises DeviceError for whatever the function raises, and for what is no picture."""
        try:
            pixels = self._picture(at_s)
        except EdgememError:
            raise
        except Exception as problem:
            raise DeviceError("the camera's function failed", where=self.name, got=shown(problem)) from problem
        if not _is_picture(pixels):
            got = f"{type(pixels).__name__} {getattr(pixels, 'dtype', '')} {getattr(pixels, 'shape', '')}".strip()
            wanted = f"(height, width, 3) uint8, at most {MAX_PIXELS} pixels"
            raise DeviceError("the camera's function returned no picture", where=self.name, got=got, wanted=wanted)
        return Picture(pixels.copy(), at_s)  # the function may well use its buffer again

    def sleep(self) -> None:
        pass

    def close(self) -> None:
        pass


def _is_picture(pixels: object) -> bool:
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3:
        return False
    height, width, channels = pixels.shape
    return bool(channels == 3 and 0 < height * width <= MAX_PIXELS)
