"""A proxy on loopback that makes a TCP connection as slow as a given link, and breaks it where a test wants it to.

Bytes leave one after another at the link's rate, each way, and arrive a delay later; nothing is lost or reordered, as
TCP shows it. It knows no protocol: what is encrypted stays so.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from edgemem.runtime.errors import SettingsError, shown

_HOST = "127.0.0.1"
_PACKET_BYTES = 1500
_PACKET_S = 0.5e-3  # pieces are no finer than this, so that a fast link needs no event for every packet
_BUFFER_BYTES = 256 << 10  # queued beyond what is on its way; then the sender has to wait
_THREAD_S = 20.0


@dataclass(frozen=True)
class Shape:
    """bits_per_s: each way; infinity for no bound. delay_s: one way. Raises SettingsError for anything else."""

    bits_per_s: float = math.inf
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.bits_per_s >= 1:
            raise SettingsError("the rate is out of range", got=shown(self.bits_per_s), wanted="bits a second, from 1")
        if not 0 <= self.delay_s < math.inf:
            raise SettingsError("the delay is out of range", got=shown(self.delay_s), wanted="seconds from 0")


@dataclass(frozen=True)
class Faults:
    """Of every connection, counted in bytes of both ways together. cut_after: then it is reset. stall_after: then it
    stays open and nothing arrives any more. Raises SettingsError for a count below 0."""

    cut_after: int | None = None
    stall_after: int | None = None

    def __post_init__(self) -> None:
        for value in (self.cut_after, self.stall_after):
            if value is not None and (type(value) is not int or value < 0):
                raise SettingsError("a fault's place is out of range", got=shown(value), wanted="bytes from 0")


class Lane:
    """One way of a link: when a piece that is handed over now will have arrived. Pure arithmetic over times given."""

    def __init__(self) -> None:
        self._free_s = -math.inf  # when the last byte will have left

    def arrival_s(self, now_s: float, size: int, shape: Shape) -> float:
        self._free_s = max(now_s, self._free_s) + 8 * size / shape.bits_per_s
        return self._free_s + shape.delay_s


class ShapingProxy:
    """Forwards 127.0.0.1:port to 127.0.0.1:target, on the running loop. shape may be changed at any time, faults for
    connections to come. up_bytes, down_bytes: delivered so far, to and from the target."""

    def __init__(self, target: int, shape: Shape | None = None, faults: Faults | None = None) -> None:
        self.shape, self.faults = shape or Shape(), faults or Faults()
        self.port = self.up_bytes = self.down_bytes = 0
        self._target = target
        self._resets: dict[asyncio.Task[None], asyncio.Event] = {}
        self._server: asyncio.Server
        self._loop: asyncio.AbstractEventLoop

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._accept, _HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Reset all connections of now. From any thread."""
        self._loop.call_soon_threadsafe(self._reset_all)

    def _reset_all(self) -> None:
        for reset in self._resets.values():
            reset.set()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        if self._resets:
            await asyncio.wait(list(self._resets))
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reset = asyncio.Event()
        task = asyncio.ensure_future(self._join(reader, writer, reset))
        self._resets[task] = reset
        task.add_done_callback(self._resets.pop)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reset: asyncio.Event) -> None:
        """Both ways, until both have ended or `reset` is set."""
        try:
            from_target, to_target = await asyncio.open_connection(_HOST, self._target)
        except OSError:
            writer.transport.abort()
            return
        passed = _Passed(self.faults, reset)
        ways = (_Way(self, to_target, passed, up=True), _Way(self, writer, passed, up=False))
        both = asyncio.gather(ways[0].forward(reader), ways[1].forward(from_target))
        ended = asyncio.ensure_future(reset.wait())
        await asyncio.wait((both, ended), return_when=asyncio.FIRST_COMPLETED)
        for task in (both, ended):
            task.cancel()
        for side in (writer, to_target):
            if reset.is_set():
                side.transport.abort()
            else:
                side.close()
        with suppress(OSError, asyncio.CancelledError):
            await both


class _Passed:
    """What has gone through a connection, both ways, and what that breaks."""

    def __init__(self, faults: Faults, reset: asyncio.Event) -> None:
        self._faults, self._reset, self._bytes = faults, reset, 0

    @property
    def stalled(self) -> bool:
        return self._faults.stall_after is not None and self._bytes >= self._faults.stall_after

    def allowed(self, data: bytes) -> bytes:
        """As much of `data` as still arrives."""
        cut, stall = self._faults.cut_after, self._faults.stall_after
        last = min((limit for limit in (cut, stall) if limit is not None), default=None)
        if last is not None:
            data = data[: max(0, last - self._bytes)]
        self._bytes += len(data)
        if cut is not None and self._bytes >= cut:
            self._reset.set()
        return data


class _Way:
    """One way of a connection: pieces that are under way, and the side that they go to."""

    def __init__(self, proxy: ShapingProxy, out: asyncio.StreamWriter, passed: _Passed, *, up: bool) -> None:
        self._proxy, self._out, self._passed, self._up = proxy, out, passed, up
        self._lane, self._loop = Lane(), asyncio.get_running_loop()
        self._pieces: deque[tuple[float, bytes]] = deque()  # when they arrive; an empty one is the end
        self._bytes = 0  # of them
        self._moved = asyncio.Event()

    async def forward(self, reader: asyncio.StreamReader) -> None:
        """Until the reader has ended, and all has arrived. Raises OSError where a side is gone."""
        data = b"-"
        while data:
            data = await reader.read(_BUFFER_BYTES)
            self._hand_over(data)
            await self._out.drain()
            while self._bytes > self._room or (not data and self._pieces):
                self._moved.clear()
                await self._moved.wait()

    @property
    def _room(self) -> float:
        shape = self._proxy.shape
        return _BUFFER_BYTES + shape.delay_s * shape.bits_per_s / 8 if shape.delay_s else _BUFFER_BYTES

    def _hand_over(self, data: bytes) -> None:
        shape = self._proxy.shape
        size = int(min(_BUFFER_BYTES, max(_PACKET_BYTES, _PACKET_S * shape.bits_per_s / 8)))
        for at in range(0, max(len(data), 1), size):
            piece = data[at : at + size]
            arrival_s = self._lane.arrival_s(self._loop.time(), len(piece), shape)
            if self._pieces:
                arrival_s = max(arrival_s, self._pieces[-1][0])  # a shape with less delay overtakes nothing
            self._pieces.append((arrival_s, piece))
            self._bytes += len(piece)
            self._loop.call_at(arrival_s, self._deliver)

    def _deliver(self) -> None:
        """All that has arrived by now, in order."""
        now_s = self._loop.time()
        while self._pieces and self._pieces[0][0] <= now_s:
            _, piece = self._pieces.popleft()
            self._bytes -= len(piece)
            self._moved.set()
            if self._out.is_closing():
                continue
            arrived = self._passed.allowed(piece)
            self._out.write(arrived)
            if self._up:
                self._proxy.up_bytes += len(arrived)
            else:
                self._proxy.down_bytes += len(arrived)
            if not piece and not self._passed.stalled:
                self._out.write_eof()


@contextmanager
def shaped(target: int, shape: Shape | None = None, faults: Faults | None = None) -> Iterator[ShapingProxy]:
    """A proxy in a thread of its own, for callers without a loop. Its `shape` may be replaced meanwhile."""
    # epoll waits in whole milliseconds, select in microseconds.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    thread = threading.Thread(target=loop.run_forever, name="edgemem-shaping", daemon=True)
    thread.start()
    proxy = ShapingProxy(target, shape, faults)
    try:
        asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(_THREAD_S)
        try:
            yield proxy
        finally:
            asyncio.run_coroutine_threadsafe(proxy.close(), loop).result(_THREAD_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
