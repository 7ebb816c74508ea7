"""Whether one engine says what another says: greedy tokens in common, and how far their odds are apart."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import EngineError
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package

PROMPT_TOKENS, TOKENS = 16, 256


@dataclass(frozen=True)
class Agreement:
    """Over `tokens` places of one text, each engine having read the same. truth: the engine compared with. ties: places
    where its best two logits are within a bfloat16 rounding of one another, so that either may win; kl: mean, of the
    other's odds from its.
    """

    truth: str
    tokens: int
    equal: int
    ties: int
    kl: float

    def __str__(self) -> str:
        return (
            f"{self.equal} of {self.tokens} greedy tokens as {self.truth} has them ({self.ties} ties), KL {self.kl:.2e}"
        )


def measure_agreement(path: Path, tokens: int = TOKENS) -> Agreement:
    """Of the cuda engine with the onnx engine. Raises what opening the package raises."""
    with Package.open(path) as package:
        capacity = PROMPT_TOKENS + tokens
        cuda, onnx = (open_engine(package, name, capacity=capacity) for name in ("cuda", "onnx"))
        with closing(cuda), closing(onnx):
            return agreement_of(cuda, onnx, tokens)


def agreement_of(engine: Engine, truth: Engine, tokens: int) -> Agreement:
    """Both new, of one package. The text is the truth's own greedy one, after a few random tokens."""
    inputs = np.random.default_rng(0).integers(0, truth.model.vocabulary, PROMPT_TOKENS, dtype=np.int32)
    equal = ties = 0
    divergences = []
    for _ in range(tokens):
        ours, theirs = _logits(engine, inputs), _logits(truth, inputs)
        best = int(theirs.argmax())
        equal += int(ours.argmax()) == best
        second, first = np.partition(theirs, -2)[-2:]
        ties += bool(first - second < abs(first) * 2**-8)
        divergences.append(_divergence(theirs, ours))
        inputs = np.array([best], dtype=np.int32)
    return Agreement(truth.name, tokens, equal, ties, float(np.mean(divergences)))


def _logits(engine: Engine, inputs: NDArray[np.int32]) -> NDArray[np.float64]:
    logits = engine.extend(inputs).logits
    if logits is None:
        raise EngineError("the engine gave no logits", where=engine.name)
    return logits.astype(np.float64)


def _divergence(truth: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Kullback-Leibler, of the softmax of `other` from that of `truth`."""
    log_p, log_q = (logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()) for logits in (truth, other))
    return float((np.exp(log_p) * (log_p - log_q)).sum())
