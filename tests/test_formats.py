"""The canonical formats: text, bytes, packing, and what the codes mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgemem.kernels.formats import Precision, QuantizedMatrix, pack_int4, unpack_int4

KINDS = ("int4", "int8", "fp16", "bf16", "fp32")
ALL = [Precision(kind, group, low) for kind in KINDS[:2] for group in (32, 64, 128) for low in (False, True)]
ALL += [Precision(kind) for kind in KINDS[2:]]  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ALL, ids=str)
def test_text_round_trips(precision: Precision) -> None:
    assert Precision.parse(str(precision)) == precision


@pytest.mark.parametrize(
    "text", ["", "int4", "int4-g16", "int8-g32-max", "int4-g032", "INT4-g32", "fp16-g32", " fp16", "fp16\n", "int4-g٣٢"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unknown precision"):
        Precision.parse(text)


@pytest.mark.parametrize(
    ("kind", "group", "minimum"),
    [("int4", 0, False), ("int4", 48, False), ("fp16", 32, False), ("fp32", 0, True), ("int2", 32, False)],
)
def test_impossible_precisions_are_refused(kind: str, group: int, minimum: bool) -> None:
    with pytest.raises(ValueError, match=kind):
        Precision(kind, group, minimum)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", [kind for kind in ALL if kind.quantized], ids=str)
def test_bytes_are_those_of_the_arrays(precision: Precision) -> None:
    rows, groups = 3, 2
    codes = np.zeros((rows, groups, precision.group * precision.bits // 8), dtype=np.uint8)
    scales = np.ones((rows, groups), dtype=np.float16)
    matrix = QuantizedMatrix(codes, scales, scales.copy() if precision.minimum else None, precision.bits)  # type: ignore[arg-type]
    held = codes.nbytes + scales.nbytes + (matrix.minima.nbytes if matrix.minima is not None else 0)
    assert precision.bytes_for(rows, groups * precision.group) == held
    assert matrix.precision == precision
    assert matrix.shape == (rows, groups * precision.group)


@pytest.mark.parametrize(("kind", "wanted"), [("fp16", 2), ("bf16", 2), ("fp32", 4)])
def test_bytes_of_floats(kind: str, wanted: int) -> None:
    assert Precision(kind).bytes_for(5, 7) == 35 * wanted  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 3), st.just(32)), elements=st.integers(0, 15))
)
def test_packing_round_trips(codes: np.ndarray) -> None:
    packed = pack_int4(codes)
    assert packed.shape == (*codes.shape[:2], 16)
    assert np.array_equal(unpack_int4(packed), codes)


def test_the_low_nibble_comes_first() -> None:
    assert pack_int4(np.array([1, 2, 15, 0], dtype=np.uint8)).tolist() == [0x21, 0x0F]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([kind for kind in ALL if kind.quantized]), st.integers(0, 2**32 - 1))
def test_dequantize_is_the_formula(precision: Precision, seed: int) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 1 << precision.bits, (2, 3, precision.group)).astype(np.uint8)
    scales = random.standard_normal((2, 3)).astype(np.float16)
    minima = random.standard_normal((2, 3)).astype(np.float16) if precision.minimum else None
    stored = pack_int4(codes) if precision.bits == 4 else codes
    got = QuantizedMatrix(stored, scales, minima, precision.bits).dequantize()  # type: ignore[arg-type]
    for row, group, place in [(0, 0, 0), (1, 2, precision.group - 1), (1, 1, 7)]:
        code, scale = float(codes[row, group, place]), float(scales[row, group])
        exact = (
            scale * code + float(minima[row, group])
            if minima is not None
            else scale * (code - 2 ** (precision.bits - 1))
        )
        assert got[row, group * precision.group + place] == pytest.approx(exact, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("codes", "scales"),
    [
        (np.zeros((2, 16), np.uint8), np.ones((2, 1), np.float16)),
        (np.zeros((2, 1, 16), np.int8), np.ones((2, 1), np.float16)),
        (np.zeros((2, 1, 16), np.uint8), np.ones((2, 1), np.float32)),
        (np.zeros((2, 1, 16), np.uint8), np.ones((2, 2), np.float16)),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(codes: np.ndarray, scales: np.ndarray) -> None:
    with pytest.raises(ValueError, match="wanted"):
        QuantizedMatrix(codes, scales, None, 4)
