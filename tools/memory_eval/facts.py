"""What is still held of planted facts, and what the model makes of it when asked in the same words.

How much is held does not depend on the model's intelligence; the answers are to be read beside those of the same model
with everything in its memory.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from statistics import fmean

import numpy as np

from edgemem.runtime.errors import SettingsError
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.tools.memory_eval.cells import Bench, Cell, Job, Progress, Values, setup_text
from edgemem.tools.memory_eval.feed import Feed
from edgemem.tools.memory_eval.planted import Fact, Trial, plant
from edgemem.tools.memory_eval.scoring import log_probability, logits_of
from edgemem.tools.memory_eval.settings import ENTROPY, FULL, SIRLLM, WINDOW, EvalSettings, retention

_DECAY = 0.9


def facts_jobs(settings: EvalSettings, capacity: int) -> Iterator[Job]:
    arms = [(FULL, capacity)]
    arms += [(policy, budget) for budget in settings.budgets for policy in (WINDOW, ENTROPY, SIRLLM)]
    sizes = {
        name: getattr(settings, name) for name in ("trials", "facts", "filler_tokens", "text_tokens", "block", "turn")
    }
    for seed in range(settings.seeds):
        for policy, budget in arms:
            kept = retention(policy, budget, decay=_DECAY, turns=False)
            cell = Cell("facts", policy, 0 if policy == FULL else budget, seed, setup_text(kept, **sizes))
            yield Job(cell, partial(_run, settings, seed, kept))


def _run(settings: EvalSettings, seed: int, kept: RetentionSettings, bench: Bench, progress: Progress) -> Values:
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
        made.append(_remember(bench, Feed(bench.engine, kept, bench.clock), trial, settings))
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
    held = set(feed.table.rows["position"].tolist())
    asked = [_ask(feed, lead, fact) for fact in trial.facts]
    return {
        "held": fmean(len(held.intersection(fact.positions)) / len(fact.positions) for fact in trial.facts),
        "answer held": fmean(len(held.intersection(fact.answer_positions)) / len(fact.answer) for fact in trial.facts),
        "answer nats": fmean(right for right, _ in asked),
        "over near miss": fmean(float(right > wrong) for right, wrong in asked),
        "evictions": float(feed.evictions),
        "evicted": float(feed.evicted),
    }


def _ask(feed: Feed, lead: list[int], fact: Fact) -> tuple[float, float]:
    """The log-probabilities of the answer and of the near miss's."""
    with feed.aside() as engine:
        logits = logits_of(engine.extend(np.array([*lead, *fact.question], dtype=np.int32)))
        right, wrong = (log_probability(engine, logits, words) for words in (fact.answer, fact.near_miss))
        return right, wrong
