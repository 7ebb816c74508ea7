"""Every path of the native kernels that this processor runs, against NumPy, over shapes of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from runnable_packages import random_matrix

from edgemem.kernels.formats import GROUPS, Precision, QuantizedMatrix
from edgemem.kernels.native import native

KINDS = ("int4", "int8", "fp16", "bf16", "fp32")
_native: Any = native()
PATHS = _native.paths()


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def table_of(matrix: QuantizedMatrix | NDArray[np.float32], precision: Precision) -> tuple[Any, NDArray[np.float32]]:
    """The native table, and the weights that it stands for."""
    kind = KINDS.index(precision.kind)
    if isinstance(matrix, QuantizedMatrix):
        parts = [matrix.codes, matrix.scales, *([] if matrix.minima is None else [matrix.minima])]
        raw = [np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts]
        return _native.Table(kind, *matrix.shape, matrix.group, *raw), matrix.dequantize()
    if precision.kind == "bf16":
        bits = (matrix.view(np.uint32) >> 16).astype(np.uint16)
        return _native.Table(kind, *matrix.shape, 0, bits.reshape(-1).view(np.uint8)), upper_half(bits)
    stored = matrix.astype(np.float16 if precision.kind == "fp16" else np.float32)
    return _native.Table(kind, *matrix.shape, 0, stored.reshape(-1).view(np.uint8)), stored.astype(np.float32)


def upper_half(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(x: NDArray[np.float32], group: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What x is as int8 in groups, and its float sums: (tokens, groups, group) and (tokens, groups)."""
    cut = x.reshape(len(x), -1, group)
    top = np.abs(cut).max(axis=2, keepdims=True)
    with np.errstate(divide="ignore"):
        codes = np.rint(cut * np.where(top > 0, np.float32(127) / top, np.float32(0)))
    return codes.astype(np.float64) * (top / np.float32(127)), cut.sum(axis=2, dtype=np.float64)


def truth(
    matrix: QuantizedMatrix | NDArray[np.float32], weights: NDArray[np.float32], x: NDArray[np.float32]
) -> NDArray[np.float64]:
    """x @ weights.T, of a quantised matrix with x as int8, but minima times x itself."""
    wide = weights.astype(np.float64)
    if not isinstance(matrix, QuantizedMatrix):
        return x.astype(np.float64) @ wide.T
    coarse, sums = rounded(x, matrix.group)
    scales, centre = matrix.scales.astype(np.float64), 1 << (matrix.bits - 1)
    least = np.zeros_like(scales) if matrix.minima is None else matrix.minima.astype(np.float64) + centre * scales
    centred = wide.reshape(len(wide), -1, matrix.group) - least[:, :, None]
    return np.einsum("tgk,rgk->tr", coarse, centred) + sums @ least.T


@settings(deadline=None, max_examples=150)
@given(
    data=st.data(),
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 70),
    tokens=st.integers(1, 20),
    path=st.sampled_from(PATHS),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_are_those_of_numpy(
    data: st.DataObject, kind: str, rows: int, tokens: int, path: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    if kind in ("int4", "int8"):
        group = data.draw(st.sampled_from(GROUPS))
        columns = group * data.draw(st.integers(1, 6))
        precision = Precision(kind, group, data.draw(st.booleans()))  # type: ignore[arg-type]
    else:
        columns, precision = data.draw(st.integers(1, 100)), Precision(kind)  # type: ignore[arg-type]
    matrix: Any = random_matrix(random, rows, columns, precision, 0.1)
    x = (random.standard_normal((tokens, columns)) * 10.0 ** random.integers(-3, 4)).astype(np.float32)
    x[random.integers(tokens)] *= random.integers(2)  # now and then a row of zeros
    table, weights = table_of(matrix, precision)
    got = np.full((tokens, rows), np.nan, dtype=np.float32)
    _native.matmul(path, table, x, got)
    scale = np.abs(x) @ np.abs(weights).T
    assert (np.abs(got - truth(matrix, weights, x)) <= 3e-6 * scale + 1e-30).all()
    # And the int8 of x costs no more than half a step of its code each.
    assert (np.abs(got - x.astype(np.float64) @ weights.T.astype(np.float64)) <= 0.02 * scale.max() + 1e-30).all()


def test_numbers_that_are_not_finite_are_not_lost_in_int8(path: str) -> None:
    precision = Precision("int4", 32)
    table, _ = table_of(random_matrix(np.random.default_rng(0), 16, 64, precision, 0.1), precision)
    for bad in (np.nan, np.inf, -np.inf):
        x, got = np.ones((2, 64), dtype=np.float32), np.zeros((2, 16), dtype=np.float32)
        x[1, 40] = bad
        _native.matmul(path, table, x, got)
        assert np.isfinite(got[0]).all()
        assert np.isnan(got[1]).all()


def test_numbers_too_small_for_int8_are_zero(path: str) -> None:
    precision = Precision("int8", 32)
    table, _ = table_of(random_matrix(np.random.default_rng(0), 16, 32, precision, 0.1), precision)
    got = np.ones((1, 16), dtype=np.float32)
    _native.matmul(path, table, np.full((1, 32), 1e-40, dtype=np.float32), got)
    np.testing.assert_allclose(got, 0, atol=1e-38)


@settings(deadline=None, max_examples=150)
@given(
    path=st.sampled_from(PATHS),
    head_dim=st.sampled_from([2, 8, 16, 24, 64, 80, 96, 128, 512]),
    slots=st.integers(1, 100),
    queries=st.integers(1, 30),
    softcap=st.sampled_from([0.0, 5.0]),
    as_bytes=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention_is_that_of_numpy(
    path: str, head_dim: int, slots: int, queries: int, softcap: float, as_bytes: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    keys, values = random.standard_normal((2, slots, head_dim)).astype(np.float32)
    vectors = (random.standard_normal((queries, head_dim)) * 3 / head_dim**0.5).astype(np.float32)
    begin = random.integers(0, slots, queries)
    ranges = np.stack([begin, random.integers(begin + 1, slots + 1)], axis=1).astype(np.int32)
    got = np.empty_like(vectors)
    _native.attend(path, keys, values, vectors, ranges, softcap, as_bytes, got)
    keys, values = (
        in_bytes(part) if as_bytes else part.astype(np.float16).astype(np.float64) for part in (keys, values)
    )
    scores = vectors.astype(np.float64) @ keys.T
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    slot = np.arange(slots)
    scores[(slot < ranges[:, :1]) | (slot >= ranges[:, 1:])] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    wanted = weights / weights.sum(axis=1, keepdims=True) @ values
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


def in_bytes(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Each row as int8 with one scale, the greatest / 127 rounded up to 11 significant bits."""
    scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    scale = ((scale.view(np.uint32) + 0x1FFF) & ~np.uint32(0x1FFF)).view(np.float32)
    return np.rint(rows / scale).astype(np.float64) * scale


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_key_that_is_no_number_is_not_hidden(path: str, as_bytes: bool) -> None:
    keys, values = np.random.default_rng(0).standard_normal((2, 40, 16)).astype(np.float32)
    keys[20, 3] = np.nan
    vectors = np.ones((2, 16), dtype=np.float32)
    got = np.empty_like(vectors)
    _native.attend(path, keys, values, vectors, np.array([[0, 40], [0, 20]], dtype=np.int32), 0.0, as_bytes, got)
    assert np.isnan(got[0]).all()
    assert np.isfinite(got[1]).all()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 64, 576])
def test_norms_are_those_of_numpy(path: str, n: int) -> None:
    random = np.random.default_rng(n)
    x, weight = random.standard_normal((2, n)).astype(np.float32)
    got = np.empty_like(x)
    _native.rms_norm(path, x, weight, 1e-5, got)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(got, wide / np.sqrt((wide**2).mean() + 1e-5) * weight, rtol=2e-6)


@pytest.mark.parametrize("pairs", [1, 15, 16, 17, 32])
def test_rotations_are_those_of_complex_numbers(path: str, pairs: int) -> None:
    random = np.random.default_rng(pairs)
    x, angles = random.standard_normal(2 * pairs).astype(np.float32), random.uniform(0, 6, pairs)
    wanted = (x[:pairs] + 1j * x[pairs:]) * np.exp(1j * angles)
    _native.rotate(path, x, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    np.testing.assert_allclose(x, np.concatenate([wanted.real, wanted.imag]), atol=1e-6)


@pytest.mark.parametrize("gelu", [False, True])
def test_gates_are_those_of_numpy(path: str, gelu: bool) -> None:
    gate, up = np.linspace(-30, 30, 1001, dtype=np.float32), np.linspace(2, 3, 1001, dtype=np.float32)
    wide = gate.astype(np.float64)
    if gelu:
        wanted = 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3))) * up
    else:
        wanted = wide / (1 + np.exp(-wide)) * up
    _native.gated(path, gate, up, gelu)
    np.testing.assert_allclose(gate, wanted, rtol=2e-6, atol=2e-6)


def test_exponentials_are_within_two_units_in_the_last_place(path: str) -> None:
    x = np.concatenate([np.linspace(-87, 88, 200_001), np.linspace(-1, 1, 20_001)]).astype(np.float32)
    got = np.empty_like(x)
    _native.exponentials(path, x, 0.0, 1.0, got)
    wanted = np.exp(x.astype(np.float64))
    assert (np.abs(got - wanted) <= 2 * np.spacing(wanted.astype(np.float32))).all()


def test_exponentials_end_where_float_does(path: str) -> None:
    x = np.array([-1e30, -np.inf, 1e30, np.nan], dtype=np.float32)
    got = np.empty_like(x)
    _native.exponentials(path, x, 0.0, 1.0, got)
    assert (got[:2] < 2e-38).all()
    assert got[2] > 1e38
    assert np.isnan(got[3])


@settings(deadline=None, max_examples=50)
@given(path=st.sampled_from(PATHS), n=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1))
def test_the_sum_of_exponentials_is_that_of_numpy(path: str, n: int, seed: int) -> None:
    x = (np.random.default_rng(seed).standard_normal(n) * 10).astype(np.float32)
    wide = x.astype(np.float64)
    wanted = wide.max() + np.log(np.exp(wide - wide.max()).sum())
    np.testing.assert_allclose(_native.log_sum_exp(path, x), wanted, rtol=1e-6, atol=1e-6)


def test_softcaps_are_those_of_numpy(path: str) -> None:
    x = np.linspace(-200, 200, 999, dtype=np.float32)
    wanted = 30 * np.tanh(x.astype(np.float64) / 30)
    _native.softcap(path, x, 30.0)
    np.testing.assert_allclose(x, wanted, atol=2e-5)


def test_halves_are_those_of_numpy(path: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = np.random.default_rng(0).integers(0, 1 << 32, 20_000, dtype=np.uint32).view(np.float32)
    ties = (np.arange(1, 2000, dtype=np.float32) + 0.5) * np.float32(2.0**-24)
    x = np.concatenate([every, between, ties, np.array([65519.99, 65520.0, -65520.0], dtype=np.float32)])
    got, back = np.empty(x.size, dtype=np.uint16), np.empty_like(x)
    _native.halves(path, x, got, back)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = x.astype(np.float16)
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(got[numbers], wanted.view(np.uint16)[numbers])
    np.testing.assert_array_equal(back[numbers], wanted.astype(np.float32)[numbers])
    assert np.isnan(back[~numbers]).all()


def test_what_is_not_finite_is_found_wherever_it_is(path: str) -> None:
    for n in (1, 16, 33):
        x = np.zeros(n, dtype=np.float32)
        assert _native.finite(path, x)
        for bad in (np.nan, np.inf, -np.inf):
            for place in range(n):
                x[place] = bad
                assert not _native.finite(path, x)
                x[place] = 3e38


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((5, 16, 32, 0, 2048), "kind"),
        ((0, 0, 32, 32, 0), "rows"),
        ((0, 16, -32, 32, 256), "columns"),
        ((0, 16, 48, 32, 384), "groups"),
        ((0, 16, 32, 16, 256), "group"),
        ((0, 16, 32, 32, 255), "codes"),
        ((4, 16, 32, 32, 2048), "group"),
        ((4, 16, 32, 0, 2047), "codes"),
    ],
)
def test_tables_that_do_not_fit_are_refused(arguments: tuple[int, ...], word: str) -> None:
    *numbers, size = arguments
    scales = np.zeros(32, dtype=np.uint8) if numbers[0] < 2 else None
    with pytest.raises(ValueError, match=word):
        _native.Table(*numbers, np.zeros(size, dtype=np.uint8), scales)


def test_scales_and_minima_of_another_length_are_refused() -> None:
    codes, right, wrong = (np.zeros(n, dtype=np.uint8) for n in (256, 32, 31))
    with pytest.raises(ValueError, match="scales"):
        _native.Table(0, 16, 32, 32, codes, wrong)
    with pytest.raises(ValueError, match="minima"):
        _native.Table(0, 16, 32, 32, codes, right, wrong)


def test_a_path_of_another_processor_is_refused() -> None:
    with pytest.raises(ValueError, match="plain"):
        _native.finite("abacus", np.zeros(1, dtype=np.float32))
