"""The device's end of a session: one connection to a paired server, asked and answered in turn.

A background thread runs the wire; its user just calls, and any thread may close. A link that failed is closed and stays
so: to come back over a new one, with the same session, is for its user.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from edgemem.runtime.errors import LinkError, ProtocolError, SettingsError
from edgemem.split.extra import adapter
from edgemem.split.frames import Failed, Hello, Message, Ping, Pong, Refused, Welcome, decode, encode
from edgemem.split.identity import SERVER_NAME, Identity
from edgemem.split.peers import Server
from edgemem.split.tls import device_context

if TYPE_CHECKING:
    from edgemem.split.grpc_stream import ClientConnection, FrameStream

_T = TypeVar("_T")


class Link:
    """welcome: what the server said to Hello. closed: whether it is over."""

    def __init__(self, server: Server, identity: Identity | None) -> None:
        """identity: this device's; None for a server without a certificate. Nothing is sent before `greet`."""
        self._server, self._identity = server, identity
        self._lock = threading.Lock()  # of closed: what was begun before is ended by `close`
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="edgemem-link", daemon=True)
        self._thread.start()
        self._connection: ClientConnection | None = None
        self._stream: FrameStream
        self.welcome: Welcome
        self.closed = False

    @classmethod
    def open(cls, server: Server, hello: Hello, *, identity: Identity | None, timeout_s: float) -> Link:
        """A link that has greeted; raises as `greet` does."""
        link = cls(server, identity)
        link.greet(hello, deadline_s=timeout_s)
        return link

    def greet(self, hello: Hello, *, deadline_s: float) -> Welcome:
        """Connect, and begin or go on with a session; once, and before all else.

        Raises LinkError where the server cannot be reached in time, is not the one that was paired, or refuses, with
        both sides' values; ProtocolError where what it says breaks the rules. The link is closed then.
        """
        try:
            self.welcome = self._run(self._greeted(hello), deadline_s)
        except BaseException:
            self.close()
            raise
        return self.welcome

    def call(self, message: Message, *, deadline_s: float) -> Message:
        """The reply to one message, which may be Failed. Raises LinkError where none comes in time, ProtocolError where
        the server says that a rule was broken, or breaks one; the link is closed then."""
        try:
            reply = self._run(self._exchange(message), deadline_s)
            if isinstance(reply, Failed) and reply.code == "protocol":
                raise ProtocolError("the server says that a rule was broken", where=self._server.name, got=reply.text)
        except BaseException:
            self.close()
            raise
        return reply

    def ping(self, *, deadline_s: float) -> float:
        """The round trip, ms. Raises as `call` does."""
        nonce = secrets.randbits(63)
        begin = time.perf_counter()
        reply = self.call(Ping(nonce), deadline_s=deadline_s)
        if not isinstance(reply, Pong) or reply.nonce != nonce:
            self.close()
            raise ProtocolError("a Pong that answers no Ping", where=self._server.name)
        return (time.perf_counter() - begin) * 1e3

    def close(self) -> None:
        """Hang up; the server keeps the session for a while. What another thread waits for fails at once. Again, it
        does nothing."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
        with self._lock:
            if self.closed:
                work.close()
                raise LinkError("the link is closed", where=self._server.name)
            running = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, timeout_s), self._loop)
        with _as_link_errors(self._server, timeout_s):
            return running.result()

    async def _greeted(self, hello: Hello) -> Welcome:
        self._stream = await self._connect()
        answer = await self._first_answer(hello)
        if isinstance(answer, Refused):
            raise LinkError(f"the server refuses: {answer.text}", where=self._server.name)
        if isinstance(answer, Failed):
            raise LinkError(f"the server cannot hold this session: {answer.text}", where=self._server.name)
        if not isinstance(answer, Welcome):
            raise ProtocolError("an answer to Hello that is none", got=type(answer).__name__)
        return answer

    async def _first_answer(self, hello: Hello) -> Message:
        try:
            await self._stream.send(encode(hello))
            await self._stream.greeted()
            return await self._next()
        except ProtocolError:
            raise
        except LinkError as problem:  # TLS 1.3 lets a client begin before the server has looked at its certificate
            raise LinkError(
                "the server hung up at the greeting",
                where=self._server.name,
                got=problem,
                do="if this device was forgotten there, pair again",
            ) from problem

    async def _connect(self) -> FrameStream:
        context = name = None
        if self._server.certificate is not None:
            if self._identity is None:
                raise SettingsError("a paired server is asked by a paired device", where=self._server.name)
            context, name = device_context(self._identity, self._server.certificate), SERVER_NAME
        _, self._connection = await self._loop.create_connection(
            adapter("grpc_stream").ClientConnection,
            self._server.host,
            self._server.port,
            ssl=context,
            server_hostname=name,
        )
        return await self._connection.talk(SERVER_NAME)

    async def _exchange(self, message: Message) -> Message:
        await self._stream.send(encode(message))
        return await self._next()

    async def _next(self) -> Message:
        frame = await self._stream.receive()
        if frame is None:
            raise LinkError("the server has ended the session's link", where=self._server.name)
        return decode(frame)

    async def _hang_up(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others)
        if self._connection is not None:
            await self._connection.abandon()


@contextmanager
def _as_link_errors(server: Server, timeout_s: float) -> Iterator[None]:
    where = f"{server.name} at {server.address}"
    try:
        yield
    except ssl.SSLCertVerificationError as problem:
        raise LinkError(
            "the server is not the one that was paired",
            where=where,
            got=problem.verify_message,
            do="if it was set up anew, pair again; else somebody stands in between",
        ) from problem
    except CancelledError as problem:
        raise LinkError("the link was closed meanwhile", where=where) from problem
    except (asyncio.TimeoutError, TimeoutError) as problem:
        raise LinkError("the server does not answer in time", where=where, wanted=f"{timeout_s:.3g} s") from problem
    except OSError as problem:  # as ssl.SSLError is
        got = str(problem) or "it hung up"  # asyncio does so without a word
        do = "see that `edgemem split serve` runs there, and that its port can be reached"
        raise LinkError("the server cannot be reached", where=where, got=got, do=do) from problem
