"""The choice tasks on a model: one question after the other, the chosen answer becoming part of what is remembered.

Two figures a question, at the same moment: by letters, as SirLLM scores, and "open", without choices being shown, by
the log-probability of each choice's words after the reply's beginning.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import fmean

import numpy as np

from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.tools.memory_eval.cells import Bench, Cell, Job, Progress, Values, setup_text
from edgemem.tools.memory_eval.dialogue import dialogue
from edgemem.tools.memory_eval.feed import Feed
from edgemem.tools.memory_eval.grocery import grocery
from edgemem.tools.memory_eval.questions import Question, best_constant
from edgemem.tools.memory_eval.scoring import choose, log_probability, logits_of
from edgemem.tools.memory_eval.settings import (
    ENTROPY,
    FULL,
    RELEASED,
    SIRLLM,
    WINDOW,
    EvalSettings,
    retention,
)

_MAKERS: dict[str, Callable[[random.Random], tuple[Question, ...]]] = {"grocery": grocery, "dialogue": dialogue}
_DECAYS = {"grocery": 1.0, "dialogue": 0.7}  # SirLLM's
_RELEASED_BUDGET = 512  # its score needs a step for each token, so one budget must do
CHANCE, CONSTANT = "chance", "best constant"


def choice_jobs(part: str, settings: EvalSettings, capacity: int) -> Iterator[Job]:
    """Of the part "grocery" or "dialogue". capacity: slots for the policy that keeps everything."""
    count = settings.groups if part == "grocery" else settings.dialogues
    arms = [(FULL, capacity)]
    arms += [(policy, budget) for budget in settings.budgets for policy in (WINDOW, ENTROPY, SIRLLM)]
    if part == "grocery" and _RELEASED_BUDGET in settings.budgets:
        arms.append((RELEASED, _RELEASED_BUDGET))
    for seed in range(settings.seeds):
        for policy in (CHANCE, CONSTANT):
            cell = Cell(part, policy, 0, seed, setup_text(None, conversations=count, seeds=settings.seeds))
            yield Job(cell, partial(_baseline, part, seed, count, settings.seeds, policy))
        for policy, budget in arms:
            kept = retention(policy, budget, decay=_DECAYS[part], turns=True)
            cell = Cell(part, policy, 0 if policy == FULL else budget, seed, setup_text(kept, conversations=count))
            yield Job(cell, partial(_run, part, seed, count, kept))


def conversations(part: str, seed: int, count: int) -> list[tuple[Question, ...]]:
    return [_MAKERS[part](random.Random(f"{part} {seed} {index}")) for index in range(count)]


def _run(part: str, seed: int, count: int, kept: RetentionSettings, bench: Bench, progress: Progress) -> Values:
    made: list[dict[str, float]] = []
    for index, questions in enumerate(conversations(part, seed, count)):
        made.append(converse(bench, Feed(bench.engine, kept, bench.clock), questions))
        progress((index + 1) / count)
    return {name: tuple(one[name] for one in made) for name in made[0]}


def converse(bench: Bench, feed: Feed, questions: Sequence[Question]) -> dict[str, float]:
    """One conversation: for each kind of question the share answered rightly, and how much was evicted."""
    found: dict[str, list[float]] = {}
    frame, encode = bench.frame, bench.tokenizer.encode
    pending = frame.opening
    for question in questions:
        turn = np.array([*pending, *encode(question.prompt), *frame.asked], dtype=np.int32)
        feed.make_room(len(turn))
        if question.endings:
            nats = _open_answers(bench, feed, pending, question)
            found.setdefault(f"{question.kind} open", []).append(float(np.argmax(nats) == question.right))
            found.setdefault(f"{question.kind} open nats", []).append(nats[question.right])
        logits = feed.consume(turn).logits
        candidates = [encode(frame.lead + text) for text in question.candidates]
        chosen = choose(feed.engine, logits, candidates) if len(candidates) > 1 else 0
        if question.kind:
            found.setdefault(question.kind, []).append(float(chosen == question.right))
        feed.end_turn()
        pending = (*candidates[chosen], *frame.answered)
    shares = {name: fmean(values) for name, values in found.items()}
    return {**shares, "evictions": float(feed.evictions), "evicted": float(feed.evicted)}


def _open_answers(bench: Bench, feed: Feed, pending: Sequence[int], question: Question) -> list[float]:
    """The log-probability of each ending, with no choice having been shown."""
    frame, encode = bench.frame, bench.tokenizer.encode
    asked = [*pending, *encode(question.text), *frame.asked, *encode(frame.lead + question.opening)]
    with feed.aside() as engine:
        logits = logits_of(engine.extend(np.array(asked, dtype=np.int32)))
        return [log_probability(engine, logits, encode(f" {ending}")) for ending in question.endings]


def _baseline(
    part: str, seed: int, count: int, seeds: int, policy: str, bench: Bench, progress: Progress
) -> dict[str, tuple[float, ...]]:
    """What no memory is needed for: chance, and the letter that is right most often over all seeds."""
    every = [questions for each in range(seeds) for questions in conversations(part, each, count)]
    made = conversations(part, seed, count)
    values: dict[str, tuple[float, ...]] = {}
    for kind in dict.fromkeys(question.kind for question in made[0] if question.kind):
        best = best_constant(every, kind)
        of_kind = [[question for question in questions if question.kind == kind] for questions in made]
        if policy == CHANCE:
            values[kind] = tuple(fmean(1 / len(question.choices) for question in one) for one in of_kind)
            if of_kind[0][0].endings:
                values[f"{kind} open"] = values[kind]
        else:
            values[kind] = tuple(fmean(float(question.right == best) for question in one) for one in of_kind)
    return values
