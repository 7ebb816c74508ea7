"""Any bytes are a snapshot or a StoreError; an accepted one has finite arrays of the model's shape.

Each input is read as it is, and with its checksum put right, so that changes reach what lies beneath.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import driver
import numpy as np
from fault.talk import IDENTITY, POLICY, state_of

from edgemem.runtime.engine import KVState
from edgemem.runtime.errors import StoreError
from edgemem.runtime.store.snapshot import Position, Snapshot, read_snapshot, snapshot_parts

_SHA256_BYTES = 32


def _seed(snapshot: Snapshot) -> bytes:
    return b"".join(snapshot_parts(snapshot, IDENTITY, POLICY))


_POSITION = Position(7, 20, "c" * 64)
_STATE = state_of([1, 2, 3])
SEEDS = [
    _seed(Snapshot(_POSITION, _STATE, {"ids": np.arange(3), "pinned": np.array([True, False, True])})),
    _seed(Snapshot(_POSITION, KVState(_STATE.keys.astype(np.float32), _STATE.values.astype(np.float32), None), {})),
]


def fuzz_one_input(data: bytes) -> bool:
    fixed = data[:-_SHA256_BYTES]
    return _read(data) | _read(fixed + hashlib.sha256(fixed).digest())


def _read(data: bytes) -> bool:
    with driver.in_memory_file(data) as descriptor:
        try:
            snapshot = read_snapshot(descriptor, Path("fuzz"), IDENTITY, POLICY)
        except StoreError:
            return False
    state = snapshot.state
    if state.keys.shape != (2, 1, state.length, 4) or state.values.shape != state.keys.shape:
        raise AssertionError(f"keys of {state.keys.shape}, values of {state.values.shape}")
    for array in (state.keys, state.values, state.logits):
        if array is not None and not np.isfinite(array).all():
            raise AssertionError("numbers that are not finite")
    for table in snapshot.tables.values():
        table.tobytes()
    if not isinstance(snapshot.position.sequence, int) or not isinstance(snapshot.position.digest, str):
        raise AssertionError("a position of other types")
    return True


if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
