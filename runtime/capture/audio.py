"""What comes from an audio source, and what the ear is given. Positions are counted in samples, never by a clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
WINDOW_SAMPLES = 15_600  # what YAMNet hears at once, 0.975 s
HOP_SAMPLES = 7_680  # from one window to the next, 0.48 s

Samples = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Block:
    """samples: (n,) float32, mono, RATE_HZ, nominally -1 to 1, but not checked yet. start: position of the first, with
    all that was lost before counted."""

    samples: Samples
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.samples)


@dataclass(frozen=True)
class Gap:
    """Samples that were never heard: `samples` of them from `start` on. reason: "overflow", "device lost", ..."""

    start: int
    samples: int
    reason: str

    @property
    def end(self) -> int:
        return self.start + self.samples


@dataclass(frozen=True)
class Lost:
    """The device went away at `start`. Once it is back, the next piece is a Gap of the time between."""

    start: int
    reason: str


Piece = Block | Gap | Lost


class AudioSource(Protocol):
    """Blocks and gaps that follow each other without a hole: each starts where the one before ended, the first at 0."""

    name: str

    def pieces(self) -> Iterator[Piece]:
        """Until the source ends, or another thread closes it. Raises DeviceError or FileError."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Window:
    """WINDOW_SAMPLES of sound. end: position after the last sample. flaw: why it is not to be believed, or None."""

    samples: Samples
    end: int
    flaw: str | None = None

    @property
    def end_s(self) -> float:
        return self.end / RATE_HZ
