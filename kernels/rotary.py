"""Moving keys that are already rotated to other positions: the NumPy truth.

A rotation by the angle of position p, then by the difference q - p, is the rotation by that of q: so a kept key needs
no second look at its token. Values carry no position.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def move_keys(
    keys: NDArray[np.float32], moves: NDArray[np.int64], inverse_frequencies: Sequence[float]
) -> NDArray[np.float32]:
    """Keys (heads, slots, head_dim) of slots that move by `moves` (slots,) positions; a new array.

    Rotate-half layout: pair i is dimensions i and i + len(inverse_frequencies); what lies behind the pairs is not
    rotated. Angles are computed in float64. A move of 0 leaves a key as it is, bit for bit.
    Raises ValueError if the shapes do not fit.
    """
    half = len(inverse_frequencies)
    if keys.ndim != 3 or moves.shape != keys.shape[1:2] or 2 * half > keys.shape[2]:
        raise ValueError(f"keys {keys.shape} do not fit {moves.shape} moves of {half} rotated pairs")
    moved = keys.copy()
    changed = np.flatnonzero(moves)
    angles = moves[changed, None] * np.asarray(inverse_frequencies, dtype=np.float64)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    first, second = keys[:, changed, :half], keys[:, changed, half : 2 * half]
    moved[:, changed, :half] = first * cos - second * sin
    moved[:, changed, half : 2 * half] = second * cos + first * sin
    return moved
