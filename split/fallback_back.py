"""FallbackBack: a smaller model on this device, which goes on in the server's place.

It takes the tokens in place of the states that a server would get, and has a whole cache of its own. What is only to be
caught up with waits until an answer is wanted, or a chunk is full: read together it takes a fraction of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import Engine, KVState, Route
from edgemem.runtime.errors import EngineError, SettingsError
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.split.answering import answer_of
from edgemem.split.back import Answer, Ask
from edgemem.split.frames import CHUNK_TOKENS

_NOTHING = np.empty(0, dtype=np.int32)


class FallbackBack:
    """The Back protocol over an engine of all layers of the smaller model, which it closes."""

    route: Route = "fallback"

    def __init__(self, engine: Engine, vocabulary: int, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """vocabulary: of the model in whose place it stands; logits come in that size. clock: seconds."""
        self.capacity = engine.capacity
        self._engine, self._vocabulary, self._clock = engine, vocabulary, clock
        self._waiting: NDArray[np.int32] = _NOTHING  # in the slots behind the engine's
        self._logits: NDArray[np.float32] | None = None

    @property
    def length(self) -> int:
        return self._engine.length + len(self._waiting)

    def extend(self, payload: bytes, count: int, ask: Ask) -> Answer:
        """See Back. Raises EngineError where the tokens are not known, and what Engine.extend raises."""
        if ask.ids is None or len(ask.ids) != count:
            raise EngineError("a smaller model needs the tokens", got="hidden states of another model alone")
        if not ask.logits and ask.tokens is None:
            self._waiting = np.concatenate([self._waiting, ask.ids])
            self._logits = None
            self._read(CHUNK_TOKENS)
            return Answer(_NOTHING, np.empty(0, np.float32), 0.0)
        mark = self._clock()
        self._read(1)
        step = self._engine.extend(ask.ids, surprisal=ask.tokens is not None)
        if step.logits is None:
            raise EngineError("a smaller model needs all its layers", got=f"layers {self._engine.layers}")
        self._logits = self._fitted(step.logits)
        return answer_of(self._logits, ask.logits, step.surprisal, compute_ms=1e3 * (self._clock() - mark))

    def logits(self, count: int) -> Answer:
        if self._logits is None:
            raise EngineError("there are no logits", do="extend first; truncate forgets them")
        return answer_of(self._logits, count)

    def keep(self, slots: NDArray[np.int64]) -> None:
        self._read(1)
        self._engine.keep(slots)

    def truncate(self, length: int) -> None:
        if length < self.length:
            self._waiting = self._waiting[: max(0, length - self._engine.length)]
            if length < self._engine.length:
                self._engine.truncate(length)
            self._logits = None

    def state(self) -> KVState:
        raise EngineError("the memory of a smaller model is not that of the model", do="copy it from an engine of that")

    def restore(self, state: KVState) -> None:
        raise EngineError("a smaller model has no use for the memory of another", do="restore into an engine of that")

    def close(self) -> None:
        self._engine.close()
        self._waiting, self._logits = _NOTHING, None

    def _read(self, least: int) -> None:
        """What waits, a chunk at a time, while there are at least so many."""
        while len(self._waiting) >= least:
            part = self._waiting[:CHUNK_TOKENS]
            self._engine.extend(part)
            self._waiting = self._waiting[len(part) :]

    def _fitted(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """(vocabulary,): models of one tokenizer may differ in ids at the end that no token has."""
        if len(logits) >= self._vocabulary:
            return logits[: self._vocabulary]
        return np.pad(logits, (0, self._vocabulary - len(logits)), constant_values=-np.inf)


def check_same_tokens(tokenizer: Tokenizer, fallback: Tokenizer) -> None:
    """Raises SettingsError unless every token has the same id in both: the tokens of a conversation are read again as
    they are."""
    if not tokenizer.same_ids(fallback):
        raise SettingsError(
            "the fallback has another tokenizer, so it cannot go on with this model's tokens",
            got=f"{fallback.vocabulary} tokens",
            wanted=f"the same {tokenizer.vocabulary} with the same ids",
            do="choose a smaller model of the same family",
        )
