"""Raw samples on a binary stream, such as standard input: no header, so that whoever opens it says what they are."""

from __future__ import annotations

import io
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, get_args

import numpy as np

from edgemem.runtime.capture.audio import Gap, Piece, Samples
from edgemem.runtime.capture.sources.pacing import Pace
from edgemem.runtime.capture.sources.resampler import MOST_CHANNELS, RATES_HZ, mono, resampled
from edgemem.runtime.errors import FileError, SettingsError

Encoding = Literal["s16", "s32", "f32"]  # little-endian
_LAYOUTS = {"s16": ("<i2", 1 << 15), "s32": ("<i4", 1 << 31), "f32": ("<f4", 1)}  # NumPy's name, and full scale
_BLOCK_S = 0.1
_POLL_S = 0.25
_HEADER_BYTES = 4
_HEADERS = {
    b"RIFF": "WAV",
    b"RIFX": "WAV",
    b"RF64": "WAV",
    b"fLaC": "FLAC",
    b"OggS": "OGG",
    b"FORM": "AIFF",
    b"ID3": "MP3",
}


@dataclass(frozen=True)
class PcmFormat:
    """rate_hz: frames a second. channels: samples a frame, interleaved. encoding: of a sample, little-endian."""

    rate_hz: int
    channels: int
    encoding: Encoding

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("rate", self.rate_hz, *RATES_HZ),
            ("number of channels", self.channels, 1, MOST_CHANNELS),
        ):
            if type(value) is not int or not least <= value <= most:
                raise SettingsError(f"the {name} of raw sound is wrong", got=value, wanted=f"{least} to {most}")
        if self.encoding not in get_args(Encoding):
            wanted = ", ".join(get_args(Encoding))
            raise SettingsError("the encoding of raw sound is wrong", got=self.encoding, wanted=wanted)

    @property
    def frame_bytes(self) -> int:
        return self.channels * np.dtype(_LAYOUTS[self.encoding][0]).itemsize

    def decode(self, data: bytes) -> Samples:
        """Whole frames to (n,) float32, the mean of the channels, full scale being 1."""
        layout, full_scale = _LAYOUTS[self.encoding]
        frames = np.frombuffer(data, layout).reshape(-1, self.channels)
        with np.errstate(invalid="ignore"):  # a signalling NaN is one more NaN
            return mono(frames.astype(np.float32) / np.float32(full_scale))


class PcmStream:
    """Raw samples until the stream ends, at `speed` times real time (None: as fast as they come).

    A last frame that is cut short is dropped and told as a Gap of one sample. The stream is the caller's to close.
    pieces() raises FileError for a stream that is empty, cannot be read, or begins like a sound file.
    """

    def __init__(
        self,
        stream: BinaryIO | io.FileIO,
        form: PcmFormat,
        *,
        name: str = "raw sound",
        speed: float | None = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._stream, self._form, self._pace = stream, form, Pace(speed, clock)
        self._closed = threading.Event()
        self._cut_bytes = 0

    def pieces(self) -> Iterator[Piece]:
        end = 0
        for block in self._pace.play(resampled(self._chunks(), self._form.rate_hz), self._closed.wait):
            end = block.end
            yield block
        if self._cut_bytes:
            yield Gap(end, 1, f"the last frame was cut short: {self._cut_bytes} of {self._form.frame_bytes} bytes")

    def close(self) -> None:
        self._closed.set()

    def _chunks(self) -> Iterator[Samples]:
        held, begun = b"", False
        for data in self._reads():
            held += data
            if not begun and len(held) < _HEADER_BYTES:
                continue
            if not begun:
                self._refuse_header(held)
            begun = True
            whole = len(held) - len(held) % self._form.frame_bytes
            if whole:
                yield self._form.decode(held[:whole])
            held = held[whole:]
        if not begun and not self._closed.is_set():
            raise FileError("no sound came", where=self.name, got=f"a stream of {len(held)} bytes")
        self._cut_bytes = len(held)

    def _reads(self) -> Iterator[bytes]:
        """Bytes as they come; a pipe is waited for in short steps, so that close() is heeded."""
        most = max(1, int(self._form.rate_hz * _BLOCK_S)) * self._form.frame_bytes
        while not self._closed.is_set():
            try:
                if not _readable(self._stream):
                    continue
                data = self._stream.read(most)
            except (OSError, ValueError) as problem:  # ValueError: closed by its owner
                raise FileError("the stream of sound cannot be read", where=self.name, got=problem) from problem
            if data is None:  # a non-blocking stream with nothing to say yet
                self._closed.wait(_BLOCK_S)
            elif data:
                yield data
            else:
                return

    def _refuse_header(self, data: bytes) -> None:
        for header, kind in _HEADERS.items():
            if data.startswith(header):
                raise FileError(
                    "this stream is a sound file, not raw samples",
                    where=self.name,
                    got=f"the header of a {kind} file",
                    wanted=f"{self._form.encoding} samples from the first byte on",
                    do="give the file's path, or pipe without a header (arecord -t raw, ffmpeg -f s16le)",
                )


def _readable(stream: BinaryIO | io.FileIO) -> bool:
    """Whether reading will not wait. Of streams with a buffer only the reading itself can tell."""
    return not isinstance(stream, io.FileIO) or bool(select.select([stream], [], [], _POLL_S)[0])
