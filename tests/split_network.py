"""A listener, a loop for it, and strangers on either side, for the tests of pairing and of the link."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgemem.split.frames import PROTOCOL, Done, Extend, Hello, Message, Refused, Welcome
from edgemem.split.identity import Identity, own_identity
from edgemem.split.listener import Caller, Listener, ListenerLimits
from edgemem.split.peers import Device, PeerFile, Server
from edgemem.split.roll import Roll

HELLO = Hello(PROTOCOL, "0.1.0", bytes(range(16)), "ab" * 32, 2, 3, 512, {"mode": "fp32"})
PATIENCE_S = 20.0  # for what happens at once, on a machine that is busy
T = TypeVar("T")


class LoopThread:
    """An event loop that runs beside the test."""

    def __enter__(self) -> LoopThread:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        return self

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.start(work).result(PATIENCE_S)

    def start(self, work: Coroutine[Any, Any, T]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def __exit__(self, *_: object) -> None:
        self.run(_cancel_the_rest())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _cancel_the_rest() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others)
    await asyncio.sleep(0.05)  # what was aborted ends


@dataclass
class Sessions:
    """Counts who opened a session, and the operations; replies Done."""

    opened: list[tuple[bytes, str]] = field(default_factory=list)
    calls: list[Message] = field(default_factory=list)
    payload_bytes: int = 0
    refuse: Callable[[Hello], Refused | None] = lambda hello: None
    reply: Callable[[Message], Message] | None = None

    def open_session(self, hello: Hello, device: Device) -> Welcome | Refused:
        self.opened.append((hello.session, device.name))
        return self.refuse(hello) or Welcome(len(self.calls), 0, hello.capacity, 128, "0.1.0")

    async def handle(self, caller: Caller, message: Message) -> Message:
        self.calls.append(message)
        if isinstance(message, Extend):
            self.payload_bytes += len(message.payload)
        return Done(getattr(message, "op", 0), 0) if self.reply is None else self.reply(message)


@dataclass
class Place:
    """A server that listens and a device that has paired with it."""

    loops: LoopThread
    listener: Listener
    sessions: Any
    folder: Path  # of the server's peers
    server: Server
    device: Identity

    def forget(self) -> None:
        PeerFile(self.folder, Device).forget("robot")


@contextmanager
def listening(folder: Path, sessions: Any = None, limits: ListenerLimits | None = None) -> Iterator[Place]:
    there, here = folder / "server", folder / "device"
    identity, device = own_identity(there, "server"), own_identity(here, "device")
    PeerFile(there, Device).put(Device("robot", device.certificate))
    sessions = sessions or Sessions()
    with LoopThread() as loops:
        listener = Listener(
            "127.0.0.1",
            0,
            roll=Roll(there, identity),
            open_session=sessions.open_session,
            handle=sessions.handle,
            version="0.1.0",
            limits=limits,
        )
        loops.run(listener.start())
        server = Server("home", "127.0.0.1", listener.port, identity.certificate)
        try:
            yield Place(loops, listener, sessions, there, server, device)
        finally:
            loops.run(listener.drain(0.0))


class Eavesdropper:
    """A server that takes every connection and keeps what it is told, behind TLS; until it has heard `enough`.

    context: None says something in plain text instead.
    """

    def __init__(self, context: ssl.SSLContext | None, enough: bytes | None = None) -> None:
        self.received = b""
        self._context, self._enough = context, enough
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Eavesdropper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # wakes it up
        self._listening.close()
        self._thread.join()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = self._listening.accept()
                accepted.settimeout(PATIENCE_S)
                with contextlib.suppress(OSError), accepted:
                    self._hear(accepted)

    def _hear(self, accepted: socket.socket) -> None:
        if self._context is None:
            accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return
        with self._context.wrap_socket(accepted, server_side=True) as secured:
            while part := secured.recv(65536):
                self.received += part
                if self._enough is not None and self._enough in self.received:
                    return


def server_tls(identity: Identity | Path, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """TLS of a server that lets in anybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = version
    context.load_cert_chain(identity.path if isinstance(identity, Identity) else identity)
    return context


def client_tls(identity: Identity | Path | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """TLS of a client that talks to anybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    if identity is not None:
        context.load_cert_chain(identity.path if isinstance(identity, Identity) else identity)
    return context


def self_made(
    path: Path,
    *,
    server: bool,
    name: str = "server.edgemem",
    valid_days: tuple[int, int] = (-10, 10),
    issuer: Path | None = None,
    authority: bool = False,
    key: Any = None,
) -> Identity:
    """A certificate like ours but for what is said; issuer: a PEM file whose key signs it."""
    own = key or ec.generate_private_key(ec.SECP256R1())
    pem = None if issuer is None else issuer.read_bytes()
    signer: Any = own if pem is None else serialization.load_pem_private_key(pem, None)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.name)])
    issued_by = subject if pem is None else x509.load_pem_x509_certificate(pem).subject
    now = datetime.now(timezone.utc)
    usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    certificate = (
        x509.CertificateBuilder(issued_by, subject, own.public_key(), x509.random_serial_number())
        .not_valid_before(now + timedelta(days=valid_days[0]))
        .not_valid_after(now + timedelta(days=valid_days[1]))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = own.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(private + certificate.public_bytes(encoding))
    return Identity(path, certificate.public_bytes(serialization.Encoding.DER))
