"""The canonical weight formats and their NumPy truth.

A quantised matrix is cut along K into groups. Symmetric: w = scale * (code - 2**(bits-1)).
With a minimum: w = scale * code + minimum. Layout as ONNX Runtime's MatMulNBits: rows of K/group blocks,
low nibble first. Fast kernels are tested against this file; it knows nothing of models or files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["int4", "int8", "fp16", "bf16", "fp32"]
GROUPS = (32, 64, 128)
_BITS: dict[Kind, int] = {"int4": 4, "int8": 8, "fp16": 16, "bf16": 16, "fp32": 32}
_TEXT = re.compile(r"(int4|int8)-g(32|64|128)(-min)?|fp16|bf16|fp32")


@dataclass(frozen=True)
class Precision:
    """How one matrix is stored: `int4-g32`, `int4-g32-min`, `int8-g64`, `fp16`, `bf16`, `fp32`."""

    kind: Kind
    group: int = 0
    minimum: bool = False

    def __post_init__(self) -> None:
        if self.kind not in _BITS:
            raise ValueError(f"unknown weight kind {self.kind!r}; known: {', '.join(_BITS)}")
        if self.quantized and self.group not in GROUPS:
            raise ValueError(f"group of {self.kind} is {self.group}, wanted one of {GROUPS}")
        if not self.quantized and (self.group or self.minimum):
            raise ValueError(f"{self.kind} takes no group and no minimum")

    @property
    def bits(self) -> int:
        return _BITS[self.kind]

    @property
    def quantized(self) -> bool:
        return self.kind in ("int4", "int8")

    def bytes_for(self, rows: int, columns: int) -> int:
        """Bytes of a (rows, columns) matrix as stored: codes, fp16 scales and, if any, fp16 minima."""
        body = rows * columns * self.bits // 8
        if not self.quantized:
            return body
        return body + rows * (columns // self.group) * (4 if self.minimum else 2)

    def __str__(self) -> str:
        if not self.quantized:
            return self.kind
        return f"{self.kind}-g{self.group}{'-min' if self.minimum else ''}"

    @classmethod
    def parse(cls, text: str) -> Precision:
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"unknown precision {text!r}; wanted e.g. int4-g32, int4-g32-min, int8-g64, fp16")
        if match.group(1) is None:
            return cls(text)  # type: ignore[arg-type]  # the pattern admits only known kinds
        return cls(match.group(1), int(match.group(2)), match.group(3) is not None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class QuantizedMatrix:
    """codes (rows, K/group, group*bits/8) uint8; scales, minima (rows, K/group) float16; minima None if symmetric."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    minima: NDArray[np.float16] | None
    bits: Literal[4, 8]

    def __post_init__(self) -> None:
        if self.codes.ndim != 3 or self.codes.dtype != np.uint8:
            raise ValueError(f"codes are {self.codes.dtype}{self.codes.shape}, wanted uint8 (rows, blocks, bytes)")
        for name, values in (("scales", self.scales), ("minima", self.minima)):
            if values is not None and (values.dtype != np.float16 or values.shape != self.codes.shape[:2]):
                raise ValueError(f"{name} are {values.dtype}{values.shape}, wanted float16{self.codes.shape[:2]}")

    @property
    def group(self) -> int:
        return int(self.codes.shape[2]) * 8 // self.bits

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.codes.shape[0]), int(self.codes.shape[1]) * self.group

    @property
    def precision(self) -> Precision:
        return Precision("int4" if self.bits == 4 else "int8", self.group, self.minima is not None)

    def dequantize(self) -> NDArray[np.float32]:
        """The exact weights, (rows, K) float32."""
        codes = (unpack_int4(self.codes) if self.bits == 4 else self.codes).astype(np.float32)
        scales = self.scales.astype(np.float32)[:, :, None]
        if self.minima is None:
            weights = (codes - np.float32(1 << (self.bits - 1))) * scales
        else:
            weights = codes * scales + self.minima.astype(np.float32)[:, :, None]
        return weights.reshape(self.shape)


def pack_int4(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., n) codes of 0..15 to (..., n/2) bytes, low nibble first."""
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8)


def unpack_int4(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., n/2) bytes to (..., n) codes of 0..15; the inverse of pack_int4."""
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), dtype=np.uint8)
    codes[..., 0::2] = packed & 15
    codes[..., 1::2] = packed >> 4
    return codes
