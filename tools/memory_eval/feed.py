"""Feed: tokens into an engine under retention settings, with the surprisal of each, under every policy.

A session has runtime.memory for this, which asks for no surprisal where its policy needs none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import Engine
from edgemem.runtime.memory.recall import Recall
from edgemem.runtime.retention.policies import slots_to_keep
from edgemem.runtime.retention.scores import chunk_scores
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.retention.slots import SlotTable
from edgemem.tools.memory_eval.scoring import Logits, logits_of

Tokens = NDArray[np.int32]


class Consumed(NamedTuple):
    """logits: (vocabulary,) after the last token. surprisal: (n,), or the scores where the settings have others."""

    logits: Logits
    surprisal: NDArray[np.float32]


class Feed:
    """Begins with empty slots. evictions, evicted: how often room was made, and of how many slots in all."""

    def __init__(
        self,
        engine: Engine,
        settings: RetentionSettings,
        clock: Callable[[], float] = time.perf_counter,
        *,
        recall: Recall | None = None,
    ) -> None:
        """clock: seconds. recall: where what is evicted is put away."""
        engine.truncate(0)
        self.engine, self.settings, self.recall = engine, settings, recall
        self.table = SlotTable(settings.budget)
        self.evictions = self.evicted = 0
        self.eviction_ms: list[float] = []
        self._clock = clock
        self._turn_begins = True

    def make_room(self, incoming: int) -> None:
        """Evict what the settings say. Raises ContextError as slots_to_keep does."""
        mark = self._clock()
        kept = slots_to_keep(self.table, self.settings, incoming)
        gone = self.table.length - len(kept)
        if gone:
            if self.recall is not None:
                self.recall.put_away(self.table.rows, kept)
            self.engine.keep(kept)
            self.table.keep(kept)
            self.evictions += 1
            self.evicted += gone
            self.eviction_ms.append(1e3 * (self._clock() - mark))

    def consume(self, tokens: Tokens) -> Consumed:
        """All of (n,) tokens at once, after making room. The score of a turn's first token is its chunk's highest."""
        self.make_room(len(tokens))
        if self.settings.score == "as_released":
            logits, scores = self._one_by_one(tokens)
        else:
            step = self.engine.extend(tokens, surprisal=True)
            logits, scores = logits_of(step), np.array(step.surprisal, dtype=np.float32)
        surprisal = scores.copy()
        if self._turn_begins:
            scores[0] = np.nan
            self._turn_begins = False
        self.table.append(tokens, scores)
        return Consumed(logits, surprisal)

    def end_turn(self) -> None:
        self.table.end_turn()
        self._turn_begins = True

    @contextmanager
    def aside(self) -> Iterator[Engine]:
        """The engine, for something to be asked that is forgotten afterwards."""
        try:
            yield self.engine
        finally:
            self.engine.truncate(self.table.length)

    def _one_by_one(self, tokens: Tokens) -> tuple[Logits, NDArray[np.float32]]:
        """The released code's score needs the logits after every token, which engines give for the last alone."""
        rows = [logits_of(self.engine.extend(np.array([token], dtype=np.int32))) for token in tokens]
        return rows[-1], chunk_scores(np.stack(rows), tokens, self.settings.score)
