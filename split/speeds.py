"""Speeds: what both sides and the link take for a token, as it is seen while a conversation runs.

A stage's time is taken to be in proportion to its layers, the head being worth so many of them as it has bytes. The
numbers are of the newest few steps; where no steps show a side, of looks at the server from beside.
"""

from __future__ import annotations

import threading
from collections import deque
from statistics import median

from edgemem.split.engine import StepTimes
from edgemem.split.measuring import WireTimes
from edgemem.split.sides import LinkSpeed, StageTimes

_STEPS, _LOOKS = 8, 2


class Speeds:
    """Of a conversation that is at one split at a time; `layers` is that of a device which does all. Any thread may
    tell and ask."""

    def __init__(self, layers: int, head_layers: float, at: int, state_bytes: float) -> None:
        """head_layers: the head's bytes in those of a layer. at: the split looks are at. state_bytes: of a token that
        crosses, but for split 0."""
        self._layers, self._head, self._at, self._state_bytes = layers, head_layers, at, state_bytes
        self._lock = threading.Lock()
        self._device: deque[float] = deque(maxlen=_STEPS)  # ms of a layer
        self._looks: deque[WireTimes] = deque(maxlen=_LOOKS)
        self.moved()

    def moved(self) -> None:
        """The steps to come are of another split."""
        with self._lock:
            self._here: deque[float] = deque(maxlen=_STEPS)
            self._server: deque[float] = deque(maxlen=_STEPS)  # ms of a layer
            self._wire: deque[tuple[int, float]] = deque(maxlen=_STEPS)  # split, and ms on the way

    def stepped(self, split: int, times: StepTimes) -> None:
        """One token at this split."""
        with self._lock:
            self._here.append(times.front_ms + times.back_ms)
            if split == self._layers:
                self._device.append((times.front_ms + times.back_ms) / (self._layers + self._head))
                return
            if split:
                self._device.append(times.front_ms / split)
            self._server.append(times.compute_ms / (self._layers - split + self._head))
            self._wire.append((split, max(0.0, times.back_ms - times.compute_ms)))

    def looked(self, found: WireTimes | None) -> None:
        """From beside, at the split `at`; None where the server does not answer."""
        with self._lock:
            if found is None:
                self._looks.clear()
            else:
                self._looks.append(found)

    @property
    def here_ms(self) -> float | None:
        """Of a token where the conversation is; None before there are enough."""
        with self._lock:
            return median(self._here) if len(self._here) == _STEPS else None

    @property
    def device(self) -> StageTimes | None:
        with self._lock:
            return self._times(median(self._device)) if self._device else None

    @property
    def server(self) -> StageTimes | None:
        with self._lock:
            if self._server:
                return self._times(median(self._server))
            behind = self._layers - self._at + self._head
            return self._times(max(look.compute_ms for look in self._looks) / behind) if self._looks else None

    @property
    def link(self) -> LinkSpeed | None:
        """None until the server was looked at, and while it does not answer."""
        with self._lock:
            if not self._looks:
                return None
            rate = min(look.link.bits_per_s for look in self._looks)
            trip_ms = max(look.link.round_trip_ms for look in self._looks)
            if self._wire:
                trip_ms = median(
                    max(0.0, ms - 8e3 * (self._state_bytes if split else 4.0) / rate) for split, ms in self._wire
                )
            return LinkSpeed(rate, trip_ms)

    def _times(self, layer_ms: float) -> StageTimes:
        return StageTimes(layer_ms, exit_ms=self._head * layer_ms)
