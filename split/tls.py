"""TLS 1.3 between two that have paired: each side trusts the certificates that it pinned, and nothing else."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path

from edgemem.runtime.errors import FileError
from edgemem.split.identity import Identity

_ALPN = ["h2"]


def device_context(identity: Identity, server_certificate: bytes) -> ssl.SSLContext:
    """For a device that dials: the one server, by certificate and by SERVER_NAME."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, identity)
    _trust(context, [server_certificate])
    context.set_alpn_protocols(_ALPN)
    return context


def server_context(identity: Identity, device_certificates: Iterable[bytes]) -> ssl.SSLContext:
    """For a server: a client must have one of these certificates."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # a session that was resumed would not show its certificate again
    _trust(context, device_certificates)
    context.set_alpn_protocols(_ALPN)
    return context


def pairing_server_context(identity: Identity) -> ssl.SSLContext:
    """For a server that waits for a stranger with the code."""
    return _context(ssl.PROTOCOL_TLS_SERVER, identity)


def pairing_device_context() -> ssl.SSLContext:
    """For a device that knows nothing but the fingerprint, and compares it itself before it sends anything."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, None)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _context(protocol: int, identity: Identity | None) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if identity is not None:
        try:
            context.load_cert_chain(identity.path)
        except ssl.SSLError as problem:
            raise _damaged(identity.path, problem) from problem
    return context


def _trust(context: ssl.SSLContext, certificates: Iterable[bytes]) -> None:
    for certificate in certificates:
        try:
            context.load_verify_locations(cadata=certificate)
        except ssl.SSLError as problem:
            raise FileError("a pinned certificate is damaged", got=problem.reason, do="pair again") from problem


def _damaged(path: Path, problem: ssl.SSLError) -> FileError:
    return FileError("an identity is damaged", where=path, got=problem.reason, do="remove it, and pair again")
