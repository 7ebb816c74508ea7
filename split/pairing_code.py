"""The one-time code of a pairing: where the server is, how to know it, and a secret; short enough to type.

Crockford's base32 in groups of four, read whatever the case and with o, i, l taken for what they look like. A checksum
tells a slip of the finger from a wrong server.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from dataclasses import dataclass

from edgemem.runtime.errors import SettingsError

SECRET_BYTES = 8  # tried at most a few times, over TLS, so that it cannot be searched
FINGERPRINT_BYTES = 16  # of the SHA-256: nobody makes a certificate to fit it
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ALIKE = str.maketrans("OIL", "011")
_CHECK_BYTES = 2
_NAME = 128  # the first byte: 4 or 16 for an address of so many bytes, or this and the length of a name
_LONGEST = 250


@dataclass(frozen=True)
class PairingCode:
    """host, port: of the pairing, not of the sessions. fingerprint: of the server's certificate, its first bytes."""

    host: str
    port: int
    fingerprint: bytes
    secret: bytes

    @classmethod
    def new(cls, host: str, port: int, fingerprint: str) -> PairingCode:
        """With a fresh secret. fingerprint: the whole, in hex."""
        return cls(host, port, bytes.fromhex(fingerprint)[:FINGERPRINT_BYTES], secrets.token_bytes(SECRET_BYTES))

    def text(self) -> str:
        body = _packed_host(self.host) + self.port.to_bytes(2, "big") + self.fingerprint + self.secret
        letters = _letters(body + _check(body))
        return "-".join(letters[at : at + 4] for at in range(0, len(letters), 4))

    @classmethod
    def parse(cls, text: str) -> PairingCode:
        """Raises SettingsError for anything but a whole code."""
        letters = "".join(char for char in text.upper() if char not in "- \t\r\n").translate(_ALIKE)
        if not 0 < len(letters) <= _LONGEST or not set(letters) <= set(_ALPHABET):
            raise _mistyped("letters that are in no code")
        data = _bytes(letters)
        body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
        if not body or check != _check(body):
            raise _mistyped("its checksum does not fit")
        host, rest = _taken_host(body)
        if len(rest) != 2 + FINGERPRINT_BYTES + SECRET_BYTES or not any(rest[:2]):
            raise _mistyped("it has a wrong length")
        return cls(host, int.from_bytes(rest[:2], "big"), rest[2:-SECRET_BYTES], rest[-SECRET_BYTES:])


def _packed_host(host: str) -> bytes:
    try:
        packed = ipaddress.ip_address(host).packed
        return bytes([len(packed)]) + packed
    except ValueError:
        name = host.encode("ascii", "replace")
    if not 0 < len(name) < 100:
        raise SettingsError("a host's name that no code can hold", got=ascii(host[:100]), wanted="at most 99 letters")
    return bytes([_NAME + len(name)]) + name


def _taken_host(body: bytes) -> tuple[str, bytes]:
    size, rest = body[0], body[1:]
    if size in (4, 16) and len(rest) >= size:
        return str(ipaddress.ip_address(rest[:size])), rest[size:]
    name = rest[: size - _NAME] if size > _NAME else b""
    if not name or not name.isascii() or not name.decode().isprintable():
        raise _mistyped("it names no host")
    return name.decode(), rest[len(name) :]


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECK_BYTES]


def _letters(data: bytes) -> str:
    """Five bits each, the last filled up with zeros."""
    count = -(-len(data) * 8 // 5)
    number = int.from_bytes(data, "big") << (count * 5 - len(data) * 8)
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(count)))


def _bytes(letters: str) -> bytes:
    number = 0
    for letter in letters:
        number = number << 5 | _ALPHABET.index(letter)
    spare = len(letters) * 5 % 8
    return (number >> spare).to_bytes(len(letters) * 5 // 8, "big")


def _mistyped(got: str) -> SettingsError:
    return SettingsError("this is no pairing code", got=got, do="copy it whole from where `edgemem split serve` runs")
