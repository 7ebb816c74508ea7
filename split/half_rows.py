"""Half-float rows: hidden states in fp16, each row by a power of two of its own where its values need one.

Some models' states are beyond fp16's 65504 (massive activations), or so small that fp16 would lose them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import ProtocolError
from edgemem.split.payload import PayloadReader

_LEAST_PLAIN, _MOST_PLAIN = 0.25, 65504.0  # rows whose largest value lies between keep fp16's own scale
_LARGEST = 15  # a row with an exponent is scaled so that its largest value lies in [2^14, 2^15)
_EXPONENTS = 112  # float32's range, and fp16 cannot pass it in decoding


def half_row_bytes(hidden: int) -> int:
    return 1 + 2 * hidden


def encode_half_rows(states: NDArray[np.float32]) -> bytes:
    """(n, hidden) finite -> n exponents, then fp16. The error of a row is at most 2^-11 of its norm, but for rows
    below 1e-30."""
    largest = np.abs(states).max(axis=1, initial=0.0)
    exponents = np.clip(np.frexp(largest)[1] - _LARGEST, -_EXPONENTS, _EXPONENTS)
    exponents[(largest == 0) | ((largest >= _LEAST_PLAIN) & (largest <= _MOST_PLAIN))] = 0
    halves: NDArray[np.float16] = np.ldexp(states, -exponents[:, None]).astype("<f2")
    return bytes(exponents.astype(np.int8).tobytes() + halves.tobytes())


def decode_half_rows(reader: PayloadReader, count: int, hidden: int) -> NDArray[np.float32]:
    """(count, hidden); not all finite where the bytes were not. Raises ProtocolError."""
    exponents = reader.array("<i1", count).astype(np.int32)
    halves = reader.array("<f2", count, hidden)
    if (np.abs(exponents) > _EXPONENTS).any():
        raise ProtocolError("an exponent out of range", got=exponents.tolist(), wanted=f"at most {_EXPONENTS}")
    states: NDArray[np.float32] = np.ldexp(halves.astype(np.float32), exponents[:, None])
    return states
