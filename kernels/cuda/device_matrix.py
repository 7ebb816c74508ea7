"""DeviceMatrix: a weight matrix in the device's memory, perhaps of several parts by rows.

The layout is the canonical one, but that the eight int4 codes of a word are ordered so that its low nibbles, and its
high ones, belong to neighbouring columns. Sixteen bytes of a row are within one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from edgemem.kernels.cuda.launching import device
from edgemem.kernels.cuda.tile_shapes import chunk_weights
from edgemem.kernels.formats import Kind, Precision, QuantizedMatrix

Part: TypeAlias = "QuantizedMatrix | NDArray[Any]"

_FLOATS: dict[str, tuple[Kind, torch.dtype]] = {
    "float32": ("fp32", torch.float32),
    "float16": ("fp16", torch.float16),
    "uint16": ("bf16", torch.bfloat16),
}
_WORDS_AT_ONCE = 1 << 22  # reordered, so that what that takes beside the matrix stays small


@dataclass(frozen=True)
class DeviceMatrix:
    """A (rows, columns) matrix.

    Quantised: body (rows, columns * bits / 32) int32; scales and perhaps minima (rows, columns / group) float16.
    Else body is (rows, columns padded with zeros to 16 bytes) of its dtype.
    """

    rows: int
    columns: int
    precision: Precision
    body: torch.Tensor
    scales: torch.Tensor | None = None
    minima: torch.Tensor | None = None

    @classmethod
    def of(cls, parts: Sequence[Part]) -> DeviceMatrix:
        """The parts under one another, copied to the device: quantised, float32, float16, or uint16 for bfloat16.

        Parts of unlike precision are widened to `common_precision`, which holds them all exactly.
        Raises ValueError for no parts, rows of unlike length, or another dtype.
        """
        if len({part.shape[-1] if isinstance(part, np.ndarray) else part.shape[1] for part in parts}) != 1:
            raise ValueError(f"parts of shapes {[part.shape for part in parts]} are no one matrix")
        pieces = [_load(part) for part in parts]
        precision = common_precision([piece.precision for piece in pieces])
        pieces = [_widen(piece, precision) for piece in pieces]
        first = pieces[0]
        if len(pieces) == 1:
            return first
        return cls(
            sum(piece.rows for piece in pieces),
            first.columns,
            precision,
            torch.cat([piece.body for piece in pieces]),
            None if first.scales is None else torch.cat([piece.scales for piece in pieces if piece.scales is not None]),
            None if first.minima is None else torch.cat([piece.minima for piece in pieces if piece.minima is not None]),
        )

    @classmethod
    def paired(cls, gate: Part, up: Part) -> DeviceMatrix:
        """Gate over up, of one shape: what `matvec` takes with an activation. Raises ValueError for unlike shapes."""
        if gate.shape != up.shape:
            raise ValueError(f"gate is {gate.shape} and up {up.shape}, wanted one shape")
        return cls.of([gate, up])

    @property
    def nbytes(self) -> int:
        """Bytes in the device's memory."""
        return sum(tensor.nbytes for tensor in (self.body, self.scales, self.minima) if tensor is not None)

    def dense(self, dtype: torch.dtype = torch.float32, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) as (rows, columns) of dtype, in the parts' order: exact in float32, else rounded once."""
        rows = slice(start, self.rows if stop is None else stop)
        if self.scales is None:
            return self.body[rows, : self.columns].to(dtype)
        codes = _codes(self.body[rows], self.precision.bits).to(torch.float32)
        codes = codes.reshape(*self.scales[rows].shape, self.precision.group)
        scales = self.scales[rows].to(torch.float32)[:, :, None]
        if self.minima is None:
            weights = (codes - (1 << (self.precision.bits - 1))) * scales
        else:
            weights = codes * scales + self.minima[rows].to(torch.float32)[:, :, None]
        return weights.reshape(-1, self.columns).to(dtype)


def common_precision(precisions: Sequence[Precision]) -> Precision:
    """The narrowest precision that holds matrices of all of these exactly."""
    if len(set(precisions)) == 1:
        return precisions[0]
    if not all(precision.quantized for precision in precisions):
        return Precision("fp32")
    kind: Kind = "int8" if any(precision.kind == "int8" for precision in precisions) else "int4"
    group = min(precision.group for precision in precisions)
    return Precision(kind, group, any(precision.minimum for precision in precisions))


def _load(part: Part) -> DeviceMatrix:
    """One part on the device, in its own precision."""
    if isinstance(part, QuantizedMatrix):
        rows, columns = part.shape
        body = _tensor(part.codes.reshape(rows, -1)).view(torch.int32)
        minima = None if part.minima is None else _tensor(part.minima)
        if part.bits == 4:
            for some in body.split(max(1, _WORDS_AT_ONCE // body.shape[1])):
                some.copy_(_pair_nibbles(some))
        return DeviceMatrix(rows, columns, part.precision, body, _tensor(part.scales), minima)
    if part.ndim != 2 or part.dtype.name not in _FLOATS:
        raise ValueError(f"a part is {part.dtype}{part.shape}, wanted (rows, columns) of {', '.join(_FLOATS)}")
    kind, dtype = _FLOATS[part.dtype.name]
    rows, columns = part.shape
    body = _tensor(part.view(np.int16) if kind == "bf16" else part).view(dtype)
    return DeviceMatrix(rows, columns, Precision(kind), _padded(body, Precision(kind)))


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    """On the device, in memory of its own: a view of a mapped file may be read-only and unaligned."""
    return torch.from_numpy(np.array(values, order="C")).to(device())


def _padded(values: torch.Tensor, precision: Precision) -> torch.Tensor:
    missing = -values.shape[1] % chunk_weights(precision)
    return torch.nn.functional.pad(values, (0, missing)) if missing else values


def _pair_nibbles(words: torch.Tensor) -> torch.Tensor:
    """Words of codes 0..7, low nibble first, to words whose byte i has code i below and code i + 4 above."""
    octets = words.view(torch.uint8).reshape(*words.shape, 4)
    low, high = octets & 15, octets >> 4
    first = torch.stack((low, high), dim=-1).reshape(*words.shape, 8)  # in order of columns
    return (first[..., :4] | (first[..., 4:] << 4)).contiguous().view(torch.int32).squeeze(-1)


def _codes(body: torch.Tensor, bits: int) -> torch.Tensor:
    """(rows, columns) uint8 of a body as kept on the device."""
    octets = body.contiguous().view(torch.uint8)
    if bits == 8:
        return octets
    fours = octets.reshape(len(body), -1, 1, 4)
    return torch.cat((fours & 15, fours >> 4), dim=2).reshape(len(body), -1)


def _widen(matrix: DeviceMatrix, wanted: Precision) -> DeviceMatrix:
    """The same weights in a precision that holds them."""
    own = matrix.precision
    if own == wanted:
        return matrix
    if not wanted.quantized or matrix.scales is None:
        return DeviceMatrix(matrix.rows, matrix.columns, wanted, _padded(matrix.dense(), wanted))
    repeats = own.group // wanted.group
    scales, minima = matrix.scales.repeat_interleave(repeats, dim=1), matrix.minima
    if minima is not None:
        minima = minima.repeat_interleave(repeats, dim=1)
    elif wanted.minimum:
        minima = scales * -float(1 << (own.bits - 1))
    body = matrix.body
    if own.bits != wanted.bits:
        shift = 0 if wanted.minimum else 128 - 8  # the zero of a symmetric code
        body = (_codes(body, 4) + shift).view(torch.int32)
    return DeviceMatrix(matrix.rows, matrix.columns, wanted, body, scales, minima)
