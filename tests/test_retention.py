"""Retention: settings, the table of slots, and the policies against the papers' rules written out step by step."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgemem.runtime.errors import ContextError, NumericError, SettingsError
from edgemem.runtime.retention.policies import slots_to_keep
from edgemem.runtime.retention.scores import chunk_scores, surprisal_of
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.retention.slots import SlotTable

SCORES = st.integers(0, 6).map(float)  # whole numbers, so that a decay of a power of two leaves ties exact


def table_of(scores: list[float], turns: list[int] | None = None, pins: frozenset[int] = frozenset()) -> SlotTable:
    """A table of len(scores) slots; slot i holds token i."""
    table = SlotTable(max(1, len(scores)))
    turns = turns or [0] * len(scores)
    for token, (score, turn) in enumerate(zip(scores, turns, strict=True)):
        while table.turn < turn:
            table.end_turn()
        table.append(np.array([token]), np.array([score], dtype=np.float32), pinned=token in pins)
    return table


@st.composite
def situations(draw: st.DrawFn) -> tuple[SlotTable, RetentionSettings, int]:
    """Any table, settings and number of tokens that come."""
    scores = draw(st.lists(SCORES, max_size=60))
    turns = sorted(draw(st.lists(st.integers(0, 5), min_size=len(scores), max_size=len(scores))))
    pins = draw(st.frozensets(st.integers(0, 59), max_size=12))
    table = table_of(scores, turns, pins)
    for _ in range(draw(st.integers(0, 3))):
        table.end_turn()
    sinks, recent, margin = (draw(st.integers(0, 6)) for _ in range(3))
    chosen = RetentionSettings(
        policy=draw(st.sampled_from(["full", "window", "entropy"])),
        budget=sinks + recent + margin + draw(st.integers(1, 50)),
        sinks=sinks,
        recent=recent,
        margin=margin,
        entropy_share=draw(st.sampled_from([0, 0.25, 0.5, 1])),
        decay=draw(st.sampled_from([0.25, 0.5, 1])),
        when=draw(st.sampled_from(["turn", "full"])),
        makes_room=draw(st.sampled_from(["recent", "entropy"])),
    )
    return table, chosen, draw(st.integers(0, 30))


def forced_slots(table: SlotTable, sinks: int) -> set[int]:
    return {slot for slot in range(table.length) if slot < sinks or table.rows["pinned"][slot]}


@settings(max_examples=400)
@given(situations())
def test_what_is_kept_fits_the_budget_and_holds_sinks_and_pins(
    situation: tuple[SlotTable, RetentionSettings, int],
) -> None:
    table, chosen, incoming = situation
    before = table.rows.copy()
    forced = forced_slots(table, chosen.sinks)
    fits = table.length + incoming <= chosen.budget
    if not fits and (chosen.policy == "full" or len(forced) + incoming > chosen.budget):
        with pytest.raises(ContextError):
            slots_to_keep(table, chosen, incoming)
        return
    kept = slots_to_keep(table, chosen, incoming)
    assert kept.dtype == np.int64
    assert (np.diff(kept) > 0).all()
    assert set(kept.tolist()) <= set(range(table.length))
    assert forced <= set(kept.tolist())
    wanted = max(chosen.budget - chosen.room(incoming), len(forced))
    assert len(kept) == (table.length if fits else wanted)
    np.testing.assert_array_equal(table.rows, before)


def sirllm(scores: list[float], sinks: int, entropy: int, budget: int, incoming: int) -> list[int]:
    """The rule as the paper's code has it, one step after the other; scores are already decayed."""
    by_score = sorted(range(len(scores)), key=lambda slot: (scores[slot], slot), reverse=True)
    kept = set(by_score[: max(0, entropy - incoming)])
    kept |= set(range(min(sinks, len(scores))))
    newest = len(scores) - 1
    while len(kept) < budget - incoming:
        kept.add(newest)
        newest -= 1
    return sorted(kept)


@settings(max_examples=400)
@given(st.data())
def test_entropy_is_the_rule_of_sirllm_over_turns(data: st.DataObject) -> None:
    sinks, entropy, recent = (data.draw(st.integers(low, 12)) for low in (0, 1, 0))
    budget, decay = sinks + entropy + recent, data.draw(st.sampled_from([0.25, 0.5, 1.0]))
    shares = {"budget": budget, "sinks": sinks, "recent": recent, "entropy_share": 1.0, "decay": decay}
    chosen = RetentionSettings(policy="entropy", when="turn", margin=0, makes_room="entropy", **shares)
    table = SlotTable(budget)
    held: list[tuple[int, float]] = []  # token, score: the paper's list, multiplied in place
    for _ in range(data.draw(st.integers(1, 6))):
        new = data.draw(st.lists(SCORES, min_size=1, max_size=budget - sinks))
        if len(held) + len(new) > budget:
            kept = sirllm([score for _, score in held], sinks, entropy, budget, len(new))
            held = [held[slot] for slot in kept]
        table.keep(slots_to_keep(table, chosen, len(new)))
        assert table.rows["token"].tolist() == [token for token, _ in held]
        held = [(token, score * decay) for token, score in held]
        held += [(table.position + place, score) for place, score in enumerate(new)]
        table.append(np.arange(table.position, table.position + len(new)), np.array(new, dtype=np.float32))
        assert table.effective_scores(decay).tolist() == [score for _, score in held]
        table.end_turn()


@given(st.lists(SCORES, min_size=20, max_size=40), st.integers(1, 12), st.integers(0, 10))
def test_incoming_tokens_take_the_place_of_the_newest_before_that_of_the_surprising(
    scores: list[float], recent: int, incoming: int
) -> None:
    """Budget 4 + 4 for the surprising + `recent`: the four stay as long as no more comes than the recent part holds."""
    chosen = RetentionSettings(
        policy="entropy", budget=8 + recent, sinks=4, recent=recent, entropy_share=1.0, when="turn", margin=0
    )
    if len(scores) + incoming <= chosen.budget:
        return
    by_score = sorted(range(len(scores)), key=lambda slot: (scores[slot], slot), reverse=True)
    surprising = by_score[: max(0, 4 - max(0, incoming - recent))]
    if 4 + incoming > chosen.budget:
        with pytest.raises(ContextError):
            slots_to_keep(table_of(scores), chosen, incoming)
    else:
        assert set(surprising) <= set(slots_to_keep(table_of(scores), chosen, incoming).tolist())


@given(st.integers(0, 5), st.integers(1, 20), st.integers(1, 60))
def test_streaming_token_by_token_is_sinks_and_the_last(sinks: int, recent: int, count: int) -> None:
    chosen = RetentionSettings(policy="window", budget=sinks + recent, sinks=sinks, margin=0)
    table = SlotTable(sinks + recent)
    for token in range(count):
        table.keep(slots_to_keep(table, chosen, 1))
        table.append(np.array([token]), np.zeros(1, dtype=np.float32))
        whole = list(range(token + 1))
        expected = whole if len(whole) <= sinks + recent else whole[:sinks] + whole[-recent:]
        assert table.rows["token"].tolist() == expected


@given(st.integers(0, 5), st.integers(1, 20), st.integers(0, 20), st.integers(1, 60))
def test_streaming_before_a_turn_makes_room_for_all_of_it(sinks: int, recent: int, incoming: int, length: int) -> None:
    if incoming > recent:
        return
    chosen = RetentionSettings(policy="window", budget=sinks + recent, sinks=sinks, when="turn", margin=0)
    whole = list(range(length))
    rest = whole[max(sinks, length - (recent - incoming)) :]
    expected = whole if length + incoming <= sinks + recent else whole[:sinks] + rest
    assert slots_to_keep(table_of([0.0] * length), chosen, incoming).tolist() == expected


def test_a_window_without_sinks_drops_the_first_tokens() -> None:
    chosen = RetentionSettings(policy="window", budget=8, sinks=0, margin=2)
    assert slots_to_keep(table_of([9.0] + [0.0] * 7), chosen, 1).tolist() == [3, 4, 5, 6, 7]
    assert slots_to_keep(table_of([9.0] + [0.0] * 7), replace(chosen, when="turn"), 1).tolist() == [1, 2, 3, 4, 5, 6, 7]


@given(st.integers(0, 20), st.integers(0, 400), st.sampled_from(["window", "entropy"]))
def test_with_a_margin_there_is_one_eviction_in_margin_plus_one_tokens(margin: int, count: int, policy: Any) -> None:
    chosen = RetentionSettings(policy=policy, budget=40, sinks=4, margin=margin)
    table, evictions = SlotTable(40), 0
    for token in range(count):
        kept = slots_to_keep(table, chosen, 1)
        evictions += len(kept) < table.length
        table.keep(kept)
        table.append(np.array([token]), np.array([token % 7], dtype=np.float32))
    assert evictions == math.ceil(max(0, count - 40) / (margin + 1))


def test_where_pins_leave_no_margin_room_is_made_for_the_tokens_alone() -> None:
    chosen = RetentionSettings(policy="window", budget=20, sinks=2, margin=10)
    table = table_of([0.0] * 20, pins=frozenset(range(15)))
    assert slots_to_keep(table, chosen, 5).tolist() == list(range(15))
    with pytest.raises(ContextError, match=r"2 sinks, 13 pinned slots and 6 tokens(.|\n)*wanted: at most 20(.|\n)*pin"):
        slots_to_keep(table, chosen, 6)


def test_pins_outlast_every_turn_and_do_not_compete_for_the_surprising_part() -> None:
    table = table_of([0, 0, 9, 9, 5, 4, 3, 0, 0, 0], pins=frozenset({2, 3}))
    chosen = RetentionSettings(
        policy="entropy", budget=7, sinks=1, recent=1, entropy_share=1, when="turn", margin=0
    )  # of the 4 beyond sink and pins one is recent and three surprising
    assert slots_to_keep(table, chosen, 1).tolist() == [0, 2, 3, 4, 5, 6]
    table.pin(2, 4, pinned=False)
    assert 3 in slots_to_keep(table, chosen, 1).tolist()
    assert slots_to_keep(table, chosen, 6).tolist() == [0]


def test_of_equal_scores_the_newer_stays() -> None:
    chosen = RetentionSettings(policy="entropy", budget=6, sinks=0, entropy_share=0.5, when="turn", margin=0)
    assert slots_to_keep(table_of([3, 5, 3, 3, 0, 0, 0]), chosen, 2).tolist() == [1, 2, 3, 6]


@given(st.lists(st.floats(0, 50, width=32), min_size=1, max_size=20), st.sampled_from([0.3, 0.7, 0.9, 1.0]))
def test_scores_only_fall_with_age_and_by_the_decay(scores: list[float], decay: float) -> None:
    table = table_of(scores)
    last = table.effective_scores(decay)
    np.testing.assert_array_equal(last, np.array(scores, dtype=np.float32))
    for _ in range(4):
        table.end_turn()
        now = table.effective_scores(decay)
        np.testing.assert_allclose(now, last * decay)
        assert (now <= last).all()
        last = now


def test_the_oldest_scores_decay_to_nothing_without_an_error() -> None:
    table = table_of([3.0, 4.0])
    table.turn = 100_000
    assert table.effective_scores(0.5).tolist() == [0.0, 0.0]


@given(st.lists(st.integers(1, 9), max_size=8), st.data())
def test_the_table_follows_what_is_done_to_a_list(chunks: list[int], data: st.DataObject) -> None:
    """append, keep, truncate, insert and end_turn against a list of (position, token, score, turn, pinned)."""
    table, rows, position = SlotTable(80), [], 0
    for turn, count in enumerate(chunks):
        pins = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
        table.append(np.arange(count) + 100, np.full(count, 0.5 * turn), pinned=pins)
        rows += [(position + place, 100 + place, 0.5 * turn, turn, bool(pins[place])) for place in range(count)]
        position += count
        mask = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
        evicted = table.rows[~np.array(mask)].copy()
        table.keep(np.flatnonzero(mask))
        gone = [row for row, kept in zip(rows, mask, strict=True) if not kept]
        rows = [row for row, kept in zip(rows, mask, strict=True) if kept]
        length = data.draw(st.integers(0, len(rows)))
        table.truncate(length)
        del rows[length:]
        at = data.draw(st.integers(0, len(rows)))
        table.insert(at, evicted)
        rows[at:at] = [(*row[:3], turn, row[4]) for row in gone]
        assert [tuple(row) for row in table.rows.tolist()] == rows
        table.end_turn()


def test_the_rows_given_out_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        table_of([1.0]).rows["score"][0] = 2


@pytest.mark.parametrize(
    ("scores", "stored"),
    [([np.nan, 2, 5], [5, 2, 5]), ([1, np.nan, -1e-7], [1, 1, 0]), ([np.nan], [0]), ([], [])],
    ids=["first", "middle", "alone", "empty"],
)
def test_an_unknown_score_becomes_the_highest_of_its_chunk(scores: list[float], stored: list[float]) -> None:
    table = SlotTable(8)
    table.append(np.arange(len(scores)), np.array(scores, dtype=np.float32))
    assert table.rows["score"].tolist() == stored


def test_a_chunk_that_is_refused_changes_nothing() -> None:
    table = table_of([1.0, 2.0])
    with pytest.raises(ContextError):
        table.append(np.arange(1), np.zeros(1))
    table.truncate(1)
    with pytest.raises(NumericError, match="token 0"):
        table.append(np.arange(1), np.array([np.inf]))
    for tokens, scores, pinned in ((1, 2, 1), (1, 1, 2)):
        with pytest.raises(SettingsError):
            table.append(np.arange(tokens), np.zeros(scores), pinned=np.ones(pinned, dtype=bool))
    assert (table.length, table.position, table.rows["token"].tolist()) == (1, 2, [0])


def test_slots_that_are_not_there_are_refused() -> None:
    table = table_of([1.0, 2.0, 3.0])
    for slots in ([1, 1], [2, 1], [-1], [3], [0.5]):
        with pytest.raises(SettingsError):
            table.keep(np.array(slots))
    for length in (-1, 4, True, 1.0):
        with pytest.raises(SettingsError):
            table.truncate(length)
    for first, last in ((2, 1), (-1, 1), (0, 4)):
        with pytest.raises(SettingsError):
            table.pin(first, last)
    for at, rows in ((4, table.rows), (-1, table.rows), (0, np.zeros(2))):
        with pytest.raises(SettingsError):
            table.insert(at, rows)
    with pytest.raises(ContextError):
        table.insert(0, table.rows.copy())
    with pytest.raises(SettingsError):
        slots_to_keep(table, RetentionSettings(), -1)
    assert table.rows["token"].tolist() == [0, 1, 2]


def test_saved_slots_are_taken_over_only_if_they_are_sound() -> None:
    table = table_of([1.0, 2.0, 3.0], [0, 1, 1], frozenset({1}))
    saved = table.tables()
    table.end_turn()  # what was saved is a copy
    again = SlotTable(5)
    again.load(saved)
    np.testing.assert_array_equal(again.rows, table.rows)
    assert (again.turn, again.position, again.length) == (1, 3, 3)
    for name, value in (
        ("position", -1),
        ("position", 3),
        ("token", -1),
        ("score", np.nan),
        ("score", np.inf),
        ("score", -1.0),
        ("turn", -1),
        ("turn", 2),
    ):
        column = saved[name].copy()
        column[1] = value
        with pytest.raises(SettingsError, match=rf"{name} is out of range \(slot 1\)"):
            again.load({**saved, name: column})
    for name, changed in (
        ("counts", np.array([-1, 3])),
        ("counts", np.array([1 << 31, 3])),
        ("counts", np.array([1, 1 << 62 | 1])),
        ("counts", np.array([1, -3])),
        ("counts", np.array([1, 3, 5])),
        ("counts", np.array([1.0, 3.0])),
        ("position", np.array(7)),
        ("position", saved["position"][None]),
        ("token", saved["token"].astype(np.int64)),
        ("token", saved["token"][:2]),
        ("age", saved["turn"]),
    ):
        with pytest.raises(SettingsError, match="saved slots"):
            again.load({**saved, name: changed})
    for missing in saved:
        with pytest.raises(SettingsError, match="saved slots"):
            again.load({name: column for name, column in saved.items() if name != missing})
    with pytest.raises(SettingsError, match="at most 2"):
        SlotTable(2).load(saved)
    np.testing.assert_array_equal(again.rows, table.rows)


def reference_surprisal(row: NDArray[np.float32], token: int) -> float:
    return math.log(sum(math.exp(value) for value in row.tolist())) - float(row[token])


def test_both_scores_are_taken_from_the_row_before() -> None:
    logits = np.random.default_rng(0).standard_normal((5, 11)).astype(np.float32) * 3
    tokens = np.array([3, 1, 4, 1, 5], dtype=np.int32)
    paper, released = chunk_scores(logits, tokens), chunk_scores(logits, tokens, "as_released")
    assert paper.dtype == np.float32
    assert np.isnan([paper[0], released[0]]).all()
    for place in range(1, 5):
        assert paper[place] == pytest.approx(reference_surprisal(logits[place - 1], int(tokens[place])), rel=1e-5)
        assert released[place] == pytest.approx(
            reference_surprisal(logits[place - 1], int(tokens[place - 1])), rel=1e-5
        )


def test_scores_of_great_logits_stay_finite_and_of_misshapen_ones_are_refused() -> None:
    np.testing.assert_allclose(surprisal_of(np.array([[1e4, 0.0]], dtype=np.float32), np.array([1])), [1e4])
    assert np.isnan(chunk_scores(np.zeros((1, 4), dtype=np.float32), np.array([2]))).tolist() == [True]
    for logits, tokens in (((4,), 4), ((2, 4), 3), ((0, 4), 0)):
        with pytest.raises(SettingsError):
            chunk_scores(np.zeros(logits, dtype=np.float32), np.zeros(tokens, dtype=np.int32))


def test_settings_come_back_from_json() -> None:
    chosen = RetentionSettings(policy="entropy", budget=512, entropy_share=1, decay=0.7, when="turn", margin=0)
    assert RetentionSettings.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen
    for plain in ({**chosen.to_dict(), "sink": 4}, {"policy": "full"}, {1: 2}):
        with pytest.raises(SettingsError, match="other keys"):
            RetentionSettings.from_dict(plain)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"policy": "lru"},
        {"policy": None},
        {"policy": ["full"]},
        {"score": "entropy"},
        {"when": "never"},
        {"makes_room": "sinks"},
        {"budget": 0},
        {"budget": True},
        {"budget": 64.0},
        {"budget": 1 << 40},
        {"sinks": -1},
        {"recent": "4"},
        {"margin": -1},
        {"budget": 4},
        {"recent": 1020},
        {"entropy_share": 1.01},
        {"entropy_share": True},
        {"entropy_share": math.nan},
        {"entropy_share": None},
        {"decay": 0},
        {"decay": 1.5},
        {"decay": math.nan},
        {"decay": "1"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        replace(RetentionSettings(), **change)


def test_full_needs_no_room_beside_sinks_and_margin() -> None:
    chosen = RetentionSettings(policy="full", budget=2)
    assert slots_to_keep(table_of([0.0]), chosen, 1).tolist() == [0]
    with pytest.raises(ContextError, match="evicts nothing"):
        slots_to_keep(table_of([0.0]), chosen, 2)
