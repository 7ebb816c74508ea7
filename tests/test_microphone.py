"""A microphone in a simulated world: pulled out, busy, silent, overflowing. Every sample is placed or in a gap."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from leftovers import descriptors, threads
from numpy.typing import NDArray
from simulated_sounddevice import Device, World, number_error

from edgemem.runtime.capture.audio import RATE_HZ, Block, Gap, Lost, Piece
from edgemem.runtime.capture.sources.microphone import Microphone, sound_cards
from edgemem.runtime.capture.sources.opening import open_source
from edgemem.runtime.capture.sources.portaudio import list_microphones, look_again
from edgemem.runtime.errors import DeviceError, SettingsError

FRAME = 800  # samples of one block of 0.05 s


def microphone(world: World, wanted: str | None = None) -> Microphone:
    return Microphone(wanted, clock=world.clock, wait=world.wait, cards=world.cards, backend=world.backend)


def without_holes(pieces: Iterator[Piece]) -> Iterator[Piece]:
    end = 0
    for piece in pieces:
        assert piece.start == end
        end += 0 if isinstance(piece, Lost) else piece.end - piece.start
        yield piece


def heard_for(world: World, seconds: float, source: Microphone | None = None) -> list[Piece]:
    """Everything until the world's clock is so much further, and the source closed."""
    source = source or microphone(world)
    until_s = world.now_s + seconds
    pieces = []
    for piece in without_holes(source.pieces()):
        pieces.append(piece)
        if world.now_s >= until_s:
            source.close()
    assert not world.streams
    return pieces


def samples_of(pieces: list[Piece]) -> int:
    return sum(piece.end - piece.start for piece in pieces if not isinstance(piece, Lost))


def test_an_hour_with_dropped_blocks_adds_up_whatever_the_wall_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 % of the blocks are lost, callbacks come up to 20 ms late, and the wall clock jumps by a day back and forth."""
    days = iter(range(1_000_000_000))
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + (-1) ** next(days) * 86_400.0)
    world = World(dropped=0.01, late_s=0.02)
    began_s = world.now_s
    pieces = heard_for(world, 3600)
    blocks = [piece for piece in pieces if isinstance(piece, Block)]
    gaps = [piece for piece in pieces if isinstance(piece, Gap)]
    assert 600 < len(gaps) < 800
    assert {gap.reason for gap in gaps} == {"overflow"}
    assert sum(len(block.samples) for block in blocks) + sum(gap.samples for gap in gaps) == pieces[-1].end
    assert abs(pieces[-1].end - (world.last_heard_s - began_s) * RATE_HZ) <= FRAME
    first = round(began_s * RATE_HZ)
    assert max(number_error(first + block.start, block.samples[0]) for block in blocks) <= FRAME


@pytest.mark.parametrize("rate_hz", [44_100, 48_000])
def test_ten_minutes_add_up_at_the_rates_of_real_devices(rate_hz: int) -> None:
    world = World(dropped=0.01, late_s=0.02, plugged=[Device("usb", rate_hz)])
    began_s = world.now_s
    pieces = heard_for(world, 600)
    assert sum(isinstance(piece, Gap) for piece in pieces) > 50
    assert abs(samples_of(pieces) - (world.last_heard_s - began_s) * RATE_HZ) <= FRAME + RATE_HZ // 10


@pytest.mark.parametrize("speed", [1.0002, 0.9998])
def test_gaps_take_up_the_drift_of_a_device_whose_clock_runs_fast_or_slow(speed: float) -> None:
    world = World(dropped=0.01, late_s=0.01, speed=speed)
    began_s = world.now_s
    pieces = heard_for(world, 1200)
    assert abs(samples_of(pieces) - (world.last_heard_s - began_s) * RATE_HZ) <= FRAME


def test_a_thousand_times_pulled_out_and_plugged_in() -> None:
    """Each time: lost once, a gap of the time it took, back within 2 s, nothing left open."""
    world = World()
    source = microphone(world)
    began_s, seed, device = world.now_s, random.Random(2), world.plugged[0]
    plugged_s: list[float] = []

    def plug() -> None:
        world.plug(device)
        plugged_s.append(world.now_s)

    def unplug() -> None:
        world.host_tells = seed.random() < 0.8
        world.unplug()
        world.at(world.now_s + seed.choice((0.01, 0.4, 1.0, 10.0, 100.0)), plug)

    others = threads()
    pieces = without_holes(source.pieces())
    next(pieces)
    running, is_open = len(threads() - others), descriptors()
    for cycle in range(1000):
        world.at(world.now_s + seed.uniform(0.01, 1.0), unplug)
        assert isinstance(next(piece for piece in pieces if not isinstance(piece, Block)), Lost)
        lost_s = world.now_s
        gap, block = next(pieces), next(pieces)
        assert isinstance(gap, Gap)
        assert gap.reason == "device lost"
        assert isinstance(block, Block)
        assert len(plugged_s) == cycle + 1
        assert world.now_s - max(lost_s, plugged_s[-1]) < 2.0
        assert abs(block.end - (world.now_s - began_s) * RATE_HZ) <= FRAME
    assert len(threads() - others) == running
    assert not descriptors() - is_open
    source.close()
    assert not any(isinstance(piece, Lost) for piece in pieces)
    assert not world.streams


def test_a_device_that_is_away_is_tried_again_ever_more_seldom() -> None:
    world = World()
    source = Microphone(clock=world.clock, wait=world.wait, cards=frozenset, backend=world.backend)
    began_s = world.now_s
    world.at(began_s + 10, world.unplug)
    world.at(began_s + 210, lambda: world.plug(Device("built-in")))
    pieces = heard_for(world, 300, source)
    tried_s = [when_s - began_s - 10 for when_s in world.attempts_s]
    assert tried_s == pytest.approx([0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5, 121.5, 151.5, 181.5, 211.5], abs=0.3)
    assert [type(piece) for piece in pieces if not isinstance(piece, Block)] == [Lost, Gap]
    assert abs(samples_of(pieces) - 300 * RATE_HZ) <= FRAME


def test_a_device_that_comes_back_busy_is_waited_for_and_told_of_once() -> None:
    world = World()
    began_s, device = world.now_s, world.plugged[0]

    def plug_busy() -> None:
        device.busy = True
        world.plug(device)

    world.at(began_s + 10, world.unplug)
    world.at(began_s + 12, plug_busy)
    world.at(began_s + 15, lambda: setattr(device, "busy", False))
    pieces = heard_for(world, 60)
    assert [type(piece) for piece in pieces if not isinstance(piece, Block)] == [Lost, Gap]
    gap = next(piece for piece in pieces if isinstance(piece, Gap))
    assert 5.0 < gap.samples / RATE_HZ < 9.0
    assert abs(samples_of(pieces) - 60 * RATE_HZ) <= FRAME


def test_the_default_microphone_may_be_another_with_another_rate_after_a_loss() -> None:
    world = World(plugged=[Device("usb", 48_000), Device("built-in", 44_100)])
    world.at(world.now_s + 5, world.unplug)
    pieces = heard_for(world, 20)
    assert [type(piece) for piece in pieces if not isinstance(piece, Block)] == [Lost, Gap]
    assert abs(samples_of(pieces) - 20 * RATE_HZ) <= FRAME + RATE_HZ // 10


def test_a_named_microphone_is_waited_for_though_another_is_there() -> None:
    world = World(plugged=[Device("usb mic: - (hw:1,0)"), Device("built-in")])
    world.at(world.now_s + 5, world.unplug)
    world.at(world.now_s + 9, lambda: world.plug(Device("usb mic: - (hw:2,0)")))  # as ALSA numbers it then
    pieces = heard_for(world, 20, microphone(world, "USB"))
    gap = next(piece for piece in pieces if isinstance(piece, Gap))
    assert 4.0 < gap.samples / RATE_HZ < 6.0


def test_a_listener_that_is_too_slow_loses_the_newest_sound_and_is_told_how_much() -> None:
    world = World()
    source = microphone(world)
    pieces = without_holes(source.pieces())
    first = next(pieces)
    world.run(60)
    heard: list[Piece] = [first, *islice(pieces, 220)]
    gaps = [piece for piece in heard if isinstance(piece, Gap)]
    assert [gap.reason for gap in gaps] == ["not taken in time"]
    assert gaps[0].start == pytest.approx(10 * RATE_HZ, abs=2 * FRAME)  # what the inbox holds
    assert gaps[0].end == pytest.approx(60 * RATE_HZ, abs=2 * FRAME)
    source.close()


def test_blocks_that_go_missing_without_a_word_are_seen_by_the_clock() -> None:
    world = World()
    world.at(world.now_s + 5, lambda: setattr(world.plugged[0], "mute", True))
    world.at(world.now_s + 6.5, lambda: setattr(world.plugged[0], "mute", False))
    pieces = heard_for(world, 20)
    assert [type(piece) for piece in pieces if not isinstance(piece, Block)] == [Gap]
    gap = next(piece for piece in pieces if isinstance(piece, Gap))
    assert (gap.reason, round(gap.samples / FRAME)) == ("samples missing", 30)


def test_a_tone_keeps_its_pitch_and_level() -> None:
    def tone(frames: NDArray[np.int64], rate_hz: int) -> NDArray[np.float32]:
        return np.asarray(0.25 * np.sin(2 * np.pi * 1000 * frames / rate_hz), np.float32)

    world = World(sound=tone, plugged=[Device("usb", 44_100)])
    heard = np.concatenate([piece.samples for piece in heard_for(world, 3) if isinstance(piece, Block)])[1600:-1600]
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard)))) / len(heard) * 4
    assert np.argmax(spectrum) * RATE_HZ / len(heard) == pytest.approx(1000, abs=1)
    assert np.sqrt(np.mean(heard**2)) == pytest.approx(0.25 / np.sqrt(2), rel=1e-3)


@pytest.mark.parametrize(
    ("device", "says"),
    [
        (Device("desk", busy=True), "cannot be opened"),
        (Device("desk", mute=True), "gives no sound"),
        (Device("desk", rate_hz=10), "strange rate"),
        (Device("desk", rate_hz=10**9), "strange rate"),
    ],
)
def test_a_microphone_that_cannot_be_used_from_the_start_is_an_error(device: Device, says: str) -> None:
    world = World(plugged=[device])
    with pytest.raises(DeviceError, match=says) as caught:
        next(microphone(world).pieces())
    assert "desk" in str(caught.value)
    assert not world.streams


@pytest.mark.parametrize(
    ("wanted", "found"),
    [(None, 1), ("2", 2), ("usb mic (hw:1,0)", 1), ("usb mic (hw:7,0)", 1), ("CAMERA", 2), ("é", 3)],
)
def test_a_microphone_is_found_by_number_or_part_of_its_name(wanted: str | None, found: int) -> None:
    names = ("speaker", "usb mic (hw:1,0)", "camera usb", "étage")
    world = World(plugged=[Device(name, channels=0 if name == "speaker" else 1) for name in names])
    assert microphone(world, wanted).name == f"microphone {names[found]}"


@pytest.mark.parametrize(("wanted", "says"), [("usb", "which"), ("x", "no such"), ("0", "no such"), ("99", "no such")])
def test_a_microphone_that_is_not_exactly_one_is_refused_with_a_list(wanted: str, says: str) -> None:
    world = World(plugged=[Device("speaker", channels=0), Device("usb 1"), Device("usb 2")])
    with pytest.raises(DeviceError, match=says) as caught:
        microphone(world, wanted)
    assert "1 usb 1; 2 usb 2" in str(caught.value)
    assert "edgemem listen --list" in str(caught.value)


@pytest.mark.parametrize("plugged", [[], [Device("speaker", channels=0)]])
def test_no_microphone_at_all_is_a_clear_error_and_an_empty_list(plugged: list[Device]) -> None:
    world = World(plugged=plugged)
    assert list_microphones(world.backend) == ()
    with pytest.raises(DeviceError, match="no microphone is there"):
        open_source("mic", backend=world.backend)


def test_the_list_says_what_each_is_and_prints_no_control_characters() -> None:
    world = World(plugged=[Device("speaker", channels=0), Device("a\x1b[2J\nb", 48_000, 2), Device("c" * 500)])
    first, second = list_microphones(world.backend)
    assert (first.index, first.name, first.rate_hz, first.channels, first.default) == (1, "a?[2J?b", 48_000, 2, True)
    assert (second.index, len(second.name), second.default) == (2, 80, False)


def test_open_source_opens_microphones_at_their_own_speed_alone() -> None:
    world = World(plugged=[Device("built-in"), Device("usb")])
    assert open_source("mic", backend=world.backend).name == "microphone built-in"
    assert open_source("mic:usb", backend=world.backend).name == "microphone usb"
    with pytest.raises(SettingsError, match="faster"):
        open_source("mic", speed=None, backend=world.backend)


def test_closing_ends_it_from_another_thread_while_it_hears_and_while_it_waits() -> None:
    """With real events and the real clock, and a device that gives one block."""
    for gone in (False, True):
        world = World()
        source = Microphone(clock=time.monotonic, cards=world.cards, backend=world.backend)
        threading.Timer(0.05, world.run, (0.06,)).start()
        pieces = source.pieces()
        assert isinstance(next(pieces), Block)
        if gone:
            world.unplug()
            assert isinstance(next(pieces), Lost)
        threading.Timer(0.05, source.close).start()
        assert list(pieces) == []
        assert not world.streams


def test_an_abandoned_walk_closes_the_stream() -> None:
    world = World()
    pieces = microphone(world).pieces()
    next(pieces)
    assert len(world.streams) == 1
    del pieces
    assert not world.streams


def test_portaudio_that_cannot_begin_again_is_tried_again() -> None:
    world = World()
    device = world.plugged[0]
    working = world.backend._initialize

    def broken() -> NoReturn:
        raise world.backend.PortAudioError("Unanticipated host error")

    def repair() -> None:
        world.backend._initialize = working

    def pull() -> None:
        world.unplug()
        world.backend._initialize = broken

    world.at(world.now_s + 1, pull)
    world.at(world.now_s + 5, repair)
    world.at(world.now_s + 6, lambda: world.plug(device))
    pieces = heard_for(world, 20)
    assert [type(piece) for piece in pieces if not isinstance(piece, Block)] == [Lost, Gap]


def test_a_missing_library_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(DeviceError, match=r"pip install .edgemem-runtime\[capture\]"):
        open_source("mic")
    monkeypatch.delitem(sys.modules, "sounddevice")
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DeviceError, match="apt install libportaudio2"):
        list_microphones()


def test_the_real_library_begins_twice_and_lists_or_says_what_is_missing() -> None:
    try:
        import sounddevice
    except (ImportError, OSError):
        with pytest.raises(DeviceError, match="install"):
            list_microphones()
        return
    before = list_microphones()
    look_again(sounddevice)
    assert list_microphones() == before


def test_the_systems_cards_can_be_asked_for_anywhere() -> None:
    assert sound_cards() == sound_cards()
    assert all(isinstance(name, str) for name in sound_cards())
