"""Composed streams: what is planned, that it is seeded, and that the sound is what the plan and the ratio say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_sounds import KINDS, CrackleEar, beep, crackle, hum

from edgemem.runtime.capture.audio import RATE_HZ, Samples
from edgemem.runtime.capture.head import Head
from edgemem.runtime.errors import SettingsError
from edgemem.tools.capture_eval.hearing import hear, hear_stream, stream_keys
from edgemem.tools.capture_eval.outcome import StreamKey, window_end_s
from edgemem.tools.capture_eval.plan import CROSSFADE, LONGEST_S, SHORTEST_S, Palette, StreamPlan, palette, plan_stream
from edgemem.tools.capture_eval.settings import CLAIM_DB, QUICK, RARE, USUAL, EvalSettings, Mix
from edgemem.tools.capture_eval.sounds import FRAME, Sound, active_level, active_share, faded, level, trimmed
from edgemem.tools.capture_eval.stream import EVENT_LEVEL, ComposedStream

WEIGHTS = np.zeros(1024, np.float32)
WEIGHTS[0] = 100.0
HEAD = Head(WEIGHTS, -20.0)  # 0.5 where the sign changes in every fifth sample


def made_up() -> Palette:
    hands = [Sound(KINDS[index % 2], True, crackle(1.0 + index, index, lead_s=0.3)) for index in range(4)]
    others = [Sound("", False, hum(3.0, 100.0 + 30 * index)) for index in range(3)]
    return palette([*hands, *others, Sound("", False, beep(1.5, 500.0))])


def plan_of(seconds: float = 300.0, share: float = 0.15, seed: int = 0) -> StreamPlan:
    return plan_stream(made_up(), seconds, share, np.random.default_rng(seed))


def whole(plan: StreamPlan, snr_db: float) -> Samples:
    return np.concatenate([piece.samples for piece in ComposedStream(plan, made_up(), snr_db).pieces()])


def test_a_sound_is_trimmed_to_where_it_sounds() -> None:
    sound = np.concatenate([np.zeros(3 * FRAME), np.ones(5 * FRAME), np.zeros(2 * FRAME)]).astype(np.float32)
    assert len(trimmed(sound)) == 5 * FRAME
    assert active_share(sound) == 0.5
    assert active_level(sound) == pytest.approx(1.0)
    assert level(sound) == pytest.approx(np.sqrt(0.5))
    # 21 dB below is silence, 19 dB below is not.
    quiet = np.where(np.arange(10 * FRAME) < 5 * FRAME, 10 ** (-21 / 20), 1.0).astype(np.float32)
    assert len(trimmed(quiet)) == 5 * FRAME
    assert len(trimmed(np.maximum(quiet, np.float32(10 ** (-19 / 20))))) == 10 * FRAME
    assert len(trimmed(np.zeros(1000, np.float32))) == 3 * FRAME  # of silence, all is equally loud


@given(count=st.integers(2, 200), rise=st.integers(0, 300), fall=st.integers(0, 300))
def test_fades_begin_and_end_in_silence(count: int, rise: int, fall: int) -> None:
    result = faded(np.ones(count, np.float32), rise, fall)
    assert len(result) == count
    assert np.all((result >= 0) & (result <= 1))
    if rise and count > 1:
        assert result[0] == 0
    if fall > 1 and count > 3:
        assert result[-1] < 1


def test_sounds_have_their_parts_by_what_they_are() -> None:
    found = made_up()
    assert list(found.hands) == sorted(KINDS)
    assert [len(clips) for clips in found.hands.values()] == [2, 2]
    assert len(found.steady) == 3
    assert len(found.passing) == 1
    # Without a steady sound the steadiest is the background.
    only_beeps = palette([Sound("x", True, crackle(1.0, 0)), Sound("", False, beep(1.5, 400.0))])
    assert len(only_beeps.steady) == 1
    assert not only_beeps.passing
    for missing in (True, False):
        with pytest.raises(SettingsError, match="needs more clips"):
            palette([Sound("x", missing, crackle(1.0, 0))])


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.03, 0.15, 0.3]), seconds=st.sampled_from([120.0, 1800.0]))
def test_a_plan_keeps_what_it_is_asked_for(seed: int, share: float, seconds: float) -> None:
    plan = plan_of(seconds, share, seed)
    assert plan.length == seconds * RATE_HZ
    at = 0
    for placed in plan.placed:
        assert placed.start - at >= 3 * RATE_HZ  # a pause, and no overlap
        assert placed.end - placed.start == sum(map(len, placed.clips))
        at = placed.end
    assert at <= plan.length
    lengths = [(event.end - event.start) / RATE_HZ for event in plan.events]
    assert all(SHORTEST_S - 0.2 <= length <= LONGEST_S for length in lengths)
    assert abs(sum(lengths) - share * seconds) <= LONGEST_S / 2 + 0.2
    assert {event.kind for event in plan.events} <= set(KINDS)
    assert sum(not placed.kind for placed in plan.placed) == round(seconds / 120)


def test_hands_are_at_work_for_their_share_of_half_an_hour() -> None:
    for share in (0.03, 0.15):
        found = [
            sum(event.end - event.start for event in plan.events) / plan.length
            for plan in (plan_of(1800.0, share, seed) for seed in range(20))
        ]
        assert np.mean(found) == pytest.approx(share, rel=0.1)


def test_the_same_seed_gives_the_same_stream() -> None:
    again, other = whole(plan_of(60.0, seed=1), 10), whole(plan_of(60.0, seed=2), 10)
    assert np.array_equal(whole(plan_of(60.0, seed=1), 10), again)
    assert not np.array_equal(again, other)


def test_backgrounds_follow_each_other_without_a_hole() -> None:
    plan = plan_of(1800.0)
    first, *others = plan.backgrounds
    assert first.start == 0
    for background in others:
        assert background.start == first.end - CROSSFADE
        assert background.steady != first.steady
        first = background
    assert first.end >= plan.length


def test_blocks_are_the_same_wherever_they_begin() -> None:
    plan = plan_of(60.0)
    stream, sound = ComposedStream(plan, made_up(), 5.0), whole(plan, 5.0)
    assert len(sound) == plan.length
    starts = [piece.start for piece in stream.pieces()]
    assert starts == list(range(0, plan.length, RATE_HZ))
    for start, count in ((0, 1), (7, 12345), (400_001, 70_000)):
        assert np.array_equal(stream.block(start, count), sound[start : start + count])


@pytest.mark.parametrize("snr_db", [0.0, 5.0, 10.0, 20.0])
def test_the_ratio_is_that_of_the_levels(snr_db: float) -> None:
    plan = plan_of(300.0)
    sounds, below = whole(replace(plan, backgrounds=()), snr_db), whole(replace(plan, placed=()), snr_db)
    backgrounds = 20 * np.log10(EVENT_LEVEL / level(below))
    assert backgrounds == pytest.approx(snr_db, abs=0.3)  # the fades between backgrounds are no exception
    for event in plan.events:
        at = event.start
        for clip in event.clips:
            assert active_level(sounds[at : at + len(clip)]) == pytest.approx(EVENT_LEVEL, rel=0.1)
            at += len(clip)
    assert np.array_equal(whole(plan, snr_db), np.clip(sounds + below, -1, 1))


def test_an_event_begins_where_its_sound_does() -> None:
    plan = replace(plan_of(120.0, 0.2), backgrounds=())
    sound = whole(plan, 10.0)
    for event in plan.events:
        assert not sound[event.start - RATE_HZ : event.start].any()
        assert level(sound[event.start + FRAME : event.start + 2 * FRAME]) > EVENT_LEVEL / 2
        assert level(sound[event.end - 4 * FRAME : event.end - 3 * FRAME]) > EVENT_LEVEL / 4
        assert not sound[event.end : event.end + RATE_HZ].any()


def test_what_is_heard_are_the_windows_of_a_listener() -> None:
    sounds, mix = made_up(), Mix(USUAL, 0.15, (CLAIM_DB,), 1)
    ear = CrackleEar()
    heard = hear_stream(StreamKey(USUAL, 20.0, 0, 0), mix, 60.0, sounds, ear, HEAD, lambda share: None)
    assert len(heard.scores) == ear.heard == (60 * RATE_HZ - 15_600) // 7_680 + 1
    assert sum(event.end_s - event.start_s for event in heard.events) == pytest.approx(9.0, abs=5.0)
    for index, score in enumerate(heard.scores):
        first_s, last_s = window_end_s(index) - 0.975, window_end_s(index)
        if any(event.start_s <= first_s and last_s <= event.end_s for event in heard.events):
            assert score is not None
            assert score > 0.9
        if not any(event.start_s <= last_s and first_s <= event.end_s for event in heard.events):
            assert score is not None
            assert score < 0.1


def test_what_is_not_to_be_believed_has_no_score() -> None:
    silence = StreamPlan(4 * RATE_HZ, (), ())
    assert hear(ComposedStream(silence, made_up(), 10.0), CrackleEar(), HEAD, lambda end: None) == (None,) * 7


def test_streams_are_of_every_fold_ratio_and_number() -> None:
    keys = [key for key, _ in stream_keys(EvalSettings())]
    assert len(keys) == len(set(keys)) == len({key.name for key in keys}) == 5 * 4 + 5 * 3
    assert {key.snr_db for key in keys if key.mix == RARE} == {CLAIM_DB}
    assert len(stream_keys(QUICK)) == 6


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 1.0},
        {"folds": 2, "development_folds": 2},
        {"usual": Mix(USUAL, 0.1, (5.0,), 1)},
        {"usual": Mix(RARE, 0.1, (CLAIM_DB,), 1)},
        {"draws": 0},
    ],
)
def test_settings_refuse_what_cannot_be_judged(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        replace(EvalSettings(), **wrong)
    with pytest.raises(SettingsError):
        Mix("none", 0.0, (CLAIM_DB,), 1)
