"""Float rows to the canonical int4 and int8 forms: a range per group, rounded to nearest, or searched for least error.

Scales and minima are rounded to fp16 before codes are chosen, so that codes fit what will be read. It reads no files
and sees no activations; calibrate.py does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemem.kernels.formats import Precision, QuantizedMatrix, pack_int4
from edgemem.runtime.errors import NumericError
from edgemem.runtime.weights import Matrix

Array = NDArray[np.float32]

_BLOCK_BYTES = 16 << 20  # of float32 rows read and given out at once
_CHUNK_BYTES = 512 << 10  # of float32 worked on at once by one thread: it should stay in the cache
_SMALLEST = np.float32(2.0**-24)  # the least positive fp16
_LARGEST = np.float32(65504)  # the largest fp16
_WHOLE = np.float32(1)
_SHRINKS = (1.0, 0.93, 0.86, 0.79, 0.72)
_REFITS = 2


@dataclass(frozen=True)
class Grid:
    """The values one group can take, w = scale * (code + offset) + minimum: arrays (rows, groups), fp16 exact float32.

    `minimum` is 0 in the symmetric form, whose offset is -2**(bits-1); with a minimum the offset is 0.
    """

    scale: Array
    minimum: Array
    precision: Precision

    def codes(self, values: Array) -> Array:
        """The nearest codes, as whole float32, of values (rows, groups, group)."""
        codes = (values - self.minimum[..., None]) / self.scale[..., None] - _offset(self.precision)
        return np.clip(np.rint(codes, out=codes), 0, _top(self.precision), out=codes)

    def weights(self, codes: Array) -> Array:
        """The values of codes (rows, groups, group)."""
        return np.asarray((codes + _offset(self.precision)) * self.scale[..., None] + self.minimum[..., None])


def matrix_blocks(name: str, matrix: Matrix, precision: Precision) -> Iterator[QuantizedMatrix | Array]:
    """The matrix in `precision`, a few rows at a time: as stored where it is stored so, else quantised from float32.

    A float precision gives float32 rows. Raises NumericError naming tensor, row and group.
    """
    rows, columns = matrix.shape
    step = max(1, _BLOCK_BYTES // (4 * columns))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        kept = matrix.quantized(start, stop) if matrix.stored == precision else None
        if kept is not None:
            yield kept
        elif precision.quantized:
            yield quantize(matrix.rows(start, stop), precision, name, first_row=start)
        else:
            yield matrix.rows(start, stop)


def quantize(
    values: Array, precision: Precision, name: str = "matrix", *, search: bool | None = None, first_row: int = 0
) -> QuantizedMatrix:
    """(rows, columns) float32 in `precision`; `search` looks for each group's range of least squared error.

    None searches where that was measured to help: not in symmetric int4, where less squared error gave no less KL.
    `name` and `first_row` say in errors where the values came from. Raises NumericError for NaN, Inf and ranges beyond
    fp16, ValueError where the group does not divide the columns.
    """
    if search is None:
        search = precision.bits == 8 or precision.minimum
    rows, columns = values.shape
    if columns % precision.group:
        raise ValueError(f"rows of {columns} cannot be cut into groups of {precision.group}")
    step = max(1, _CHUNK_BYTES // (4 * columns))

    def work(start: int) -> QuantizedMatrix:
        chunk = values[start : start + step].reshape(-1, columns // precision.group, precision.group)
        grid = fit_grid(chunk, precision, search=search, name=name, first_row=first_row + start)
        return pack(grid.codes(chunk), grid)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return join_rows(list(pool.map(work, range(0, rows, step))))


def fit_grid(
    values: Array,
    precision: Precision,
    *,
    search: bool = True,
    importance: Array | None = None,
    name: str = "matrix",
    first_row: int = 0,
    first_group: int = 0,
) -> Grid:
    """The grid of each group of values (rows, groups, group).

    `importance`, (groups, group) and positive, weighs the squared errors of the search. Raises NumericError.
    """
    _check(values, precision, name, first_row, first_group)
    best = _range_grid(values, precision)
    if not search:
        return best
    weigh = np.float32(1) if importance is None else importance
    least = _error(best, values, weigh)
    for shrink in _SHRINKS:
        grid = _range_grid(values, precision, np.float32(shrink))
        for _ in range(_REFITS):
            grid = _refitted(grid.codes(values), values, weigh, grid)
            error = _error(grid, values, weigh)
            better = error < least
            best = Grid(
                np.where(better, grid.scale, best.scale), np.where(better, grid.minimum, best.minimum), precision
            )
            least = np.minimum(error, least)
    return best


def pack(codes: Array, grid: Grid) -> QuantizedMatrix:
    """Codes (rows, groups, group) and their grid as stored."""
    whole = codes.astype(np.uint8)
    minima = grid.minimum.astype(np.float16) if grid.precision.minimum else None
    scales = grid.scale.astype(np.float16)
    if grid.precision.bits == 4:
        return QuantizedMatrix(pack_int4(whole), scales, minima, 4)
    return QuantizedMatrix(whole, scales, minima, 8)


def join_rows(parts: list[QuantizedMatrix]) -> QuantizedMatrix:
    """Matrices of one precision and width, stacked."""
    if len(parts) == 1:
        return parts[0]
    minima = [part.minima for part in parts if part.minima is not None]
    return QuantizedMatrix(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(minima) if minima else None,
        parts[0].bits,
    )


def _top(precision: Precision) -> np.float32:
    return np.float32((1 << precision.bits) - 1)


def _offset(precision: Precision) -> np.float32:
    return np.float32(0 if precision.minimum else -(1 << (precision.bits - 1)))


def _check(values: Array, precision: Precision, name: str, first_row: int, first_group: int) -> None:
    """Refuse NaN, Inf, and values whose scale or minimum would overflow fp16."""
    largest = _LARGEST if precision.minimum else _LARGEST * np.float32(1 << (precision.bits - 1))
    bad = ~(np.abs(values) <= largest)  # NaN too
    if bad.any():
        row, block, place = (int(index) for index in np.unravel_index(int(bad.argmax()), values.shape))
        group = first_group + block
        raise NumericError(
            f"tensor {name} cannot be stored as {precision}",
            where=f"row {first_row + row}, group {group}, column {group * precision.group + place}",
            got=float(values[row, block, place]),
            wanted=f"a finite weight within {float(largest):g}, so that scale and minimum fit fp16",
            do="check the source weights, or keep this matrix as fp32",
        )


def _range_grid(values: Array, precision: Precision, shrink: np.float32 = _WHOLE) -> Grid:
    """The range that just holds every value, times `shrink` about its middle (about zero in the symmetric form)."""
    low, high = values.min(axis=-1), values.max(axis=-1)
    if precision.minimum:
        margin = (high - low) * (np.float32(1) - shrink) / 2
        minimum = _fp16(low + margin)
        # From the rounded minimum, so that the top code still reaches the highest value.
        return Grid(_scale((high - margin - minimum) / _top(precision)), minimum, precision)
    # The sign puts the farthest value on the code that has no counterpart: -8 of -8..7.
    farthest = np.where(high > -low, high, low)
    return Grid(_scale(farthest * shrink / _offset(precision)), np.zeros_like(low), precision)


def _refitted(codes: Array, values: Array, weigh: Array | np.float32, grid: Grid) -> Grid:
    """The grid of least weighted squares for given codes: linear regression of values on codes."""
    precision = grid.precision
    levels = codes + _offset(precision)
    weighted = levels * weigh
    square, product = (weighted * levels).sum(axis=-1), (weighted * values).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if not precision.minimum:
            scale = product / square
            return Grid(_scale(np.where(np.isfinite(scale), scale, grid.scale)), grid.minimum, precision)
        total = np.broadcast_to(np.asarray(weigh, dtype=np.float32), levels.shape).sum(axis=-1)
        mean_level, mean_value = weighted.sum(axis=-1) / total, (values * weigh).sum(axis=-1) / total
        scale = (product - total * mean_level * mean_value) / (square - total * mean_level * mean_level)
        minimum = mean_value - scale * mean_level
        usable = np.isfinite(scale) & (np.abs(minimum) <= _LARGEST) & (np.abs(scale) <= _LARGEST)
    return Grid(_scale(np.where(usable, scale, grid.scale)), _fp16(np.where(usable, minimum, grid.minimum)), precision)


def _error(grid: Grid, values: Array, weigh: Array | np.float32) -> Array:
    """(rows, groups) weighted squared error of the values on the grid."""
    difference = grid.weights(grid.codes(values))
    difference -= values
    np.square(difference, out=difference)
    return np.asarray((difference * weigh).sum(axis=-1))


def _scale(scale: Array) -> Array:
    """Rounded to fp16 and never zero: a range too small for fp16 gets its least step, of either sign."""
    rounded = _fp16(scale)
    return np.asarray(np.where(rounded == 0, np.copysign(_SMALLEST, rounded), rounded))


def _fp16(values: Array) -> Array:
    return np.clip(values, -_LARGEST, _LARGEST).astype(np.float16).astype(np.float32)
