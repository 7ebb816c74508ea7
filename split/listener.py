"""The server's transport: lets paired devices in, one session a connection, and hands their messages on.

It knows no model: `open_session` says who may have a session, and `handle` does the operations.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgemem.runtime.errors import (
    BudgetError,
    ContextError,
    EdgememError,
    FileError,
    NumericError,
    ProtocolError,
    SettingsError,
)
from edgemem.split.door import Door, DoorLimits
from edgemem.split.extra import adapter
from edgemem.split.fields import printable
from edgemem.split.frames import (
    TEXT_BYTES,
    Failed,
    Hello,
    Message,
    Ping,
    Pong,
    Refused,
    Stranger,
    Welcome,
    decode,
    encode,
)
from edgemem.split.peers import Device, is_loopback
from edgemem.split.roll import Roll
from edgemem.split.terms import stranger_refusal

if TYPE_CHECKING:
    from edgemem.split.grpc_stream import FrameStream, ServerConnection

_CODES = (
    (ProtocolError, "protocol"),
    (BudgetError, "memory"),
    (ContextError, "context"),
    (NumericError, "numeric"),
    (SettingsError, "settings"),
)
_ANYBODY = Device("loopback", b"none")  # who speaks where there is no TLS to say who it is
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """A session as its connection knows it: the device's certificate and the session's own number."""

    device: Device
    session: bytes


@dataclass(frozen=True)
class ListenerLimits:
    """hello_s: from the end of the handshake to the Hello."""

    door: DoorLimits = field(default_factory=DoorLimits)
    hello_s: float = 5.0


class Listener:
    """Serves on `host`; `port` 0 is one that is free, and after `start` the one that it is.

    roll: who may come in; None is anybody on this machine, in plain text. open_session(hello, device) may be a
    coroutine function. handle(caller, message) -> the reply; calls of one session never overlap, unless it came back
    over a second connection while the first was still working, and none is cancelled because a link was lost. What it
    raises becomes Failed; after ProtocolError the connection is closed.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        roll: Roll | None,
        open_session: Callable[[Hello, Device], Awaitable[Welcome | Refused] | Welcome | Refused],
        handle: Callable[[Caller, Message], Awaitable[Message]],
        version: str,
        limits: ListenerLimits | None = None,
    ) -> None:
        """version: of edgemem. Raises SettingsError for plain text on anything but 127.0.0.1 or ::1."""
        if roll is None and not is_loopback(host):
            raise SettingsError("plain text is for this machine alone", got=host, wanted="127.0.0.1 or ::1")
        self.host, self.port = host, port
        self._roll, self._open_session, self._handle, self._version = roll, open_session, handle, version
        self._limits = limits or ListenerLimits()
        self._door: Door | None = None
        self._inside: set[ServerConnection] = set()
        self._talking: dict[Caller, FrameStream] = {}
        self._draining = False

    async def start(self) -> None:
        """Open the door. Raises LinkError where the address cannot be had."""
        wire = adapter("grpc_stream")
        limits = self._limits
        self._door = Door(
            self.host,
            self.port,
            lambda: wire.ServerConnection(self._talk, self._inside, limits.hello_s),
            context=lambda: None if self._roll is None else self._roll.context(),
            inside=lambda: len(self._inside),
            limits=limits.door,
        )
        self.port = self._door.port
        self._door.open()

    async def drain(self, grace_s: float) -> None:
        """Let nobody in, finish the operations under way for at most `grace_s`, and close."""
        self._draining = True
        if self._door is not None:
            await self._door.close()
        for connection in self._inside:
            if connection.is_idle:
                connection.hang_up()
        if self._inside:
            ends = [asyncio.ensure_future(connection.ended.wait()) for connection in self._inside]
            await asyncio.wait(ends, timeout=grace_s)
        for connection in list(self._inside):
            await connection.abandon()

    async def _talk(self, stream: FrameStream, certificate: bytes | None) -> None:
        try:
            device = self._device(certificate)
            hello = None if device is None else await self._first_message(stream)
            if device is None or hello is None:
                return
            if isinstance(hello, Stranger):
                await stream.send(encode(stranger_refusal(hello, self._version)))
                return
            if not isinstance(hello, Hello):
                raise ProtocolError("a session begins with Hello", got=type(hello).__name__)
            with self._alone(Caller(device, hello.session), stream) as caller:
                answer = await self._opened(hello, device)
                await stream.send(encode(answer))
                going_on = isinstance(answer, Welcome)
                while going_on and not self._draining:
                    going_on = await self._answer(stream, caller, certificate)
        except ProtocolError as problem:
            await stream.send(encode(failed_reply(0, problem)))

    async def _first_message(self, stream: FrameStream) -> Message | None:
        try:
            frame = await asyncio.wait_for(stream.receive(), self._limits.hello_s)
        except asyncio.TimeoutError:
            return None
        return decode(frame or b"")

    @contextmanager
    def _alone(self, caller: Caller, stream: FrameStream) -> Iterator[Caller]:
        """The device has come back: an earlier link of this session is dead, whether it knows or not. Nothing more is
        done for it before the device is told where the session is."""
        if (earlier := self._talking.get(caller)) is not None:
            earlier.close()
        self._talking[caller] = stream
        try:
            yield caller
        finally:
            if self._talking.get(caller) is stream:
                del self._talking[caller]

    async def _opened(self, hello: Hello, device: Device) -> Welcome | Refused | Failed:
        try:
            answer = self._open_session(hello, device)
            return await answer if inspect.isawaitable(answer) else answer
        except Exception as problem:  # noqa: BLE001 - whatever a session dies of, the others go on
            return failed_reply(0, problem)

    async def _answer(self, stream: FrameStream, caller: Caller, certificate: bytes | None) -> bool:
        """One message and its reply; False where it was the last."""
        frame = await stream.receive()
        if frame is None or self._device(certificate) is None:  # it went, or was forgotten meanwhile
            return False
        if self._talking.get(caller) is not stream:  # it has come back over another link
            return False
        message = decode(frame)
        try:
            reply = Pong(message.nonce) if isinstance(message, Ping) else await self._handle(caller, message)
            answer = encode(reply)
        except Exception as problem:  # noqa: BLE001 - whatever an operation dies of, the server lives
            reply = failed_reply(getattr(message, "op", 0), problem)
            answer = encode(reply)
        await stream.send(answer)
        return not (isinstance(reply, Failed) and reply.code == "protocol")

    def _device(self, certificate: bytes | None) -> Device | None:
        try:
            return _ANYBODY if self._roll is None else self._roll.device(certificate)
        except FileError as problem:  # whom to let in cannot be read: nobody
            _log.error("%s", problem)
            return None


def failed_reply(op: int, problem: Exception) -> Failed:
    """A bug is told to the log; the device learns that it was one."""
    code = next((code for kind, code in _CODES if isinstance(problem, kind)), "failed")
    if isinstance(problem, EdgememError):
        return Failed(op, code, printable(str(problem), TEXT_BYTES))
    _log.error("an operation failed", exc_info=problem)
    return Failed(op, code, f"the server failed: {type(problem).__name__}")
