"""Writes a head as runtime.capture.head reads it: a safetensors file, whole or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgemem.runtime.capture.head import FORMAT, Head
from edgemem.tools.whole_file import whole_file

_ALIGNMENT = 64


def head_bytes(head: Head, notes: Mapping[str, str]) -> bytes:
    """notes: kept in the file's metadata, for whoever looks. The same head and notes give the same bytes."""
    arrays = {"weights": head.weights.astype("<f4"), "bias": np.array([head.bias], "<f4")}
    header: dict[str, object] = {"__metadata__": {"format": FORMAT, **notes}}
    stop = 0
    for name, array in arrays.items():
        start, stop = stop, stop + array.nbytes
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [start, stop]}
    raw = json.dumps(header).encode()
    raw += b" " * (-(8 + len(raw)) % _ALIGNMENT)
    return b"".join([len(raw).to_bytes(8, "little"), raw, *(array.tobytes() for array in arrays.values())])


def write_bytes(path: Path, content: bytes) -> None:
    """Raises FileError where it cannot be written; what was there before then stays."""
    with whole_file(path, "cannot write the file", do="make room or choose another folder") as partial:
        partial.write_bytes(content)
