"""What the ear makes of a clip, window by window, and which windows of it are loud enough to tell anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.capture.audio import HOP_SAMPLES, WINDOW_SAMPLES, Samples


class HeardWindow(Protocol):
    """embedding: (1024,) float32. scores: (classes,) float32, 0 to 1."""

    @property
    def embedding(self) -> NDArray[np.float32]: ...
    @property
    def scores(self) -> NDArray[np.float32]: ...


class Listener(Protocol):
    """What is needed of an ear."""

    @property
    def class_names(self) -> tuple[str, ...]: ...
    def hear(self, samples: Samples) -> HeardWindow: ...


@dataclass(frozen=True, eq=False)
class Heard:
    """A clip as the ear has it. embeddings: (windows, 1024), scores: (windows, classes), both float32."""

    embeddings: NDArray[np.float32]
    scores: NDArray[np.float32]


def windows_of(samples: Samples) -> NDArray[np.float32]:
    """(windows, WINDOW_SAMPLES), HOP_SAMPLES apart; what is left at the end is dropped, and a shorter clip padded."""
    padded = np.pad(samples, (0, max(0, WINDOW_SAMPLES - len(samples))))
    starts = range(0, len(padded) - WINDOW_SAMPLES + 1, HOP_SAMPLES)
    return np.stack([padded[start : start + WINDOW_SAMPLES] for start in starts])


def hear_clip(ear: Listener, samples: Samples) -> Heard:
    heard = [ear.hear(window) for window in windows_of(samples)]
    return Heard(np.stack([one.embedding for one in heard]), np.stack([one.scores for one in heard]))


def audible(samples: Samples, quiet_db: float) -> NDArray[np.bool_]:
    """(windows,): those less than `quiet_db` below the loudest of the clip, of which there is always one."""
    power = np.square(windows_of(samples), dtype=np.float64).mean(axis=1)
    found: NDArray[np.bool_] = power >= power.max() * 10 ** (-quiet_db / 10)
    return found
