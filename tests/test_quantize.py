"""Rounding to the canonical forms: bounds on what is lost, and ranges that are awkward or impossible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgemem.compiler import quantize as module
from edgemem.compiler.overlay import QuantizedOnRead, WholeMatrix
from edgemem.compiler.quantize import Grid, fit_grid, matrix_blocks, quantize
from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.runtime.errors import NumericError

QUANTISED = [
    Precision(kind, group, low) for kind in ("int4", "int8") for group in (32, 64, 128) for low in (False, True)
]
SMALL = [precision for precision in QUANTISED if precision.group == 32]


def gaussian(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def loss(values: np.ndarray, matrix: QuantizedMatrix) -> float:
    return float(np.square(values - matrix.dequantize()).sum())


@pytest.mark.parametrize("precision", QUANTISED, ids=str)
def test_a_search_loses_less_than_the_plain_range(precision: Precision) -> None:
    values = gaussian(16, 256)
    plain, searched = (quantize(values, precision, search=search) for search in (False, True))
    assert plain.precision == searched.precision == precision
    assert loss(values, searched) < loss(values, plain) < np.square(values).sum() / 50


@pytest.mark.parametrize("precision", SMALL, ids=str)
def test_symmetric_int4_alone_keeps_the_plain_range(precision: Precision) -> None:
    values = gaussian(8, 64)
    searched = precision != Precision("int4", 32)
    wanted = quantize(values, precision, search=searched)
    assert np.array_equal(quantize(values, precision).dequantize(), wanted.dequantize())


weights = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.sampled_from([32, 64])),
    elements=st.one_of(st.floats(-60000, 60000, width=32), st.sampled_from([0.0, 1.0, -1.0, 65504.0, 1e-30, -6e-8])),
)


@settings(deadline=None, max_examples=150)
@given(weights, st.sampled_from(SMALL), st.booleans())
def test_whatever_is_finite_and_fits_stays_finite(values: np.ndarray, precision: Precision, search: bool) -> None:
    matrix = quantize(values, precision, search=search)
    assert np.isfinite(matrix.dequantize()).all()
    assert np.all(matrix.scales != 0)
    assert matrix.shape == values.shape


@settings(deadline=None, max_examples=150)
@given(weights, st.sampled_from(SMALL))
def test_the_plain_range_loses_half_a_step_and_the_rounding_of_its_ends(
    values: np.ndarray, precision: Precision
) -> None:
    matrix = quantize(values, precision, search=False)
    groups = values.reshape(len(values), -1, 32)
    step = np.abs(matrix.scales.astype(np.float64))
    levels = 1 << precision.bits
    lost = np.abs(groups - matrix.dequantize().reshape(groups.shape)).max(axis=-1)
    if matrix.minima is None:  # the far end has one code less on the side opposite to the largest value
        allowed = step * (1 + levels * 2.0**-11)
    else:
        allowed = step * (0.5 + levels * 2.0**-11) + np.abs(groups).max(axis=-1) * 2.0**-10
    assert np.all(lost <= allowed + 2.0**-24)


@settings(deadline=None, max_examples=80)
@given(weights, st.sampled_from(SMALL))
def test_a_search_is_never_worse_than_the_plain_range(values: np.ndarray, precision: Precision) -> None:
    groups = values.reshape(len(values), -1, 32)

    def error(grid: Grid) -> np.ndarray:
        return np.square(grid.weights(grid.codes(groups)) - groups).sum(axis=-1)

    assert np.all(error(fit_grid(groups, precision)) <= error(fit_grid(groups, precision, search=False)) * (1 + 1e-5))


@pytest.mark.parametrize("precision", SMALL, ids=str)
def test_values_on_a_grid_are_found_again(precision: Precision) -> None:
    random = np.random.default_rng(1)
    codes = random.integers(0, 1 << precision.bits, (4, 2, 32))
    codes[..., 0], codes[..., 1] = 0, (1 << precision.bits) - 1  # both ends in use, so that the range is known
    grid = Grid(
        np.float32(2.0 ** random.integers(-9, -3, (4, 2))),
        np.float32(-random.integers(1, 9, (4, 2)) if precision.minimum else np.zeros((4, 2))),
        precision,
    )
    values = grid.weights(codes.astype(np.float32)).reshape(4, 64)
    for search in (False, True):
        assert np.array_equal(quantize(values, precision, search=search).dequantize(), values)


@pytest.mark.parametrize("search", [False, True], ids=["plain", "search"])
@pytest.mark.parametrize("precision", SMALL, ids=str)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -0.3, 5e-8, -1e-38, 1e-45, 1000.0, -65504.0])
def test_constant_groups_are_kept(precision: Precision, search: bool, value: float) -> None:
    values = np.full((2, 32), value, dtype=np.float32)
    got = quantize(values, precision, search=search).dequantize()
    assert np.abs(got - values).max() <= max(abs(value) * 2.0**-10, 2.0**-24)


@pytest.mark.parametrize("precision", QUANTISED, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_what_cannot_be_stored_is_refused_with_its_place(precision: Precision, bad: float) -> None:
    values = gaussian(3, 256)
    values[2, 200] = bad
    with pytest.raises(NumericError, match=rf"layers\.3\.up .*\n?.*row 12, group {200 // precision.group}, column 200"):
        quantize(values, precision, "layers.3.up", first_row=10)


def test_the_largest_values_that_fit_are_kept() -> None:
    values = np.zeros((1, 32), dtype=np.float32)
    values[0, 3] = -65504 * 8
    assert quantize(values, Precision("int4", 32)).dequantize()[0, 3] == -65504 * 8
    values[0, :2] = -65504, 65504
    values[0, 3] = 0
    assert np.abs(quantize(values, Precision("int4", 32, True), search=False).dequantize()[0, :2]).min() > 65000


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of 64"):
        quantize(gaussian(1, 96), Precision("int4", 64))


@pytest.mark.parametrize("precision", SMALL, ids=str)
def test_chunks_change_nothing(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    values = gaussian(37, 64)
    whole = quantize(values, precision)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1000)
    assert np.array_equal(quantize(values, precision).dequantize(), whole.dequantize())


def test_importance_moves_the_loss_to_where_it_matters_less() -> None:
    values = gaussian(64, 32).reshape(64, 1, 32)
    importance = np.ones((1, 32), dtype=np.float32)
    importance[0, :4] = 1000
    for precision in (Precision("int4", 32), Precision("int4", 32, True)):
        errors = []
        for weight in (None, importance):
            grid = fit_grid(values, precision, importance=weight)
            errors.append(np.square(grid.weights(grid.codes(values)) - values)[..., :4].sum())
        assert errors[1] < errors[0] / 2


class FloatRows:
    """An unquantised matrix in memory."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.stored = values, values.shape, Precision("fp32")

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.values[start:stop]

    def quantized(self, start: int = 0, stop: int | None = None) -> None:
        return None


def test_blocks_are_the_matrix_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    values = gaussian(50, 64)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 64 * 4 * 8)
    precision = Precision("int4", 64, True)
    blocks = list(matrix_blocks("up", FloatRows(values), precision))
    assert [block.shape[0] for block in blocks] == [8] * 6 + [2]
    whole = np.concatenate([block.dequantize() for block in blocks if isinstance(block, QuantizedMatrix)])
    assert np.array_equal(whole, quantize(values, precision).dequantize())
    floats = list(matrix_blocks("up", FloatRows(values), Precision("fp16")))
    assert np.array_equal(np.concatenate([block for block in floats if isinstance(block, np.ndarray)]), values)


def test_what_is_stored_so_already_is_handed_on_bit_for_bit() -> None:
    stored = quantize(gaussian(9, 64), Precision("int4", 32, True))
    (block,) = matrix_blocks("up", WholeMatrix(stored), stored.precision)
    assert isinstance(block, QuantizedMatrix)
    for part in ("codes", "scales", "minima"):
        assert np.array_equal(getattr(block, part), getattr(stored, part))
    (coarser,) = matrix_blocks("up", WholeMatrix(stored), Precision("int8", 64))
    assert coarser.shape == (9, 64)
    assert isinstance(coarser, QuantizedMatrix)
    assert coarser.precision == Precision("int8", 64)


def test_quantising_on_read_equals_quantising_once() -> None:
    values = gaussian(20, 64)
    precision = Precision("int4", 32)
    matrix = QuantizedOnRead(FloatRows(values), precision)
    assert np.array_equal(matrix.rows(3, 9), quantize(values, precision).dequantize()[3:9])
    assert np.array_equal(QuantizedOnRead(FloatRows(values), Precision("fp16")).rows(3, 9), values[3:9])
