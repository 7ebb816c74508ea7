"""The devices that may come in now: pairing and forgetting count at once, also for connections that stand."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from edgemem.runtime.errors import FileError
from edgemem.split.identity import Identity
from edgemem.split.peers import Device, PeerFile
from edgemem.split.tls import server_context

_Stamp = tuple[int, int, int] | None


class Roll:
    """The list in `folder`, read again when it has changed. Raises FileError where that fails: nobody comes in."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self._file, self._identity = PeerFile(folder, Device), identity
        self._stamp: _Stamp = None
        self._devices: dict[bytes, Device] = {}
        self._context = server_context(identity, ())

    def context(self) -> ssl.SSLContext:
        """TLS that lets in the devices on the list."""
        self._refresh()
        return self._context

    def device(self, certificate: bytes | None) -> Device | None:
        """The device with this certificate (DER)."""
        self._refresh()
        return None if certificate is None else self._devices.get(certificate)

    def _refresh(self) -> None:
        stamp = _stamp(self._file.path)
        if stamp == self._stamp:
            return
        devices = {device.certificate: device for device in self._file.read()}
        self._context = server_context(self._identity, devices)
        self._devices, self._stamp = devices, stamp


def _stamp(path: Path) -> _Stamp:
    """Every writing puts another file there; a link to one is another too."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise FileError("the list of peers cannot be looked at", where=path, got=problem.strerror) from problem
    return status.st_ino, status.st_mtime_ns, status.st_size
