"""Memory: engine, table and settings together, on real engines against the plain loop of the papers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forced_engine import ForcedEngine
from hypothesis import given
from hypothesis import strategies as st

from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import ContextError, NumericError, SettingsError
from edgemem.runtime.memory.memory import PART_TOKENS, Memory
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.retention.policies import slots_to_keep
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.runtime.store import Role

WARM = Sampling(temperature=1.3, top_p=0.95, repetition_penalty=1.2, seed=11)
POLICIES = {
    "window": RetentionSettings(policy="window", budget=48, margin=8),
    "window, token by token": RetentionSettings(policy="window", budget=48, margin=0),
    "entropy": RetentionSettings(policy="entropy", budget=48, recent=12, margin=8),
    "SirLLM": RetentionSettings(
        policy="entropy", budget=48, entropy_share=1.0, decay=0.7, when="turn", makes_room="entropy"
    ),
}
anywhere = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())


@pytest.fixture(scope="module")
def package(tiny_package: Path) -> Iterator[Package]:
    with Package.open(tiny_package) as opened:
        yield opened


@pytest.fixture(params=["native", "onnx"])
def engine(request: pytest.FixtureRequest, package: Package) -> Iterator[Engine]:
    opened = open_engine(package, request.param, capacity=200, threads=1)
    yield opened
    opened.close()


def some(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.random.default_rng(seed).integers(3, 300, count).astype(np.int32)


def read(memory: Memory, tokens: np.ndarray[Any, Any], **rest: Any) -> None:
    """A turn's prompt, all of it."""
    memory.begin_turn((), whole=False)
    done = 0
    while done < len(tokens):
        done += memory.consume(tokens[done:], Role.USER, **rest)


@anywhere
@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "sampled"])
def test_a_long_answer_is_what_the_plain_loop_gives(
    engine: Engine, package: Package, policy: RetentionSettings, sampling: Sampling
) -> None:
    """Step by step, with an eviction before each token that needs one: the same tokens, the same bits in the slots."""
    memory, prompt = Memory(engine, policy), some(30)
    read(memory, prompt)
    got = list(memory.decode(Sampler(sampling, prompt.tolist()), 120))
    assert memory.evictions > 2
    plain = open_engine(package, engine.name, capacity=200, threads=1)
    twin = Memory(plain, policy)  # for its table
    read(twin, prompt)
    sampler, wanted = Sampler(sampling, prompt.tolist()), []
    while len(wanted) < 120:
        logits = plain.state().logits
        assert logits is not None
        token = sampler.sample(logits)
        wanted.append(token)
        if len(wanted) == 120:
            break
        kept = slots_to_keep(twin.table, policy, 1)
        if len(kept) < plain.length:
            plain.keep(kept)
            twin.table.keep(kept)
        surprisal = -float(logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
        twin.table.append(np.array([token]), np.array([surprisal if policy.policy == "entropy" else 0.0]))
        plain.extend(np.array([token], dtype=np.int32))
    assert got == wanted
    ours, theirs = engine.state(), plain.state()
    np.testing.assert_array_equal(ours.keys, theirs.keys)
    np.testing.assert_array_equal(ours.values, theirs.values)
    assert memory.tokens == twin.tokens
    plain.close()


@anywhere
def test_it_is_full_context_while_that_fits(engine: Engine, policy: RetentionSettings) -> None:
    memory, prompt = Memory(engine, policy), some(20)
    read(memory, prompt)
    got = list(memory.decode(Sampler(Sampling()), 29))
    assert memory.evictions == 0
    engine.truncate(0)
    engine.extend(prompt)
    assert [token.id for token in engine.decode(Sampler(Sampling()), 29)] == got


@anywhere
def test_a_prompt_of_many_budgets_is_consumed_and_what_is_pinned_stays(
    engine: Engine, policy: RetentionSettings
) -> None:
    memory = Memory(engine, policy)
    read(memory, some(9, seed=1), pinned=True)
    longest = 0
    memory.begin_turn((), whole=False)
    tokens = some(400, seed=2)
    while len(tokens):
        tokens = tokens[memory.consume(tokens, Role.USER) :]
        longest = max(longest, engine.length)
    assert longest <= policy.budget
    assert memory.tokens[:9] == some(9, seed=1).tolist()
    assert memory.tokens[-1] == some(400, seed=2)[-1] or policy.entropy_share == 1
    assert (memory.table.position, memory.evicted) == (409, 409 - memory.table.length)
    assert engine.length == memory.table.length
    assert len(list(memory.decode(Sampler(Sampling()), 60))) == 60


def test_full_ends_where_its_budget_does(engine: Engine) -> None:
    memory = Memory(engine, RetentionSettings(policy="full", budget=40))
    read(memory, some(30))
    assert len(list(memory.decode(Sampler(Sampling()), 100))) == 11
    assert engine.length == 40
    memory.begin_turn((), whole=False)
    with pytest.raises(ContextError, match="evicts nothing"):
        memory.consume(some(5), Role.USER)
    assert engine.length == memory.table.length == 40


def test_scores_are_the_engines_and_a_turns_first_counts_as_its_highest(engine: Engine) -> None:
    memory = Memory(engine, RetentionSettings(policy="entropy", budget=100))
    read(memory, some(10))
    read(memory, some(8, seed=1))
    engine.truncate(10)
    again = engine.extend(some(8, seed=1), surprisal=True).surprisal
    assert again is not None
    scores = memory.table.rows["score"][10:]
    np.testing.assert_allclose(scores[1:], again[1:], rtol=1e-4)
    assert scores[0] == scores[1:].max()
    memory.end_turn(None)
    assert memory.table.turn == 1


def test_room_is_made_once_a_turn_for_all_that_it_may_add() -> None:
    settings = RetentionSettings(policy="window", budget=100, when="turn")

    memory = Memory(open_forced(), settings)
    read(memory, some(90))
    memory.begin_turn((), whole=False)
    memory.make_room_for_turn(60)
    assert (memory.table.length, memory.evictions) == (40, 1)
    memory.make_room_for_turn(97)  # can never be free: each part makes its own room
    assert memory.evictions == 1
    late = Memory(open_forced(), RetentionSettings(policy="window", budget=100, when="full"))
    read(late, some(90))
    late.make_room_for_turn(60)
    assert late.evictions == 0


def open_forced(capacity: int = 200) -> Any:
    return ForcedEngine(_Model(), lambda history, place: 5 + place % 250, capacity)  # type: ignore[arg-type]


class _Model:
    """As much of a package as ForcedEngine looks at."""

    class model:
        layers, vocabulary = 3, 320


def test_pins_that_leave_no_room_are_refused_beforehand() -> None:
    memory = Memory(open_forced(), RetentionSettings(policy="window", budget=20, sinks=4, margin=2))
    memory.check(19, 19, anew=False)  # the first four are sinks
    read(memory, some(12), pinned=True)
    memory.check(7, 7, anew=False)
    memory.check(19, 19, anew=True)
    for count, anew in ((8, False), (20, True)):
        with pytest.raises(ContextError, match="leaves no room"):
            memory.check(count, count, anew=anew)


def test_settings_that_the_engine_cannot_serve_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"(?s)got: 201.*at most 200"):
        Memory(open_forced(), RetentionSettings(policy="window", budget=201))
    with pytest.raises(SettingsError, match="score"):
        Memory(open_forced(), RetentionSettings(policy="entropy", budget=100, score="as_released"))


def test_parts_end_at_whole_parts_without_eviction_and_are_taken_up_there() -> None:
    memory = Memory(open_forced(400))
    tokens = some(300)
    read(memory, tokens[:100])
    assert memory.consume(tokens[100:], Role.USER) == PART_TOKENS - 100
    assert memory.take_up([*tokens[:125].tolist(), 1, 2]) == 120
    assert memory.engine.length == memory.table.length == 120


def test_a_score_that_is_no_number_leaves_the_slots_as_they_were() -> None:
    engine = open_forced()
    memory = Memory(engine, RetentionSettings(policy="entropy", budget=100))
    read(memory, some(5))
    extend = engine.extend
    engine.extend = lambda tokens, surprisal: _infinite(extend(tokens))
    with pytest.raises(NumericError, match="infinite"):
        memory.consume(some(5), Role.USER)
    assert engine.history == memory.tokens == some(5).tolist()


def _infinite(step: Any) -> Any:
    from dataclasses import replace

    return replace(step, surprisal=np.full(5, np.inf, dtype=np.float32))


@given(
    st.sampled_from(list(POLICIES.values())),
    st.lists(
        st.tuples(st.sampled_from(["read", "decode", "drop", "pending", "forget", "fail"]), st.integers(1, 70)),
        max_size=12,
    ),
)
def test_table_and_engine_agree_whatever_happens(policy: RetentionSettings, steps: list[tuple[str, int]]) -> None:
    engine = open_forced()
    memory = Memory(engine, policy)
    read(memory, some(3))
    for number, (step, count) in enumerate(steps):
        memory.begin_turn((), whole=False)
        engine.on_consume = _failing_at(engine.length + count) if step == "fail" else lambda length: None
        try:
            read(memory, some(count if step == "read" else 1 + count % 5, seed=number))
            answer = memory.decode(Sampler(Sampling()), count)
            for place, _ in enumerate(answer):
                if step == "drop" and place == count // 2:
                    break
            answer.close()
            if step == "pending":
                memory.consume_pending()
        except NumericError:
            assert step == "fail"
        if step == "forget":
            memory.forget_turn()
            assert not len(memory.table.rows) or memory.table.rows["position"].max() < memory.turn_start
        memory.end_turn(None)
        assert memory.tokens == engine.history
        assert engine.length <= policy.budget
        assert (np.diff(memory.table.rows["position"]) > 0).all()


def _failing_at(length: int) -> Any:
    def fail(at: int) -> None:
        if at >= length:
            raise NumericError("the logits are not finite")

    return fail
