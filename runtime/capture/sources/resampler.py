"""Any rate to the ear's 16 kHz, block by block: the one adapter over soxr, and what is done before it.

Positions are not moved: what comes out lies where it lay in the sound that went in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.capture.audio import RATE_HZ, Block, Samples
from edgemem.runtime.errors import EngineError

RATES_HZ = (4_000, 768_000)  # lowest and highest that are taken
MOST_CHANNELS = 64


class Resampler:
    """One stretch of sound after another, each (n,) float32 at rate_hz, to RATE_HZ.

    A stretch of n samples gives n * RATE_HZ / rate_hz, rounded; up to 0.1 s of them come late. A sample that is not
    finite spoils 0.06 s around it and no more. Raises EngineError where soxr is not installed.
    """

    def __init__(self, rate_hz: int) -> None:
        self._stream = None if rate_hz == RATE_HZ else _soxr_stream(rate_hz)

    def convert(self, samples: Samples) -> Samples:
        """What is ready of the stretch so far."""
        if self._stream is None:
            return samples
        return np.asarray(self._stream.resample_chunk(samples), np.float32)

    def finish(self) -> Samples:
        """The rest of the stretch; the next sample begins another."""
        if self._stream is None:
            return np.zeros(0, np.float32)
        rest = np.asarray(self._stream.resample_chunk(np.zeros(0, np.float32), last=True), np.float32)
        self._stream.clear()
        return rest


def resampled(chunks: Iterable[Samples], rate_hz: int) -> Iterator[Block]:
    """Chunks (n,) float32 at rate_hz that follow each other, as blocks from position 0 on."""
    resampler = Resampler(rate_hz)
    end = 0
    for chunk in chunks:
        block = Block(resampler.convert(chunk), end)
        if block.end > end:
            yield block
        end = block.end
    rest = Block(resampler.finish(), end)
    if rest.end > end:
        yield rest


def mono(frames: NDArray[np.float32]) -> Samples:
    """(n, channels) to (n,): the mean of the channels."""
    if frames.shape[1] == 1:
        return np.ascontiguousarray(frames[:, 0])
    with np.errstate(all="ignore"):  # infinite and huge samples are judged later, in windows
        return np.asarray(frames.mean(axis=1, dtype=np.float64), np.float32)


def _soxr_stream(rate_hz: int) -> Any:
    try:
        import soxr
    except ImportError as missing:
        raise EngineError(
            "resampling needs soxr, which is not installed",
            got=missing,
            do='pip install "edgemem-runtime[capture]"',
        ) from missing
    return soxr.ResampleStream(rate_hz, RATE_HZ, 1, dtype="float32")
