"""Whoever follows a history ends up in the same state as who was there all along, from wherever it comes."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgemem.split.codec import Codec, CodecSettings
from edgemem.split.coder import TokenCoder
from edgemem.split.history import BEGINNING, Extended, History, Kept, Operation, Truncated

CODER = TokenCoder(97)


class Stage:
    """Slots whose content tells all that was in use when they came, and what came together with them."""

    def __init__(self) -> None:
        self.slots: list[int] = []
        self.place = BEGINNING
        self.done: list[Operation] = []

    def do(self, operation: Operation) -> None:
        if isinstance(operation, Extended):
            before = (*self.slots, operation.payload, operation.tokens is None)
            self.slots += [hash((before, row)) for row in range(operation.count)]
        elif isinstance(operation, Kept):
            self.slots = [self.slots[slot] for slot in operation.slots]
        else:
            assert operation.length <= len(self.slots)
            del self.slots[operation.length :]
        self.done.append(operation)

    def follow(self, history: History, steps: int = 10**6) -> None:
        while steps and (step := history.next_after(self.place, len(self.slots))) is not None:
            operation, self.place = step
            self.do(operation)
            steps -= 1


def extend(history: History, tokens: list[int], *, scored: bool = False) -> Extended:
    ids = np.array(tokens, dtype=np.int32)
    operation = Extended(CODER.encode(ids), len(ids), ids if scored else None)
    history.extend(operation.payload, operation.count, operation.tokens)
    return operation


actions = st.lists(
    st.one_of(
        st.tuples(st.just("extend"), st.lists(st.integers(0, 96), min_size=1, max_size=6), st.booleans()),
        st.tuples(st.just("keep"), st.integers(0, 2**32 - 1)),
        st.tuples(st.just("truncate"), st.floats(0, 1)),
        st.tuples(st.just("follow"), st.integers(0, 2), st.sampled_from([1, 2, 3, 100])),
        st.tuples(st.just("forget"), st.integers(0, 2)),
    ),
    max_size=40,
)


@given(actions)
def test_a_stage_that_follows_from_anywhere_is_in_the_same_state(actions: list[tuple[Any, ...]]) -> None:
    history, truth, others = History(CODER), Stage(), [Stage() for _ in range(3)]
    for action, *values in actions:
        if action == "extend":
            truth.do(extend(history, values[0], scored=values[1]))
        elif action == "keep":
            kept = np.flatnonzero(np.random.default_rng(values[0]).random(history.length) < 0.6)
            history.keep(kept)
            truth.do(Kept(kept))
        elif action == "truncate":
            length = int(values[0] * history.length)
            history.truncate(length)
            truth.do(Truncated(length))
        elif action == "follow":
            others[values[0]].follow(history, values[1])
        else:
            others[values[0]] = Stage()
        assert history.length == len(truth.slots)
    for stage in [*others, Stage()]:
        stage.follow(history)
        assert stage.slots == truth.slots
        assert history.next_after(history.place, history.length) is None


def test_what_was_cut_off_is_not_remembered_unless_something_was_kept_since() -> None:
    history = History(CODER)
    extend(history, [1, 2, 3])
    size = history.bytes
    extend(history, [4, 5])
    extend(history, [6])
    history.truncate(3)
    assert history.bytes == size
    fresh = Stage()
    fresh.follow(history)
    assert [type(operation) for operation in fresh.done] == [Extended]
    history.keep(np.array([0, 2]))
    extend(history, [7])
    history.truncate(1)
    fresh = Stage()
    fresh.follow(history)
    assert [type(operation) for operation in fresh.done] == [Extended, Kept, Truncated]
    history.truncate(0)
    assert history.bytes == 0


def test_half_of_a_chunk_is_cut_off_by_the_same_stage_as_before() -> None:
    history, fresh = History(CODER), Stage()
    extend(history, [1, 2, 3, 4])
    for length in (3, 2):
        history.truncate(length)
    fresh.follow(history)
    assert [getattr(operation, "length", None) for operation in fresh.done] == [None, 2]


def test_keeping_all_is_nothing_to_remember() -> None:
    history = History(CODER)
    extend(history, [1, 2])
    place = history.place
    history.keep(np.arange(2))
    assert history.place == place


def some_history(bound_bytes: int) -> tuple[History, list[int]]:
    """Rounds of three tokens of which the newest twenty stay; and the tokens in the slots."""
    history, held = History(CODER, bound_bytes=bound_bytes), []
    for start in range(0, 300, 3):
        tokens = [(start + i) % 97 for i in range(3)]
        extend(history, tokens)
        kept = np.arange(max(0, history.length - 20), history.length)
        held = [(held + tokens)[slot] for slot in kept]
        history.keep(kept)
        history.trim()
        assert history.bytes < bound_bytes + 8192
    return history, held


def test_beyond_its_bound_a_history_knows_what_is_held() -> None:
    history, held = some_history(16384)
    fresh, slots = Stage(), []
    fresh.follow(history)
    for operation in fresh.done:
        if isinstance(operation, Extended):
            slots += CODER.decode(operation.payload, operation.count).tolist()
        elif isinstance(operation, Kept):
            slots = [slots[slot] for slot in operation.slots]
    assert slots == held
    assert len(fresh.done) < 60


def test_a_stage_that_has_done_all_loses_nothing_by_compacting_and_others_begin_anew() -> None:
    history = History(CODER, bound_bytes=4000)
    for token in range(6):
        extend(history, [token])
    current, behind = Stage(), Stage()
    current.follow(history)
    behind.follow(history, 3)
    extend(history, [7])
    extend(history, [8])
    current.follow(history)
    done = len(current.done)
    history.trim()
    for stage in (current, behind):
        stage.follow(history)
    assert len(current.done) == done
    assert behind.done[3] == Truncated(0)
    assert len(behind.done) == 5
    extend(history, [9])
    history.truncate(8)
    history.truncate(0)
    for stage in (current, behind):
        stage.follow(history)
        assert not stage.slots


def test_hidden_states_are_cut_row_by_row_and_stay_what_they_were() -> None:
    coder = Codec(CodecSettings("fp16"), 16)
    history, random = History(coder, bound_bytes=1), np.random.default_rng(0)
    rows = random.standard_normal((300, 16)).astype(np.float16).astype(np.float32)
    ids = np.arange(300, dtype=np.int32)
    for part in np.split(ids, [100, 228, 229]):
        history.extend(coder.encode(rows[part]), len(part), None, part)
    assert history.work == (4, 300)
    kept = np.flatnonzero(random.random(300) < 0.7)
    history.keep(kept)
    history.trim()
    stage = Stage()
    stage.follow(history)
    payloads = [operation for operation in stage.done if isinstance(operation, Extended)]
    assert [operation.count for operation in payloads] == [128, len(kept) - 128]
    got = np.concatenate([coder.decode(operation.payload, operation.count) for operation in payloads])
    np.testing.assert_array_equal(got, rows[kept])
    np.testing.assert_array_equal(np.concatenate([operation.ids for operation in payloads]), ids[kept])
    assert history.work == (2, len(kept))
    history.truncate(128)
    assert history.work == (1, 128)
