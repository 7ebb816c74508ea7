"""Recall: a RecallTier joined to an engine. What is evicted is put away, and what is like a question is put back.

It holds keys and values of slots and finds them; when that is worth a second reading of the prompt is not its business.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import Engine
from edgemem.runtime.retention.recall import (
    Recalled,
    RecallSettings,
    RecallTier,
    match_vectors,
    splice,
    storage_shape,
)
from edgemem.runtime.retention.slots import Rows


class Recall:
    """Host memory of at most settings.budget_bytes behind one engine's slots."""

    def __init__(self, engine: Engine, settings: RecallSettings) -> None:
        """Raises BudgetError as storage_shape does."""
        self.settings = settings
        self._engine = engine
        dtype = engine.state().keys.dtype
        storage = np.zeros(storage_shape(settings, engine.model, dtype), dtype=dtype)
        self._tier = RecallTier(settings, engine.model, storage)

    def put_away(self, rows: Rows, kept: NDArray[np.int64]) -> None:
        """All slots but the `kept` ones, before they are evicted. rows: (n,) of all slots in use."""
        gone = np.delete(np.arange(len(rows)), kept)
        state = self._engine.state()
        self._tier.add(rows[gone], state.keys[:, :, gone], state.values[:, :, gone], gone)

    def find(self, asked: NDArray[np.int64], most: int, *, copy: bool = False) -> Recalled | None:
        """Take what is like the tokens in these slots, no more than `most` slots of it; None where there is nothing.

        copy: it also stays.
        """
        blocks = min(self.settings.top, most // self.settings.block)
        if not len(asked) or not len(self._tier) or not blocks:
            return None
        query = match_vectors(self._engine.state().keys[:, :, asked], asked, self._engine.model)
        found = self._tier.match(query, blocks)
        return self._tier.copy(found) if copy else self._tier.take(found)

    def put_back(self, at: int, recalled: Recalled) -> None:
        """Before slot `at`. The engine has no logits of use until tokens are consumed."""
        self._engine.restore(splice(self._engine.state(), at, recalled, self._engine.model))
