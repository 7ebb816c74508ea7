"""A microphone as an audio source that outlives its device: lost, waited for, found again, with the time between told.

The callback's thread only fills an inbox; everything else happens in the thread that walks over pieces().
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from edgemem.runtime.capture.audio import Lost, Piece
from edgemem.runtime.capture.backoff import FIRST_S, Backoff
from edgemem.runtime.capture.sources.arrivals import Inbox, TimeLine
from edgemem.runtime.capture.sources.portaudio import find, list_microphones, look_again, open_stream, sounddevice
from edgemem.runtime.errors import DeviceError

_BLOCK_S = 0.05
_INBOX_S = 10.0  # what may wait for a slow listener; more is dropped, and told
_SILENT_S = 2.0  # without a block so long, a device is lost: some hosts say nothing when it is pulled out
_POLL_S = 0.25

Wait = Callable[[threading.Event, float], bool]


def sound_cards() -> frozenset[str]:
    """What the system has to hear and speak with, cheap enough to ask twice a second; empty where it cannot say."""
    try:
        return frozenset(os.listdir("/dev/snd"))
    except OSError:
        return frozenset()


class Microphone:
    """The default microphone, or `wanted`: an index of list_microphones(), a name or a part of one.

    pieces() raises DeviceError where it cannot be opened the first time. Once lost it is tried again after 0.5 s, then
    after twice as long each time up to 30 s, and at once when the system's cards change. Looking again closes every
    PortAudio stream of this process, so that no other part of it may use sounddevice meanwhile.

    clock: monotonic, in seconds. wait(event, seconds): as threading.Event.wait. backend: in place of sounddevice.
    """

    def __init__(
        self,
        wanted: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Wait = threading.Event.wait,
        cards: Callable[[], frozenset[str]] = sound_cards,
        backend: Any = None,
    ) -> None:
        self._backend = backend or sounddevice()
        self._clock, self._wait, self._cards = clock, wait, cards
        found = find(list_microphones(self._backend), wanted)
        self.name = f"microphone {found.name}"
        # By name from here on, as indices change when devices come and go; the default stays whatever it is then.
        self._wanted = wanted and found.name
        self._closed, self._stirred = threading.Event(), threading.Event()
        self._stream: Any = None
        self._inbox = self._new_inbox()
        self._line = TimeLine()

    def pieces(self) -> Iterator[Piece]:
        try:
            self._open()
            if not self._sounds() and not self._closed.is_set():
                raise DeviceError("the microphone gives no sound", where=self.name, got=f"nothing in {_SILENT_S:g} s")
            while not self._closed.is_set():
                yield from self._heard()
                if self._closed.is_set():
                    return
                reason = "the stream stopped" if self._inbox.ended else f"no block in {_SILENT_S:g} s"
                self._stop()
                yield from self._line.lose()
                yield Lost(self._line.end, reason)
                self._open_again()
        finally:
            self._stop()

    def close(self) -> None:
        self._closed.set()
        self._stirred.set()

    def _heard(self) -> Iterator[Piece]:
        """Until the device is lost or this source closed."""
        while not self._closed.is_set():
            if arrival := self._inbox.take():
                yield from self._line.place(arrival)
            elif self._inbox.ended or self._is_silent():
                return

    def _is_silent(self) -> bool:
        """Wait for a block; whether the last one is long ago."""
        return not self._stir(_POLL_S) and self._clock() - self._inbox.last_at_s > _SILENT_S

    def _open_again(self) -> None:
        """Until the device sounds or this source is closed."""
        backoff, cards = Backoff(), self._cards()
        while not self._closed.is_set():
            before, cards = cards, self._rest(backoff.failed(), cards)
            if cards != before:
                backoff.worked()
            try:
                look_again(self._backend)
                self._open()
            except DeviceError:
                continue
            if self._sounds():
                return
            self._stop()

    def _rest(self, seconds: float, cards: frozenset[str]) -> frozenset[str]:
        """Wait, or until the system's cards are others than these; which they are now."""
        until_s = self._clock() + seconds
        while (now := self._cards()) == cards and not self._closed.is_set():
            left_s = until_s - self._clock()
            if left_s <= 0:
                break
            self._stir(min(left_s, FIRST_S))
        return now

    def _open(self) -> None:
        microphone = find(list_microphones(self._backend), self._wanted)
        inbox = self._new_inbox()

        def heard(samples: Any, frames: int, when: object, status: Any) -> None:
            inbox.put(samples[:, 0].copy(), self._clock(), bool(status.input_overflow))

        self._line.begin(microphone.rate_hz)
        self._stream = open_stream(self._backend, microphone, round(microphone.rate_hz * _BLOCK_S), heard, inbox.end)
        self._inbox = inbox

    def _new_inbox(self) -> Inbox:
        return Inbox(round(_INBOX_S / _BLOCK_S), self._clock(), self._stirred)

    def _sounds(self) -> bool:
        """Whether a first block comes."""
        until_s = self._clock() + _SILENT_S
        while not (self._inbox.heard or self._inbox.ended or self._closed.is_set()):
            if not self._stir(_POLL_S) and self._clock() > until_s:
                break
        return self._inbox.heard

    def _stir(self, seconds: float) -> bool:
        """Wait for a block, an end or close(), at most so long; whether one came."""
        stirred = self._wait(self._stirred, seconds)
        self._stirred.clear()
        return stirred

    def _stop(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.close()
