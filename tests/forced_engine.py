"""An engine whose answers the test chooses, for what a real model cannot be made to do: tokens, failures on demand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import KVState, Step, Token, Traffic
from edgemem.runtime.errors import ContextError, SettingsError
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler


class ForcedEngine:
    """The Engine protocol over a list of tokens; `choose(history, place)` is its model."""

    name = "forced"

    def __init__(self, package: Package, choose: Callable[[list[int], int], int], capacity: int = 512) -> None:
        self.model, self.layers, self.capacity = package.model, (0, package.model.layers), capacity
        self.history: list[int] = []
        self.closed = 0
        self.on_consume: Callable[[int], None] = lambda length: None  # called before tokens are taken in
        self._choose = choose

    @property
    def length(self) -> int:
        return len(self.history)

    def extend(
        self, inputs: NDArray[np.generic], *, surprisal: bool = False, tokens: NDArray[np.int32] | None = None
    ) -> Step:
        if len(inputs) > self.capacity - self.length:
            raise ContextError("full")
        self.on_consume(self.length)
        self.history += inputs.tolist()
        logits = np.zeros(self.model.vocabulary, dtype=np.float32)
        return Step(logits, surprisal=np.array(inputs % 7, dtype=np.float32) if surprisal else None)

    def decode(self, sampler: Sampler, limit: int, *, surprisal: bool = False) -> Iterator[Token]:
        for place in range(limit):
            logits = np.full(self.model.vocabulary, -100, dtype=np.float32)
            logits[self._choose(self.history, place)] = 0
            token = sampler.sample(logits)
            yield Token(token, float(token % 7) if surprisal else math.nan)
            if place + 1 < limit:
                if self.length == self.capacity:
                    return
                self.on_consume(self.length)
                self.history.append(token)

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise SettingsError("cannot truncate")
        del self.history[length:]

    def keep(self, slots: NDArray[np.int64]) -> None:
        self.history = [self.history[slot] for slot in slots]

    def state(self) -> KVState:
        shape = (self.model.layers, self.model.kv_heads, self.length, self.model.head_dim)
        keys = np.broadcast_to(np.array(self.history, dtype=np.float32)[:, None], shape)
        return KVState(keys, keys, None)

    def restore(self, state: KVState) -> None:
        self.history = state.keys[0, 0, :, 0].astype(int).tolist()

    def traffic(self) -> Traffic:
        return Traffic(0, 0, 0)

    def close(self) -> None:
        self.closed += 1
