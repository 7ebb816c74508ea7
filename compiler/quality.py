"""How near one stream of logits is to another: perplexities, mean KL divergence, top-1 agreement.

It holds sums only, so that a vocabulary times a long text never has to exist at once. It runs no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import NumericError, SettingsError

NO_NEXT = -1  # in next_tokens: this position is compared, and predicts nothing (the last one of a text)


@dataclass(frozen=True)
class Comparison:
    """A candidate against a reference over `tokens` positions.

    perplexity, reference_perplexity: exp of the mean -log p(next token), of positions that have a next token.
    kl_mean: mean over positions of KL(reference || candidate), in nats. top1_agreement: share of positions, 0 to 1.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float
    kl_mean: float
    top1_agreement: float


class QualityMeter:
    """Feed it the same positions of both streams, chunk by chunk, then ask for the result."""

    def __init__(self) -> None:
        self._positions = self._predicted = self._agreed = 0
        self._divergence = self._loss = self._reference_loss = 0.0

    def update(
        self,
        reference_logits: NDArray[np.floating],
        candidate_logits: NDArray[np.floating],
        next_tokens: NDArray[np.integer],
    ) -> None:
        """Count n more positions: two (n, vocabulary) arrays and the n token ids that followed, NO_NEXT where none did.

        Raises SettingsError for shapes that do not match, NumericError for NaN or Inf.
        """
        if reference_logits.shape != candidate_logits.shape or next_tokens.shape != reference_logits.shape[:1]:
            raise SettingsError(
                "the streams to compare have different shapes",
                got=f"reference {reference_logits.shape}, candidate {candidate_logits.shape}, next {next_tokens.shape}",
                wanted="(n, vocabulary) twice and (n,)",
            )
        reference = self._log_probabilities(reference_logits, "reference")
        candidate = self._log_probabilities(candidate_logits, "candidate")
        has_next = np.flatnonzero(next_tokens != NO_NEXT)
        following = next_tokens[has_next]
        if len(following) and not 0 <= following.min() <= following.max() < reference.shape[1]:
            raise SettingsError("a next token is outside the vocabulary", got=int(following.max()))
        self._reference_loss -= float(reference[has_next, following].sum())
        self._loss -= float(candidate[has_next, following].sum())
        self._agreed += int((reference.argmax(axis=1) == candidate.argmax(axis=1)).sum())
        candidate -= reference
        np.exp(reference, out=reference)
        self._divergence -= float(np.einsum("ij,ij->", reference, candidate))
        self._positions += len(reference)
        self._predicted += len(has_next)

    def result(self) -> Comparison:
        """Raises SettingsError before a position with a next token was counted."""
        if not self._predicted:
            raise SettingsError("nothing was compared", wanted="at least two tokens of text")
        return Comparison(
            tokens=self._positions,
            perplexity=_exponential(self._loss / self._predicted),
            reference_perplexity=_exponential(self._reference_loss / self._predicted),
            kl_mean=max(0.0, self._divergence / self._positions),  # rounding can leave a hair below zero
            top1_agreement=self._agreed / self._positions,
        )

    def _log_probabilities(self, logits: NDArray[np.floating], stream: str) -> NDArray[np.float64]:
        """Log-softmax over the last axis, in float64."""
        values = logits.astype(np.float64)
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values).all(axis=1)))
            raise NumericError(f"the {stream}'s logits are not finite", where=f"position {self._positions + row}")
        values -= values.max(axis=1, keepdims=True)
        values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
        return values


def _exponential(loss: float) -> float:
    return float(np.exp(min(loss, 700.0)))  # beyond this a float64 overflows, and no perplexity means anything


def fixed_text() -> str:
    """The English text, about 7 KB, that every package's quality is measured on."""
    return _data("fixed_text.txt")


def calibration_text() -> str:
    """The English text, about 60 KB and disjoint from `fixed_text`, that calibration uses where no file is given."""
    return _data("calibration_text.txt")


def _data(name: str) -> str:
    return (files("edgemem.compiler") / "data" / name).read_text(encoding="utf-8")
