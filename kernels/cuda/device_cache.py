"""DeviceCache: keys and values on the device, allocated once, and what may be done to them between steps.

The decode kernel (attention.py) writes one slot a step into the same tensors. It knows no length: its user does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from edgemem.kernels.cuda.launching import capability

Kind = Literal["fp16", "bf16", "int8", "fp8"]
_STORED: dict[str, torch.dtype] = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
_MOVED_AT_ONCE = 4096  # slots: bounds what `keep` holds beside the cache
FP8_MOST = 448.0  # beyond it e4m3 has no number
INT8_LEAST = 1e-30  # keys or values that are all smaller are zeros


def kinds() -> tuple[Kind, ...]:
    """The kinds that this GPU can attend to: the conversions of e4m3 came with compute capability 8.9."""
    has_fp8 = (capability() or (8, 9)) >= (8, 9)
    return tuple(kind for kind in get_args(Kind) if has_fp8 or kind != "fp8")


class DeviceCache:
    """Keys and values of `layers` layers, numbered from 0: (layers, kv_heads, capacity, head_dim).

    int8 has a float32 scale for each head and slot, (layers, kv_heads, capacity): the greatest / 127, rounded up to 11
    significant bits, as the native engine has it. fp8 is e4m3; what lies beyond its range becomes its greatest number.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, capacity: int, kind: Kind, device: torch.device
    ) -> None:
        """Raises ValueError for a kind that is none of `kinds()`."""
        if kind not in kinds():
            raise ValueError(f"there is no KV cache of {kind!r} here, wanted one of {', '.join(kinds())}")
        self.layers, self.kv_heads, self.head_dim, self.capacity, self.kind = layers, kv_heads, head_dim, capacity, kind
        shape = (layers, kv_heads, capacity, head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=_STORED[kind], device=device) for _ in range(2))
        scales = shape[:3] if kind == "int8" else (layers, 0, 0)
        self.key_scales, self.value_scales = (torch.zeros(scales, device=device) for _ in range(2))

    @staticmethod
    def bytes_for(layers: int, kv_heads: int, head_dim: int, capacity: int, kind: Kind) -> int:
        """What a cache of these dimensions takes on the device."""
        scale = 4 if kind == "int8" else 0
        return 2 * layers * kv_heads * capacity * (head_dim * _STORED[kind].itemsize + scale)

    @property
    def state_dtype(self) -> np.dtype[Any]:
        """What `save` gives: float16 where it holds every stored number, else float32."""
        return np.dtype(np.float16 if self.kind in ("fp16", "fp8") else np.float32)

    def write(self, layer: int, first: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store float32 (kv_heads, n, head_dim), keys rotated already, in slots first..first+n-1."""
        slots = slice(first, first + keys.shape[1])
        _store(self.keys[layer], self.key_scales[layer], slots, keys)
        _store(self.values[layer], self.value_scales[layer], slots, values)

    def read(self, layer: int, first: int, last: int, heads: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of slots [first, last) of some KV heads, float32 (heads, last - first, head_dim)."""
        slots = slice(first, last)
        keys, values = (part[layer, heads, slots].float() for part in (self.keys, self.values))
        if self.kind == "int8":
            keys *= self.key_scales[layer, heads, slots, None]
            values *= self.value_scales[layer, heads, slots, None]
        return keys, values

    def keep(self, slots: NDArray[np.int64], frequencies: Sequence[Sequence[float]]) -> None:
        """Gather `slots`, strictly rising, into slots 0..m-1, keys turned to their new positions; all on the device.

        frequencies: each layer's inverse frequencies. Slots that stay where they are are not touched.
        """
        staying = int(np.count_nonzero(np.arange(len(slots)) == slots))  # rising slots: those that stay come first
        # Slots only move down, so what a block overwrites is the source of none after it.
        for start in range(staying, len(slots), _MOVED_AT_ONCE):
            stop = min(start + _MOVED_AT_ONCE, len(slots))
            source = torch.from_numpy(slots[start:stop].astype(np.int64)).to(self.keys.device)
            moves = torch.arange(start, stop, device=source.device) - source
            turns = {own: turn(moves, own) for own in {tuple(own) for own in frequencies}}
            for layer, own in enumerate(frequencies):
                self._move(layer, source, slice(start, stop), turns[tuple(own)])

    def _move(self, layer: int, source: torch.Tensor, target: slice, by: tuple[torch.Tensor, torch.Tensor]) -> None:
        keys = _gathered(self.keys[layer], source).float()
        self.values[layer][:, target] = _gathered(self.values[layer], source)
        if self.kind == "int8":
            keys *= self.key_scales[layer][:, source, None]
            self.value_scales[layer][:, target] = self.value_scales[layer][:, source]
        _store(self.keys[layer], self.key_scales[layer], target, rotated(keys, *by))

    def save(self, length: int) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
        """A copy of the first slots' keys and values, (layers, kv_heads, length, head_dim) of `state_dtype`."""
        shape = (self.layers, self.kv_heads, length, self.head_dim)
        keys, values = (np.empty(shape, dtype=self.state_dtype) for _ in range(2))
        for layer in range(self.layers):
            for host, part in zip((keys, values), self.read(layer, 0, length), strict=True):
                host[layer] = part.cpu().numpy()
        return keys, values

    def load(self, keys: NDArray[np.generic], values: NDArray[np.generic]) -> None:
        """Overwrite the first slots by what `save` gave: the same bytes again."""
        for layer in range(self.layers):
            parts = (torch.from_numpy(part[layer].astype(np.float32)) for part in (keys, values))
            self.write(layer, 0, *(part.to(self.keys.device) for part in parts))


def turn(positions: torch.Tensor, frequencies: Sequence[float] | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, float32 (n, pairs), of positions (n,) by inverse frequencies (pairs,); angles in float64."""
    angles = positions[:, None] * torch.as_tensor(frequencies, dtype=torch.float64, device=positions.device)
    return angles.cos().float(), angles.sin().float()


def rotated(vectors: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """(..., n, head_dim) turned by (n, pairs) in the rotate-half layout; what lies behind the pairs stays."""
    half = cosines.shape[-1]
    first, second, rest = vectors[..., :half], vectors[..., half : 2 * half], vectors[..., 2 * half :]
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines, rest), dim=-1)


def _gathered(rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Some slots of (kv_heads, capacity, head_dim), as bytes: not every type can be gathered."""
    return rows.view(torch.uint8)[:, slots].view(rows.dtype)


def _store(rows: torch.Tensor, scales: torch.Tensor, slots: slice, values: torch.Tensor) -> None:
    """float32 (kv_heads, n, head_dim) into slots of (kv_heads, capacity, head_dim), and of the scales of int8."""
    if rows.dtype == torch.int8:
        rows[:, slots], scales[:, slots] = _to_bytes(values)
    elif rows.dtype == torch.float8_e4m3fn:
        rows[:, slots] = values.clamp(-FP8_MOST, FP8_MOST)
    else:
        rows[:, slots] = values


def _to_bytes(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., head_dim) as int8 with a float32 scale (...,), NaN where one of them is no number."""
    greatest = values.abs().amax(dim=-1)
    scales = (((greatest / 127).view(torch.int32) + 0x1FFF) & ~0x1FFF).view(torch.float32)
    scales = torch.where(greatest < INT8_LEAST, 0.0, torch.where(greatest.isfinite(), scales, torch.nan))
    codes = torch.where((scales > 0)[..., None], (values / scales[..., None]).round(), 0.0)
    return codes.to(torch.int8), scales
