"""Whom we are paired with: the servers of a device, the devices of a server, and the files that say so.

A peer is known by its certificate, whole: names are for people.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from edgemem.runtime.errors import FileError, SettingsError, shown
from edgemem.runtime.private_files import one_writer, read_private, write_private
from edgemem.runtime.strict_yaml import parse_yaml

FORMAT = 1
CERTIFICATE_BYTES = 4096
_FILE_BYTES = 4 << 20
_PEERS = 500
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HOST = re.compile(r"[A-Za-z0-9.:_%-]{1,253}")


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a certificate (DER), 64 hex digits."""
    return hashlib.sha256(certificate).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether an address, not a name, is this machine's own."""
    return host in ("127.0.0.1", "::1")


@dataclass(frozen=True)
class Device:
    """A device that this server lets in. certificate: DER."""

    name: str
    certificate: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_certificate(self.certificate)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate)


@dataclass(frozen=True)
class Server:
    """A server that this device may ask. certificate: DER; None is plain text, on this machine alone."""

    name: str
    host: str
    port: int
    certificate: bytes | None

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not isinstance(self.host, str) or not _HOST.fullmatch(self.host):
            raise SettingsError("a host that is none", got=shown(self.host))
        if type(self.port) is not int or not 0 < self.port < 1 << 16:
            raise SettingsError("a port that is none", got=shown(self.port), wanted="1 to 65535")
        if self.certificate is not None:
            _check_certificate(self.certificate)
        elif not is_loopback(self.host):
            raise SettingsError("plain text goes to this machine alone", got=self.host, wanted="127.0.0.1 or ::1")

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


P = TypeVar("P", bound=Device | Server)


@dataclass(frozen=True)
class PeerFile(Generic[P]):
    """`folder`/devices.yaml or servers.yaml, read anew each time: another process may have paired or forgotten."""

    folder: Path
    kind: type[P]

    @property
    def path(self) -> Path:
        return self.folder / self._file

    @property
    def _key(self) -> str:
        return "devices" if self.kind is Device else "servers"

    @property
    def _file(self) -> str:
        return f"{self._key}.yaml"

    def read(self) -> list[P]:
        """The peers in the order of pairing; FileError where the file is damaged or open to others."""
        data = read_private(self.folder, self._file, _FILE_BYTES)
        if data is None:
            return []
        try:
            return _peers(parse_yaml(data.decode()), self._key, self.kind)
        except (ValueError, SettingsError) as problem:
            raise FileError(
                "the list of peers is damaged", where=self.path, got=problem, do="remove it and pair again"
            ) from problem

    def named(self, name: str) -> P:
        """Raises SettingsError, with the names there are, where none is called so."""
        peers = self.read()
        for peer in peers:
            if peer.name == name:
                return peer
        there = ", ".join(peer.name for peer in peers) or "none"
        raise SettingsError(f"no peer is called {shown(name)}", got=f"paired: {there}", do="edgemem split pair CODE")

    def put(self, peer: P) -> P:
        """Add a peer, or renew the one with this certificate; a name that another has gets a number. What was put."""
        with one_writer(self.folder):
            peers: list[P] = [each for each in self.read() if each.certificate != peer.certificate]
            if len(peers) == _PEERS:
                raise SettingsError("too many peers", got=len(peers), do="edgemem split peers forget NAME")
            peer = _renamed(peer, {each.name for each in peers})
            self._write([*peers, peer])
        return peer

    def forget(self, name: str) -> P:
        """Take a peer off the list; SettingsError where none is called so."""
        with one_writer(self.folder):
            gone: P = self.named(name)
            self._write(peer for peer in self.read() if peer != gone)
        return gone

    def _write(self, peers: Iterable[P]) -> None:
        document = {"format": FORMAT, self._key: [_entry(peer) for peer in peers]}
        text = yaml.safe_dump(document, sort_keys=False, width=1 << 20)
        write_private(self.folder, self._file, text.encode())


def _entry(peer: Device | Server) -> dict[str, Any]:
    return {**_fields(peer), "certificate": base64.b64encode(peer.certificate or b"").decode()}


def _peers(document: Any, key: str, kind: type[P]) -> list[P]:
    if not isinstance(document, dict) or document.keys() != {"format", key} or document["format"] != FORMAT:
        raise ValueError(f"no list of {key} of format {FORMAT}")
    entries = document[key]
    if not isinstance(entries, list) or len(entries) > _PEERS:
        raise ValueError(f"{key} that are no list of at most {_PEERS}")
    peers = [_peer(entry, kind) for entry in entries]
    if len({peer.name for peer in peers}) < len(peers) or len({peer.certificate for peer in peers}) < len(peers):
        raise ValueError("a peer twice")
    return peers


def _peer(entry: Any, kind: type[P]) -> P:
    wanted = set(kind.__dataclass_fields__)
    if not isinstance(entry, dict) or entry.keys() != wanted or not isinstance(entry["certificate"], str):
        raise ValueError(f"an entry without {', '.join(sorted(wanted))}")
    try:
        certificate = base64.b64decode(entry["certificate"], validate=True)
    except binascii.Error as problem:
        raise ValueError("a certificate that is not base64") from problem
    return kind(**{**entry, "certificate": certificate})


def _renamed(peer: P, taken: set[str]) -> P:
    name, number = peer.name, 2
    while name in taken:
        name, number = f"{peer.name[:56]}-{number}", number + 1
    return peer if name == peer.name else type(peer)(**{**_fields(peer), "name": name})


def _fields(peer: Device | Server) -> dict[str, Any]:
    return {field: getattr(peer, field) for field in peer.__dataclass_fields__}


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SettingsError("a name that is none", got=shown(name), wanted="letters, digits, . _ -, at most 63")


def _check_certificate(certificate: object) -> None:
    if not isinstance(certificate, bytes) or not 0 < len(certificate) <= CERTIFICATE_BYTES:
        raise SettingsError("a certificate that is none", wanted=f"1 to {CERTIFICATE_BYTES} bytes")
