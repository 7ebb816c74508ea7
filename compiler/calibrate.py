"""Quantisation that sees activations: GPTQ (Frantar et al., arXiv 2210.17323), layer by layer on calibration tokens.

Each matrix is rounded column by column, and what a column loses is made up by those to its right, weighted by the
inputs that the matrix really gets behind the already quantised layers before it. One layer is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.overlay import Overlay, QuantizedOnRead, WholeMatrix
from edgemem.compiler.quantize import Grid, fit_grid, matrix_blocks, pack
from edgemem.compiler.reference import ReferenceDecoder
from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.runtime.errors import NumericError
from edgemem.runtime.weights import Matrix, WeightSource

Array = NDArray[np.float32]

_COLUMNS = 32  # rounded between two updates of the columns to their right; divides every group
_DAMPINGS = (0.01, 0.1, 1.0)  # of the mean of the Hessian's diagonal, added to it; the next where the last did not do


def calibrated_blocks(
    source: WeightSource,
    precision: Mapping[str, Precision],
    tokens: NDArray[np.integer],
    progress: Callable[[float], None] = lambda share: None,
) -> Iterator[tuple[str, QuantizedMatrix | Array]]:
    """Every matrix of the model as (name, block of rows), quantised to `precision` on the inputs `tokens` give rise to.

    tokens: (sequences, n) ids; memory holds sequences * n * intermediate float32 beside the largest matrix and its
    (columns, columns) Hessian. Embedding, head, float precisions and matrices already stored in their precision come
    as from `matrix_blocks`. Raises NumericError.
    """
    overlay = Overlay(source)
    overlay.put("embedding", QuantizedOnRead(source.matrix("embedding"), precision["embedding"]))
    decoder = ReferenceDecoder(overlay)
    states = decoder.embed(tokens)
    matrices = [name for name, _ in source.model.matrices()]
    for layer in range(source.model.layers):
        progress(layer / source.model.layers)
        done: dict[str, QuantizedMatrix] = {}

        def on_input(names: tuple[str, ...], inputs: Array, done: dict[str, QuantizedMatrix] = done) -> None:
            wanted = {name: precision[name] for name in names if _rounded(source.matrix(name), precision[name])}
            if wanted:
                root = inverse_root(inputs.T @ inputs, ", ".join(wanted))
                for name, kind in wanted.items():
                    done[name] = gptq(source.matrix(name).rows(), root, kind, name)
                    overlay.put(name, WholeMatrix(done[name]))

        states = decoder.layer(layer, states, on_input)
        overlay.clear()
        yield from done.items()
        for name in matrices:
            if name.startswith(f"layers.{layer}.") and name not in done:
                yield from ((name, block) for block in matrix_blocks(name, source.matrix(name), precision[name]))
    for name in matrices:
        if not name.startswith("layers."):
            yield from ((name, block) for block in matrix_blocks(name, source.matrix(name), precision[name]))


def gptq(weights: Array, root: NDArray[np.float32], precision: Precision, name: str = "matrix") -> QuantizedMatrix:
    """(rows, columns) weights in `precision`, chosen so that their product with the calibration inputs changes least.

    root: `inverse_root` of those inputs. Raises NumericError, naming `name`, for NaN, Inf and ranges beyond fp16.
    """
    rows, columns = weights.shape
    group = precision.group
    rest = np.array(weights.T)  # (columns, rows), so that a column of the matrix is contiguous
    # What a unit of error in a column costs once those to its right have made up for it.
    importance = (1 / np.diagonal(root) ** 2).reshape(-1, 1, group)
    parts: list[QuantizedMatrix] = []
    for start in range(0, columns, group):
        values = np.ascontiguousarray(rest[start : start + group].T)[:, None, :]
        grid = fit_grid(values, precision, importance=importance[start // group], name=name, first_group=start // group)
        codes = np.empty((rows, 1, group), dtype=np.float32)
        for first in range(start, start + group, _COLUMNS):
            last = first + _COLUMNS
            block = codes[:, 0, first - start : last - start].T
            errors = _round_columns(rest[first:last], root[first:last, first:last], grid, block)
            rest[last:] -= root[first:last, last:].T @ errors
        parts.append(pack(codes, grid))
    minima = [part.minima for part in parts if part.minima is not None]
    return QuantizedMatrix(
        np.concatenate([part.codes for part in parts], axis=1),
        np.concatenate([part.scales for part in parts], axis=1),
        np.concatenate(minima, axis=1) if minima else None,
        parts[0].bits,
    )


def _round_columns(columns: Array, root: Array, grid: Grid, codes: Array) -> Array:
    """Round (count, rows) columns of one group in turn into `codes`; gives their errors over the root's diagonal."""
    errors = np.empty_like(columns)
    for index in range(len(columns)):
        code = grid.codes(columns[index][:, None, None])
        codes[index] = code[:, 0, 0]
        errors[index] = (columns[index] - grid.weights(code)[:, 0, 0]) / root[index, index]
        columns[index + 1 :] -= root[index, index + 1 :, None] * errors[index]
    return errors


def inverse_root(hessian: Array, name: str = "matrix") -> Array:
    """The upper triangular U with U.T @ U the inverse of the (columns, columns) Hessian, scaled and damped.

    Reversed in both axes, the Hessian's Cholesky factor is an upper factor R with H = R @ R.T, and U = R**-1.
    Raises NumericError where the Hessian is not finite or stays indefinite.
    """
    mean = float(np.mean(np.diagonal(hessian)))
    if not np.isfinite(mean):
        raise NumericError("the calibration inputs are not finite", where=name, do="check the source weights")
    # Only ratios matter, so the mean is made 1; inputs that are all but zero say nothing of any column.
    scaled = hessian / np.float32(mean) if mean > np.finfo(np.float32).tiny else np.zeros_like(hessian)
    identity = np.eye(len(scaled), dtype=np.float32)
    for damping in _DAMPINGS:
        try:
            lower = np.linalg.cholesky((scaled + np.float32(damping) * identity)[::-1, ::-1])
        except np.linalg.LinAlgError:
            continue
        return _upper_inverse(np.asarray(lower[::-1, ::-1], dtype=np.float32))
    raise NumericError(
        "the calibration inputs have no usable second moment", where=name, do="calibrate on more and other text"
    )


def _upper_inverse(upper: Array) -> Array:
    """The inverse of an upper triangular matrix, by halves: [[A, B], [0, D]] has [[A', -A' B D'], [0, D']]."""
    size = len(upper)
    if size <= 64:
        return np.asarray(np.triu(np.linalg.inv(upper)))
    half = size // 2
    inverse = np.zeros_like(upper)
    first, last = _upper_inverse(upper[:half, :half]), _upper_inverse(upper[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[:half, half:] = -(first @ upper[:half, half:] @ last)
    return inverse


def _rounded(matrix: Matrix, precision: Precision) -> bool:
    return precision.quantized and matrix.stored != precision
