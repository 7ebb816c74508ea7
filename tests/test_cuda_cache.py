"""The device's KV cache: what is kept of a number, slots that move, and states that come back bit for bit."""

from __future__ import annotations

import interpreted_cuda  # noqa: F401  # before torch
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgemem.kernels.cuda import device_cache
from edgemem.kernels.cuda.device_cache import DeviceCache, Kind, kinds
from edgemem.kernels.cuda.launching import device
from edgemem.kernels.rotary import move_keys

KINDS = kinds()
# Of one number, relative to the greatest of its row.
ROUNDING = {"fp16": 2**-11, "bf16": 2**-8, "int8": 0.501 / 127 * (1 + 2**-10), "fp8": 2**-4}
FREQUENCIES = [(1.0, 0.1, 0.01), (0.5, 0.25), (1.0, 0.1, 0.01)]  # a layer each


def some_cache(kind: Kind, capacity: int = 40) -> DeviceCache:
    return DeviceCache(3, 2, 8, capacity, kind, device())


def filled(kind: Kind, length: int = 30, seed: int = 0) -> tuple[DeviceCache, NDArray[np.float32]]:
    """The cache and the (2, layers, kv_heads, length, head_dim) keys and values that went into it in two pieces."""
    random, cache = np.random.default_rng(seed), some_cache(kind)
    both = random.standard_normal((2, 3, 2, length, 8)).astype(np.float32) * 3
    for layer in range(3):
        keys, values = torch.from_numpy(both[:, layer]).to(device())
        cache.write(layer, 0, keys[:, :11], values[:, :11])
        cache.write(layer, 11, keys[:, 11:], values[:, 11:])
    return cache, both


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_was_written_but_for_one_rounding(kind: Kind) -> None:
    cache, both = filled(kind)
    for layer in range(3):
        for got, wanted in zip(cache.read(layer, 4, 30, slice(1, 2)), both[:, layer, 1:2, 4:], strict=True):
            rounding = ROUNDING[kind] * np.abs(wanted).max(axis=-1, keepdims=True)
            assert (np.abs(got.cpu().numpy() - wanted) <= rounding).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_comes_back_bit_for_bit(kind: Kind) -> None:
    cache, _ = filled(kind)
    keys, values = cache.save(30)
    other, _ = filled(kind, seed=1)
    other.load(keys, values)
    for got, wanted in zip(other.save(30), (keys, values), strict=True):
        assert got.dtype == wanted.dtype == cache.state_dtype
        np.testing.assert_array_equal(got, wanted)
    for name in ("keys", "values"):
        ours, theirs = (getattr(one, name)[:, :, :30].view(torch.uint8) for one in (cache, other))
        assert torch.equal(ours, theirs)
    assert torch.equal(cache.key_scales[:, :, :30], other.key_scales[:, :, :30])


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_none_is_not_hidden(kind: Kind) -> None:
    cache = some_cache(kind)
    keys = torch.ones((2, 1, 8), device=device())
    keys[1, 0, 3] = torch.nan
    cache.write(0, 2, keys, keys)
    saved, _ = cache.save(4)
    cache.load(saved, saved)
    assert cache.read(0, 2, 3)[1][1].isnan().any()
    assert not cache.read(0, 2, 3)[0][0].isnan().any()


def test_bytes_of_nothing_and_of_very_little_are_zeros() -> None:
    cache = some_cache("int8")
    rows = torch.zeros((2, 2, 8), device=device())
    rows[:, 1] = 1e-32
    cache.write(0, 0, rows, rows)
    for part in cache.read(0, 0, 2):
        assert (part == 0).all()


def test_bytes_are_those_of_the_native_engine_s_rule() -> None:
    cache, both = filled("int8")
    greatest = np.abs(both).max(axis=-1)
    ulp = 2.0 ** (np.floor(np.log2(greatest / 127)) - 10)  # of 11 significant bits
    scales = np.ceil((greatest / np.float32(127)) / ulp) * ulp
    np.testing.assert_array_equal(cache.key_scales[:, :, :30].cpu().numpy(), scales[0].astype(np.float32))
    codes = np.rint(both / scales[..., None].astype(np.float32))
    np.testing.assert_array_equal(cache.values[:, :, :30].cpu().numpy(), codes[1])


def test_what_fp8_cannot_hold_is_its_greatest_number() -> None:
    cache = some_cache("fp8")
    rows = torch.full((2, 1, 8), -1e5, device=device())
    cache.write(0, 0, rows, -rows)
    keys, values = cache.read(0, 0, 1)
    assert (keys == -448).all()
    assert (values == 448).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slots", [[0, 1, 2, 10, 11, 29], [5], list(range(1, 30)), list(range(30)), []])
def test_kept_slots_stand_at_their_new_places(kind: Kind, slots: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_cache, "_MOVED_AT_ONCE", 3)
    cache, _ = filled(kind)
    before = [part.astype(np.float32) for part in cache.save(30)]
    kept = np.array(slots, dtype=np.int64)
    cache.keep(kept, FREQUENCIES)
    keys, values = cache.save(len(slots))
    np.testing.assert_array_equal(values, before[1][:, :, kept])
    moves = np.arange(len(slots)) - kept
    for layer, frequencies in enumerate(FREQUENCIES):
        wanted = move_keys(before[0][layer][:, kept], moves, frequencies)
        stays = moves == 0
        np.testing.assert_array_equal(keys[layer][:, stays], wanted[:, stays])
        rounding = ROUNDING[kind] * np.abs(wanted).max(axis=-1, keepdims=True, initial=0)
        assert (np.abs(keys[layer].astype(np.float32) - wanted) <= rounding * 1.001).all()


@pytest.mark.parametrize("kind", KINDS)
def test_its_bytes_are_foretold(kind: Kind) -> None:
    cache = some_cache(kind)
    tensors = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
    assert sum(tensor.nbytes for tensor in tensors) == DeviceCache.bytes_for(3, 2, 8, 40, kind)


def test_there_are_no_other_kinds() -> None:
    with pytest.raises(ValueError, match=r"int3.*fp16"):
        some_cache("int3")  # type: ignore[arg-type]
