"""ggml's tensor types as matrices: exact values by row range, and the canonical codes where the layout allows.

Block layouts: ggml-common.h. ggml puts the low nibbles of a block first and the high ones after; the canonical layout
pairs neighbours. Q4_K and Q5_K round scale and minimum to fp16, all others import exactly; Q6_K has groups of 16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.matrices import check_finite, row_range
from edgemem.kernels.formats import Precision, QuantizedMatrix, pack_int4

Bytes = NDArray[np.uint8]
Decoded = tuple[Bytes, NDArray[np.float16], NDArray[np.float16] | None]  # codes (n, 32), scales (n,), minima (n,)


@dataclass(frozen=True)
class BlockType:
    """One ggml tensor type. `decode` maps (n, block_bytes) to codes, scales and minima of groups of 32."""

    name: str
    stored: Precision | None
    block: int = 1
    block_bytes: int = 0
    decode: Callable[[Bytes], Decoded] | None = None


def _half(blocks: Bytes, start: int) -> NDArray[np.float16]:
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2")[:, 0]


def _nibbles(packed: Bytes) -> Bytes:
    """(..., n) bytes to (..., 2n) codes: all low nibbles, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _q4_0(blocks: Bytes) -> Decoded:
    return _nibbles(blocks[:, 2:]), _half(blocks, 0), None


def _q4_1(blocks: Bytes) -> Decoded:
    return _nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2)


def _fifth_bits(packed: Bytes) -> Bytes:
    """(n, 4) bytes of high bits to (n, 32) values of 0 or 16."""
    return np.unpackbits(np.ascontiguousarray(packed), axis=-1, bitorder="little") << np.uint8(4)


def _q5_0(blocks: Bytes) -> Decoded:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return codes + np.uint8(128 - 16), _half(blocks, 0), None


def _q5_1(blocks: Bytes) -> Decoded:
    return _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8]), _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Decoded:
    return blocks[:, 2:] ^ np.uint8(128), _half(blocks, 0), None  # two's complement to offset 128


def _k_scales(blocks: Bytes) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Eight fp16 (scale, minimum) a super-block of 256, from two fp16 factors and twelve bytes of 6-bit numbers."""
    low, middle, high = (blocks[:, start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate([low & 63, (high & 15) | (low >> 2 & 48)], axis=1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 2 & 48)], axis=1)
    with np.errstate(all="ignore"):  # what overflows fp16 becomes infinite, and check_finite names it
        scale = _half(blocks, 0)[:, None].astype(np.float32) * scales
        minimum = _half(blocks, 2)[:, None].astype(np.float32) * minima
        return scale.astype(np.float16).reshape(-1), (np.float32(0) - minimum).astype(np.float16).reshape(-1)


def _k_nibbles(packed: Bytes) -> Bytes:
    """(n, 128) bytes to (n, 8, 32) codes: each run of 32 bytes holds two groups."""
    return _nibbles(packed.reshape(-1, 4, 32)).reshape(-1, 8, 32)


def _q4_k(blocks: Bytes) -> Decoded:
    return _k_nibbles(blocks[:, 16:]).reshape(-1, 32), *_k_scales(blocks)


def _q5_k(blocks: Bytes) -> Decoded:
    groups = np.arange(8, dtype=np.uint8)[None, :, None]
    fifth = (blocks[:, None, 16:48] >> groups & np.uint8(1)) << np.uint8(4)
    return (_k_nibbles(blocks[:, 48:]) | fifth).reshape(-1, 32), *_k_scales(blocks)


def _precision(text: str) -> Precision:
    return Precision.parse(text)


BLOCK_TYPES: dict[int, BlockType] = {
    0: BlockType("F32", _precision("fp32")),
    1: BlockType("F16", _precision("fp16")),
    2: BlockType("Q4_0", _precision("int4-g32"), 32, 18, _q4_0),
    3: BlockType("Q4_1", _precision("int4-g32-min"), 32, 20, _q4_1),
    6: BlockType("Q5_0", _precision("int8-g32"), 32, 22, _q5_0),
    7: BlockType("Q5_1", _precision("int8-g32-min"), 32, 24, _q5_1),
    8: BlockType("Q8_0", _precision("int8-g32"), 32, 34, _q8_0),
    12: BlockType("Q4_K", _precision("int4-g32-min"), 256, 144, _q4_k),
    13: BlockType("Q5_K", _precision("int8-g32-min"), 256, 176, _q5_k),
    14: BlockType("Q6_K", None, 256, 210),
    30: BlockType("BF16", _precision("bf16")),
}


def dequantize(name: str, raw: Bytes, type_id: int) -> NDArray[np.float32]:
    """(rows, bytes a row) of one of BLOCK_TYPES to (rows, columns) float32, in memory of its own; checked finite."""
    import gguf

    kind = gguf.GGMLQuantizationType(type_id)
    with np.errstate(all="ignore"):
        values = gguf.dequantize(np.ascontiguousarray(raw), kind)
    values = np.array(values, dtype=np.float32, copy=not values.flags.owndata)
    check_finite(name, values)
    return values


def unrotated_rows(rows: NDArray[np.intp], head_dim: int) -> NDArray[np.intp]:
    """Where rows of a rotate-half query or key matrix lie in a GGUF llama file, whose rotary pairs are neighbours."""
    head, within = np.divmod(rows, head_dim)
    half, pair = np.divmod(within, head_dim // 2)
    places: NDArray[np.intp] = head * head_dim + 2 * pair + half
    return places


class GgufMatrix:
    """A matrix of a GGUF file: raw (rows, bytes a row) of a mapped file.

    `paired_head`: the head size if the rows are to be put back into rotate-half order, else 0.
    """

    def __init__(self, name: str, raw: Bytes, type_id: int, columns: int, paired_head: int = 0) -> None:
        self._name, self._raw, self._type_id = name, raw, type_id
        self._type = BLOCK_TYPES[type_id]
        self._columns, self._paired_head = columns, paired_head

    @property
    def shape(self) -> tuple[int, int]:
        return int(self._raw.shape[0]), self._columns

    @property
    def stored(self) -> Precision | None:
        return self._type.stored

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) exactly as the file has them. NumericError if one is not finite."""
        raw = self._raw_rows(start, stop)
        return dequantize(self._name, raw, self._type_id).reshape(len(raw), self._columns)

    def quantized(self, start: int = 0, stop: int | None = None) -> QuantizedMatrix | None:
        """Rows [start, stop) in the canonical layout, None for floats and Q6_K. NumericError for scales not finite."""
        decode, stored = self._type.decode, self._type.stored
        if decode is None or stored is None:
            return None
        raw = self._raw_rows(start, stop)
        groups = self._columns // stored.group
        codes, scales, minima = decode(raw.reshape(-1, self._type.block_bytes))
        codes = codes.reshape(len(raw), groups, stored.group)
        scales = scales.reshape(len(raw), groups)
        check_finite(f"{self._name} (scales)", scales)
        if minima is not None:
            minima = minima.reshape(len(raw), groups)
            check_finite(f"{self._name} (minima)", minima)
        if stored.kind == "int4":
            return QuantizedMatrix(pack_int4(codes), scales, minima, 4)
        return QuantizedMatrix(codes, scales, minima, 8)

    def _raw_rows(self, start: int, stop: int | None) -> Bytes:
        start, stop = row_range(self._name, self.shape[0], start, stop)
        if not self._paired_head:
            return self._raw[start:stop]
        return self._raw[unrotated_rows(np.arange(start, stop), self._paired_head)]
