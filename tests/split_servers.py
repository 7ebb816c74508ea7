"""A real server on loopback in a thread of its own, for tests of both sides of a split."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgemem.runtime.package import Package
from edgemem.split.codec import CodecSettings
from edgemem.split.frames import PROTOCOL, Hello
from edgemem.split.listener import Listener
from edgemem.split.peers import Server
from edgemem.split.roll import Roll
from edgemem.split.server import BackServer, ServerSettings
from edgemem.split.stage_pool import StagePool

MODEL_HASH = "5" * 64


class Running:
    """port: on 127.0.0.1. back: of the sessions."""

    def __init__(self, package: Package, splits: Sequence[int], settings: ServerSettings, roll: Roll | None) -> None:
        self._package, self._splits, self._settings, self._roll = package, splits, settings, roll
        self._loop = asyncio.new_event_loop()
        self.port = 0
        self.back: BackServer
        self._listener: Listener
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)
        except BaseException:
            self._end_loop()
            raise

    @property
    def address(self) -> Server:
        return Server("here", "127.0.0.1", self.port, None)

    def stop(self, grace_s: float = 0.2) -> None:
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._listener.drain(grace_s), self._loop).result(20)
            self._end_loop()
            self.back.close()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    def restart(self) -> None:
        """The same address, with nothing remembered."""
        self.stop()
        self.__init__(self._package, self._splits, self._settings, self._roll)  # type: ignore[misc]

    async def _start(self) -> None:
        slots = self._settings.slots
        pools = {split: StagePool(self._package, split, capacity=slots, threads=1) for split in self._splits}
        self.back = BackServer(pools, model_hash=MODEL_HASH, version="test", settings=self._settings)
        self._listener = Listener(
            "127.0.0.1",
            self.port,
            roll=self._roll,
            open_session=self.back.open_session,
            handle=self.back.handle,
            version="test",
        )
        await self._listener.start()
        self.port = self._listener.port


@contextmanager
def serving(
    path: Path, splits: Sequence[int] = (1,), settings: ServerSettings | None = None, roll: Roll | None = None
) -> Iterator[Running]:
    with Package.open(path) as package:
        running = Running(package, splits, settings or ServerSettings(slots=256), roll)
        try:
            yield running
        finally:
            running.stop()


def hello(session: bytes, layers: int, *, split: int = 1, capacity: int = 64, mode: str = "fp32") -> Hello:
    codec = CodecSettings(mode).to_dict()  # type: ignore[arg-type]
    return Hello(PROTOCOL, "test", session, MODEL_HASH, split, layers, capacity, codec)
