"""Moving rotated keys: against rotation from scratch, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgemem.kernels.rotary import move_keys


def rotated(keys: NDArray[np.float64], positions: NDArray[np.int64], frequencies: list[float]) -> NDArray[np.float64]:
    """The textbook rotation by complex numbers, of keys (heads, slots, head_dim)."""
    half = len(frequencies)
    pairs = keys[..., :half] + 1j * keys[..., half : 2 * half]
    pairs = pairs * np.exp(1j * positions[:, None] * np.array(frequencies))
    return np.concatenate([pairs.real, pairs.imag, keys[..., 2 * half :]], axis=-1)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 100_000)), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 2**32 - 1),
)
def test_a_moved_key_is_the_key_rotated_to_its_new_position(
    moves: list[tuple[int, int]], half: int, rest: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    keys = random.standard_normal((2, len(moves), 2 * half + rest))
    frequencies = [float(value) for value in random.uniform(1e-6, 1.0, half)]
    old, new = np.array(moves, dtype=np.int64).T
    moved = move_keys(rotated(keys, old, frequencies).astype(np.float32), new - old, frequencies)
    np.testing.assert_allclose(moved, rotated(keys, new, frequencies), atol=2e-6)


def test_a_key_that_stays_keeps_every_bit() -> None:
    keys = np.array([[[np.nan, -0.0, 1e-45, np.inf]] * 3], dtype=np.float32)
    moved = move_keys(keys, np.array([0, 5, 0]), [1.0, 0.5])
    np.testing.assert_array_equal(moved[:, [0, 2]].view(np.uint32), keys[:, [0, 2]].view(np.uint32))


def test_the_keys_given_are_not_changed() -> None:
    keys = np.ones((1, 2, 4), dtype=np.float32)
    move_keys(keys, np.array([1, 2]), [1.0, 0.5])
    np.testing.assert_array_equal(keys, 1)


@pytest.mark.parametrize(
    ("shape", "moves", "pairs"), [((2, 3), 3, 1), ((1, 3, 4), 2, 1), ((1, 3, 4), 3, 3)], ids=["rank", "moves", "pairs"]
)
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int, ...], moves: int, pairs: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        move_keys(np.zeros(shape, dtype=np.float32), np.zeros(moves, dtype=np.int64), [1.0] * pairs)
