"""Making keys and certificates, and looking at a stranger's: the only user of `cryptography`."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgemem.runtime.errors import LinkError
from edgemem.split.peers import CERTIFICATE_BYTES

_USAGE = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "device": ExtendedKeyUsageOID.CLIENT_AUTH}
# A peer goes by being forgotten, never by the clock: a device may wake up in 1970, before it is told the time.
_FROM = datetime(1970, 1, 1, tzinfo=timezone.utc)
_UNTIL = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
_NOT_OURS = (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound, x509.DuplicateExtension)


def new_identity(role: Literal["server", "device"]) -> bytes:
    """PEM: a new P-256 key, and a certificate that it signed itself, for one role and for no authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"edgemem {role} {serial:040x}")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), serial, _FROM, _UNTIL)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGE[role]]), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(f"{role}.edgemem")]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private + certificate.public_bytes(pem)


def check(certificate: bytes, role: Literal["server", "device"]) -> None:
    """Raises LinkError unless it (DER) is like those that new_identity makes."""
    try:
        if not 0 < len(certificate) <= CERTIFICATE_BYTES:
            raise ValueError(f"{len(certificate)} bytes")
        found = x509.load_der_x509_certificate(certificate)
        found.verify_directly_issued_by(found)
        key = found.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError("a key that is not on P-256")
        if found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise ValueError("an authority's certificate")
        if list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) != [_USAGE[role]]:
            raise ValueError("a certificate for another use")
    except _NOT_OURS as problem:
        raise LinkError(f"this is no {role}'s certificate", got=str(problem) or type(problem).__name__) from problem
