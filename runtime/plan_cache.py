"""PlanCache: keys and values on a device, where a plan reads and writes them in place; slots not in use hold zeros.

A plan's attention reads a whole bucket and masks what is not in use; a weight of zero times what is no number would be
no number. It moves slots and copies them out and in; it does not count how many are in use.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine_inputs import checked_slots
from edgemem.runtime.errors import EngineError
from edgemem.runtime.model import ModelSpec

KV_ELEMENT_BYTES = 2  # keys and values are float16


class PlanCache:
    """float16 (layers, 2, kv_heads, capacity, head_dim) on a torch `device`: keys at 0, values at 1."""

    def __init__(self, model: ModelSpec, layers: tuple[int, int], capacity: int, device: str) -> None:
        """Raises EngineError without torch; torch's own errors where the device has too little memory."""
        self._torch = import_torch()
        self._frequencies = [model.ropes[rope].inverse_frequencies for rope in model.layer_ropes[slice(*layers)]]
        shape = (len(self._frequencies), 2, model.kv_heads, capacity, model.head_dim)
        self.buffer = self._torch.zeros(shape, dtype=self._torch.float16, device=device)

    def move(self, slots: NDArray[np.int64], length: int) -> None:
        """Gather `slots` of the `length` in use, strictly rising, into slots 0..m-1, keys rotated to their new place.

        Raises SettingsError for anything else. Slots that stay where they are are not touched.
        """
        slots = checked_slots(slots, length)
        moves = np.arange(len(slots)) - slots
        staying = int(np.count_nonzero(moves == 0))  # rising slots: those that stay come first
        if staying < len(slots):
            source = self._torch.from_numpy(slots[staying:]).to(self.buffer.device)
            moved = self.buffer.index_select(3, source)
            for frequencies, keys in zip(self._frequencies, moved[:, 0], strict=True):
                self._rotate(keys, moves[staying:], frequencies)
            self.buffer[:, :, :, staying : len(slots)] = moved
        self.clear(len(slots), length)

    def clear(self, start: int, stop: int) -> None:
        """Zeros in slots [start, stop)."""
        self.buffer[:, :, :, start:stop] = 0

    def save(self, length: int) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """Copies of the first `length` slots: keys and values, (layers, kv_heads, length, head_dim)."""
        used = self.buffer[:, :, :, :length].cpu().numpy()
        return used[:, 0].copy(), used[:, 1].copy()

    def load(self, keys: NDArray[np.generic], values: NDArray[np.generic], length: int) -> None:
        """What save gave, into slots from 0 on; zeros in those of the `length` in use until now that it leaves free."""
        for part, saved in enumerate((keys, values)):
            self.buffer[:, part, :, : saved.shape[2]] = self._torch.from_numpy(saved.copy())
        self.clear(keys.shape[2], length)

    def _rotate(self, keys: Any, moves: NDArray[np.int64], frequencies: tuple[float, ...]) -> None:
        """Rotate (kv_heads, m, head_dim) in place by moves[m] positions; see kernels/rotary.py, in float32 here."""
        half = len(frequencies)
        angles = moves[:, None] * np.asarray(frequencies, dtype=np.float64)
        cos, sin = (
            self._torch.from_numpy(wave(angles).astype(np.float32)).to(keys.device) for wave in (np.cos, np.sin)
        )
        first, second = keys[..., :half].float(), keys[..., half : 2 * half].float()
        keys[..., :half] = first * cos - second * sin
        keys[..., half : 2 * half] = second * cos + first * sin


def import_torch() -> Any:
    """torch. Raises EngineError where it is not installed."""
    try:
        import torch
    except ImportError as problem:
        raise EngineError(
            "torch cannot be imported", got=problem, do='pip install "edgemem-runtime[tensorrt]"'
        ) from problem
    return torch
