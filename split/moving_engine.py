"""MovingEngine: a conversation that goes on at another split where that is faster, between two tokens.

The engine of the other split is opened, and catches up, from another thread, while the conversation goes on in the one
before: by the same operations, so that with states that cross whole the text is the same. When to move, a Guide says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import Engine, KVState, Route, Step, Token, Traffic
from edgemem.runtime.errors import EdgememError, EngineError
from edgemem.runtime.sampling import Sampler
from edgemem.split.coder import TokenCoder
from edgemem.split.engine import SplitEngine
from edgemem.split.guide import Guide, News
from edgemem.split.history import BEGINNING, Extended, History, Kept, Operation, Place
from edgemem.split.moves import Offer
from edgemem.split.remote_back import RemoteBack
from edgemem.split.scout import Scout


class _Prepared(NamedTuple):
    """An engine that has done all up to a place in the history."""

    engine: SplitEngine
    place: Place


class MovingEngine:
    """The Engine protocol over one SplitEngine after the other. Its user is one thread.

    split: where it is. engine: of that split.
    """

    name = "split"

    def __init__(
        self,
        engine: SplitEngine,
        open_at: Callable[[int], SplitEngine],
        guide: Guide,
        *,
        scout: Scout | None = None,
    ) -> None:
        """engine: empty, at the guide's split. open_at: the same at another, from any thread; its server is asked
        later. scout: started; it tells the guide. All of them close with this."""
        self.engine = engine
        self.model, self.layers, self.capacity, self.length = engine.model, engine.layers, engine.capacity, 0
        self._open_at, self._guide, self._scout = open_at, guide, scout
        self._coder = TokenCoder(engine.model.vocabulary)
        self._history = History(self._coder)
        self._lock = threading.Lock()  # of the history
        self._worker = ThreadPoolExecutor(1, "edgemem-move")
        self._offer: Offer | None = None  # the last that was taken up
        self._opening: SplitEngine | None = None  # the worker's, while it catches up
        self._preparing: Future[_Prepared] | None = None
        self._closing = threading.Event()

    @property
    def route(self) -> Route:
        return self.engine.route

    @property
    def split(self) -> int:
        return self._guide.split

    def take_news(self) -> list[News]:
        """Of moves, each once."""
        news, self._guide.news = self._guide.news, []
        return news

    def extend(
        self, inputs: NDArray[np.generic], *, surprisal: bool = False, tokens: NDArray[np.int32] | None = None
    ) -> Step:
        """See Engine. Raises what SplitEngine.extend raises."""
        self._move_if_prepared()
        step = self.engine.extend(inputs, surprisal=surprisal, tokens=tokens)
        self._remember(np.asarray(inputs).astype(np.int32), scored=surprisal)
        return step

    def decode(self, sampler: Sampler, limit: int, *, surprisal: bool = False) -> Generator[Token, None, None]:
        """See Engine. Raises what SplitEngine.decode raises."""
        self._move_if_prepared()
        return self._decode(self.engine.decode(sampler, limit, surprisal=surprisal), sampler, limit, surprisal)

    def keep(self, slots: NDArray[np.int64]) -> None:
        self.engine.keep(slots)
        with self._lock:
            self._history.keep(np.asarray(slots).astype(np.int64))
        self.length = self.engine.length

    def truncate(self, length: int) -> None:
        self.engine.truncate(length)
        with self._lock:
            if length < self._history.length:
                self._history.truncate(length)
        self.length = self.engine.length

    def state(self) -> KVState:
        return self.engine.state()

    def restore(self, state: KVState) -> None:
        raise EngineError(
            "a conversation that may move remembers tokens, not a cache", do="restore into one that stays"
        )

    def traffic(self) -> Traffic:
        return self.engine.traffic()

    def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        if self._scout is not None:
            self._scout.close()
        if self._opening is not None and isinstance(self._opening.back, RemoteBack):
            self._opening.back.interrupt()
        self._worker.shutdown(wait=True)
        if self._preparing is not None and self._preparing.exception() is None:
            self._preparing.result().engine.close()
        self.engine.close()

    def _decode(
        self, tokens: Generator[Token, None, None], sampler: Sampler, limit: int, surprisal: bool
    ) -> Generator[Token, None, None]:
        left = limit
        while True:
            last: Token | None = None
            with closing(tokens):
                try:
                    for token in tokens:
                        self._consumed(last, left)
                        last, left = token, left - 1
                        yield token
                        if left and self._is_prepared and self.length < self.capacity:
                            break
                    else:
                        return
                finally:
                    self._consumed(last, left)
            if last is not None:
                self.extend(np.array([last.id], dtype=np.int32))
            tokens = self.engine.decode(sampler, left, surprisal=surprisal)

    def _consumed(self, token: Token | None, left: int) -> None:
        """If the engine took it, and has not said so yet. left: tokens that may come still."""
        if token is None or self.engine.length == self._history.length:
            return
        self._remember(np.array([token.id], dtype=np.int32), scored=False)
        times, whole = self.engine.times, not self._history.place.epoch
        usual = ("local",) if self.split == self.model.layers else ("remote", "degraded")
        if self._preparing is not None or times is None or self.route not in usual or not whole:
            return
        self._offer = self._guide.stepped(times, left, self._history.work)
        if self._offer is not None:
            self._preparing = self._worker.submit(self._prepare, self._offer.split)

    def _remember(self, tokens: NDArray[np.int32], *, scored: bool) -> None:
        with self._lock:
            self._history.extend(self._coder.encode(tokens), len(tokens), tokens if scored else None)
            self._history.trim()
        self.length = self.engine.length

    @property
    def _is_prepared(self) -> bool:
        return self._preparing is not None and self._preparing.done()

    def _prepare(self, split: int) -> _Prepared:
        """In the worker's thread."""
        self._opening = engine = self._open_at(split)
        try:
            if isinstance(engine.back, RemoteBack):
                if self._closing.is_set():  # looked at only now: `close` sees either the engine or that it is over
                    raise EngineError("the engine is closed")
                engine.back.sync()
            return _Prepared(engine, self._follow(engine, BEGINNING))
        except BaseException:
            engine.close()
            raise
        finally:
            self._opening = None

    def _move_if_prepared(self) -> None:
        preparing, offer = self._preparing, self._offer
        if preparing is None or offer is None or not preparing.done():
            return
        self._preparing = None
        try:
            engine, place = preparing.result()
            try:
                self._follow(engine, place)
            except BaseException:
                engine.close()
                raise
        except EdgememError as problem:
            self._guide.refused(offer, problem)
            return
        if not self.engine.has_logits:  # the history does not tell what was forgotten
            engine.forget_logits()
        before, self.engine = self.engine, engine
        self._worker.submit(before.close)  # which tells a server
        self._guide.moved(offer)

    def _follow(self, engine: SplitEngine, place: Place) -> Place:
        """Let the engine do all that was done since."""
        while True:
            with self._lock:
                step = self._history.next_after(place, engine.length)
            if step is None:
                return place
            if self._closing.is_set():
                raise EngineError("the engine is closed")
            _do(engine, step[0], self._coder)
            place = step[1]


def _do(engine: Engine, operation: Operation, coder: TokenCoder) -> None:
    if isinstance(operation, Extended):
        engine.extend(coder.decode(operation.payload, operation.count), surprisal=operation.tokens is not None)
    elif isinstance(operation, Kept):
        engine.keep(operation.slots)
    else:
        engine.truncate(operation.length)
