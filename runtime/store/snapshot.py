"""Snapshots: an engine's memory in one file, so that waking up needs no replay. A snapshot is never the truth.

A safetensors file: keys, values, logits, the tables of whoever decides what stays, and a last tensor with the SHA-256
of all bytes before it. It is untrusted: any doubt is a StoreError, and the journal is played again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import KVState
from edgemem.runtime.errors import SettingsError, StoreError, shown
from edgemem.runtime.finite import find_not_finite
from edgemem.runtime.safe_files import read_at_most
from edgemem.runtime.store.identity import Identity
from edgemem.runtime.tensor_file import DTYPES, TensorFile, parse_json_object

FORMAT = 1
_HEADER_BYTES = 1 << 20
_TABLES = 64
_NAME = re.compile(r"snapshot-([0-9]{20})\.safetensors")
_TABLE = re.compile(r"[a-z0-9_]{1,64}")
_CHECKSUM, _PREFIX = "checksum", "table."
_DTYPE_NAMES = {
    dtype: name
    for name, dtype in DTYPES.items()
    if name not in ("BF16", "F8_E4M3", "F8_E5M2")  # bits, not numbers
}
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32))


@dataclass(frozen=True)
class Position:
    """A place in a journal. sequence: its last frame; tokens: of the conversation up to there; digest: of its slots."""

    sequence: int
    tokens: int
    digest: str


@dataclass(frozen=True)
class Snapshot:
    """What the engine had in its slots at `position`, as views of the file, and the tables as they were given."""

    position: Position
    state: KVState
    tables: Mapping[str, NDArray[Any]]


def snapshot_name(sequence: int) -> str:
    return f"snapshot-{sequence:020d}.safetensors"


def snapshot_numbers(names: Iterable[str]) -> list[int]:
    """Where in the journal the snapshots among a folder's names were taken, newest first."""
    return sorted((int(found[1]) for found in map(_NAME.fullmatch, names) if found), reverse=True)


def snapshot_parts(snapshot: Snapshot, identity: Identity, policy: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    """The bytes of the file, one after another, no array copied. Raises SettingsError for arrays it cannot hold."""
    arrays = _arrays(snapshot)
    metadata = {
        "format": FORMAT,
        "sequence": snapshot.position.sequence,
        "tokens": snapshot.position.tokens,
        "digest": snapshot.position.digest,
        "identity": identity.to_dict(),
        "policy": policy,
    }
    header: dict[str, Any] = {"__metadata__": {"edgemem": json.dumps(metadata)}}
    stop = 0
    for name, array in [*arrays.items(), (_CHECKSUM, np.empty(32, np.uint8))]:
        start, stop = stop, stop + array.nbytes
        header[name] = {"dtype": _DTYPE_NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [start, stop]}
    raw = json.dumps(header).encode()
    raw += b" " * (-(8 + len(raw)) % 64)
    parts: list[bytes | memoryview] = [len(raw).to_bytes(8, "little") + raw, *map(_bytes_of, arrays.values())]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
        yield part
    yield digest.digest()


def read_snapshot(descriptor: int, where: Path, identity: Identity, policy: Mapping[str, Any]) -> Snapshot:
    """The snapshot in an open file. Raises StoreError if it is damaged, or of another model, engine or policy.

    Allocates no more than its header says in at most 1 MiB; the arrays stay in the file. `position` is the file's
    claim, for the caller to compare with the journal.
    """
    header_bytes = int.from_bytes(read_at_most(descriptor, 8), "little")
    if header_bytes > _HEADER_BYTES:
        raise StoreError("the snapshot's header is too large", where=where, got=header_bytes, wanted=_HEADER_BYTES)
    with TensorFile.open(where, error=StoreError, descriptor=descriptor) as file:
        position = _check_metadata(file, identity, policy)
        arrays = {name: file.array(name) for name in file.tensors}
    _check_sum(descriptor, 8 + header_bytes, arrays, where)
    del arrays[_CHECKSUM]
    state = _state(arrays, identity, where)
    tables = {name.removeprefix(_PREFIX): array for name, array in arrays.items() if name.startswith(_PREFIX)}
    if len(tables) + 2 + (state.logits is not None) != len(arrays) or not all(map(_TABLE.fullmatch, tables)):
        raise StoreError("the snapshot holds other arrays", where=where, got=shown(sorted(arrays)))
    return Snapshot(position, state, tables)


def _arrays(snapshot: Snapshot) -> dict[str, NDArray[Any]]:
    state = snapshot.state
    arrays = {"keys": state.keys, "values": state.values}
    if state.logits is not None:
        arrays["logits"] = state.logits
    if len(snapshot.tables) > _TABLES or not all(map(_TABLE.fullmatch, snapshot.tables)):
        raise SettingsError("the tables of a snapshot have bad names", got=shown(list(snapshot.tables)))
    for name, table in snapshot.tables.items():
        arrays[_PREFIX + name] = table
    for name, array in arrays.items():
        if array.dtype not in _DTYPE_NAMES or not array.size or not array.ndim:
            raise SettingsError(f"a snapshot cannot hold {name}", got=f"{array.dtype}{array.shape}")
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _check_metadata(file: TensorFile, identity: Identity, policy: Mapping[str, Any]) -> Position:
    where = file.path
    try:
        plain = parse_json_object(file.metadata["edgemem"].encode())
    except (KeyError, ValueError) as problem:
        raise StoreError("no snapshot of a conversation", where=where, got=problem) from problem
    known = {"format", "sequence", "tokens", "digest", "identity", "policy"}
    if set(plain) != known or plain["format"] != FORMAT:
        raise StoreError("a snapshot of another format", where=where, got=shown(plain), wanted=f"format {FORMAT}")
    for name, got, wanted in (
        ("model or engine", plain["identity"], identity.to_dict()),
        ("policy", plain["policy"], dict(policy)),
    ):
        if got != wanted:
            differing = sorted(key for key in wanted if not isinstance(got, dict) or got.get(key) != wanted[key])
            raise StoreError(f"the snapshot is of another {name}", where=where, got=f"other {shown(differing)}")
    sequence, tokens, digest = plain["sequence"], plain["tokens"], plain["digest"]
    if type(sequence) is not int or type(tokens) is not int or not isinstance(digest, str):
        raise StoreError("the snapshot's position is malformed", where=where, got=shown(plain))
    return Position(sequence, tokens, digest)


def _check_sum(descriptor: int, header_stop: int, arrays: Mapping[str, NDArray[Any]], where: Path) -> None:
    names = list(arrays)
    claimed = arrays.get(_CHECKSUM)
    if claimed is None or names[-1] != _CHECKSUM or claimed.dtype != np.uint8 or claimed.shape != (32,):
        raise StoreError("the snapshot has no checksum", where=where, got=shown(names))
    digest = hashlib.sha256(read_at_most(descriptor, header_stop))
    for name in names[:-1]:
        digest.update(_bytes_of(arrays[name]))
    if claimed.tobytes() != digest.digest():
        raise StoreError(
            "the snapshot is damaged", where=where, got=f"SHA-256 {digest.hexdigest()}", wanted=claimed.tobytes().hex()
        )


def _state(arrays: Mapping[str, NDArray[Any]], identity: Identity, where: Path) -> KVState:
    keys, values, logits = (arrays.get(name) for name in ("keys", "values", "logits"))
    wanted = (identity.layers, identity.kv_heads, identity.head_dim)
    for name, array in (("keys", keys), ("values", values)):
        if array is None or array.ndim != 4 or array.dtype not in _FLOATS or _without_slots(array) != wanted:
            got = "none" if array is None else f"{array.dtype}{array.shape}"
            raise StoreError(f"the snapshot's {name} are of another shape", where=where, got=got, wanted=wanted)
    if keys is None or values is None or keys.shape != values.shape or keys.dtype != values.dtype:
        raise StoreError("the snapshot's keys and values differ in shape", where=where)
    if logits is not None and (logits.dtype != np.float32 or logits.shape != (identity.vocabulary,)):
        raise StoreError("the snapshot's logits are of another model", where=where, got=f"{logits.dtype}{logits.shape}")
    for name, array in (("keys", keys), ("values", values), ("logits", logits)):
        if array is not None and (bad := find_not_finite(array)):
            raise StoreError(f"the snapshot's {name} are not finite", where=where, got=bad)
    return KVState(keys, values, logits)


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array, not copied."""
    return array.reshape(-1).view(np.uint8).data


def _without_slots(array: NDArray[Any]) -> tuple[int, ...]:
    layers, kv_heads, _, head_dim = array.shape
    return layers, kv_heads, head_dim
