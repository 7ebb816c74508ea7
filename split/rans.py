"""rANS: an entropy coder for small signed whole numbers that lie around zero, one stream for each row of them.

The frequencies are not sent and not calibrated: a row names one of 31 bell curves of fixed shape, by its width.
Range asymmetric numeral systems: J. Duda, arXiv 1311.2540; rows are interleaved as in F. Giesen, arXiv 1402.3392.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

REACH = 255  # symbols are -REACH..REACH
CURVES = 31
STATE_BYTES = 4
_BITS = 16  # of a frequency, and of what a state gives out at once
_TOTAL = 1 << _BITS
_MASK = _TOTAL - 1
_LANES = 48  # rows from which NumPy over all of them at once beats a Python loop over each: measured
_TAIL = 5  # degrees of freedom of Student's t: hidden states have heavier tails than a Gaussian


def cheapest_curve(rows: NDArray[np.int16]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(n, length) symbols -> for each row (n,) the curve that codes it in the fewest bits, and (n,) those bits."""
    count, symbols = len(rows), 2 * REACH + 1
    places = rows + REACH + symbols * np.arange(count)[:, None]
    occurrences = np.bincount(places.reshape(-1), minlength=count * symbols).reshape(count, symbols)
    bits = occurrences @ _costs().T  # (n, curves)
    best = bits.argmin(axis=1)
    return best, bits[np.arange(count), best]


def encode(rows: NDArray[np.int16], curves: NDArray[np.int64]) -> bytes:
    """(n, length) symbols, each row by its curve. The bytes delimit themselves, given n and length."""
    coder = _encode_together if len(rows) >= _LANES else _encode_one_by_one
    states, words = coder(rows + REACH, curves)
    return states.astype("<u4").tobytes() + words.astype("<u2").tobytes()


def decode(coded: bytes, length: int, curves: NDArray[np.int64]) -> NDArray[np.int16]:
    """What encode was given: (n, length). Raises ValueError for bytes that encode did not give."""
    count = len(curves)
    if len(coded) < STATE_BYTES * count or (len(coded) - STATE_BYTES * count) % 2:
        raise ValueError("a wrong number of bytes")
    states = np.frombuffer(coded, dtype="<u4", count=count).astype(np.int64)
    words = np.frombuffer(coded, dtype="<u2", offset=STATE_BYTES * count).astype(np.int64)
    if (states < _TOTAL).any():
        raise ValueError("a state out of range")
    coder = _decode_together if count >= _LANES else _decode_one_by_one
    rows, states, used = coder(states, words, length, curves)
    if used != len(words) or (states != _TOTAL).any():
        raise ValueError("a stream that does not end where it should")
    return rows - REACH


def _encode_together(
    places: NDArray[np.int16], curves: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All rows at once, a column a step. Backwards, as what is coded last is decoded first."""
    frequencies, starts = _frequencies(), _starts()
    states = np.full(len(places), _TOTAL, dtype=np.int64)
    given: list[NDArray[np.int64]] = []
    for column in places.T[::-1]:
        share = frequencies[curves, column]
        full = states >= share << _BITS
        given.append(states[full] & _MASK)
        states[full] >>= _BITS
        above, within = np.divmod(states, share)
        states = (above << _BITS) + within + starts[curves, column]
    given.append(np.zeros(0, dtype=np.int64))
    return states, np.concatenate(given[::-1])


def _encode_one_by_one(
    places: NDArray[np.int16], curves: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same. The words of each row are merged by the columns that gave them."""
    states, words, order = [], [], []
    count, length = places.shape
    for row, curve in enumerate(curves.tolist()):
        frequencies, starts, _ = _lists(curve)
        state, column = _TOTAL, length
        for place in reversed(places[row].tolist()):
            column -= 1
            share = frequencies[place]
            if state >= share << _BITS:
                words.append(state & _MASK)
                order.append(column * count + row)
                state >>= _BITS
            state = (state // share << _BITS) + state % share + starts[place]
        states.append(state)
    merged = np.array(words, dtype=np.int64)[np.argsort(np.array(order, dtype=np.int64))]
    return np.array(states, dtype=np.int64), merged


def _decode_together(
    states: NDArray[np.int64], words: NDArray[np.int64], length: int, curves: NDArray[np.int64]
) -> tuple[NDArray[np.int16], NDArray[np.int64], int]:
    frequencies, starts, symbols = _frequencies(), _starts(), _symbols()
    places = np.empty((length, len(states)), dtype=np.int16)
    used = 0
    for column in places:
        slots = states & _MASK
        column[:] = symbols[curves, slots]
        states = frequencies[curves, column] * (states >> _BITS) + slots - starts[curves, column]
        low = np.flatnonzero(states < _TOTAL)
        if len(low) > len(words) - used:
            raise ValueError("a stream that ends too early")
        states[low] = (states[low] << _BITS) + words[used : used + len(low)]
        used += len(low)
    return places.T, states, used


def _decode_one_by_one(
    states: NDArray[np.int64], words: NDArray[np.int64], length: int, curves: NDArray[np.int64]
) -> tuple[NDArray[np.int16], NDArray[np.int64], int]:
    lists = [_lists(curve) for curve in curves.tolist()]
    lanes = list(enumerate(lists))
    now, given, places, used = states.tolist(), words.tolist(), [], 0
    try:
        for _ in range(length):
            for lane, (frequencies, starts, symbols) in lanes:
                state = now[lane]
                slot = state & _MASK
                place = symbols[slot]
                places.append(place)
                state = frequencies[place] * (state >> _BITS) + slot - starts[place]
                if state < _TOTAL:
                    state = (state << _BITS) + given[used]
                    used += 1
                now[lane] = state
    except IndexError as problem:
        raise ValueError("a stream that ends too early") from problem
    return np.array(places, dtype=np.int16).reshape(length, len(now)).T, np.array(now, dtype=np.int64), used


@lru_cache(maxsize=1)
def _frequencies() -> NDArray[np.int64]:
    """(curves, symbols), each at least 1, of `_TOTAL` in all. In whole numbers: the same on every machine.

    Student's t over r, of width 2^(curve / 4 - 2): 1 / (1 + r^2 / (_TAIL width^2)) ^ ((_TAIL + 1) / 2).
    """
    squares = [(place - REACH) ** 2 << 20 for place in range(2 * REACH + 1)]
    table = []
    for curve in range(CURVES):
        width = _TAIL * isqrt(1 << (curve + 32))  # _TAIL width^2, in units of 2^-20
        weights = [(width**3 << 40) // (width + square) ** 3 for square in squares]
        whole = sum(weights)
        shares = [1 + weight * (_TOTAL - len(weights)) // whole for weight in weights]
        shares[REACH] += _TOTAL - sum(shares)
        table.append(shares)
    return np.array(table, dtype=np.int64)


@lru_cache(maxsize=1)
def _starts() -> NDArray[np.int64]:
    """(curves, symbols): the first of each symbol's slots."""
    return np.cumsum(_frequencies(), axis=1) - _frequencies()


@lru_cache(maxsize=1)
def _symbols() -> NDArray[np.uint16]:
    """(curves, slots): whose each slot is."""
    places = np.arange(2 * REACH + 1, dtype=np.uint16)
    return np.array([np.repeat(places, shares) for shares in _frequencies()])


@lru_cache(maxsize=1)
def _costs() -> NDArray[np.float64]:
    """(curves, symbols): bits."""
    return _BITS - np.log2(_frequencies())


@lru_cache(maxsize=CURVES)
def _lists(curve: int) -> tuple[list[int], list[int], memoryview]:
    """Frequencies, starts and symbols of one curve, for Python's own loops."""
    return _frequencies()[curve].tolist(), _starts()[curve].tolist(), memoryview(_symbols()[curve])
