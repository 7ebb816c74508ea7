"""The numbers beyond which a file is hostile, and the one function that multiplies sizes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Caps on what a file may declare. Sizes in bytes."""

    manifest_bytes: int = 1 << 20
    tensor_header_bytes: int = 100_000_000
    tokenizer_bytes: int = 256 << 20
    tensors: int = 100_000
    dimensions: int = 8
    dimension: int = 1 << 31
    name_bytes: int = 256
    vocabulary: int = 1 << 20
    layers: int = 1024
    context: int = 1 << 24


LIMITS = Limits()


def checked_product(sizes: list[int] | tuple[int, ...], limit: int = 1 << 62) -> int:
    """The product of sizes; ValueError for anything but positive ints (no bools) or a product over limit."""
    product = 1
    for size in sizes:
        if type(size) is not int or size <= 0:
            raise ValueError(f"size {size!r} is no positive whole number")
        product *= size
        if product > limit:
            raise ValueError(f"sizes {list(sizes)!r} multiply past {limit}")
    return product
