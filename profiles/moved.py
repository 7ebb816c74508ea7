"""What the engines really read and write in one decode step, where a floor counts each byte of the package once.

Derived from how each arranges its memory, not measured. Activations, a few kilobytes a layer, are left out here too.
"""

from __future__ import annotations

from collections.abc import Callable

from edgemem.kernels.formats import Precision
from edgemem.profiles.floors import KvFormat, kv_format, model_step
from edgemem.runtime.engine import Traffic
from edgemem.runtime.model import ModelSpec

_LANES = 16
_FLOAT = 4


def moved_bytes(
    model: ModelSpec, precision: Callable[[str], Precision], slots: int, engine: str, kv: str | None = None
) -> Traffic:
    """Of the step that finds `slots` KV slots in use, by the engine's name and its kind of KV cache.

    native: rows of matrices, and the columns of values, in whole lanes of 16; keys in whole blocks of 16 slots, all of
    whose lines the new key touches. Query heads that share a KV head read it together.
    onnx (ONNX Runtime's CPU provider): scales, sums of codes and minima in float32, float matrices in float32 as a
    whole; every query head reads keys and values for itself, which the cache may serve, and a window saves nothing.
    cuda: matrices as stored, rows of float ones in whole loads of 16 bytes; query heads that share a KV head read it
    together.
    Raises SettingsError for another engine or kind of cache.
    """
    kept = kv_format(engine, kv)
    stored = model_step(model, precision, slots, kept).weight_bytes
    held = {"native": _native_matrix, "onnx": _onnx_matrix, "cuda": _cuda_matrix}[engine]
    added = 0
    for name, (rows, columns) in model.matrices():
        if name != "embedding" or model.tied_head:
            added += held(precision(name), rows, columns) - precision(name).bytes_for(rows, columns)
    if engine == "native":
        return Traffic(stored + added, *_native_cache(model, slots, kept))
    if engine == "cuda":
        useful = model_step(model, precision, slots, kept)
        return Traffic(stored + added, useful.kv_read_bytes, useful.kv_write_bytes)
    element = model.layers * 2 * model.head_dim * kept.element_bytes
    return Traffic(stored + added, element * model.heads * slots, element * model.kv_heads)


def _native_matrix(precision: Precision, rows: int, columns: int) -> int:
    return precision.bytes_for(_whole(rows), columns)


def _onnx_matrix(precision: Precision, rows: int, columns: int) -> int:
    if not precision.quantized:
        return rows * columns * _FLOAT
    numbers_a_group = 3 if precision.minimum else 2
    return rows * columns * precision.bits // 8 + rows * (columns // precision.group) * numbers_a_group * _FLOAT


def _cuda_matrix(precision: Precision, rows: int, columns: int) -> int:
    lanes = 128 // precision.bits
    return precision.bytes_for(rows, columns if precision.quantized else -(-columns // lanes) * lanes)


def _native_cache(model: ModelSpec, slots: int, kv: KvFormat) -> tuple[int, int]:
    """Bytes read and written."""
    value = _whole(model.head_dim) * kv.element_bytes
    read = written = 0
    for window in model.windows:
        first = max(0, slots + 1 - window) if window else 0
        in_blocks = _whole(slots + 1) - first // _LANES * _LANES
        key_slots = in_blocks * (model.head_dim * kv.element_bytes + kv.scale_bytes)
        read += model.kv_heads * (key_slots + in_blocks * kv.scale_bytes + (slots - first) * value)
        written += model.kv_heads * (_LANES * model.head_dim * kv.element_bytes + value + 2 * kv.scale_bytes)
    return read, written


def _whole(count: int) -> int:
    """In whole lanes of 16."""
    return -(-count // _LANES) * _LANES
