"""How well a score ranks: area under the ROC curve, average precision, and their intervals. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgemem.tools.memory_eval.statistics import Estimate

Scores = NDArray[np.floating]
Truth = NDArray[np.bool_]
RESAMPLES = 2000


def roc_auc(scores: Scores, truth: Truth) -> float:
    """The chance that a true one scores over a false one, ties counting half. ValueError without both."""
    true, false = np.sort(scores[truth]), np.sort(scores[~truth])
    if not len(true) or not len(false):
        raise ValueError("a curve needs both true and false ones")
    below = np.searchsorted(false, true, "left") + np.searchsorted(false, true, "right")
    return float(below.sum() / (2 * len(true) * len(false)))


def average_precision(scores: Scores, truth: Truth) -> float:
    """The sum over thresholds of precision times the recall gained, equal scores being one threshold. ValueError
    without both."""
    if truth.all() or not truth.any():
        raise ValueError("a curve needs both true and false ones")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each run of equal scores
    found = np.cumsum(truth[order])[last]
    precision, recall = found / (last + 1), found / truth.sum()
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def with_interval(
    figure: Callable[[Scores, Truth], float], scores: Scores, truth: Truth, groups: Sequence[str]
) -> Estimate:
    """`figure` with its 95 % interval, by the percentile bootstrap over groups, the same on every call."""
    _, owner = np.unique(np.array(groups), return_inverse=True)
    members = [np.flatnonzero(owner == group) for group in range(int(owner.max()) + 1)]
    random = np.random.default_rng(0)
    drawn: list[float] = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([members[group] for group in random.integers(0, len(members), len(members))])
        if truth[chosen].any() and not truth[chosen].all():
            drawn.append(figure(scores[chosen], truth[chosen]))
    value = figure(scores, truth)
    low, high = np.percentile(drawn, (2.5, 97.5)) if drawn else (value, value)
    return Estimate(value, float(low), float(high))
