"""Sampling: from logits to a token. The NumPy truth that every engine's own sampler must match."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampling:
    """Settings; temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0


class Sampler:
    """One answer's sampler."""

    def __init__(self, settings: Sampling) -> None:
        self.settings = settings

    def sample(self, logits: NDArray[np.float32]) -> int:
        """(vocabulary,) float32 to a token id."""
        return int(np.argmax(logits))
