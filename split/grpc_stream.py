"""One gRPC stream of whole frames, on the wire side: the only user of grpclib, of its HTTP/2 layer alone.

gRPC's own message reader would take any length that a peer names. Here a length is refused before a byte is read, and a
connection carries one stream and ends with it.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from grpclib.config import Configuration
from grpclib.exceptions import StreamTerminatedError
from grpclib.protocol import AbstractHandler, H2Protocol, Stream
from grpclib.utils import Wrapper
from h2.config import H2Configuration
from h2.exceptions import H2Error

from edgemem.runtime.errors import LinkError, ProtocolError, shown
from edgemem.split.frames import FRAME_BYTES
from edgemem.split.http2_guard import Http2Guard

TALK = "/edgemem.split.Back/Talk"
_CONTENT = ("content-type", "application/grpc")
_PREFIX = struct.Struct(">BI")  # compressed or not, and the length: gRPC's own
_PATIENCE_S = 10.0  # a frame that has begun is given this long, and time for its length at _SLOWEST
_SLOWEST_BYTES_PER_S = 8192
_LINGER_S = 1.0  # a peer that does not answer our closing of the TLS session
_Headers = list[tuple[str, str]]
_T = TypeVar("_T")


class FrameStream:
    """Whole frames, each way. Raises LinkError once the connection is lost, ProtocolError for a broken rule."""

    def __init__(self, connection: _Connection, stream: Stream) -> None:
        self._connection, self._stream = connection, stream
        self._wrapper = cast(Wrapper, stream.wrapper)
        self._answering = False
        self.waiting = False  # for the beginning of a frame

    async def send(self, frame: bytes) -> None:
        with self._failures():
            if not self._connection.is_client and not self._answering:
                await self._stream.send_headers([(":status", "200"), _CONTENT])
                self._answering = True
            await _in_time(self._stream.send_data(_PREFIX.pack(0, len(frame)) + frame), len(frame))

    async def receive(self) -> bytes | None:
        """The next frame; None where the peer has ended the stream."""
        with self._failures():
            self.waiting = True
            try:
                prefix = await self._stream.recv_data(_PREFIX.size)
            finally:
                self.waiting = False
            if not prefix:
                return None
            compressed, length = _PREFIX.unpack(prefix)
            if compressed or length > FRAME_BYTES:
                wanted = f"at most {FRAME_BYTES} bytes, not compressed"
                raise ProtocolError("a frame that is too long", got=f"{length} bytes", wanted=wanted)
            return await _in_time(self._stream.recv_data(length), length)

    async def greeted(self) -> None:
        """On the client: wait until the server has begun to answer."""
        with self._failures():
            headers = dict(await self._stream.recv_headers())
        if headers.get(":status") != "200" or not headers.get("content-type", "").startswith(_CONTENT[1]):
            raise ProtocolError("this is no edgemem server", got=shown(headers))

    async def end(self) -> None:
        """Say that no more comes, where there is still somebody to say it to."""
        with self._failures():
            if not self._stream.closable:
                return
            if self._connection.is_client:
                await self._stream.end()
            else:
                begin = [] if self._answering else [(":status", "200"), _CONTENT]
                await self._stream.send_headers([*begin, ("grpc-status", "0")], end_stream=True)

    def close(self) -> None:
        self._connection.hang_up()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            with self._wrapper:
                yield
        except StreamTerminatedError as problem:
            raise LinkError("the link is lost", got=self._connection.lost or problem) from problem
        except asyncio.TimeoutError as problem:
            raise LinkError("the link is too slow", wanted=f"{_SLOWEST_BYTES_PER_S} bytes a second") from problem
        except AssertionError as problem:  # grpclib's word for a message that ends early
            raise ProtocolError("a frame is cut short") from problem
        except H2Error as problem:
            raise ProtocolError("HTTP/2 rules are broken", got=shown(str(problem))) from problem


class _Connection(H2Protocol):
    """One connection. lost: what ended it, where that is known. ended: that it is over."""

    is_client: bool
    lost: BaseException | None = None

    def __init__(self, handler: AbstractHandler) -> None:
        self.ended = asyncio.Event()
        self._guard = Http2Guard(from_client=not self.is_client)
        config = Configuration()
        own = config.__for_client__() if self.is_client else config.__for_server__()
        # As grpclib has it: it gives and takes headers as they are.
        h2_config = H2Configuration(
            client_side=self.is_client,
            header_encoding="ascii",
            validate_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_inbound_headers=False,
            normalize_outbound_headers=False,
        )
        super().__init__(handler, own, h2_config)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._guard.check(data)
        except ProtocolError as problem:
            self.lost = problem
            self.processor.close()
        else:
            super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost = self.lost or exc
        super().connection_lost(exc)
        self.ended.set()

    def hang_up(self) -> None:
        self.transport.close()
        asyncio.get_running_loop().call_later(_LINGER_S, self.transport.abort)

    async def abandon(self) -> None:
        """End it now."""
        self.transport.abort()
        await self.ended.wait()


class ClientConnection(_Connection):
    is_client = True

    def __init__(self) -> None:
        super().__init__(_NoRequests())

    async def talk(self, authority: str) -> FrameStream:
        """Open the stream. authority: what the server is called in the request. Raises LinkError, and ProtocolError."""
        if self.transport.is_closing():  # what the server sent at once was no HTTP/2, or it has gone
            raise LinkError("this is no edgemem server, or it hung up", got=self.lost)
        stream = self.processor.connection.create_stream(wrapper=Wrapper())
        scheme = "http" if self.transport.get_extra_info("ssl_object") is None else "https"
        request = [(":method", "POST"), (":scheme", scheme), (":path", TALK), (":authority", authority)]
        headers = [*request, ("te", "trailers"), _CONTENT, ("user-agent", "edgemem")]
        await stream.send_request(headers, _processor=self.processor)
        return FrameStream(self, stream)


class ServerConnection(_Connection):
    """talk(stream, certificate) is run for the one stream; what it raises of LinkError ends the connection quietly.

    certificate: the client's, DER, None without TLS. inside: where it stands while it lasts. Without a stream after
    `patience_s` it is closed.
    """

    is_client = False

    def __init__(
        self,
        talk: Callable[[FrameStream, bytes | None], Awaitable[None]],
        inside: set[ServerConnection],
        patience_s: float,
    ) -> None:
        super().__init__(_OneStream(self))
        self._talk, self._inside, self._patience_s = talk, inside, patience_s
        self._stream: FrameStream | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being done for the device."""
        return self._stream is None or self._stream.waiting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._inside.add(self)
        self._timer = asyncio.get_running_loop().call_later(self._patience_s, self.transport.abort)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)
        if self._task is None:
            self._inside.discard(self)

    async def abandon(self) -> None:
        """End it now, whatever is being done."""
        await super().abandon()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def take(self, stream: Stream, headers: _Headers, release: Callable[[], None]) -> None:
        if self._task is not None or not _is_talk(dict(headers)):
            stream.reset_nowait()
            release()
            return
        self._timer.cancel()
        stream.wrapper = Wrapper()
        self._stream = FrameStream(self, stream)
        self._task = asyncio.get_running_loop().create_task(self._run(self._stream, release))

    async def _run(self, stream: FrameStream, release: Callable[[], None]) -> None:
        try:
            tls: ssl.SSLObject | None = self.transport.get_extra_info("ssl_object")
            await self._talk(stream, None if tls is None else tls.getpeercert(binary_form=True))
            await stream.end()
            # Closed at once, with bytes of the peer's yet unread, TCP would throw away what it has not read of ours.
            await asyncio.wait_for(self.ended.wait(), _LINGER_S)
        except (LinkError, asyncio.TimeoutError):
            pass  # the peer has gone or was told; nobody is left to hear of it
        finally:
            release()
            self.hang_up()
            await self.ended.wait()
            self._inside.discard(self)


class _OneStream(AbstractHandler):
    """A lost connection wakes its stream up by itself: nothing is cancelled, and work that has begun is finished."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    def accept(self, stream: Stream, headers: _Headers, release_stream: Callable[[], None]) -> None:
        self._connection.take(stream, headers, release_stream)

    def cancel(self, stream: Stream) -> None: ...

    def close(self) -> None: ...


class _NoRequests(AbstractHandler):
    def accept(self, stream: Stream, headers: _Headers, release_stream: Callable[[], None]) -> None:
        stream.reset_nowait()
        release_stream()

    def cancel(self, stream: Stream) -> None: ...

    def close(self) -> None: ...


def _is_talk(headers: dict[str, str]) -> bool:
    wanted = {":method": "POST", ":path": TALK, "te": "trailers"}
    content = headers.get(_CONTENT[0], "")
    return all(headers.get(key) == value for key, value in wanted.items()) and content.startswith(_CONTENT[1])


async def _in_time(work: Awaitable[_T], size: int) -> _T:
    return await asyncio.wait_for(work, _PATIENCE_S + size / _SLOWEST_BYTES_PER_S)
