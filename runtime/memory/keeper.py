"""SnapshotKeeper: when a snapshot is worth its time. One is never needed: it saves reading the journal again."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgemem.runtime.errors import EngineError
from edgemem.runtime.memory.memory import Memory
from edgemem.runtime.store import Store

_EVERY_S = 10.0
_SHARE = 20  # a snapshot may take one part in so many of the time


class SnapshotKeeper:
    """Takes snapshots of a memory for a store, at turns' ends and at the close."""

    def __init__(self, memory: Memory, store: Store, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """clock: seconds. What the memory holds now counts as taken."""
        self._memory, self._store, self._clock = memory, store, clock
        self._ended = clock()
        self._took_s = 0.0
        self._position, self._length = memory.table.position, memory.table.length

    def after_turn(self) -> None:
        """Take one if the last is old enough: 10 s, or twenty times what it took."""
        if self._clock() - self._ended >= max(_EVERY_S, _SHARE * self._took_s):
            self.take()

    def take(self) -> None:
        """Take one if anything has changed. What goes wrong on disk is the store's `snapshot_problem`."""
        table, engine = self._memory.table, self._memory.engine
        now = table.position, table.length
        if now == (self._position, self._length) or not table.length or engine.length != table.length:
            return
        position = self._store.position()
        if position is None:
            return
        mark = self._clock()
        try:
            state = engine.state()
        except EngineError:  # it has ended, and its memory with it: the journal has everything
            return
        self._store.snapshot(position, state, {})
        self._ended = self._clock()
        self._took_s = self._ended - mark
        self._position, self._length = now
