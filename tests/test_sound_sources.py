"""Sound files and raw streams: what is declared is what is heard, at its pitch and level; all else is refused."""

from __future__ import annotations

import io
import math
import os
import struct
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from leftovers import descriptors
from numpy.typing import NDArray

from edgemem.runtime.capture.audio import RATE_HZ, AudioSource, Block, Gap, Piece, Samples
from edgemem.runtime.capture.sources.opening import open_source
from edgemem.runtime.capture.sources.pcm_stream import Encoding, PcmFormat, PcmStream
from edgemem.runtime.capture.sources.resampler import Resampler
from edgemem.runtime.capture.sources.sound_file import SoundFile
from edgemem.runtime.capture.windows import Framer
from edgemem.runtime.errors import EngineError, FileError, SettingsError

S16 = PcmFormat(RATE_HZ, 1, "s16")


def tone(rate_hz: int, channels: int = 1, seconds: float = 1.5, hertz: float = 1000.0) -> NDArray[np.float32]:
    """(frames, channels), half of full scale."""
    mono = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate_hz)) / rate_hz)
    return np.repeat(mono[:, None], channels, axis=1).astype(np.float32)


def heard(source: AudioSource) -> Samples:
    """All of it, from blocks that follow each other."""
    blocks: list[Samples] = []
    end = 0
    for piece in source.pieces():
        assert isinstance(piece, Block)
        assert piece.start == end
        assert piece.samples.dtype == np.float32
        assert piece.samples.ndim == 1
        end = piece.end
        blocks.append(piece.samples)
    return np.concatenate(blocks)


def check_tone(sound: Samples, *, seconds: float = 1.5, tolerance: float = 1e-3) -> None:
    """That it is the tone and nothing else: amplitude, frequency, place, length."""
    assert abs(len(sound) - seconds * RATE_HZ) <= 1
    wanted = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(len(sound)) / RATE_HZ)
    middle = slice(RATE_HZ // 10, -RATE_HZ // 10)
    assert np.abs(sound[middle] - wanted[middle]).max() < tolerance


@pytest.mark.parametrize(
    ("container", "encoding", "rate_hz", "channels", "tolerance"),
    [
        ("WAV", "PCM_U8", 16_000, 1, 0.01),
        ("WAV", "PCM_16", 8_000, 2, 1e-3),
        ("WAV", "PCM_16", 16_000, 1, 1e-3),
        ("WAV", "PCM_24", 22_050, 1, 1e-3),
        ("WAV", "PCM_32", 44_100, 2, 1e-3),
        ("WAV", "FLOAT", 48_000, 6, 1e-3),
        ("WAV", "DOUBLE", 96_000, 1, 1e-3),
        ("WAV", "ULAW", 8_000, 1, 0.02),
        ("FLAC", "PCM_16", 44_100, 2, 1e-3),
        ("FLAC", "PCM_24", 96_000, 6, 1e-3),
        ("AIFF", "PCM_16", 22_050, 2, 1e-3),
        ("AU", "PCM_16", 11_025, 1, 1e-3),
        ("CAF", "PCM_24", 37_001, 1, 1e-3),
        ("OGG", "VORBIS", 44_100, 2, 0.02),
        ("OGG", "OPUS", 48_000, 1, 0.05),
        ("MP3", "MPEG_LAYER_III", 44_100, 2, 0.02),
    ],
)
def test_a_tone_is_heard_at_its_pitch_and_level_in_every_format(
    tmp_path: Path, container: str, encoding: str, rate_hz: int, channels: int, tolerance: float
) -> None:
    if encoding not in soundfile.available_subtypes(container):
        pytest.skip(f"this libsndfile has no {encoding}")
    path = tmp_path / "tone.misnamed"  # what a file is called decides nothing
    soundfile.write(path, tone(rate_hz, channels), rate_hz, format=container, subtype=encoding)
    source = SoundFile(path, speed=None)
    assert source.seconds == pytest.approx(1.5, abs=1e-3)
    check_tone(heard(source), tolerance=tolerance)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(
    ("encoding", "layout", "scale"), [("s16", "<i2", 1 << 15), ("s32", "<i4", 1 << 31), ("f32", "<f4", 1)]
)
def test_a_tone_is_heard_at_its_pitch_and_level_in_raw_samples(
    encoding: Encoding, layout: str, scale: int, channels: int, rate_hz: int
) -> None:
    data = (tone(rate_hz, channels).astype(np.float64) * scale).astype(layout).tobytes()
    form = PcmFormat(rate_hz, channels, encoding)
    check_tone(heard(PcmStream(io.BytesIO(data), form, speed=None)))


def test_channels_are_mixed_to_their_mean(tmp_path: Path) -> None:
    left_alone = tone(RATE_HZ, 2) * np.array([2.0, 0.0], np.float32)
    soundfile.write(tmp_path / "left.wav", left_alone, RATE_HZ, subtype="FLOAT")
    check_tone(heard(SoundFile(tmp_path / "left.wav", speed=None)))
    check_tone(heard(PcmStream(io.BytesIO(left_alone.tobytes()), PcmFormat(RATE_HZ, 2, "f32"), speed=None)))


def _wav(rate_hz: int = RATE_HZ, channels: int = 1, frames: int = 100) -> bytes:
    data = bytes(2 * channels * frames)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate_hz, 2 * channels * rate_hz, 2 * channels, 16)
    return (
        struct.pack("<4sI4s", b"RIFF", 28 + 8 + len(data), b"WAVE")
        + form
        + struct.pack("<4sI", b"data", len(data))
        + data
    )


def _flac() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(RATE_HZ, seconds=3), RATE_HZ, format="FLAC")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no sound file"),
        (b"drawers are loud\n" * 100, "no sound file"),
        (np.random.default_rng(0).bytes(50_000), "no sound file"),
        (_wav()[:10], "no sound file"),
        (_wav()[:38], "no sound file"),
        (_flac()[:20], "no sound file"),
        (_wav(frames=0), "empty or cut short"),
        (_wav(rate_hz=100), "strange rate"),
        (_wav(rate_hz=2_000_000_000), "strange rate"),
        (_wav(channels=65), "too many channels"),
    ],
)
def test_what_is_no_sound_is_refused_at_opening(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "kitchen.wav"
    path.write_bytes(data)
    before = descriptors()
    with pytest.raises(FileError, match=says) as caught:
        open_source(str(path))
    assert "kitchen.wav" in str(caught.value)
    assert caught.value.got is not None
    assert not descriptors() - before


def test_a_file_that_is_damaged_or_cut_is_heard_so_far_and_then_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    path.write_bytes(_flac()[:-20_000])
    pieces = SoundFile(path, speed=None).pieces()
    first = [next(pieces) for _ in range(5)]
    assert first[-1].start == pytest.approx(0.4 * RATE_HZ)
    with pytest.raises(FileError, match=r"damaged or cut short \(.*cut\.flac, after \d\.\d s\)"):
        list(pieces)


def test_files_that_were_written_to_a_pipe_do_not_say_how_long_they_are(tmp_path: Path) -> None:
    flac, wav = bytearray(_flac()), bytearray(_wav(frames=3 * RATE_HZ))
    flac[21] &= 0xF0  # the 36 bits of STREAMINFO's number of samples
    flac[22:26] = bytes(4)
    wav[4:8] = wav[40:44] = b"\xff" * 4
    for name, data, seconds in (("piped.flac", flac, math.inf), ("piped.wav", wav, 3.0)):
        (tmp_path / name).write_bytes(data)
        source = SoundFile(tmp_path / name, speed=None)
        assert source.seconds == seconds
        assert len(heard(source)) == 3 * RATE_HZ


def test_folders_pipes_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (".", "pipe", "missing.wav", "a\0b"):
        with pytest.raises(FileError):
            open_source(str(tmp_path / name))


def test_a_long_file_is_never_whole_in_memory(tmp_path: Path) -> None:
    rate_hz, seconds = 48_000, 120
    with soundfile.SoundFile(tmp_path / "long.wav", "w", rate_hz, 1, "PCM_16") as file:
        for _ in range(seconds):
            file.write(tone(rate_hz, 1, 1))
    tracemalloc.start()
    total = sum(piece.end - piece.start for piece in SoundFile(tmp_path / "long.wav", speed=None).pieces())
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == seconds * RATE_HZ
    assert most_bytes < 4 << 20  # all of it is 7.3 MiB at 16 kHz, and 22 MiB before that


@dataclass
class Watch:
    """A clock that goes on only where somebody waits for it."""

    now_s: float = 500.0

    def clock(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.mark.parametrize("speed", [1.0, 4.0, 0.5])
def test_recorded_sound_comes_at_its_own_pace_or_a_multiple(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed: float
) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(48_000), 48_000)
    raw = tone(48_000).tobytes()
    for kind in ("file", "raw"):
        watch = Watch()
        source: SoundFile | PcmStream
        if kind == "file":
            source = SoundFile(tmp_path / "tone.wav", speed=speed, clock=watch.clock)
        else:
            source = PcmStream(io.BytesIO(raw), PcmFormat(48_000, 1, "f32"), speed=speed, clock=watch.clock)
        monkeypatch.setattr(source._closed, "wait", watch.wait)
        for piece in source.pieces():
            assert isinstance(piece, Block)
            assert (watch.now_s - 500) * speed == pytest.approx(piece.end / RATE_HZ, abs=1e-6)
            watch.now_s += 0.001  # a listener that takes its time, but not too much


def test_a_listener_that_was_too_slow_catches_up_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(RATE_HZ), RATE_HZ)
    watch = Watch()
    source = SoundFile(tmp_path / "tone.wav", clock=watch.clock)
    monkeypatch.setattr(source._closed, "wait", watch.wait)
    pieces = source.pieces()
    first = [next(pieces), next(pieces)]
    watch.now_s += 1.0
    assert len(_joined([*first, *pieces])) == len(tone(RATE_HZ))
    assert watch.now_s == pytest.approx(501.5)


@pytest.mark.parametrize("speed", [0, -1.0, float("nan"), float("inf"), True])
def test_a_speed_that_is_none_is_refused(tmp_path: Path, speed: float) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(RATE_HZ), RATE_HZ)
    with pytest.raises(SettingsError, match="speed"):
        open_source(str(tmp_path / "tone.wav"), speed=speed)


def test_closing_ends_a_paced_file_at_once(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(RATE_HZ, seconds=600), RATE_HZ)
    source = open_source(str(tmp_path / "tone.wav"), speed=0.01)
    threading.Timer(0.1, source.close).start()
    assert len(list(source.pieces())) < 5


def test_a_walk_begins_again_from_the_beginning(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(44_100), 44_100)
    source = open_source(str(tmp_path / "tone.wav"), speed=None)
    assert np.array_equal(heard(source), heard(source))


class Trickle(io.BytesIO):
    """Gives what it has in pieces of the sizes given, again and again, and None in between, as a slow pipe does."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        super().__init__(data)
        self._sizes, self._turn = sizes, 0

    def read(self, size: int | None = -1) -> bytes:
        self._turn += 1
        return super().read(min(size or -1, self._sizes[self._turn % len(self._sizes)]))


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=8), st.integers(0, 5), st.integers(1, 3))
def test_it_does_not_matter_how_a_stream_is_cut_into_reads(sizes: list[int], over: int, channels: int) -> None:
    """over: bytes of a last frame that is not whole."""
    form = PcmFormat(48_000, channels, "s16")
    whole = np.random.default_rng(1).integers(-20_000, 20_000, 3_000 * channels, np.int16).tobytes()
    over = min(over, form.frame_bytes - 1)
    one = list(PcmStream(io.BytesIO(whole), form, speed=None).pieces())
    other = list(PcmStream(Trickle(whole + bytes(over), sizes), form, speed=None).pieces())
    if over:
        cut = other.pop()
        assert cut == Gap(1000, 1, f"the last frame was cut short: {over} of {form.frame_bytes} bytes")
    assert np.array_equal(_joined(one), _joined(other))


def _joined(pieces: list[Piece]) -> Samples:
    return np.concatenate([piece.samples for piece in pieces if isinstance(piece, Block)])


@pytest.mark.parametrize("data", [b"", b"\1", b"\1\2\3"])
def test_a_stream_without_sound_is_refused(data: bytes) -> None:
    with pytest.raises(FileError, match="no sound came"):
        list(PcmStream(io.BytesIO(data), S16).pieces())


@pytest.mark.parametrize("data", [_wav(), _flac()])
def test_a_sound_file_is_not_heard_as_raw_samples(data: bytes) -> None:
    for stream in (io.BytesIO(data), Trickle(data, [1])):
        with pytest.raises(FileError, match="not raw samples") as caught:
            list(PcmStream(stream, S16, name="standard input").pieces())
        assert "give the file's path" in str(caught.value)


def test_a_stream_that_its_owner_closed_is_an_error() -> None:
    stream = io.BytesIO(bytes(1000))
    stream.close()
    with pytest.raises(FileError, match="cannot be read"):
        list(PcmStream(stream, S16).pieces())


def test_floats_that_are_no_sound_pass_without_a_warning() -> None:
    wild = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38] * 4_000, np.float32).tobytes()
    signalling = struct.pack("<I", 0x7FA00000) * 20_000
    for data in (wild, signalling):
        for rate_hz, channels in ((RATE_HZ, 1), (44_100, 2)):
            source = PcmStream(io.BytesIO(data), PcmFormat(rate_hz, channels, "f32"), speed=None)
            assert {window.flaw for window in Framer().windows(source.pieces())} == {"not finite"}


@pytest.mark.parametrize(
    "values",
    [
        (0, 1, "s16"),
        (3_999, 1, "s16"),
        (768_001, 1, "s16"),
        (16_000.0, 1, "s16"),
        (16_000, 0, "s16"),
        (16_000, 65, "s16"),
        (16_000, True, "s16"),
        (16_000, 1, "u8"),
        (16_000, 1, "s16be"),
    ],
)
def test_a_raw_format_that_cannot_be_is_refused(values: tuple[Any, Any, Any]) -> None:
    with pytest.raises(SettingsError, match="raw sound is wrong"):
        PcmFormat(*values)


@pytest.fixture
def standard_input() -> Iterator[int]:
    """A pipe in place of standard input; what is written into it can be read there."""
    before = os.dup(0)
    read_end, write_end = os.pipe()
    os.dup2(read_end, 0)
    os.close(read_end)
    try:
        yield write_end
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_raw_samples_come_from_standard_input(standard_input: int) -> None:
    data = (tone(48_000) * 32768).astype("<i2").tobytes()

    def feed() -> None:
        with open(standard_input, "wb") as pipe:
            pipe.write(data)

    feeder = threading.Thread(target=feed)
    feeder.start()
    check_tone(heard(open_source("-", speed=None, pcm=PcmFormat(48_000, 1, "s16"))))
    feeder.join()


def test_closing_ends_a_pipe_that_says_nothing(standard_input: int) -> None:
    source = open_source("-", pcm=S16)
    threading.Timer(0.05, source.close).start()
    assert list(source.pieces()) == []
    os.close(standard_input)


def test_standard_input_needs_a_format_and_nothing_else_takes_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="do not say what they are"):
        open_source("-")
    with pytest.raises(SettingsError, match="standard input alone"):
        open_source("kitchen.wav", pcm=S16)
    with pytest.raises(SettingsError, match="standard input alone"):
        open_source("mic", pcm=S16)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 37_001, 44_100, 96_000])
def test_a_resampler_keeps_lengths_and_begins_stretches_anew(rate_hz: int) -> None:
    resampler = Resampler(rate_hz)
    stretches = []
    for _ in range(2):
        parts = [resampler.convert(part) for part in np.array_split(tone(rate_hz)[:, 0], 29)]
        stretches.append(np.concatenate([*parts, resampler.finish()]))
    check_tone(stretches[0])
    assert np.array_equal(*stretches)


def test_a_sample_that_is_not_finite_spoils_little_of_what_is_resampled() -> None:
    sound = np.zeros(3 * 48_000, np.float32)
    sound[48_000] = np.nan
    resampler = Resampler(48_000)
    parts = [resampler.convert(part) for part in np.array_split(sound, 60)]
    spoilt = np.flatnonzero(~np.isfinite(np.concatenate([*parts, resampler.finish()])))
    assert len(spoilt) < 0.1 * RATE_HZ
    assert abs(spoilt - RATE_HZ).max() < 0.1 * RATE_HZ


@pytest.mark.parametrize("library", ["soundfile", "soxr"])
def test_a_missing_library_is_told_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(48_000), 48_000)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(EngineError, match=r"pip install .edgemem-runtime\[capture\]"):
        list(open_source(str(tmp_path / "tone.wav"), speed=None).pieces())
