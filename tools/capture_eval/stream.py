"""A planned stream as sound, composed block by block: an audio source like any other. It is never whole in memory.

The signal-to-noise ratio is the level of an event, over the frames in which it is active, against the background's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgemem.runtime.capture.audio import RATE_HZ, Block, Samples
from edgemem.tools.capture_eval.plan import CROSSFADE, Background, Palette, Placed, StreamPlan
from edgemem.tools.capture_eval.sounds import active_level, faded, level

EVENT_LEVEL = 0.016  # -36 dB of full scale: leaves room for the peaks of cutlery
_BLOCK = RATE_HZ
_SEAM = RATE_HZ // 2  # over which the end of a loop is faded into its beginning
_FADE_IN, _FADE_OUT = RATE_HZ // 200, RATE_HZ // 20


class ComposedStream:
    """Events and passing sounds at EVENT_LEVEL over backgrounds that are `snr_db` below."""

    name = "composed stream"

    def __init__(self, plan: StreamPlan, palette: Palette, snr_db: float) -> None:
        self._plan = plan
        below = EVENT_LEVEL / 10 ** (snr_db / 20)
        self._loops = [_loop(samples) for samples in palette.steady]
        self._loops = [loop * np.float32(below / level(loop)) for loop in self._loops]

    def pieces(self) -> Iterator[Block]:
        for start in range(0, self._plan.length, _BLOCK):
            yield Block(self.block(start, min(_BLOCK, self._plan.length - start)), start)

    def close(self) -> None:
        """Nothing is held open."""

    def block(self, start: int, count: int) -> Samples:
        """(count,) float32: the same wherever blocks begin."""
        mixed = np.zeros(count, dtype=np.float32)
        for background in self._plan.backgrounds:
            if background.start < start + count and start < background.end:
                self._add_background(mixed, start, background)
        for placed in self._plan.placed:
            if placed.start < start + count and start < placed.end:
                _add_placed(mixed, start, placed)
        return np.clip(mixed, -1.0, 1.0)

    def _add_background(self, mixed: Samples, start: int, background: Background) -> None:
        loop = self._loops[background.steady]
        first, last = max(start, background.start), min(start + len(mixed), background.end)
        at = np.arange(first, last)
        rise = np.ones(len(at)) if background.start == 0 else (at - background.start) / CROSSFADE
        share = np.clip(np.minimum(rise, (background.end - at) / CROSSFADE), 0.0, 1.0)
        # Two backgrounds have nothing to do with each other: their powers add up, not their amplitudes.
        mixed[first - start : last - start] += loop[(at + background.phase) % len(loop)] * np.sqrt(
            share, dtype=np.float32
        )


def _add_placed(mixed: Samples, start: int, placed: Placed) -> None:
    at = placed.start
    for clip in placed.clips:
        end = at + len(clip)
        if at < start + len(mixed) and start < end:
            first, last = max(start, at), min(start + len(mixed), end)
            sound = faded(clip, _FADE_IN, _FADE_OUT) * np.float32(EVENT_LEVEL / active_level(clip))
            mixed[first - start : last - start] += sound[first - at : last - at]
        at = end


def _loop(samples: Samples) -> Samples:
    """The sound without its last half second, which is faded into its beginning, so that it can be repeated."""
    seam = min(_SEAM, len(samples) // 3)
    loop = np.array(samples[: len(samples) - seam], dtype=np.float32)
    rise = np.linspace(0, 1, seam, endpoint=False, dtype=np.float32)
    loop[:seam] = loop[:seam] * np.sqrt(rise) + samples[len(samples) - seam :] * np.sqrt(1 - rise)
    return loop
