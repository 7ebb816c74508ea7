"""Any bytes are raw samples that become windows, or a FileError; windows without a flaw are fit for the ear.

The first three bytes say what the samples are and how the stream is cut into reads.
"""

from __future__ import annotations

import io
from typing import get_args

import driver
import numpy as np

from edgemem.runtime.capture.audio import RATE_HZ, WINDOW_SAMPLES, Samples
from edgemem.runtime.capture.flaws import SILENT_DB, level_db
from edgemem.runtime.capture.sources.pcm_stream import Encoding, PcmFormat, PcmStream
from edgemem.runtime.capture.windows import Framer
from edgemem.runtime.errors import FileError

_RATES_HZ = (8_000, 16_000, 44_100)


class _Cut(io.BytesIO):
    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data)
        self._most = most

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 1, self._most))


def _seeds() -> list[bytes]:
    """A second or so in each encoding, cut into reads of several lengths, and as little as can be heard."""
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ)
    return [
        bytes((1, 0, 250)) + (tone * 32767).astype("<i2").tobytes(),
        bytes((0, 5, 255)) + (tone[:8_000] * (2**31 - 1)).astype("<i4").tobytes(),
        bytes((2, 2, 199)) + tone[:9_000].astype("<f4").tobytes(),
        bytes((1, 0, 0, 1, 0, 2, 0)),
    ]


def fuzz_one_input(data: bytes) -> bool:
    if len(data) < 3:
        return False
    encodings: tuple[Encoding, ...] = get_args(Encoding)
    form = PcmFormat(_RATES_HZ[data[0] % 3], 1 + data[1] % 2, encodings[data[1] % 3])
    source = PcmStream(_Cut(data[3:], 1 + data[2] * 64), form, speed=None)
    framer, end = Framer(), 0
    try:
        for piece in source.pieces():
            if piece.start != end:
                raise AssertionError(f"a piece at {piece.start} after one that ended at {end}")
            end = piece.end
            for window in framer.push(piece):
                _check(window.samples, window.flaw)
    except FileError:
        return False
    for window in framer.finish():
        _check(window.samples, window.flaw)
    frames = len(data[3:]) // form.frame_bytes
    if abs(end - frames * RATE_HZ / form.rate_hz) > 2:
        raise AssertionError(f"{frames} frames gave {end} samples")
    return True


def _check(samples: Samples, flaw: str | None) -> None:
    if len(samples) != WINDOW_SAMPLES or level_db(samples) < SILENT_DB:
        raise AssertionError("no window")
    if flaw is None and not (np.isfinite(samples).all() and np.abs(samples).max() <= 8):
        raise AssertionError("a window that is not fit for the ear")


SEEDS = _seeds()

if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
