"""Byte rows: hidden states in int8, with one asymmetric step for each token."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemem.split.payload import PayloadReader
from edgemem.split.token_bits import quantise, restore


def encode_byte_rows(states: NDArray[np.float32]) -> bytes:
    """(n, hidden) finite -> n steps in bfloat16, n zeros, then a byte a value."""
    found = quantise(states, delta=0)
    codes = (found.codes + found.zeros[:, None]).astype(np.uint8)
    return found.steps.astype("<u2").tobytes() + found.zeros.tobytes() + codes.tobytes()


def decode_byte_rows(reader: PayloadReader, count: int, hidden: int) -> NDArray[np.float32]:
    """(count, hidden); not all finite where a step is not. Raises ProtocolError."""
    steps, zeros = reader.array("<u2", count), reader.array("<u1", count)
    codes = reader.array("<u1", count, hidden).astype(np.int16) - zeros[:, None]
    return restore(codes, steps)
