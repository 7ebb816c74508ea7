"""Two records side by side: what differs in their conditions, then how many times as fast the second is, cell by cell.

The runs are independent, so nothing is paired: each side is resampled on its own. Nothing is read or printed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgemem.profiles.bootstrap import Interval, resampled_medians
from edgemem.profiles.conditions import conditions
from edgemem.profiles.plain import to_plain
from edgemem.profiles.record import Cell, CellKey, Record
from edgemem.profiles.statistics import figures
from edgemem.profiles.units import number_text, ratio_text, share_text

HEADERS = (
    "model",
    "engine",
    "arm",
    "context",
    "A ms/step",
    "B ms/step",
    "B as fast as A [95 %]",
    "A of measured",
    "B of measured",
    "verdict",
)
Identity = tuple[str, str, str, int]  # target, engine, arm, context


@dataclass(frozen=True)
class Pair:
    """One cell that both records measured. times_as_fast: A's milliseconds over B's, with its 95 % interval."""

    key: CellKey
    a_step_ms: float
    b_step_ms: float
    times_as_fast: float
    interval: Interval
    a_of_measured: float
    b_of_measured: float

    @property
    def verdict(self) -> Literal["faster", "slower", "no difference shown"]:
        """What the interval allows to be said of B."""
        if self.interval[0] > 1:
            return "faster"
        return "slower" if self.interval[1] < 1 else "no difference shown"

    def cells(self) -> list[str]:
        """The texts under HEADERS."""
        key = self.key
        steps = [number_text(self.a_step_ms), number_text(self.b_step_ms)]
        shares = [share_text(self.a_of_measured), share_text(self.b_of_measured)]
        ratio = ratio_text(self.times_as_fast, self.interval)
        return [key.target, key.engine, key.arm, str(key.context), *steps, ratio, *shares, self.verdict]


@dataclass(frozen=True)
class Comparison:
    """differences: (condition, in A, in B). only_a, only_b: cells that the other record did not measure."""

    differences: tuple[tuple[str, str, str], ...]
    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        pairs = [{**to_plain(pair), "verdict": pair.verdict} for pair in self.pairs]
        differences = [{"condition": name, "a": a, "b": b} for name, a, b in self.differences]
        return {
            "differences": differences,
            "pairs": pairs,
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
        }


def compare(a: Record, b: Record) -> Comparison:
    """Cells are the same by model, engine, arm and context; where each record has one model, that may differ too."""
    alone = len(a.targets) == len(b.targets) == 1
    ours, theirs = _measured(a, alone), _measured(b, alone)
    return Comparison(
        differences=_differences(a, b),
        pairs=tuple(_pair(a, ours[name], b, theirs[name]) for name in ours if name in theirs),
        only_a=tuple(_name(cell.key) for name, cell in ours.items() if name not in theirs),
        only_b=tuple(_name(cell.key) for name, cell in theirs.items() if name not in ours),
    )


def _measured(record: Record, alone: bool) -> dict[Identity, Cell]:
    keys = [(cell, cell.key) for cell in record.cells if cell.status == "measured"]
    return {("" if alone else key.target, key.engine, key.arm, key.context): cell for cell, key in keys}


def _differences(a: Record, b: Record) -> tuple[tuple[str, str, str], ...]:
    ours, theirs = conditions(a), conditions(b)
    names = [*ours, *(name for name in theirs if name not in ours)]
    both = [(name, ours.get(name, "–"), theirs.get(name, "–")) for name in names]
    return tuple((name, mine, its) for name, mine, its in both if mine != its)


def _pair(a: Record, ours: Cell, b: Record, theirs: Cell) -> Pair:
    mine, its = figures(a, ours), figures(b, theirs)
    if mine is None or its is None:
        raise ValueError("a cell without figures cannot be compared")
    low, high = np.percentile(_resampled(ours, 1) / _resampled(theirs, 2), (2.5, 97.5))
    return Pair(
        key=ours.key,
        a_step_ms=mine.step_ms,
        b_step_ms=its.step_ms,
        times_as_fast=mine.step_ms / its.step_ms,
        interval=(float(low), float(high)),
        a_of_measured=mine.of_measured,
        b_of_measured=its.of_measured,
    )


def _resampled(cell: Cell, seed: int) -> NDArray[np.float64]:
    """(resamples,): the median over sessions drawn anew of medians over steps drawn anew."""
    random = np.random.default_rng(seed)
    medians = resampled_medians([session.step_ms for session in cell.sessions])
    sessions, resamples = medians.shape
    chosen = random.integers(0, sessions, (resamples, sessions))
    inner = random.integers(0, resamples, (resamples, sessions))
    drawn: NDArray[np.float64] = np.median(medians[chosen, inner], axis=1)
    return drawn


def _name(key: CellKey) -> str:
    return f"{key.target} {key.engine} {key.arm} at {key.context}"
