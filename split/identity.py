"""Who we are: one key and one self-signed certificate for each role, made once and kept.

There is no authority. Each side pins the other's whole certificate at pairing, so that whom a signature would vouch for
is already known, and forgetting a peer is all that revoking needs.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgemem.runtime.errors import FileError
from edgemem.runtime.private_files import one_writer, read_private, write_private
from edgemem.split.extra import adapter
from edgemem.split.peers import fingerprint

Role = Literal["server", "device"]
SERVER_NAME = "server.edgemem"  # in every server's certificate: what tells servers apart is the pin
_FILE_BYTES = 16 << 10
_BEGIN = "-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True)
class Identity:
    """path: a PEM file with the key and the certificate. certificate: DER."""

    path: Path
    certificate: bytes

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate)


def own_identity(folder: Path, role: Role) -> Identity:
    """The identity in `folder`, made there the first time. Raises FileError where it is damaged or open to others."""
    with one_writer(folder):
        data = read_private(folder, f"{role}.pem", _FILE_BYTES)
        if data is None:
            data = bytes(adapter("certificates").new_identity(role))
            write_private(folder, f"{role}.pem", data)
    path = folder / f"{role}.pem"
    try:
        text = data.decode("ascii")
        return Identity(path, ssl.PEM_cert_to_DER_cert(text[text.index(_BEGIN) :]))
    except ValueError as problem:
        raise FileError("an identity is damaged", where=path, do="remove it, and pair again") from problem


def check_certificate(certificate: bytes, role: Role) -> None:
    """Raises LinkError unless it is what own_identity makes for `role`: a stranger sends it, to be pinned."""
    adapter("certificates").check(certificate, role)
