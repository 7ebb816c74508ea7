"""Pairing, the rules: what a device sends to be registered, what it proves, and how long a code is good.

The proof is an HMAC under the code's secret over both certificates and the name: nobody else can have one registered,
and it is of no use towards another server. A device sends it to the server of the code's fingerprint alone.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable

from edgemem.runtime.errors import LinkError, ProtocolError
from edgemem.split.fields import Blob, Exactly, Field, Maybe, Reader, Text, Whole, pack_fields, printable, take_fields
from edgemem.split.peers import CERTIFICATE_BYTES, Device

LIFETIME_S = 600.0
TRIES = 5
MESSAGE_BYTES = 8192
LENGTH_BYTES = 4  # before each message
_CONTEXT = b"edgemem pairing 1\0"
_WHY_BYTES = 1000
_REQUEST: tuple[Field, ...] = (Text(64), Blob(CERTIFICATE_BYTES), Exactly(32))  # name, certificate, proof
_REPLY: tuple[Field, ...] = (Maybe(Whole(2, (1 << 16) - 1)), Text(_WHY_BYTES))  # port, and the name; or why not


class OneTimeSecret:
    """The secret of a code: good for one device, for ten minutes, and for few tries. clock: seconds, monotonic."""

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self._secret, self._clock = secret, clock
        self._until = clock() + LIFETIME_S
        self._tries = TRIES

    @property
    def left_s(self) -> float:
        """How long it is still good; 0 once it was used or tried too often."""
        return max(0.0, self._until - self._clock()) if self._tries else 0.0

    def redeem(self, proof: bytes, server_certificate: bytes, device: Device) -> None:
        """Raises LinkError unless the device knew the secret, while it was good; then it is used up."""
        if not self.left_s:
            raise LinkError("the code is used up or too old", do="start `edgemem split serve` again for another")
        self._tries -= 1
        if not hmac.compare_digest(proof, proof_of(self._secret, server_certificate, device)):
            raise LinkError("the code is not the one that the server shows", got=f"{self._tries} tries are left")
        self._tries = 0


def proof_of(secret: bytes, server_certificate: bytes, device: Device) -> bytes:
    """HMAC-SHA256 over all that the pairing is about: whose code it was, who comes, and by what name."""
    parts = (server_certificate, device.certificate, device.name.encode())
    return hmac.digest(secret, _CONTEXT + b"".join(hashlib.sha256(part).digest() for part in parts), "sha256")


def pack_request(device: Device, proof: bytes) -> bytes:
    return _message(pack_fields(_REQUEST, (device.name, device.certificate, proof)))


def take_request(message: bytes) -> tuple[Device, bytes]:
    """The device, not yet believed, and its proof. Raises ProtocolError or SettingsError."""
    name, certificate, proof = take_fields(_REQUEST, Reader(message))
    return Device(name, certificate), proof


def pack_reply(port: int | None, text: str) -> bytes:
    """port: of the sessions, with the name that the device got; None with why it was refused."""
    return _message(pack_fields(_REPLY, (port, printable(text, _WHY_BYTES))))


def take_reply(message: bytes) -> tuple[int | None, str]:
    port, text = take_fields(_REPLY, Reader(message))
    return port, text


def checked_length(prefix: bytes) -> int:
    """Of the message that follows. Raises ProtocolError where it is too long."""
    length = int.from_bytes(prefix, "big")
    if length > MESSAGE_BYTES:
        raise ProtocolError("a pairing's message is too long", got=length, wanted=f"at most {MESSAGE_BYTES} bytes")
    return length


def _message(data: bytes) -> bytes:
    return len(data).to_bytes(LENGTH_BYTES, "big") + data
