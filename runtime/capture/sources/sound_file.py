"""A sound file as an audio source: the one adapter over soundfile. It reads block by block and writes nothing."""

from __future__ import annotations

import math
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemem.runtime.capture.audio import Piece, Samples
from edgemem.runtime.capture.sources.pacing import Pace
from edgemem.runtime.capture.sources.resampler import MOST_CHANNELS, RATES_HZ, mono, resampled
from edgemem.runtime.errors import EngineError, FileError

if TYPE_CHECKING:
    import soundfile

_BLOCK_S = 0.1
_UNKNOWN_FRAMES = (1 << 63) - 1  # what libsndfile gives for a FLAC that was written to a pipe
_READABLE = "a WAV, FLAC, OGG or MP3 file, or another that libsndfile reads"


class SoundFile:
    """What libsndfile reads, its channels mixed to one, at `speed` times real time (None: as fast as it is taken).

    Opening checks the header; every walk over pieces() reads from the beginning. Raises FileError for a file that is
    missing, no sound, empty or of a strange format; pieces() for one that turns out damaged, or shorter than it says
    (a WAV or AIFF file that was cut short just ends where it ends, as one that is still being written does).
    seconds: as the header says, infinite where it does not.
    """

    def __init__(self, path: Path, *, speed: float | None = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = str(path)
        self._path, self._pace = path, Pace(speed, clock)
        self._closed = threading.Event()
        with _opened(path) as sound:
            known = sound.frames < _UNKNOWN_FRAMES
            self.seconds = sound.frames / sound.samplerate if known else math.inf

    def pieces(self) -> Iterator[Piece]:
        with _opened(self._path) as sound:
            blocks = resampled(self._chunks(sound), sound.samplerate)
            yield from self._pace.play(blocks, self._closed.wait)

    def close(self) -> None:
        self._closed.set()

    def _chunks(self, sound: soundfile.SoundFile) -> Iterator[Samples]:
        import soundfile

        at = 0
        while not self._closed.is_set():
            try:
                frames = sound.read(int(sound.samplerate * _BLOCK_S), dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as problem:
                raise _ends_early(self._path, at, sound) from problem
            if len(frames) == 0:
                break
            at += len(frames)
            yield mono(frames)
        if at < sound.frames < _UNKNOWN_FRAMES and not self._closed.is_set():
            raise _ends_early(self._path, at, sound)


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """The file, open, with a header that can be believed."""
    library = _soundfile()
    with _descriptor(path) as descriptor:
        try:
            # By descriptor the content alone decides what it is, never the name's ending.
            sound = _read_forwards(library)(descriptor, closefd=False)
        except library.LibsndfileError as problem:
            got = problem.error_string
            raise FileError("this is no sound file", where=path, got=got, wanted=_READABLE) from problem
        with sound:
            _check(path, sound)
            yield sound


@contextmanager
def _descriptor(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as problem:
        raise FileError("the sound file cannot be opened", where=path, got=problem) from problem
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileError("this is no sound file", where=path, got="a folder, pipe or device", wanted=_READABLE)
        yield descriptor
    finally:
        os.close(descriptor)


def _check(path: Path, sound: soundfile.SoundFile) -> None:
    if not RATES_HZ[0] <= sound.samplerate <= RATES_HZ[1]:
        wanted = f"{RATES_HZ[0]} to {RATES_HZ[1]}"
        raise FileError("a sound file of a strange rate", where=path, got=f"{sound.samplerate} Hz", wanted=wanted)
    if not 1 <= sound.channels <= MOST_CHANNELS:
        raise FileError("too many channels", where=path, got=sound.channels, wanted=f"1 to {MOST_CHANNELS}")
    if sound.frames <= 0:
        do = "copy or convert it again"
        raise FileError("the sound file is empty or cut short", where=path, got="no samples after the header", do=do)


def _ends_early(path: Path, at: int, sound: soundfile.SoundFile) -> FileError:
    return FileError(
        "the sound file is damaged or cut short",
        where=f"{path}, after {at / sound.samplerate:.1f} s",
        got=f"{at} frames",
        wanted=f"{sound.frames}, as its header says" if sound.frames < _UNKNOWN_FRAMES else "what its header says",
        do="copy or convert it again",
    )


@cache
def _read_forwards(library: Any) -> Any:
    """The class soundfile.SoundFile without its seeking after every read, which distorts what follows in an MP3."""

    class Forwards(library.SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False

    return Forwards


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as missing:  # OSError: the module is there and libsndfile is not
        raise EngineError(
            "sound files need soundfile, which cannot be imported",
            got=missing,
            do='pip install "edgemem-runtime[capture]"',
        ) from missing
    return soundfile
