"""Pairing, the device's side: go where the code says, see that the server is the one that made it, say who we are."""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
import time
from pathlib import Path

from edgemem.runtime.errors import LinkError, ProtocolError
from edgemem.split.identity import SERVER_NAME, check_certificate, own_identity
from edgemem.split.pairing import LENGTH_BYTES, checked_length, pack_request, proof_of, take_reply
from edgemem.split.pairing_code import FINGERPRINT_BYTES, PairingCode
from edgemem.split.peers import Device, PeerFile, Server
from edgemem.split.tls import pairing_device_context


def pair(code: PairingCode, folder: Path, *, name: str, device_name: str, timeout_s: float = 10.0) -> Server:
    """Pair this device with the server that shows the code, and keep it as `name`; it calls us `device_name`.

    Raises LinkError where the server cannot be reached, is not the one that made the code (then nothing was sent), or
    refuses; SettingsError for a name that is none.
    """
    device = Device(device_name, own_identity(folder, "device").certificate)
    server = Server(name, code.host, code.port, device.certificate)  # here, so that a wrong name costs no code
    try:
        certificate, reply = _ask(code, device, time.monotonic() + timeout_s)
    except OSError as problem:  # as ssl.SSLError is
        do = "see that the server still shows this code, and that its port can be reached"
        raise LinkError("pairing failed", where=server.address, got=problem, do=do) from problem
    port, text = take_reply(reply)
    if port is None:
        raise LinkError(f"the server refuses: {text}", where=server.address)
    return PeerFile(folder, Server).put(Server(name, code.host, port, certificate))


def _ask(code: PairingCode, device: Device, deadline: float) -> tuple[bytes, bytes]:
    """The server's certificate, which fits the code, and its reply."""
    with (
        socket.create_connection((code.host, code.port), _left_s(deadline)) as raw,
        pairing_device_context().wrap_socket(raw, server_hostname=SERVER_NAME) as secured,
    ):
        certificate = secured.getpeercert(binary_form=True) or b""
        if not hmac.compare_digest(hashlib.sha256(certificate).digest()[:FINGERPRINT_BYTES], code.fingerprint):
            raise LinkError(
                "this is not the server that made the code",
                where=f"{code.host} port {code.port}",
                do="see that the code is the newest; else somebody stands in between",
            )
        check_certificate(certificate, "server")
        secured.sendall(pack_request(device, proof_of(code.secret, certificate, device)))
        length = checked_length(_receive(secured, LENGTH_BYTES, deadline))
        return certificate, _receive(secured, length, deadline)


def _receive(secured: ssl.SSLSocket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        secured.settimeout(_left_s(deadline))
        part = secured.recv(size - len(data))
        if not part:
            raise ProtocolError("the server hung up during the pairing")
        data += part
    return data


def _left_s(deadline: float) -> float:
    return max(0.01, deadline - time.monotonic())
