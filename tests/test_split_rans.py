from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edgemem.split import rans

_SYMBOLS = st.integers(-rans.REACH, rans.REACH)


@st.composite
def _rows(draw: st.DrawFn) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    count, length = draw(st.integers(0, 5)), draw(st.integers(0, 30))
    rows = draw(arrays(np.int16, (count, length), elements=_SYMBOLS))
    return rows, draw(arrays(np.int64, count, elements=st.integers(0, rans.CURVES - 1)))


def _bell(count: int, length: int, width: float, seed: int = 0) -> NDArray[np.int16]:
    values = np.rint(width * np.random.default_rng(seed).standard_t(5, (count, length)))
    return np.clip(values, -rans.REACH, rans.REACH).astype(np.int16)


@given(_rows())
def test_round_trip_by_any_curve(given_rows: tuple[NDArray[np.int16], NDArray[np.int64]]) -> None:
    rows, curves = given_rows
    coded = rans.encode(rows, curves)
    np.testing.assert_array_equal(rans.decode(coded, rows.shape[1], curves), rows)


@pytest.mark.parametrize("count", [1, 2, 47, 48, 90])
def test_both_coders_give_the_same_bytes_and_rows(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _bell(count, 70, 5.0)
    rows[0, :9] = (-255, 255, 0, 17, 255, -255, -1, 1, 254)
    curves = np.arange(count) % rans.CURVES
    coded, decoded = [], []
    for lanes in (0, count + 1):
        monkeypatch.setattr(rans, "_LANES", lanes)
        coded.append(rans.encode(rows, curves))
        decoded.append(rans.decode(coded[-1], 70, curves))
    assert coded[0] == coded[1]
    for one in decoded:
        np.testing.assert_array_equal(one, rows)


@pytest.mark.parametrize("width", [0.3, 1.0, 4.0, 20.0])
def test_bytes_are_near_the_entropy(width: float) -> None:
    rows = _bell(8, 2000, width)
    curves, bits = rans.cheapest_curve(rows)
    entropy = 0.0
    for row in rows:
        shares = np.unique(row, return_counts=True)[1] / len(row)
        entropy -= len(row) * float(shares @ np.log2(shares))
    coded = 8 * len(rans.encode(rows, curves))
    assert coded <= 1.04 * entropy + 8 * (8 * rans.STATE_BYTES)
    assert abs(coded - 8 * 8 * rans.STATE_BYTES - bits.sum()) <= 24 * len(rows)


def test_the_cheapest_curve_is_the_cheapest() -> None:
    rows = np.concatenate([_bell(1, 400, width, seed=3) for width in (0.0, 0.5, 3.0, 40.0)])
    best, bits = rans.cheapest_curve(rows)
    assert list(best) == sorted(set(best))
    assert best[0] == 0
    for row, curve, cost in zip(rows, best, bits, strict=True):
        sizes = [len(rans.encode(row[None], np.array([other]))) for other in range(rans.CURVES)]
        assert sizes[curve] <= min(sizes) + 2
        assert abs(8 * sizes[curve] - 8 * rans.STATE_BYTES - cost) <= 24


def test_the_tables_are_the_same_on_every_machine() -> None:
    table = rans._frequencies()
    assert table.shape == (rans.CURVES, 2 * rans.REACH + 1)
    assert (table >= 1).all()
    assert (table.sum(axis=1) == 1 << 16).all()
    np.testing.assert_array_equal(table, table[:, ::-1])
    assert hashlib.sha256(table.astype("<i8").tobytes()).hexdigest() == PINNED


PINNED = "50d7e0acae6b8d94cbffc51fd6e751763b426126d20346f8c6c1b869c80bc8be"


@pytest.mark.parametrize("count", [1, 60])
def test_a_stream_that_is_cut_or_longer_is_refused(count: int) -> None:
    rows = _bell(count, 40, 3.0)
    curves, _ = rans.cheapest_curve(rows)
    coded = rans.encode(rows, curves)
    for end in (*range(0, len(coded), 7), len(coded) - 2, len(coded) - 1):
        with pytest.raises(ValueError, match=r"bytes|early|range|end"):
            rans.decode(coded[:end], 40, curves)
    for more in (b"\0", b"\0\0", b"\xff" * 8):
        with pytest.raises(ValueError, match=r"bytes|end"):
            rans.decode(coded + more, 40, curves)
    with pytest.raises(ValueError, match=r"early|end"):
        rans.decode(coded, 41, curves)


@given(st.binary(max_size=200), st.integers(0, 60), st.integers(0, 40))
def test_any_bytes_are_rows_or_refused(coded: bytes, count: int, length: int) -> None:
    curves = np.arange(count) % rans.CURVES
    try:
        rows = rans.decode(coded, length, curves)
    except ValueError:
        return
    assert rows.shape == (count, length)
    assert np.abs(rows).max(initial=0) <= rans.REACH
    assert rans.encode(rows, curves) == coded
