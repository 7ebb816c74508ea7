"""The door of a server: connections come in here, few at a time in their handshake, and each only briefly.

One who connects and then says nothing holds a place for seconds at most. Where all places are held, the oldest of the
address that holds the most is shown out: a crowd from one address cannot keep another out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from edgemem.runtime.errors import FileError, LinkError

_BACKLOG = 128
_PAUSE_S = 0.1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DoorLimits:
    """pending: connections in their handshake. connections: those that are through it."""

    pending: int = 8
    handshake_s: float = 5.0
    connections: int = 64


class Door:
    """Accepts on one address; each connection that is through the handshake gets a protocol of its own."""

    def __init__(
        self,
        host: str,
        port: int,
        protocol: Callable[[], asyncio.BaseProtocol],
        *,
        context: Callable[[], ssl.SSLContext | None],
        inside: Callable[[], int],
        limits: DoorLimits,
    ) -> None:
        """port 0: one that is free. context: asked anew for each connection. inside: how many connections there are.

        Raises LinkError where the address cannot be had.
        """
        self._protocol, self._context, self._inside, self._limits = protocol, context, inside, limits
        self._pending: dict[socket.socket, str] = {}
        self._greetings: set[asyncio.Task[None]] = set()
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._listening = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        except OSError as problem:
            raise LinkError("this address cannot be served", where=f"{host}:{port}", got=problem) from problem
        self._listening.setblocking(False)
        self.host, self.port = self._listening.getsockname()[:2]
        self._pause: asyncio.TimerHandle | None = None

    def open(self) -> None:
        # No task waits in sock_accept: cancelled, it would lose a connection that it has just been given.
        asyncio.get_running_loop().add_reader(self._listening, self._accept)

    async def close(self) -> None:
        """No more come in, and those in their handshake go."""
        if self._listening.fileno() >= 0:  # not again
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
        if self._pause is not None:
            self._pause.cancel()
        for waiting in self._pending:
            _show_out(waiting)
        if self._greetings:
            await asyncio.wait(self._greetings)

    def _accept(self) -> None:
        """One connection that waits; the others have their turn in between."""
        loop = asyncio.get_running_loop()
        try:
            accepted, address = self._listening.accept()
        except BlockingIOError:  # it has gone already
            return
        except OSError:  # or just now, or no more files may be open
            loop.remove_reader(self._listening)
            self._pause = loop.call_later(_PAUSE_S, self.open)
            return
        if self._inside() >= self._limits.connections:
            accepted.close()
            return
        self._pending[accepted] = address[0]
        if len(self._pending) > self._limits.pending:
            self._make_room()
        greeting = loop.create_task(self._greet(accepted))
        self._greetings.add(greeting)
        greeting.add_done_callback(self._greetings.discard)

    async def _greet(self, accepted: socket.socket) -> None:
        try:
            transport = await self._handshake(accepted)
            if self._inside() > self._limits.connections:
                transport.abort()
        except FileError as problem:  # whom to let in cannot be read: nobody
            _log.error("%s", problem)
        except OSError as problem:  # as ssl.SSLError is: a stranger, or one who went
            _log.debug("a handshake failed: %s", problem)
            problem.__traceback__ = None  # its frames hold the problem and the connection's buffers: a ring
        finally:
            self._pending.pop(accepted, None)

    async def _handshake(self, accepted: socket.socket) -> asyncio.Transport:
        try:
            _watch(accepted)
            context = self._context()
        except (OSError, FileError):
            accepted.close()
            raise
        seconds = None if context is None else self._limits.handshake_s
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(
            self._protocol, accepted, ssl=context, ssl_handshake_timeout=seconds
        )
        return transport

    def _make_room(self) -> None:
        held = Counter(self._pending.values())
        crowd = max(held, key=lambda address: held[address])
        oldest = next(waiting for waiting, address in self._pending.items() if address == crowd)
        del self._pending[oldest]
        _show_out(oldest)


def _show_out(waiting: socket.socket) -> None:
    """asyncio owns the socket by now, and ends the handshake when the connection does."""
    with suppress(OSError):
        waiting.shutdown(socket.SHUT_RDWR)


def _watch(accepted: socket.socket) -> None:
    """A peer that lost its power is noticed in about a minute."""
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # not on every system
            accepted.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
