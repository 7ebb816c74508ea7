"""The figures of an evaluation: which series are reported, their means over units, and which policy does better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from edgemem.tools.memory_eval.record import Result
from edgemem.tools.memory_eval.settings import ENTROPY, RELEASED, SIRLLM, WINDOW, WITH_RECALL
from edgemem.tools.memory_eval.statistics import Estimate, Word, difference, mean, word

Kind = Literal["share", "nats", "perplexity"]
COMPARED_WITH = {ENTROPY: WINDOW, SIRLLM: WINDOW, RELEASED: WINDOW, **WITH_RECALL}


@dataclass(frozen=True)
class Measure:
    """A series of a part. use: what a conversation needs it for, in the sentence on defaults; "" for none.

    judged: whether policies are compared by it.
    """

    part: str
    series: str
    label: str
    kind: Kind
    higher_is_better: bool
    use: str = ""
    judged: bool = True

    def shown(self, nats: float) -> float:
        """A mean of the series, in the measure's own unit."""
        return math.exp(min(nats, 700.0)) if self.kind == "perplexity" else nats


MEASURES = (
    Measure("stream", "nats", "perplexity", "perplexity", False, "reading and writing on"),
    Measure("stream", "last nats", "last 10k", "perplexity", False),
    Measure("grocery", "recall", "recall by letter", "share", True),
    Measure("grocery", "recall open", "recall by words", "share", True, "recalling one thing said long before"),
    Measure("grocery", "recall open nats", "log p(item)", "nats", True),
    Measure("grocery", "filler", "fillers", "share", True),
    Measure("dialogue", "far", "far by letter", "share", True),
    Measure("dialogue", "far open", "far by words", "share", True, "coming back to details of a dialogue"),
    Measure("dialogue", "far open nats", "log p(detail)", "nats", True),
    Measure("dialogue", "near", "near by letter", "share", True),
    Measure("facts", "held", "slots held", "share", True),
    Measure("facts", "answer held", "answers held", "share", True, "holding facts in long text"),
    Measure("facts", "answer nats", "log p(answer)", "nats", True, "answering from facts in long text"),
    Measure("facts", "over near miss", "over near miss", "share", True),
    Measure("rps", "win", "wins", "share", True, "learning a habit"),
    Measure("rps", "tie", "ties", "share", False, judged=False),
    Measure("rps", "lose", "losses", "share", False, judged=False),
    Measure("rps", "move nats", "-log p(move)", "nats", False, "expecting what comes often"),
)


@dataclass(frozen=True)
class Arm:
    """The results of one policy and budget of a part, by seed."""

    policy: str
    budget: int
    results: tuple[Result, ...]

    def units(self, series: str, seeds: Iterable[int] | None = None) -> list[float]:
        """The values of all seeds, or of these, one after the other."""
        wanted = None if seeds is None else set(seeds)
        chosen = [result for result in self.results if wanted is None or result.cell.seed in wanted]
        return [value for result in chosen for value in result.values.get(series, ())]

    def estimate(self, measure: Measure) -> Estimate | None:
        units = self.units(measure.series)
        if not units:
            return None
        found = mean(units)
        return Estimate(*(measure.shown(end) for end in (found.value, found.low, found.high)))

    @property
    def missing(self) -> str | None:
        return next((result.missing for result in self.results if result.missing), None)


@dataclass(frozen=True)
class Verdict:
    """`policy` against what it is COMPARED_WITH, at the same budget. change: the difference; of perplexity, the ratio
    less 1."""

    measure: Measure
    policy: str
    budget: int
    change: Estimate
    units: int
    word: Word


def arms_of(part: str, results: Sequence[Result]) -> list[Arm]:
    """In the order of their budgets, those without first, then as they were measured."""
    found: dict[tuple[int, str], list[Result]] = {}
    for result in results:
        if result.cell.part == part:
            found.setdefault((result.cell.budget, result.cell.policy), []).append(result)
    ordered = sorted(found.items(), key=lambda item: item[0][0])
    return [
        Arm(policy, budget, tuple(sorted(group, key=lambda result: result.cell.seed)))
        for (budget, policy), group in ordered
    ]


def verdicts(results: Sequence[Result]) -> list[Verdict]:
    """Of every measure, policy and budget that has one to be compared with."""
    found = []
    for measure in (one for one in MEASURES if one.judged):
        arms = arms_of(measure.part, results)
        by_name = {(arm.policy, arm.budget): arm for arm in arms}
        for arm in arms:
            other = by_name.get((COMPARED_WITH.get(arm.policy, ""), arm.budget))
            verdict = None if other is None else _verdict(measure, arm, other)
            found += [] if verdict is None else [verdict]
    return found


def _verdict(measure: Measure, arm: Arm, other: Arm) -> Verdict | None:
    """Over the seeds that both have."""
    seeds = {result.cell.seed for result in arm.results} & {result.cell.seed for result in other.results}
    ours, theirs = arm.units(measure.series, seeds), other.units(measure.series, seeds)
    if not ours or len(ours) != len(theirs):
        return None
    found = difference(ours, theirs)
    judged = word(found, len(ours), higher_is_better=measure.higher_is_better)
    if measure.kind == "perplexity":
        found = Estimate(*(math.expm1(end) for end in (found.value, found.low, found.high)))
    return Verdict(measure, arm.policy, arm.budget, found, len(ours), judged)


def defaults(found: Sequence[Verdict]) -> list[str]:
    """A sentence for each use: which of window and entropy, our own setting, the evidence is for."""
    sentences = []
    for measure in MEASURES:
        judged = [one for one in found if one.measure == measure and one.policy == ENTROPY]
        if measure.use and judged:
            sentences.append(f"For {measure.use} ({measure.part}, {measure.label}): {_default(judged)}.")
    return sentences


def _default(judged: Sequence[Verdict]) -> str:
    if all(one.word == "too few units" for one in judged):
        return "too little was measured to tell"
    at = {name: [str(one.budget) for one in judged if one.word == name] for name in ("wins", "loses")}
    wins, loses = (", ".join(at[name]) for name in ("wins", "loses"))
    if wins and loses:
        return f"entropy at {wins}, window at {loses}"
    if wins:
        return f"entropy, which wins at {wins} and loses nowhere"
    if loses:
        return f"window, as entropy loses at {loses} and wins nowhere"
    return "window, the simpler, as no difference shows"
