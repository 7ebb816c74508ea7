"""A world with microphones in it and a clock of its own, and in it a backend like the module sounddevice.

Nothing sleeps: time goes on where the microphone waits. Streams hold a real thread and a real descriptor, so that one
left open shows.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sound = Callable[[NDArray[np.int64], int], NDArray[np.float32]]  # frame numbers since the world began, and the rate


class PortAudioError(Exception):
    pass


@dataclass(frozen=True)
class Status:
    input_overflow: bool


def numbered(frames: NDArray[np.int64], rate_hz: int) -> NDArray[np.float32]:
    """Sound that says where it lies: the frame's number modulo 2^20, over 2^20."""
    return (frames % (1 << 20)).astype(np.float32) / np.float32(1 << 20)


def number_error(start: int, first: float) -> int:
    """By how many samples a block of numbered sound lies at the wrong position."""
    wrong = (start - round(first * (1 << 20))) % (1 << 20)
    return min(wrong, (1 << 20) - wrong)


@dataclass
class Device:
    name: str
    rate_hz: int = 16_000
    channels: int = 1
    busy: bool = False
    mute: bool = False  # opens, and then gives nothing


@dataclass
class World:
    """dropped: share of blocks the device loses, and flags on the next. late_s: by how much callbacks come late at
    most. speed: of the device's own clock."""

    sound: Sound = numbered
    dropped: float = 0.0
    late_s: float = 0.0
    speed: float = 1.0
    host_tells: bool = True  # that a stream has stopped because its device is gone
    now_s: float = 1_000.0
    plugged: list[Device] = field(default_factory=lambda: [Device("built-in")])
    streams: list[Stream] = field(default_factory=list)
    attempts_s: list[float] = field(default_factory=list)
    dropped_frames: int = 0
    last_heard_s: float = 0.0  # when the last frame that was handed over, or flagged as lost, was in the air

    def __post_init__(self) -> None:
        self._actions: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._random = random.Random(1)
        self.backend = Backend(self)

    def clock(self) -> float:
        return self.now_s

    def wait(self, event: threading.Event, seconds: float) -> bool:
        until_s = self.now_s + max(seconds, 1e-6)  # any wait takes time
        while not event.is_set() and self._actions and self._actions[0][0] <= until_s:
            self._act()
        if not event.is_set():
            self.now_s = max(self.now_s, until_s)
        return event.is_set()

    def run(self, seconds: float) -> None:
        """Time passes while nobody waits for sound."""
        until_s = self.now_s + seconds
        while self._actions and self._actions[0][0] <= until_s:
            self._act()
        self.now_s = max(self.now_s, until_s)

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._actions, (when_s, next(self._number), action))

    def cards(self) -> frozenset[str]:
        return frozenset(device.name for device in self.plugged)

    def unplug(self) -> Device:
        """The first device."""
        device = self.plugged.pop(0)
        for stream in self.streams:
            if stream.device is device:
                stream.dead = True
                if self.host_tells:
                    stream.finished()
        return device

    def plug(self, device: Device) -> None:
        self.plugged.insert(0, device)

    def is_lost(self) -> bool:
        """Whether the next block is dropped."""
        return self._random.random() < self.dropped

    def lateness_s(self) -> float:
        return self._random.uniform(0, self.late_s)

    def _act(self) -> None:
        when_s, _, action = heapq.heappop(self._actions)
        self.now_s = max(self.now_s, when_s)
        action()


class Stream:
    """Hands over a block each time that blocksize frames have passed."""

    def __init__(self, world: World, device: Device, *, blocksize: int, callback: Any, finished_callback: Any) -> None:
        self.device, self.finished = device, finished_callback
        self.dead = False  # for good, though its device may come back
        self._world, self._frames, self._callback = world, blocksize, callback
        self._overflow = False
        self._descriptor = os.open(os.devnull, os.O_RDONLY)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._done.wait)
        self._thread.start()
        world.streams.append(self)

    def start(self) -> None:
        if self.device.busy:
            raise PortAudioError("Device unavailable [PaErrorCode -9985]")
        self._first_s = self._world.now_s
        self._handed = 0
        self._next()

    def close(self, ignore_errors: bool = True) -> None:
        self._world.streams.remove(self)
        self._done.set()
        self._thread.join()
        os.close(self._descriptor)
        self.finished()

    def _next(self) -> None:
        self._handed += self._frames
        due_s = self._first_s + self._handed / (self.device.rate_hz * self._world.speed)
        self._world.at(due_s + self._world.lateness_s(), lambda: self._hand_over(due_s))

    def _hand_over(self, due_s: float) -> None:
        if self not in self._world.streams or self.dead:
            return
        if self._world.is_lost():
            self._overflow = True
            self._world.dropped_frames += self._frames
        elif not self.device.mute:
            rate = self.device.rate_hz
            first = round(self._first_s * rate) + self._handed - self._frames
            samples = self._world.sound(np.arange(first, first + self._frames), rate)
            self._world.last_heard_s = due_s
            self._callback(samples.reshape(-1, 1), self._frames, None, Status(self._overflow))
            self._overflow = False
        self._next()


class Backend:
    """As the module sounddevice, which lists devices only when PortAudio begins."""

    PortAudioError = PortAudioError

    def __init__(self, world: World) -> None:
        self._world = world
        self._running = False
        self._initialize()

    def _initialize(self) -> None:
        self._running, self._listed = True, list(self._world.plugged)

    def _terminate(self) -> None:
        if self._world.streams:
            raise AssertionError("PortAudio ends under an open stream")
        if not self._running:
            raise PortAudioError("PortAudio not initialized [PaErrorCode -10000]")
        self._running = False
        self._world.attempts_s.append(self._world.now_s)

    def query_devices(self, kind: str | None = None) -> Any:
        listed = [
            {
                "index": index,
                "name": device.name,
                "max_input_channels": device.channels,
                "default_samplerate": float(device.rate_hz),
            }
            for index, device in enumerate(self._listed)
        ]
        if kind is None:
            return listed
        hearing = [each for each in listed if each["max_input_channels"]]
        if not hearing:
            raise PortAudioError("Error querying device -1")
        return hearing[0]

    def InputStream(self, *, device: int, samplerate: float, channels: int, dtype: str, **rest: Any) -> Stream:
        chosen = self._listed[device]
        if chosen not in self._world.plugged:
            raise PortAudioError("No such device [PaErrorCode -9996]")
        if (samplerate, channels, dtype) != (chosen.rate_hz, 1, "float32"):
            raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")
        return Stream(self._world, chosen, **rest)
