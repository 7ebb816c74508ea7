"""The one adapter over sounddevice: which microphones there are, and opening one. What they hear is not its business.

A backend is the module sounddevice, or an object with the same InputStream, query_devices, PortAudioError, _initialize
and _terminate.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from edgemem.runtime.capture.sources.resampler import RATES_HZ
from edgemem.runtime.errors import DeviceError, shown

_CARD = re.compile(r" *\(hw:\d+,\d+\)$")  # ALSA numbers cards anew when they are plugged in again
_LIST = "edgemem listen --list"


@dataclass(frozen=True)
class MicrophoneInfo:
    """index: PortAudio's, until devices come or go. rate_hz: the device's own. default: the one that `mic` opens."""

    index: int
    name: str
    channels: int
    rate_hz: int
    default: bool


def sounddevice() -> Any:
    """The module. Raises DeviceError where it or PortAudio is missing."""
    try:
        import sounddevice as module
    except ImportError as missing:
        do = 'pip install "edgemem-runtime[capture]"'
        raise DeviceError("a microphone needs sounddevice, which is not installed", got=missing, do=do) from missing
    except OSError as missing:
        do = "apt install libportaudio2"
        raise DeviceError("a microphone needs PortAudio, which is not installed", got=missing, do=do) from missing
    return module


def list_microphones(backend: Any = None) -> tuple[MicrophoneInfo, ...]:
    """Every input device. Raises DeviceError where sounddevice or PortAudio is missing or fails."""
    backend = backend or sounddevice()
    try:
        devices = list(backend.query_devices())
    except (backend.PortAudioError, ValueError) as problem:
        raise DeviceError("the microphones cannot be listed", got=problem) from problem
    default = _default_index(backend)
    return tuple(
        MicrophoneInfo(
            index=int(device["index"]),
            name=_printable(str(device["name"])),
            channels=int(device["max_input_channels"]),
            rate_hz=round(device["default_samplerate"]),
            default=device["index"] == default,
        )
        for device in devices
        if device["max_input_channels"] > 0
    )


def find(microphones: tuple[MicrophoneInfo, ...], wanted: str | None) -> MicrophoneInfo:
    """wanted: an index, a name or a part of it, or None for the default. Raises DeviceError unless exactly one fits."""
    if wanted is None:
        fitting = [each for each in microphones if each.default]
    elif wanted.isdecimal():
        fitting = [each for each in microphones if each.index == int(wanted)]
    else:
        fitting = _named(microphones, wanted)
    if len(fitting) == 1:
        return fitting[0]
    listed = "; ".join(f"{each.index} {each.name}" for each in fitting or microphones) or "none"
    raise DeviceError(
        "no microphone is there" if not microphones else "no such microphone" if not fitting else "which microphone?",
        where="the default" if wanted is None else shown(wanted),
        got=f"these: {listed}",
        wanted="one",
        do=f"see {_LIST}; in a container pass /dev/snd in" if not microphones else f"see {_LIST}",
    )


def open_stream(
    backend: Any,
    microphone: MicrophoneInfo,
    block_frames: int,
    callback: Callable[..., None],
    finished: Callable[[], None],
) -> Any:
    """A running stream of one channel, float32. Raises DeviceError, and leaves nothing open then."""
    if not RATES_HZ[0] <= microphone.rate_hz <= RATES_HZ[1]:
        raise DeviceError("a microphone of a strange rate", where=microphone.name, got=f"{microphone.rate_hz} Hz")
    stream = None
    try:
        stream = backend.InputStream(
            device=microphone.index,
            channels=1,
            samplerate=microphone.rate_hz,
            blocksize=block_frames,
            dtype="float32",
            callback=callback,
            finished_callback=finished,
        )
        stream.start()
    except (backend.PortAudioError, ValueError) as problem:
        if stream is not None:
            stream.close()
        do = "close what else uses it, and see that this user may (group audio)"
        raise DeviceError("the microphone cannot be opened", where=microphone.name, got=problem, do=do) from problem
    return stream


def look_again(backend: Any) -> None:
    """Let PortAudio see what was plugged in since: it lists devices only when it begins.

    Every stream of this process must be closed. Raises DeviceError.
    """
    with suppress(backend.PortAudioError):  # it had not begun
        backend._terminate()
    try:
        backend._initialize()
    except backend.PortAudioError as problem:
        raise DeviceError("PortAudio cannot begin", got=problem) from problem


def _default_index(backend: Any) -> int | None:
    try:
        return int(backend.query_devices(kind="input")["index"])
    except (backend.PortAudioError, ValueError):  # there is none
        return None


def _named(microphones: tuple[MicrophoneInfo, ...], wanted: str) -> list[MicrophoneInfo]:
    """The most exact reading that fits any."""
    readings: tuple[Callable[[str], bool], ...] = (
        lambda name: name == wanted,
        lambda name: _CARD.sub("", name) == _CARD.sub("", wanted),
        lambda name: wanted.casefold() in name.casefold(),
    )
    for fits in readings:
        if fitting := [each for each in microphones if fits(each.name)]:
            return fitting
    return []


def _printable(name: str) -> str:
    """Names come from the devices themselves."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:80]
