"""Recorded sound at the pace at which it was heard, or a multiple of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from edgemem.runtime.capture.audio import RATE_HZ, Block
from edgemem.runtime.errors import SettingsError


@dataclass(frozen=True)
class Pace:
    """speed: times real time; None for as fast as it is taken. clock: monotonic, in seconds."""

    speed: float | None
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        speed = self.speed
        if speed is not None and (isinstance(speed, bool) or not (math.isfinite(speed) and speed > 0)):
            raise SettingsError("the speed of playing is wrong", got=speed, wanted="a number over 0, or None")

    def play(self, blocks: Iterable[Block], wait: Callable[[float], object]) -> Iterator[Block]:
        """Each block when its last sample would have been heard, counted from now. Late ones are not waited for.

        wait: takes seconds, and may return early; the block then comes early too.
        """
        began_s = self.clock()
        for block in blocks:
            if self.speed is not None:
                early_s = began_s + block.end / RATE_HZ / self.speed - self.clock()
                if early_s > 0:
                    wait(early_s)
            yield block
