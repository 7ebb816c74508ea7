"""Any bytes are a list of paired peers or a FileError; what was read is written so that it reads the same."""

from __future__ import annotations

import tempfile
from pathlib import Path

import driver

from edgemem.runtime.errors import FileError
from edgemem.split.peers import Device, PeerFile, Server

_MEMORY = "/dev/shm"
_HOLDER = tempfile.TemporaryDirectory(dir=_MEMORY if Path(_MEMORY).is_dir() else None)
_SERVERS, _DEVICES = PeerFile(Path(_HOLDER.name), Server), PeerFile(Path(_HOLDER.name), Device)


def _seeds() -> list[bytes]:
    for name, host in (("home", "192.168.1.5"), ("cloud", "server.example.org")):
        _SERVERS.put(Server(name, host, 7410, name.encode() * 100))
        _DEVICES.put(Device(name, name.encode() * 100))
    _SERVERS.put(Server("here", "::1", 7410, b"short"))
    return [_SERVERS.path.read_bytes(), _DEVICES.path.read_bytes()]


SEEDS = _seeds()


def fuzz_one_input(data: bytes) -> bool:
    return _reads_the_same(_SERVERS, data) or _reads_the_same(_DEVICES, data)


def _reads_the_same(file: PeerFile[Server] | PeerFile[Device], data: bytes) -> bool:
    file.path.write_bytes(data)
    try:
        peers = file.read()
        if peers:
            file.put(peers[-1])  # type: ignore[arg-type]
    except FileError:
        return False
    if file.read() != peers:
        raise AssertionError("a list is not written as it was read")
    return True


if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
