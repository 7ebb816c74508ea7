"""Sampling: from logits to a token. The NumPy truth that every engine's own sampler must match.

Order, as llama.cpp has it: repetition penalty, top-k, top-p, min-p, temperature, draw. It knows no engine and no text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import NumericError, SettingsError

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Raises SettingsError for a value out of range.

    temperature: 0 is greedy, else 0.001 to 1000.
    top_k: only the k highest logits, 0 for all. top_p: the fewest tokens whose probabilities reach p, 1 for all.
    min_p: only tokens at least min_p times as probable as the best, 0 for all.
    repetition_penalty: logits of tokens already in the prompt or the answer are divided by it where positive and
        multiplied where negative (Keskar et al. 2019, as transformers has it); 1 for none.
    seed: 0 to 2**64 - 1. The same seed, settings and logits give the same tokens. Logits may differ in rounding between
        engines and numbers of threads: see Session.stream.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        temperature, penalty = self.temperature, self.repetition_penalty
        _require("temperature", temperature, temperature == 0 or _within(temperature, 1e-3, 1e3), "0, or 0.001 to 1000")
        _require("top_p", self.top_p, _within(self.top_p, 0, 1) and self.top_p > 0, "a number over 0, up to 1")
        _require("min_p", self.min_p, _within(self.min_p, 0, 1), "a number from 0 to 1")
        _require("repetition_penalty", penalty, _within(penalty, 1e-3, 1e3), "a number from 0.001 to 1000")
        _require("top_k", self.top_k, _whole(self.top_k, _MASK), "a whole number, 0 for all tokens")
        _require("seed", self.seed, _whole(self.seed, _MASK), "a whole number from 0 to 2**64 - 1")


class Sampler:
    """One answer's sampler: the settings, the tokens seen so far, and the number of the next draw."""

    def __init__(self, settings: Sampling, history: Iterable[int] = ()) -> None:
        """`history`: the prompt's token ids, which the repetition penalty counts as seen."""
        self.settings = settings
        self.draws = 0
        self._penalised = settings.repetition_penalty != 1.0
        self._unmarked = list(history) if self._penalised else []
        self._seen = np.zeros(0, dtype=np.bool_)  # (vocabulary,) once the first logits have told its size

    def accept(self, token: int) -> None:
        """Count a token as seen. `sample` does so itself; a loop that draws elsewhere calls this."""
        if self._penalised:
            self._unmarked.append(token)

    def accept_drawn(self, token: int) -> None:
        """Count a token that a loop elsewhere drew by these settings, and its draw."""
        self.draws += self.settings.temperature > 0
        self.accept(token)

    def penalised_tokens(self, vocabulary: int) -> NDArray[np.int32]:
        """The tokens on which the penalty falls next, for a loop that draws elsewhere.

        Raises SettingsError for one outside the vocabulary.
        """
        self._mark(vocabulary)
        return np.flatnonzero(self._seen).astype(np.int32)

    def sample(self, logits: NDArray[np.float32]) -> int:
        """(vocabulary,) float32, left unchanged, to a token id; of equal logits the lowest id wins.

        Raises NumericError if the highest logit is not finite or any is NaN.
        """
        if self._penalised:
            logits = self._penalise(logits)
        token = int(logits.argmax())
        best = logits[token]
        if not np.isfinite(best):
            raise NumericError(
                "the logits are not finite",
                where=f"token {token}",
                got=best,
                do="check the package: edgemem eval shows whether its weights are sound",
            )
        if self.settings.temperature > 0:
            token = self._draw(logits, best)
        self.accept(token)
        return token

    def _mark(self, vocabulary: int) -> None:
        """Enter the tokens accepted since the last call into `_seen`."""
        if self._seen.size != vocabulary:
            self._seen = np.zeros(vocabulary, dtype=np.bool_)
        if self._unmarked:
            low, high = min(self._unmarked), max(self._unmarked)
            if low < 0 or high >= vocabulary:
                wanted = f"0 to {vocabulary - 1}"
                raise SettingsError("a token outside the vocabulary", got=low if low < 0 else high, wanted=wanted)
            self._seen[self._unmarked] = True
            self._unmarked.clear()

    def _penalise(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        self._mark(logits.size)
        seen = np.flatnonzero(self._seen)
        values, penalty = logits[seen], np.float32(self.settings.repetition_penalty)
        penalised = logits.copy()
        penalised[seen] = np.where(values > 0, values / penalty, values * penalty)
        return penalised

    def _draw(self, logits: NDArray[np.float32], best: np.float32) -> int:
        """Walk the kept tokens in order of id until their summed weights pass this draw's share of the total.

        The order is that of ids, not of logits, so that engines whose logits differ by a rounding draw alike.
        """
        settings = self.settings
        with np.errstate(over="ignore"):  # a logit of -3e38 becomes -inf, which weighs nothing
            scores = logits - best  # 0 for the best
        ids: NDArray[np.intp] | None = None
        if 0 < settings.top_k < scores.size:
            ids = highest(scores, settings.top_k)
            scores = scores[ids]
        if settings.top_p < 1:
            kept = _nucleus(scores, settings.top_p)
            ids, scores = kept if ids is None else ids[kept], scores[kept]
        if settings.min_p > 0:
            kept = np.flatnonzero(scores >= np.float32(math.log(settings.min_p)))
            ids, scores = kept if ids is None else ids[kept], scores[kept]
        with np.errstate(over="ignore"):
            weights = np.exp(scores / np.float32(settings.temperature))
        sums = np.cumsum(weights, dtype=np.float64)
        share = uniform(settings.seed, self.draws) * sums[-1]
        self.draws += 1
        index = min(int(np.searchsorted(sums, share, side="right")), sums.size - 1)
        return index if ids is None else int(ids[index])


def splitmix64(seed: int, draw: int) -> int:
    """The 64-bit number `draw` (from 0) of the stream `seed`; any draw without those before it.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, with Vigna's constants.
    """
    mixed = (seed + (draw + 1) * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)


def uniform(seed: int, draw: int) -> float:
    """A number in [0, 1): the upper 53 bits of splitmix64(seed, draw)."""
    return (splitmix64(seed, draw) >> 11) * 2.0**-53


def highest(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Indices, rising, of the `count` highest scores; of equal ones the lowest indices."""
    place = scores.size - count
    threshold = np.partition(scores, place)[place]
    kept = np.flatnonzero(scores >= threshold)
    if kept.size > count:
        ties = np.flatnonzero(scores[kept] == threshold)
        kept = np.delete(kept, ties[count - kept.size :])
    return kept


def _nucleus(scores: NDArray[np.float32], top_p: float) -> NDArray[np.intp]:
    """Indices, rising, of the fewest most probable scores whose softmax sums to top_p or more."""
    weights = np.exp(scores)
    total = float(weights.sum(dtype=np.float64))
    # Weights under this sum to less than (1 - top_p) * total, so the nucleus lies above: sort only that.
    likely = np.flatnonzero(weights >= (1 - top_p) * total / weights.size)
    order = likely[np.argsort(-weights[likely], kind="stable")]
    sums = np.cumsum(weights[order], dtype=np.float64)
    count = int(np.searchsorted(sums, top_p * total, side="left")) + 1
    return np.sort(order[:count])


def _within(value: object, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _whole(value: object, high: int) -> bool:
    return type(value) is int and 0 <= value <= high


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise SettingsError(f"the sampling setting {name} is out of range", got=repr(value), wanted=wanted)
