"""Runs of the evaluation of memories on the native engine: what is measured is what a direct computation gives."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.runtime.engine import Engine
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.retention.scores import chunk_scores
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.tools.memory_eval.cells import Bench, Job, Values
from edgemem.tools.memory_eval.choice_run import CHANCE, CONSTANT, choice_jobs, converse
from edgemem.tools.memory_eval.evaluation import plan
from edgemem.tools.memory_eval.facts import facts_jobs
from edgemem.tools.memory_eval.feed import Feed, Tokens
from edgemem.tools.memory_eval.filler import text_tokens
from edgemem.tools.memory_eval.frame import TurnFrame
from edgemem.tools.memory_eval.planted import plant
from edgemem.tools.memory_eval.questions import Question
from edgemem.tools.memory_eval.rps_run import rps_jobs
from edgemem.tools.memory_eval.scoring import best_first_token, choose, log_probability, logits_of
from edgemem.tools.memory_eval.settings import (
    ENTROPY,
    FULL,
    NO_SINKS,
    PARTS,
    RELEASED,
    RESTART,
    SIRLLM,
    WINDOW,
    WITH_RECALL,
    EvalSettings,
    retention,
)
from edgemem.tools.memory_eval.speed_run import DECODED, READ, SCORES, speed_jobs
from edgemem.tools.memory_eval.stream_perplexity import stream_jobs

SETTINGS = EvalSettings(
    budgets=(128,),
    seeds=1,
    text_tokens=400,
    block=16,
    turn=64,
    groups=1,
    dialogues=1,
    rounds=150,
    trials=1,
    facts=2,
    filler_tokens=200,
    stream_tokens=600,
    pairs=2,
)


@pytest.fixture(scope="module")
def bench(tiny_package: Path) -> Iterator[Bench]:
    """A clock that every look at moves on by a millisecond."""
    with Package.open(tiny_package) as package:
        engine = open_engine(package, "native", threads=1)
        tokenizer = Tokenizer.open(package)
        text = text_tokens(None, tokenizer, 1000)
        yield Bench(engine, tokenizer, TurnFrame.of(tokenizer), text, (n / 1000 for n in count()).__next__)
        engine.close()


def surprisals(engine: Engine, tokens: Tokens) -> list[float]:
    """Of the tokens from empty slots, in one piece."""
    engine.truncate(0)
    step = engine.extend(tokens, surprisal=True)
    return [] if step.surprisal is None else step.surprisal.tolist()


def done(_: float) -> None:
    """Progress that nobody watches."""


def results(jobs: Iterable[Job], bench: Bench) -> dict[str, Values]:
    return {job.cell.policy: job.run(bench, done) for job in jobs}


def test_a_feed_that_evicts_nothing_is_the_engine(bench: Bench) -> None:
    tokens = bench.text[:60]
    feed = Feed(bench.engine, RetentionSettings(policy="full", budget=100))
    got = np.concatenate([feed.consume(tokens[at : at + 13]).surprisal for at in range(0, 60, 13)])
    logits = feed.consume(bench.text[60:61]).logits
    assert feed.evictions == 0
    np.testing.assert_allclose(got[1:], surprisals(bench.engine, tokens)[1:], atol=2e-3)
    np.testing.assert_allclose(logits, logits_of(bench.engine.extend(bench.text[60:61])), atol=2e-2)


@given(
    policy=st.sampled_from([WINDOW, NO_SINKS, ENTROPY, SIRLLM, RELEASED]),
    turns=st.booleans(),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
)
def test_a_feed_keeps_engine_and_table_together_within_the_budget(
    bench: Bench, policy: str, turns: bool, sizes: list[int]
) -> None:
    feed = Feed(bench.engine, retention(policy, 70, decay=0.5, turns=turns))
    start = 0
    for size in sizes:
        feed.consume(bench.text[start : start + size])
        feed.end_turn()
        start += size
        assert bench.engine.length == feed.table.length <= 70
    rows = feed.table.rows
    np.testing.assert_array_equal(rows["token"], bench.text[rows["position"]])
    assert rows["position"][-sizes[-1] :].tolist() == list(range(start - sizes[-1], start))
    assert feed.evicted == start - feed.table.length
    assert len(feed.eviction_ms) == feed.evictions
    if policy != NO_SINKS:
        assert rows["position"][:4].tolist() == list(range(min(4, start)))


def test_a_turns_first_token_scores_as_the_highest_of_its_chunk(bench: Bench) -> None:
    feed = Feed(bench.engine, retention(ENTROPY, 100, decay=1.0, turns=True))
    feed.consume(bench.text[:20])
    feed.end_turn()
    surprisal = feed.consume(bench.text[20:40]).surprisal
    scores = feed.table.rows["score"][20:]
    assert scores[0] == surprisal[1:].max()
    np.testing.assert_array_equal(scores[1:], surprisal[1:])


def test_the_released_codes_score_is_of_logits_after_each_token(bench: Bench) -> None:
    tokens = bench.text[:12]
    feed = Feed(bench.engine, retention(RELEASED, 100, decay=1.0, turns=True))
    got = feed.consume(tokens).surprisal
    bench.engine.truncate(0)
    rows = np.stack([logits_of(bench.engine.extend(tokens[at : at + 1])) for at in range(12)])
    np.testing.assert_array_equal(got, chunk_scores(rows, tokens, "as_released"))


def test_what_is_asked_aside_leaves_no_trace(bench: Bench) -> None:
    feed = Feed(bench.engine, RetentionSettings(policy="full", budget=100))
    feed.consume(bench.text[:30])
    with feed.aside() as engine:
        engine.extend(bench.text[100:120])
    assert bench.engine.length == feed.table.length == 30
    after = feed.consume(bench.text[30:40]).surprisal[1:]
    np.testing.assert_allclose(after, surprisals(bench.engine, bench.text[:40])[31:], atol=2e-3)


def test_log_probability_is_that_of_the_text_read_on(bench: Bench) -> None:
    prompt, text = bench.text[:30], bench.text[30:36]
    bench.engine.truncate(0)
    logits = logits_of(bench.engine.extend(prompt))
    whole = log_probability(bench.engine, logits, text.tolist())
    first = log_probability(bench.engine, logits, text[:1].tolist())
    assert bench.engine.length == 30
    known = surprisals(bench.engine, bench.text[:36])
    assert whole == pytest.approx(-sum(known[30:]), abs=0.02)
    assert first == pytest.approx(-known[30], abs=0.01)


def test_the_first_greedy_candidate_wins_else_the_best_first_token(bench: Bench) -> None:
    engine = bench.engine
    engine.truncate(0)
    logits = logits_of(engine.extend(bench.text[:30]))
    best = int(np.argmax(logits))
    following = int(np.argmax(logits_of(engine.extend(np.array([best], dtype=np.int32)))))
    engine.truncate(30)
    other = (best + 1) % len(logits)
    wrong = (following + 1) % len(logits)
    assert choose(engine, logits, [[other], [best, wrong], [best, following]]) == 2
    assert choose(engine, logits, [[other], [best], [best, following]]) == 1
    assert choose(engine, logits, [[other], [best, wrong]]) == 1
    assert best_first_token(logits, [[other], [best, wrong], [best]]) == 1
    assert engine.length == 30


def test_stream_perplexity_is_the_engines_until_something_is_evicted(bench: Bench) -> None:
    settings = EvalSettings(budgets=(448,), text_tokens=400, block=16)
    known = surprisals(bench.engine, bench.text[:400])[1:]
    for policy, values in results(stream_jobs(settings), bench).items():
        assert values["nats"] == values["last nats"]
        assert values["evictions"] == (0.0,)
        assert values["nats"][0] == pytest.approx(np.mean(known), abs=1e-3), policy


def test_a_restart_forgets_all_but_the_last_token(bench: Bench) -> None:
    found = results(stream_jobs(SETTINGS), bench)
    assert set(found) == {WINDOW, ENTROPY, NO_SINKS, RESTART}
    assert len({values["nats"] for values in found.values()}) == 4
    tokens, known = bench.text[: SETTINGS.text_tokens], []
    starts = [0, *range(128, SETTINGS.text_tokens, 112)]  # 128 slots hold 8 blocks, then one token and 7 blocks
    for start, end in zip(starts, [*starts[1:], SETTINGS.text_tokens], strict=True):
        known += surprisals(bench.engine, tokens[max(0, start - 1) : end])[1:]
    assert found[RESTART]["nats"][0] == pytest.approx(np.mean(known), abs=1e-3)
    assert found[WINDOW]["evictions"][0] > 0


def test_a_conversation_holds_the_answers_that_were_chosen(bench: Bench) -> None:
    questions = [
        Question("Take the box.", ("OK",), 0, ""),
        Question("Which?", ("one", "two"), 1, "kind", "It is", ("one", "two")),
        Question("And then?", ("three", "four"), 0, "other"),
    ]
    feed = Feed(bench.engine, RetentionSettings(policy="full", budget=400))
    found = converse(bench, feed, questions)
    encode, frame = bench.tokenizer.encode, bench.frame
    chosen = "B" if found["kind"] == 1.0 else "A"
    said = [*frame.opening, *encode(questions[0].prompt), *frame.asked, *encode("OK"), *frame.answered]
    said += [*encode(questions[1].prompt), *frame.asked, *encode(chosen), *frame.answered]
    said += [*encode(questions[2].prompt), *frame.asked]
    assert feed.table.rows["token"].tolist() == said
    assert set(found) == {"kind", "kind open", "kind open nats", "other", "evictions", "evicted"}
    asked = [*said[: said.index(encode("OK")[0], len(frame.opening) + len(encode(questions[0].prompt)))], *encode("OK")]
    asked += [*frame.answered, *encode(questions[1].text), *frame.asked, *encode("It is"), *encode(" two")]
    nats = surprisals(bench.engine, np.array(asked, dtype=np.int32))
    assert found["kind open nats"] == pytest.approx(-sum(nats[-len(encode(" two")) :]), abs=0.02)


def test_choice_tasks_have_the_same_conversations_under_all_policies(bench: Bench) -> None:
    settings = EvalSettings(budgets=(320,), seeds=2, dialogues=1)
    jobs = [job for job in choice_jobs("dialogue", settings, 416) if job.cell.seed == 1]
    assert [(job.cell.policy, job.cell.budget) for job in jobs] == [
        (CHANCE, 0),
        (CONSTANT, 0),
        (FULL, 0),
        (WINDOW, 320),
        (ENTROPY, 320),
        (SIRLLM, 320),
    ]
    found = results(jobs[:2] + jobs[3:], bench)  # all of it is more than this model's context
    assert found[CHANCE]["far open"] == found[CHANCE]["far"] == found[CHANCE]["near"] == (0.25,)
    assert set(found[CONSTANT]) == {"near", "far"}
    for policy in (WINDOW, ENTROPY, SIRLLM):
        assert found[policy]["evictions"][0] > 0
        assert found[policy]["evicted"] == found[WINDOW]["evicted"]
        assert math.isfinite(found[policy]["far open nats"][0])
    assert jobs[4].run(bench, done) == found[ENTROPY]


def test_the_released_score_is_tried_at_one_budget_of_the_grocery_task() -> None:
    jobs = choice_jobs("grocery", EvalSettings(budgets=(256, 512), seeds=1), 4000)
    assert [job.cell.budget for job in jobs if job.cell.policy == RELEASED] == [512]


def test_rounds_are_won_tied_or_lost(bench: Bench) -> None:
    found = results(rps_jobs(SETTINGS), bench)
    assert set(found) == {CHANCE, CONSTANT, WINDOW, ENTROPY, SIRLLM}
    for values in found.values():
        outcomes = np.array([values["win"], values["tie"], values["lose"]])
        assert outcomes.shape == (3, 2)  # of 100 rounds, and of the 50 after
        np.testing.assert_allclose(outcomes.sum(axis=0), 1.0)
    assert np.mean(found[CONSTANT]["win"]) > 0.4
    assert found[WINDOW]["evictions"][0] > 0
    assert all(value > 0 for value in found[ENTROPY]["move nats"])


def test_facts_are_held_as_far_as_their_slots_are(bench: Bench) -> None:
    found = results(facts_jobs(SETTINGS, 400), bench)
    assert found[FULL]["held"] == found[FULL]["answer held"] == (1.0,)
    assert found[FULL]["evictions"] == (0.0,)
    for policy in (WINDOW, ENTROPY, SIRLLM):
        assert 0 <= found[policy]["held"][0] < 1
        assert found[policy]["evicted"][0] > 0
    assert found[SIRLLM]["held"][0] > found[WINDOW]["held"][0]
    chance = random.Random("facts 0 0")
    start = chance.randrange(len(bench.text) - SETTINGS.filler_tokens)
    filler = bench.text[start : start + SETTINGS.filler_tokens]
    trial = plant(chance, bench.tokenizer.encode, filler, SETTINGS.facts)
    nats = []
    for fact in trial.facts:
        asked = [*bench.tokenizer.encode("\n\n"), *fact.question, *fact.answer]
        known = surprisals(bench.engine, np.array([*trial.tokens, *asked], dtype=np.int32))
        nats.append(-sum(known[-len(fact.answer) :]))
    assert found[FULL]["answer nats"][0] == pytest.approx(np.mean(nats), abs=0.02)


def test_speed_is_of_the_clock_alone(bench: Bench) -> None:
    settings = EvalSettings(budgets=(300,), stream_tokens=6 * (READ + DECODED), pairs=2)
    found = results(speed_jobs(settings), bench)
    stream, scores = found[ENTROPY], found[SCORES]
    assert stream["tokens"] == (6.0 * (READ + DECODED),)
    assert stream["evictions"][0] > 0
    assert len(stream["eviction ms"]) > 0
    np.testing.assert_allclose(stream["eviction ms"], 1.0)
    np.testing.assert_allclose(stream["step ms"], 1.0)
    assert len(stream["resident MiB"]) == len(stream["step ms"]) == 6
    assert scores["decode ratio"] == scores["prefill ratio"] == pytest.approx((1.0, 1.0))


def test_every_part_is_planned_and_no_cell_twice() -> None:
    jobs = plan(PARTS, EvalSettings(), 4000)
    cells = [(job.cell.part, job.cell.policy, job.cell.budget, job.cell.seed) for job in jobs]
    assert len(set(cells)) == len(cells)
    assert {part for part, *_ in cells} == set(PARTS)
    assert all(len(job.cell.setup) < 4096 for job in jobs)


@pytest.mark.parametrize("policy", list(WITH_RECALL))
def test_recall_changes_what_a_question_meets_and_leaves_no_trace(bench: Bench, policy: str) -> None:
    settings = replace(SETTINGS, budgets=(256,), filler_tokens=600)
    found = {job.cell.policy: job for job in facts_jobs(settings, bench.engine.capacity)}
    without, values = found[WITH_RECALL[policy]].run(bench, done), found[policy].run(bench, done)
    assert values["evicted"] == without["evicted"] > (0.0,)
    assert values["answer nats"] != without["answer nats"]
    assert bench.engine.length <= 256
    assert values == found[policy].run(bench, done)
