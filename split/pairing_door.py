"""Pairing, the server's side: a port of its own, open while a code is good, where a stranger may say who it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgemem.runtime.errors import EdgememError
from edgemem.split.door import Door, DoorLimits
from edgemem.split.identity import Identity, check_certificate
from edgemem.split.pairing import LENGTH_BYTES, MESSAGE_BYTES, OneTimeSecret, checked_length, pack_reply, take_request
from edgemem.split.pairing_code import PairingCode
from edgemem.split.peers import Device, PeerFile
from edgemem.split.tls import pairing_server_context

_PATIENCE_S = 5.0
_LINGER_S = 1.0
_LIMITS = DoorLimits(pending=8, handshake_s=_PATIENCE_S, connections=8)
_log = logging.getLogger(__name__)


class PairingDoor:
    """One code, from when it is shown until it is used up or too old."""

    def __init__(self, host: str, port: int, *, identity: Identity, folder: Path) -> None:
        """port 0: one that is free. Raises LinkError where it cannot be had."""
        self._identity, self._file = identity, PeerFile(folder, Device)
        self._talking: set[asyncio.Task[None]] = set()
        self._paired: Device | None = None
        context = pairing_server_context(identity)
        self._door = Door(
            host, port, self._protocol, context=lambda: context, inside=lambda: len(self._talking), limits=_LIMITS
        )

    async def serve(self, address: str, session_port: int, show: Callable[[PairingCode], None]) -> Device | None:
        """Show a code; the device that came with it, or None where none did in time.

        address: where a device finds this machine. session_port: of the Listener, which it is told.
        """
        code = PairingCode.new(address, self._door.port, self._identity.fingerprint)
        self._secret, self._session_port = OneTimeSecret(code.secret), session_port
        self._spent = asyncio.Event()
        self._door.open()
        show(code)
        try:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._spent.wait(), self._secret.left_s)
        finally:
            await self._door.close()
            for talk in self._talking:
                talk.cancel()
            if self._talking:
                await asyncio.wait(self._talking)
        return self._paired

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(MESSAGE_BYTES), self._begin)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.get_running_loop().create_task(self._talk(reader, writer))
        self._talking.add(talk)
        talk.add_done_callback(self._talking.discard)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(self._reply(await asyncio.wait_for(_read(reader), _PATIENCE_S)))
            await asyncio.wait_for(reader.read(), _LINGER_S)  # until the device has it all and hangs up
        except (OSError, EOFError, asyncio.TimeoutError, EdgememError) as problem:
            _log.debug("a pairing failed: %s", problem)
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()
            if not self._secret.left_s:
                self._spent.set()

    def _reply(self, request: bytes) -> bytes:
        try:
            device, proof = take_request(request)
            self._secret.redeem(proof, self._identity.certificate, device)
            check_certificate(device.certificate, "device")
            self._paired = self._file.put(device)
        except EdgememError as problem:
            return pack_reply(None, str(problem))
        return pack_reply(self._session_port, self._paired.name)


async def _read(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(checked_length(await reader.readexactly(LENGTH_BYTES)))
