"""A trial of facts in filler: where each is planted, how it is asked for, and the near miss planted beside it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgemem.tools.memory_eval.feed import Tokens
from edgemem.tools.memory_eval.words import FACTS

_PLANTED_WITHIN = 0.75  # of the filler: what follows is there to be remembered over


@dataclass(frozen=True)
class Fact:
    """question: the tokens up to the answer. start: where in the trial they begin. near_miss: the answer of the fact
    that differs in one word."""

    start: int
    question: tuple[int, ...]
    answer: tuple[int, ...]
    near_miss: tuple[int, ...]

    @property
    def positions(self) -> range:
        return range(self.start, self.start + len(self.question) + len(self.answer))

    @property
    def answer_positions(self) -> range:
        return self.positions[len(self.question) :]


@dataclass(frozen=True)
class Trial:
    tokens: Tokens
    facts: tuple[Fact, ...]


def plant(chance: random.Random, encode: Callable[[str], list[int]], filler: Tokens, count: int) -> Trial:
    """`count` facts, and a near miss of each, at random places of the filler, each in a paragraph of its own."""
    told: list[tuple[str, str, str | None]] = []  # statement, answer, and the near miss's if this is asked for
    for form, qualities, answers in chance.sample(FACTS, count):
        ours, other = chance.sample(qualities, 2)
        answer, missed = _answers(chance, answers)
        told += [(form.format(ours), answer, missed), (form.format(other), missed, None)]
    chance.shuffle(told)
    places = sorted(chance.sample(range(1, int(_PLANTED_WITHIN * len(filler))), len(told)))
    parts: list[Sequence[int]] = []
    facts, length, taken = [], 0, 0
    for place, (statement, answer, near_miss) in zip(places, told, strict=True):
        before = [*filler[taken:place].tolist(), *encode("\n\n")]
        question, words = encode(statement), encode(f" {answer}")
        if near_miss is not None:
            facts.append(Fact(length + len(before), tuple(question), tuple(words), tuple(encode(f" {near_miss}"))))
        parts += [before, question, words, encode(".\n\n")]
        length, taken = sum(map(len, parts)), place
    parts.append(filler[taken:].tolist())
    return Trial(np.array([token for part in parts for token in part], dtype=np.int32), tuple(facts))


def _answers(chance: random.Random, answers: Sequence[str]) -> tuple[str, str]:
    """Two different ones: of these, or numbers of four digits."""
    first, second = chance.sample(answers or [str(number) for number in range(1000, 10_000)], 2)
    return first, second
