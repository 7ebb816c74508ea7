"""Recall in a session: what was evicted comes back when a question is like it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemem.runtime.errors import SettingsError
from edgemem.runtime.retention.recall import RecallSettings
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.session import Session

WINDOW = RetentionSettings(policy="window", budget=128, margin=8)
RECALL = RecallSettings(budget_bytes=1 << 20, block=8, representatives=4, top=3)
FACT = "The yellow lamp is in the seventh box."
FILLER = "She asked whether the river was slow."


def opened(package: Path, engine: str = "native", **rest: object) -> Session:
    return Session.open(package, engine=engine, threads=1, memory=WINDOW, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["native", "onnx"])
def test_a_question_brings_back_what_it_is_about(tiny_package: Path, engine: str) -> None:
    with opened(tiny_package, engine, recall=RECALL) as session, opened(tiny_package, engine) as without:
        for talk in (session, without):
            list(talk.stream(FACT, max_tokens=2, ignore_eos=True))
        fact = session.memory.table.rows[:60].copy()
        for _ in range(6):
            for talk in (session, without):
                list(talk.stream(FILLER, max_tokens=10, ignore_eos=True))
        table = session.memory.table
        assert not np.isin(table.rows["position"], fact["position"][8:30]).any()
        answers = [list(talk.stream(FACT, max_tokens=20, ignore_eos=True)) for talk in (session, without)]
        recalled = np.isin(table.rows["position"], fact["position"][8:30])
        assert recalled.sum() >= 8
        assert table.rows["turn"][recalled].tolist() == [7] * int(recalled.sum())
        assert np.flatnonzero(recalled)[0] <= 8  # behind sinks and pins
        assert not table.rows["pinned"][recalled].any()
        assert answers[0] != answers[1]
        assert session.timings.prefill_tokens == 2 * session.timings.prompt_tokens
        assert session.engine.length == table.length <= 128
        assert session.messages[-2]["content"] == FACT
        for _ in range(4):  # it goes on, and what was recalled may be evicted again
            list(session.stream(FILLER, max_tokens=30, ignore_eos=True))
        session.reset()
        list(session.stream(FACT, max_tokens=2, ignore_eos=True))
        assert session.memory.table.rows["position"].tolist() == list(range(session.memory.table.length))


def test_the_keys_of_what_came_back_are_turned_to_their_slots(tiny_package: Path) -> None:
    """The first layer's keys depend on token and slot alone: they are those of an engine that reads the same tokens."""
    with opened(tiny_package, "onnx", recall=RECALL) as session:
        for text in (FACT, *[FILLER] * 4, FACT):
            list(session.stream(text, max_tokens=6, ignore_eos=True))
        rows, held = session.memory.table.rows.copy(), session.engine.state()
        assert (np.diff(rows["position"]) < 0).any() or (np.diff(rows["turn"]) < 0).any()
        session.engine.truncate(0)
        session.engine.extend(rows["token"].astype(np.int32))
        np.testing.assert_allclose(held.keys[0], session.engine.state().keys[0], atol=2e-4)


def test_nothing_is_read_twice_where_nothing_was_put_away(tiny_package: Path) -> None:
    with opened(tiny_package, recall=RECALL) as session:
        list(session.stream(FACT, max_tokens=2))
        assert session.timings.prefill_tokens == session.timings.prompt_tokens


def test_a_turn_cancelled_after_a_recall_leaves_what_came_back(tiny_package: Path) -> None:
    with opened(tiny_package, recall=RECALL) as session:
        for text in (FACT, *[FILLER] * 5):
            list(session.stream(text, max_tokens=6, ignore_eos=True))
        back = session.memory.bring_back

        def cancelling(words: range) -> bool:
            done = back(words)
            session.cancel()
            return done

        session.memory.bring_back = cancelling  # type: ignore[method-assign]
        (chunk,) = session.stream(FACT)
        assert chunk.finish_reason == "cancelled"
        assert session.engine.length == session.memory.table.length
        assert session.memory.table.rows["position"].max() < session.memory.turn_start
        assert len(session.messages) == 12


def test_recall_needs_eviction_and_no_store(tiny_package: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="recall"):
        opened(tiny_package, recall=RECALL, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()
    with pytest.raises(SettingsError, match="recall"):
        Session.open(tiny_package, threads=1, recall=RECALL)
