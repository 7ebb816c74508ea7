"""WritingThread: the one thread that writes: no token waits for the disk, and Ctrl-C cannot cut a write short."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class WritingThread:
    """Does one piece of work at a time. It starts with the first, and ends with `close` or the interpreter."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "edgemem-store")
        self._hurry = threading.Event()
        self._waits = False  # a delayed piece of work has not begun yet
        self._delayed: Future[object] | None = None

    def now(self, work: Callable[[], Result]) -> Result:
        """Do it, after what is being done, and wait for it. What it raises is raised here, as what delayed work did."""
        self._hurry.set()
        result = self._executor.submit(self._unhurried, work).result()
        if self._delayed is not None and self._delayed.done():
            self._delayed.result()
        return result

    def soon(self, work: Callable[[], object], delay_s: float) -> None:
        """Do it after the delay, or with the next `now`. While one waits for that, another is not added."""
        if not self._waits:
            self._waits = True
            self._delayed = self._executor.submit(self._later, work, delay_s)

    def close(self) -> None:
        """Wait for all work, and end."""
        self._hurry.set()
        self._executor.shutdown()

    def _later(self, work: Callable[[], object], delay_s: float) -> None:
        self._hurry.wait(delay_s)
        self._waits = False  # before the work begins: what comes from here on may have come too late for it
        work()

    def _unhurried(self, work: Callable[[], Result]) -> Result:
        self._hurry.clear()
        return work()
