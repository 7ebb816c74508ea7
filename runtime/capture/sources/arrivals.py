"""What a device's callback brought, and where on the time line it lies.

Positions go by the count of samples. Where some are known or seen to be missing, a monotonic clock says how many.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from edgemem.runtime.capture.audio import RATE_HZ, Block, Gap, Samples
from edgemem.runtime.capture.sources.resampler import Resampler

SLACK_S = 1.0  # so far may samples lag behind the clock before they count as missing: the device's own drift, jitter
ORIGIN_S = 10.0  # so long is looked for the least late arrival; later a device that runs fast would look like it


@dataclass(frozen=True, eq=False)
class Arrival:
    """samples: (n,) float32 at the device's rate. at_s: when they came. overflow: the device lost some before them.
    dropped: samples before them that found the inbox full."""

    samples: Samples
    at_s: float
    overflow: bool
    dropped: int


class Inbox:
    """Between the callback's thread and ours: bounded, never blocking. stirred: set when there is something to see."""

    def __init__(self, most: int, opened_at_s: float, stirred: threading.Event) -> None:
        self.last_at_s = opened_at_s
        self.heard, self.ended = False, False
        self._most, self._stirred = most, stirred
        self._arrivals: deque[Arrival] = deque()
        self._overflow, self._dropped = False, 0

    def put(self, samples: Samples, at_s: float, overflow: bool) -> None:
        self.last_at_s, self.heard = at_s, True
        self._overflow |= overflow
        if len(self._arrivals) >= self._most:
            self._dropped += len(samples)
            return
        self._arrivals.append(Arrival(samples, at_s, self._overflow, self._dropped))
        self._overflow, self._dropped = False, 0
        self._stirred.set()

    def end(self) -> None:
        """The stream has stopped by itself."""
        self.ended = True
        self._stirred.set()

    def take(self) -> Arrival | None:
        return self._arrivals.popleft() if self._arrivals else None


class TimeLine:
    """Arrivals in, blocks and gaps out, without a hole. One stretch of sound lies between two gaps.

    A gap is as long as it must be for samples and gaps to add up to the time that has passed, and at least what is
    known to be missing: neither the lateness of single arrivals nor the device's drift ever adds up.
    """

    def __init__(self) -> None:
        self.end = 0  # of what was given out
        self._origin_s: float | None = None  # when position 0 was, by the least late of the first arrivals
        self._lost = False
        self._rate_hz, self._resampler = RATE_HZ, Resampler(RATE_HZ)
        self.begin(RATE_HZ)

    def begin(self, rate_hz: int) -> None:
        """A stretch of sound that comes at this rate."""
        if rate_hz != self._rate_hz:
            self._rate_hz, self._resampler = rate_hz, Resampler(rate_hz)
        self._start, self._frames = self.end, 0

    def place(self, arrival: Arrival) -> Iterator[Block | Gap]:
        length = len(arrival.samples) * RATE_HZ / self._rate_hz
        heard = self._start + self._frames * RATE_HZ / self._rate_hz
        if self._origin_s is None:
            self._origin_s = arrival.at_s - length / RATE_HZ
        missing = (arrival.at_s - self._origin_s) * RATE_HZ - heard - length
        if reason := self._reason(arrival, missing):
            missing = max(missing, arrival.dropped * RATE_HZ / self._rate_hz)
            yield from self.finish()
            gap = Gap(self.end, max(1, round(heard + missing) - self.end), reason)
            yield gap
            self.end = gap.end
            self.begin(self._rate_hz)
        elif missing < 0 and heard < ORIGIN_S * RATE_HZ and self._start == 0:
            self._origin_s += missing / RATE_HZ
        self._frames += len(arrival.samples)
        yield from self._block(self._resampler.convert(arrival.samples))

    def lose(self) -> Iterator[Block]:
        """The device is gone: what was heard of it yet. The next arrival comes after a gap."""
        yield from self.finish()
        self._lost = True

    def finish(self) -> Iterator[Block]:
        """What the resampler still holds of this stretch."""
        yield from self._block(self._resampler.finish())

    def _reason(self, arrival: Arrival, missing: float) -> str | None:
        if self._lost:
            self._lost = False
            return "device lost"
        if arrival.overflow:
            return "overflow"
        if arrival.dropped:
            return "not taken in time"
        return "samples missing" if missing > SLACK_S * RATE_HZ else None

    def _block(self, samples: Samples) -> Iterator[Block]:
        if len(samples):
            block = Block(samples, self.end)
            self.end = block.end
            yield block
