"""What is still held of planted facts, and what the model makes of it when asked in the same words.

How much is held does not depend on the model's intelligence; the answers are to be read beside those of the same model
with everything in its memory.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from statistics import fmean

import numpy as np

from edgemem.runtime.errors import SettingsError
from edgemem.runtime.memory.recall import Recall
from edgemem.runtime.retention.policies import slots_to_keep
from edgemem.runtime.retention.recall import RecallSettings
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.tools.memory_eval.cells import Bench, Cell, Job, Progress, Values, setup_text
from edgemem.tools.memory_eval.feed import Feed, Tokens
from edgemem.tools.memory_eval.planted import Fact, Trial, plant
from edgemem.tools.memory_eval.scoring import log_probability, logits_of
from edgemem.tools.memory_eval.settings import ENTROPY, FULL, SIRLLM, WINDOW, WITH_RECALL, EvalSettings, retention

_DECAY = 0.9
_RECALL = RecallSettings()


def facts_jobs(settings: EvalSettings, capacity: int) -> Iterator[Job]:
    arms = [(FULL, capacity)]
    arms += [(policy, budget) for budget in settings.budgets for policy in (WINDOW, ENTROPY, SIRLLM, *WITH_RECALL)]
    sizes = {
        name: getattr(settings, name) for name in ("trials", "facts", "filler_tokens", "text_tokens", "block", "turn")
    }
    for seed in range(settings.seeds):
        for policy, budget in arms:
            kept = retention(WITH_RECALL.get(policy, policy), budget, decay=_DECAY, turns=False)
            recall = _RECALL if policy in WITH_RECALL else None
            setup = setup_text(kept, **sizes, **({} if recall is None else {"recall": asdict(recall)}))
            cell = Cell("facts", policy, 0 if policy == FULL else budget, seed, setup)
            yield Job(cell, partial(_run, settings, seed, kept, recall))


def _run(
    settings: EvalSettings,
    seed: int,
    kept: RetentionSettings,
    recalls: RecallSettings | None,
    bench: Bench,
    progress: Progress,
) -> Values:
    made: list[dict[str, float]] = []
    for index in range(settings.trials):
        chance = random.Random(f"facts {seed} {index}")
        if len(bench.text) <= settings.filler_tokens:
            raise SettingsError(
                "the text is too short to plant facts in",
                got=f"{len(bench.text)} tokens",
                wanted=f"more than {settings.filler_tokens}",
            )
        start = chance.randrange(len(bench.text) - settings.filler_tokens)
        filler = bench.text[start : start + settings.filler_tokens]
        trial = plant(chance, bench.tokenizer.encode, filler, settings.facts)
        recall = None if recalls is None else Recall(bench.engine, recalls)
        made.append(_remember(bench, Feed(bench.engine, kept, bench.clock, recall=recall), trial, settings))
        progress((index + 1) / settings.trials)
    return {name: tuple(one[name] for one in made) for name in made[0]}


def _remember(bench: Bench, feed: Feed, trial: Trial, settings: EvalSettings) -> dict[str, float]:
    """Read the trial, then ask for every fact aside. Means over its facts, and how much was evicted."""
    for start in range(0, len(trial.tokens), settings.block):
        feed.consume(trial.tokens[start : start + settings.block])
        if start % settings.turn + settings.block >= settings.turn:
            feed.end_turn()
    lead = bench.tokenizer.encode("\n\n")
    feed.make_room(max(len(lead) + len(fact.positions) for fact in trial.facts))
    asked = [_ask(feed, lead, fact) for fact in trial.facts]
    means = {name: fmean(one[name] for one in asked) for name in asked[0]}
    return {**means, "evictions": float(feed.evictions), "evicted": float(feed.evicted)}


def _ask(feed: Feed, lead: list[int], fact: Fact) -> dict[str, float]:
    """What is held of the fact when it is asked for, and the answer's log-probability beside the near miss's."""
    question = np.array([*lead, *fact.question], dtype=np.int32)
    with feed.aside() as engine, _recalled(feed, question) as held:
        logits = logits_of(engine.extend(question))
        right, wrong = (log_probability(engine, logits, words) for words in (fact.answer, fact.near_miss))
    return {
        "held": len(held.intersection(fact.positions)) / len(fact.positions),
        "answer held": len(held.intersection(fact.answer_positions)) / len(fact.answer),
        "answer nats": right,
        "over near miss": float(right > wrong),
    }


@contextmanager
def _recalled(feed: Feed, question: Tokens) -> Iterator[set[int]]:
    """The positions that are held, with what the question brings back, if it does; all as before afterwards."""
    rows, engine, length = feed.table.rows, feed.engine, feed.table.length
    held: set[int] = set(rows["position"].tolist())
    if feed.recall is None:
        yield held
        return
    before = engine.state()
    engine.extend(question)
    sinks, budget = feed.settings.sinks, feed.settings.budget
    found = feed.recall.find(np.arange(length, engine.length), (budget - sinks) // 2, copy=True)
    engine.truncate(length)
    if found is not None:
        kept = slots_to_keep(feed.table, feed.settings, len(found.rows) + len(question))
        engine.keep(kept)
        feed.recall.put_back(sinks, found)
        held = {*rows["position"][kept].tolist(), *found.rows["position"].tolist()}
    try:
        yield held
    finally:
        engine.restore(before)
