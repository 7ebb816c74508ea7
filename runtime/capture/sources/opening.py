"""From what a user writes to an audio source: `mic`, `mic:NAME`, `-` for raw samples on standard input, or a path."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgemem.runtime.capture.audio import AudioSource
from edgemem.runtime.capture.sources.microphone import Microphone
from edgemem.runtime.capture.sources.pcm_stream import PcmFormat, PcmStream
from edgemem.runtime.capture.sources.sound_file import SoundFile
from edgemem.runtime.errors import FileError, SettingsError


def open_source(
    spec: str,
    *,
    speed: float | None = 1.0,
    pcm: PcmFormat | None = None,
    clock: Callable[[], float] = time.monotonic,
    backend: Any = None,
) -> AudioSource:
    """`mic`: the default microphone; `mic:3` or `mic:usb`: by number or by part of its name; a file named mic: `./mic`.

    speed: of what is recorded, times real time; None for as fast as it is taken. pcm: what comes on `-`, and only
    there. clock: monotonic, in seconds. backend: in place of sounddevice. Raises SettingsError, DeviceError, FileError,
    and EngineError for a library that is not installed.
    """
    if spec != "-" and pcm is not None:
        raise SettingsError("a raw format is for standard input alone", got=spec, wanted="-")
    if spec == "mic" or spec.startswith("mic:"):
        if speed != 1.0:
            raise SettingsError("a microphone cannot be played faster or slower", got=speed, wanted="speed 1.0")
        return Microphone(spec[4:] or None, clock=clock, backend=backend)
    if spec == "-":
        return _standard_input(pcm, speed, clock)
    return SoundFile(Path(spec), speed=speed, clock=clock)


def _standard_input(pcm: PcmFormat | None, speed: float | None, clock: Callable[[], float]) -> PcmStream:
    if pcm is None:
        raise SettingsError("raw samples do not say what they are", where="-", wanted="a rate, channels and encoding")
    try:
        stream = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - it lives as long as the process
    except OSError as problem:
        raise FileError("standard input cannot be read", got=problem) from problem
    if os.isatty(0):
        raise FileError("standard input is a terminal, which gives no sound", do="pipe raw samples into it")
    return PcmStream(stream, pcm, name="standard input", speed=speed, clock=clock)
