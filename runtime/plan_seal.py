"""Who made a plan: this device, by a secret key of its own (HMAC), or a builder that it trusts (Ed25519).

A plan is a program. Keys lie in a folder that is its user's alone, never in a package: device.key, builder.key and
trusted_builders, which has one public key of 64 hex digits a line.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from pathlib import Path
from typing import Any

from edgemem.runtime.errors import EngineError, FileError, SettingsError
from edgemem.runtime.private_files import one_writer, read_private, write_private

SEAL_BYTES = 256
_DEVICE_KEY, _BUILDER_KEY, _TRUSTED = "device.key", "builder.key", "trusted_builders"
_KEY_BYTES, _TRUSTED_BYTES = 32, 64 << 10
_PURPOSE = b"edgemem engine plan 1\n"  # so that what was sealed for another purpose is no plan
_SEAL = re.compile(rb"(?:hmac-sha256 ([0-9a-f]{64})|ed25519 ([0-9a-f]{64}) ([0-9a-f]{128}))\n")
_REBUILD = "build it here: edgemem compile PACKAGE --engine tensorrt (onnx for ONNX Runtime's providers)"


def default_keys() -> Path:
    """$XDG_CONFIG_HOME/edgemem/engines, else ~/.config/edgemem/engines; SettingsError where ~ is not known."""
    shared = os.environ.get("XDG_CONFIG_HOME")
    if shared and os.path.isabs(shared):
        return Path(shared) / "edgemem" / "engines"
    try:
        return Path.home() / ".config" / "edgemem" / "engines"
    except RuntimeError as problem:
        raise SettingsError("the home folder is not known", got=problem, do="set HOME") from problem


def seal(data: bytes, keys: Path) -> bytes:
    """The seal by which this device, and no other, knows `data` again. Makes the key the first time.

    Raises FileError where the folder or the key is damaged or open to others.
    """
    key = _own_key(keys, _DEVICE_KEY)
    return b"hmac-sha256 " + _code(key, data).encode() + b"\n"


def sign(data: bytes, keys: Path) -> bytes:
    """The seal by which every device that trusts this builder knows `data`. Makes the key the first time.

    Raises EngineError without the cryptography library, FileError as seal does.
    """
    key = _signing_key(keys)
    return f"ed25519 {key.public_key().public_bytes_raw().hex()} {key.sign(_PURPOSE + data).hex()}\n".encode()


def builder_key(keys: Path) -> str:
    """This builder's public key, 64 hex digits: a line for trusted_builders on the devices that take its plans."""
    return str(_signing_key(keys).public_key().public_bytes_raw().hex())


def check_seal(given: bytes, data: bytes, keys: Path, where: Path) -> None:
    """Raises EngineError unless this device or a builder that it trusts sealed `data`, FileError as seal does.

    where: what was sealed, for the message.
    """
    found = _SEAL.fullmatch(given)
    if found is None:
        raise EngineError("the plan's seal is damaged", where=where, do=_REBUILD)
    code, public, signature = found.groups()
    if code is not None:
        key = read_private(keys, _DEVICE_KEY, _KEY_BYTES)
        if key is not None:
            _check_length(key, keys, _DEVICE_KEY)  # an empty one is everyone's
        if key is None or not hmac.compare_digest(_code(key, data), code.decode()):
            raise EngineError("the plan was not made on this device, or was altered since", where=where, do=_REBUILD)
        return
    builder = public.decode()
    if builder not in _trusted(keys):
        raise EngineError(
            "the plan was signed by a builder that this device does not trust",
            where=where,
            got=builder,
            do=f"{_REBUILD}; or, if you know the builder, add that line to {keys / _TRUSTED} (chmod 600)",
        )
    _check_signature(builder, signature.decode(), data, where)


def _check_signature(builder: str, signature: str, data: bytes, where: Path) -> None:
    keys_of = _ed25519()
    from cryptography.exceptions import InvalidSignature

    try:
        key = keys_of.Ed25519PublicKey.from_public_bytes(bytes.fromhex(builder))
        key.verify(bytes.fromhex(signature), _PURPOSE + data)
    except (InvalidSignature, ValueError) as problem:
        raise EngineError("the plan was altered since it was signed", where=where, do=_REBUILD) from problem


def _code(key: bytes, data: bytes) -> str:
    return hmac.new(key, _PURPOSE + data, "sha256").hexdigest()


def _own_key(keys: Path, name: str) -> bytes:
    with one_writer(keys):
        key = read_private(keys, name, _KEY_BYTES)
        if key is None:
            key = secrets.token_bytes(_KEY_BYTES)
            write_private(keys, name, key)
    _check_length(key, keys, name)
    return key


def _check_length(key: bytes, keys: Path, name: str) -> None:
    if len(key) != _KEY_BYTES:
        raise FileError("a key is damaged", where=keys / name, do="remove it, and build the plans again")


def _signing_key(keys: Path) -> Any:
    return _ed25519().Ed25519PrivateKey.from_private_bytes(_own_key(keys, _BUILDER_KEY))


def _trusted(keys: Path) -> set[str]:
    data = read_private(keys, _TRUSTED, _TRUSTED_BYTES)
    return set() if data is None else set(data.decode("ascii", "replace").split())


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as problem:
        raise EngineError(
            "signed plans need the cryptography library", got=problem, do='pip install "edgemem-runtime[split]"'
        ) from problem
    return ed25519
