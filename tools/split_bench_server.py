"""Both sides of a split on one machine, each as slow as it is told: after every step it sleeps in proportion to it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import Step
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.split.listener import Listener
from edgemem.split.server import BackServer, ServerSettings
from edgemem.split.stage_pool import StagePool

_START_S = 60.0
_GRACE_S = 0.5


class SlowedEngine(NativeEngine):
    """A native engine whose extend takes `slowdown` times as long."""

    def __init__(
        self, package: Package, *, layers: tuple[int, int], capacity: int, threads: int | None, slowdown: float
    ) -> None:
        """slowdown: from 1."""
        super().__init__(package, layers=layers, capacity=capacity, threads=threads)
        self._slowdown = slowdown

    def extend(
        self, inputs: NDArray[np.generic], *, surprisal: bool = False, tokens: NDArray[np.int32] | None = None
    ) -> Step:
        begin = time.perf_counter()
        step = super().extend(inputs, surprisal=surprisal, tokens=tokens)
        _sleep_until(begin + self._slowdown * (time.perf_counter() - begin))
        return step


class SlowedPool(StagePool):
    """A stage pool over a slowed engine, which it closes."""

    def __init__(self, package: Package, split: int, *, capacity: int, threads: int | None, slowdown: float) -> None:
        self.model, self.split, self.capacity = package.model, split, capacity
        layers = (split, package.model.layers)
        self.engine = SlowedEngine(package, layers=layers, capacity=capacity, threads=threads, slowdown=slowdown)


@contextmanager
def serving_slowly(
    package: Package, splits: Sequence[int], *, slots: int, threads: int | None, slowdown: float
) -> Iterator[int]:
    """A real server in a thread of its own, in plain text on loopback; its port."""
    with ExitStack() as opened:
        pools: dict[int, StagePool] = {}
        for split in splits:
            pools[split] = SlowedPool(package, split, capacity=slots, threads=threads, slowdown=slowdown)
            opened.callback(pools[split].close)
        server = BackServer(
            pools,
            model_hash=package.manifest.model_hash,
            version="bench",
            settings=ServerSettings(slots=slots),
        )
        opened.pop_all()
        opened.callback(server.close)
        yield opened.enter_context(_listening(server))


@contextmanager
def _listening(server: BackServer) -> Iterator[int]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="edgemem-bench-server", daemon=True)
    thread.start()

    async def start() -> Listener:
        listener = Listener(
            "127.0.0.1", 0, roll=None, open_session=server.open_session, handle=server.handle, version="bench"
        )
        await listener.start()
        return listener

    try:
        listener = asyncio.run_coroutine_threadsafe(start(), loop).result(_START_S)
        try:
            yield listener.port
        finally:
            asyncio.run_coroutine_threadsafe(listener.drain(_GRACE_S), loop).result(_START_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _sleep_until(due: float) -> None:
    left = due - time.perf_counter()
    if left > 0:
        time.sleep(left)
