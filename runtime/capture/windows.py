"""Blocks and gaps in, windows out: what the ear hears, each with the reason not to believe it where there is one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.capture.audio import HOP_SAMPLES, WINDOW_SAMPLES, Block, Gap, Lost, Piece, Samples, Window
from edgemem.runtime.capture.flaws import flaw_of
from edgemem.runtime.errors import DeviceError

FILL_SAMPLES = 1_600  # 0.1 s: so much of a window may stand in for what was lost
REST_SAMPLES = 1_920  # 0.12 s: so much must be left over at the end of a stretch to be heard once more


class Framer:
    """A window of WINDOW_SAMPLES every HOP_SAMPLES of a stretch of sound.

    A gap of up to FILL_SAMPLES is filled; a window with more of that in it is flawed ("gap"). A longer gap ends the
    stretch, as do the loss of the device and the end of the source. If REST_SAMPLES or more are left then that no
    window held, they are heard in one more that ends with them. Zeros follow where the stretch is shorter than that
    window; one shorter than half of it is flawed too, unless it is the last.
    """

    def __init__(self) -> None:
        self._end = 0  # position after the last sample taken in
        self._samples: Samples  # the newest of the stretch, WINDOW_SAMPLES at most
        self._filled: NDArray[np.bool_]  # which of them were lost
        self._due: int  # when so many are unheard, there is a window
        self._unheard: int
        self._begin_stretch()

    def windows(self, pieces: Iterable[Piece]) -> Iterator[Window]:
        """Of a whole source, to its end."""
        for piece in pieces:
            yield from self.push(piece)
        yield from self.finish()

    def push(self, piece: Piece) -> Iterator[Window]:
        """Raises DeviceError for a piece that does not start where the one before ended."""
        if piece.start != self._end:
            raise DeviceError("the sound's positions do not follow each other", got=piece.start, wanted=self._end)
        if isinstance(piece, Block):
            yield from self._take(piece.samples, filled=False)
        elif isinstance(piece, Gap) and piece.samples <= FILL_SAMPLES and len(self._samples):
            # The sound before it, backwards: it begins without a step, and so disturbs the ear half as much as zeros.
            yield from self._take(np.resize(self._samples[::-1], piece.samples), filled=True)
        else:
            yield from self._end_stretch(least=WINDOW_SAMPLES // 2)
            self._end += 0 if isinstance(piece, Lost) else piece.samples

    def finish(self) -> Iterator[Window]:
        """The source has ended."""
        yield from self._end_stretch(least=0)

    def _take(self, samples: Samples, *, filled: bool) -> Iterator[Window]:
        while len(samples):
            part = samples[: self._due - self._unheard]
            samples = samples[len(part) :]
            self._samples = np.concatenate((self._samples, part))[-WINDOW_SAMPLES:]
            self._filled = np.concatenate((self._filled, np.full(len(part), filled)))[-WINDOW_SAMPLES:]
            self._unheard += len(part)
            self._end += len(part)
            if self._unheard == self._due:
                yield self._window(least=WINDOW_SAMPLES)
                self._due, self._unheard = HOP_SAMPLES, 0

    def _end_stretch(self, *, least: int) -> Iterator[Window]:
        if self._unheard >= REST_SAMPLES:
            yield self._window(least=least)
        self._begin_stretch()

    def _begin_stretch(self) -> None:
        self._samples, self._filled = np.zeros(0, np.float32), np.zeros(0, np.bool_)
        self._due, self._unheard = WINDOW_SAMPLES, 0

    def _window(self, *, least: int) -> Window:
        """What is held, up to its end. least: samples of the stretch without which it is flawed."""
        gap = len(self._samples) < least or np.count_nonzero(self._filled) > FILL_SAMPLES
        flaw = "gap" if gap else flaw_of(self._samples)
        padding = np.zeros(WINDOW_SAMPLES - len(self._samples), np.float32)
        return Window(np.concatenate((self._samples, padding)), self._end, flaw)
