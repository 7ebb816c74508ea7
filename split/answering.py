"""What a back stage answers, on whichever side it runs: payload in, the highest logits out.

It holds nothing: the conversation is the engine's, the logits of the last answer are the caller's to keep.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import EngineError
from edgemem.runtime.sampling import highest
from edgemem.split.back import Answer, Ask
from edgemem.split.coder import Coder

Logits = NDArray[np.float32]


def extend_back(
    engine: Engine,
    coder: Coder,
    payload: bytes,
    count: int,
    ask: Ask,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Answer, Logits]:
    """Consume `count` rows in an engine over the layers behind the split; the answer, and all logits behind it.

    clock: seconds. Raises ProtocolError for a payload that holds no such rows, and what Engine.extend raises.
    """
    mark = clock()
    step = engine.extend(coder.decode(payload, count), surprisal=ask.tokens is not None, tokens=ask.tokens)
    if step.logits is None:
        raise EngineError("a back stage needs the last layer", got=f"layers {engine.layers}")
    return answer_of(step.logits, ask.logits, step.surprisal, compute_ms=1e3 * (clock() - mark)), step.logits


def answer_of(
    logits: Logits, count: int, surprisal: NDArray[np.float32] | None = None, *, compute_ms: float = 0.0
) -> Answer:
    """The `count` highest of (vocabulary,) logits, at most all; of equal ones the lowest ids, as the sampler has it."""
    best = int(logits.argmax())
    log_sum = float(logits[best]) + float(np.log(np.exp(logits - logits[best]).sum(dtype=np.float64)))
    if count >= logits.size:
        ids = np.arange(logits.size)
    elif count == 1:
        ids = np.array([best])
    else:
        ids = highest(logits, count) if count else np.empty(0, np.intp)
    return Answer(ids.astype(np.int32), logits[ids], log_sum, surprisal, compute_ms)
