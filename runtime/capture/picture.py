"""Pictures, and what takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Picture:
    """pixels: (height, width, 3) uint8, RGB. at_s: when it was taken, in seconds of the audio's positions."""

    pixels: NDArray[np.uint8]
    at_s: float


class Camera(Protocol):
    """Takes one picture at a time. It may block, fail and come back; it is used by one thread."""

    name: str

    def take(self, at_s: float) -> Picture:
        """The picture of now, which is `at_s` on the audio's time line. Raises DeviceError or FileError."""
        ...

    def sleep(self) -> None:
        """No picture is wanted for a while: what draws power can rest until the next `take`."""
        ...

    def close(self) -> None: ...
