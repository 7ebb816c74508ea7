"""Windows: where they lie, what they hold, and which are flawed. No float makes framing fail."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgemem.runtime.capture.audio import HOP_SAMPLES, RATE_HZ, WINDOW_SAMPLES, Block, Gap, Lost, Piece, Samples, Window
from edgemem.runtime.capture.flaws import SILENT_DB, clipped_share, flaw_of, level_db
from edgemem.runtime.capture.sources.resampler import resampled
from edgemem.runtime.capture.windows import FILL_SAMPLES, REST_SAMPLES, Framer
from edgemem.runtime.errors import DeviceError


def noise(count: int, seed: int = 0) -> Samples:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, count).astype(np.float32)


def tone(amplitude: float, rate_hz: int = RATE_HZ, seconds: float = 2.0, hertz: float = 440.0) -> Samples:
    at_s = np.arange(round(seconds * rate_hz)) / rate_hz
    return np.asarray(amplitude * np.sin(2 * np.pi * hertz * at_s), np.float32)


def pieces_of(*parts: Samples | int | str) -> list[Piece]:
    """Samples, gaps of so many, and losses, one after the other."""
    pieces: list[Piece] = []
    end = 0
    for part in parts:
        if isinstance(part, str):
            pieces.append(Lost(end, part))
        elif isinstance(part, int):
            pieces.append(Gap(end, part, "overflow"))
            end += part
        else:
            pieces.append(Block(part, end))
            end += len(part)
    return pieces


def windows_of(*parts: Samples | int | str) -> list[Window]:
    return list(Framer().windows(pieces_of(*parts)))


def test_a_window_ends_every_hop_and_holds_what_lies_there() -> None:
    sound = noise(WINDOW_SAMPLES + 3 * HOP_SAMPLES)
    windows = windows_of(sound)
    assert [window.end for window in windows] == [WINDOW_SAMPLES + hop * HOP_SAMPLES for hop in range(4)]
    for window in windows:
        assert np.array_equal(window.samples, sound[window.end - WINDOW_SAMPLES : window.end])
        assert window.flaw is None
    assert windows[1].end_s == pytest.approx(0.975 + 0.48)


@given(cuts=st.lists(st.integers(0, 40_000), max_size=20))
def test_it_does_not_matter_how_sound_is_cut_into_blocks(cuts: list[int]) -> None:
    sound = noise(40_000)
    whole, cut = windows_of(sound), windows_of(*np.split(sound, sorted(cuts)))
    assert [window.end for window in cut] == [window.end for window in whole]
    assert all(np.array_equal(one.samples, other.samples) for one, other in zip(cut, whole, strict=True))


@pytest.mark.parametrize("samples", [REST_SAMPLES, RATE_HZ // 2, WINDOW_SAMPLES - 1])
def test_a_short_clip_is_heard_once_with_zeros_after_it(samples: int) -> None:
    sound = noise(samples)
    (window,) = windows_of(sound)
    assert (window.end, window.flaw) == (samples, None)
    assert np.array_equal(window.samples, np.concatenate((sound, np.zeros(WINDOW_SAMPLES - samples, np.float32))))


def test_less_than_can_be_told_from_a_click_is_not_heard() -> None:
    assert windows_of(noise(REST_SAMPLES - 1)) == []
    assert windows_of() == []


@pytest.mark.parametrize(("rest", "windows"), [(0, 1), (REST_SAMPLES - 1, 1), (REST_SAMPLES, 2), (HOP_SAMPLES - 1, 2)])
def test_the_end_of_a_file_is_heard_in_a_window_that_ends_there(rest: int, windows: int) -> None:
    sound = noise(WINDOW_SAMPLES + rest)
    heard = windows_of(sound)
    assert len(heard) == windows
    if windows == 2:
        assert heard[1].end == len(sound)
        assert np.array_equal(heard[1].samples, sound[-WINDOW_SAMPLES:])


def test_a_short_gap_is_filled_and_two_are_a_flaw() -> None:
    one, two, three = noise(5_000), noise(5_000, 1), noise(20_000, 2)
    first, *later = windows_of(one, FILL_SAMPLES, two, 1, three)
    assert np.array_equal(first.samples[:5_000], one)
    assert np.array_equal(first.samples[5_000:6_600], one[:-1_601:-1])
    assert np.array_equal(first.samples[6_600:11_600], two)
    assert first.flaw == "gap"  # 1,601 samples of it were never heard
    assert [window.flaw for window in later] == [None] * len(later)
    assert [window.end for window in later] == [WINDOW_SAMPLES + HOP_SAMPLES, WINDOW_SAMPLES + 2 * HOP_SAMPLES]


def test_what_fills_a_gap_is_judged_like_the_sound_it_repeats() -> None:
    before = noise(HOP_SAMPLES)
    before[-1] = np.nan
    first, second, third = windows_of(before, 100, noise(WINDOW_SAMPLES + HOP_SAMPLES, 1))
    assert (first.flaw, second.flaw, third.flaw) == ("not finite", "not finite", None)
    assert np.isnan(second.samples).sum() == 1  # of the fill alone
    assert windows_of(noise(3), 100, noise(WINDOW_SAMPLES))[0].flaw is None


def test_a_long_gap_begins_anew_and_what_was_left_before_it_is_heard() -> None:
    before, after = noise(WINDOW_SAMPLES + 3_000), noise(WINDOW_SAMPLES, 1)
    first, rest, second = windows_of(before, FILL_SAMPLES + 1, after)
    assert (first.end, rest.end) == (WINDOW_SAMPLES, len(before))
    assert np.array_equal(rest.samples, before[-WINDOW_SAMPLES:])
    assert second.end == len(before) + FILL_SAMPLES + 1 + WINDOW_SAMPLES
    assert np.array_equal(second.samples, after)
    assert {first.flaw, rest.flaw, second.flaw} == {None}


def test_a_lost_device_lets_the_rest_be_heard_at_once() -> None:
    framer = Framer()
    heard = [window for piece in pieces_of(noise(WINDOW_SAMPLES - 1), "pulled out") for window in framer.push(piece)]
    assert [window.end for window in heard] == [WINDOW_SAMPLES - 1]
    assert list(framer.push(Gap(WINDOW_SAMPLES - 1, 400, "device lost"))) == []
    assert list(framer.finish()) == []


def test_scraps_between_gaps_are_flawed() -> None:
    scraps = [part for seed in range(5) for part in (noise(WINDOW_SAMPLES // 2 - 1, seed), 5_000)]
    assert [window.flaw for window in windows_of(*scraps)] == ["gap"] * 5


def test_pieces_that_do_not_follow_each_other_are_refused() -> None:
    framer = Framer()
    list(framer.push(Block(noise(100), 0)))
    for start in (99, 101):
        with pytest.raises(DeviceError, match="do not follow"):
            list(framer.push(Block(noise(100), start)))


def _with(value: float, places: int = 1) -> Samples:
    sound = noise(WINDOW_SAMPLES)
    sound[1000 : 1000 + places] = value
    return sound


@pytest.mark.parametrize(
    ("sound", "flaw"),
    [
        (noise(WINDOW_SAMPLES), None),
        (_with(np.nan), "not finite"),
        (_with(np.inf), "not finite"),
        (_with(-np.inf), "not finite"),
        (_with(3e38), "out of range"),
        (_with(-9.0), "out of range"),
        (_with(1.0, 300), None),  # a knock
        (_with(-1.0, 800), "clipped"),
        (np.zeros(WINDOW_SAMPLES, np.float32), "constant"),
        (np.full(WINDOW_SAMPLES, -0.3, np.float32), "constant"),
        (np.where(noise(WINDOW_SAMPLES) > 0, 1 / 32768, 0.0).astype(np.float32), None),  # as quiet as 16 bits can be
        (tone(0.999), None),
        (np.sign(tone(1.0)), "clipped"),
        (np.clip(tone(1.5), -1, 1), "clipped"),
    ],
)
def test_what_is_a_flaw_and_what_is_not(sound: Samples, flaw: str | None) -> None:
    assert flaw_of(sound) == flaw
    assert windows_of(sound)[0].flaw == flaw


def test_a_flaw_passes_when_it_is_out_of_the_window() -> None:
    sound = noise(WINDOW_SAMPLES + 3 * HOP_SAMPLES)
    sound[HOP_SAMPLES - 1] = np.nan
    assert [window.flaw for window in windows_of(sound)] == ["not finite", None, None, None]


@pytest.mark.parametrize("rate_hz", [44_100, 48_000])
def test_clipping_and_a_dead_microphone_are_seen_through_the_resampler(rate_hz: int) -> None:
    for sound, flaw in (
        (np.clip(tone(2.0, rate_hz), -1, 1), "clipped"),
        (tone(0.9, rate_hz), None),
        (np.full(2 * rate_hz, 0.25, np.float32), "constant"),
    ):
        blocks = list(resampled(np.array_split(sound, 40), rate_hz))
        middle = list(Framer().windows(blocks))[1]
        assert middle.flaw == flaw


@pytest.mark.parametrize("amplitude", [1.0, 0.5, 0.01])
def test_the_level_of_a_tone(amplitude: float) -> None:
    assert level_db(tone(amplitude)) == pytest.approx(20 * np.log10(amplitude / np.sqrt(2)), abs=0.01)


def test_the_level_of_nothing() -> None:
    for sound in (np.zeros(0), np.zeros(9), np.full(9, np.nan), np.full(9, 1e-30)):
        assert level_db(sound.astype(np.float32)) == SILENT_DB


def test_the_clipped_share_counts_runs_of_three() -> None:
    assert clipped_share(np.array([1, 1, 0, -1, 1, 1, 0, 0, 1, 0], np.float32)) == pytest.approx(0.3)
    assert clipped_share(np.ones(10, np.float32)) == 1.0


_anything = arrays(
    np.float32, st.integers(0, 3 * WINDOW_SAMPLES), elements=st.floats(width=32), fill=st.floats(width=32)
)


@given(st.lists(_anything | st.integers(0, 4_000) | st.just("lost"), max_size=6))
def test_no_float_is_too_much(parts: list[Samples | int | str]) -> None:
    end = 0
    for window in windows_of(*parts):
        assert window.samples.shape == (WINDOW_SAMPLES,)
        assert window.samples.dtype == np.float32
        assert window.end > end
        end = window.end
        assert level_db(window.samples) >= SILENT_DB
        if window.flaw is None:
            assert np.isfinite(window.samples).all()
            assert np.abs(window.samples).max() <= 8
            assert window.samples.std() > 0
