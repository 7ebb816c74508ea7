"""Which candidate a model chooses, and what log-probability it gives a text, without a trace in its memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import Engine, Step
from edgemem.runtime.errors import EngineError

Logits = NDArray[np.float32]
Ids = Sequence[int]


def logits_of(step: Step) -> Logits:
    """A copy that lasts. Raises EngineError for a step of an engine without the head."""
    if step.logits is None:
        raise EngineError("answers need logits, which this engine does not give", do="open it over all layers")
    return step.logits.copy()


def choose(engine: Engine, logits: Logits, candidates: Sequence[Ids]) -> int:
    """SirLLM's rule: the first candidate whose tokens are the greedy output, else the best first token.

    logits: (vocabulary,) after the prompt that the engine has consumed.
    """
    for place, candidate in enumerate(candidates):
        if candidate[0] == int(np.argmax(logits)) and _is_greedy(engine, candidate):
            return place
    return best_first_token(logits, candidates)


def best_first_token(logits: Logits, candidates: Sequence[Ids]) -> int:
    """The candidate whose first token is the most probable; the first of several."""
    return int(np.argmax([logits[candidate[0]] for candidate in candidates]))


def log_probability(engine: Engine, logits: Logits, tokens: Ids) -> float:
    """Of all the tokens together, in nats, after the prompt that the engine has consumed and that gave the logits."""
    length, row = engine.length, logits.astype(np.float64)
    highest = row.max()
    first = row[tokens[0]] - highest - np.log(np.exp(row - highest).sum())
    if len(tokens) == 1:
        return float(first)
    step = engine.extend(np.array(tokens, dtype=np.int32), surprisal=True)
    rest = np.array(step.surprisal, dtype=np.float64)[1:].sum()
    engine.truncate(length)
    return float(first - rest)


def _is_greedy(engine: Engine, candidate: Ids) -> bool:
    """Whether the tokens after the first follow greedily."""
    length = engine.length
    try:
        for token, following in pairwise(candidate):
            if int(np.argmax(logits_of(engine.extend(np.array([token], dtype=np.int32))))) != following:
                return False
        return True
    finally:
        engine.truncate(length)
