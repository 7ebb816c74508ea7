"""LocalBack: the layers behind the split on this device, fed by the same bytes that a server would get."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import Engine, KVState, Route
from edgemem.runtime.errors import EngineError
from edgemem.split.answering import answer_of, extend_back
from edgemem.split.back import Answer, Ask
from edgemem.split.coder import Coder


class LocalBack:
    """The Back protocol over an engine of layers [split, L), which it closes."""

    route: Route = "local"

    def __init__(self, engine: Engine, coder: Coder, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """clock: seconds."""
        self._engine, self._coder, self._clock = engine, coder, clock
        self.capacity = engine.capacity
        self._logits: NDArray[np.float32] | None = None

    @property
    def length(self) -> int:
        return self._engine.length

    def extend(self, payload: bytes, count: int, ask: Ask) -> Answer:
        """See Back. Raises what extend_back raises; then nothing has changed."""
        answer, self._logits = extend_back(self._engine, self._coder, payload, count, ask, clock=self._clock)
        return answer

    def logits(self, count: int) -> Answer:
        if self._logits is None:
            raise EngineError("there are no logits", do="extend first; truncate forgets them")
        return answer_of(self._logits, count)

    def keep(self, slots: NDArray[np.int64]) -> None:
        self._engine.keep(slots)

    def truncate(self, length: int) -> None:
        if length < self.length:
            self._engine.truncate(length)
            self._logits = None

    def state(self) -> KVState:
        return self._engine.state()

    def restore(self, state: KVState) -> None:
        self._engine.restore(state)
        self._logits = state.logits

    def close(self) -> None:
        self._engine.close()
        self._logits = None
