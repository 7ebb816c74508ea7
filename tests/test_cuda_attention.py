"""The decode attention kernel against float64: every kind of cache, shape and feature, at positions around a tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import interpreted_cuda  # noqa: F401  # before torch
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgemem.kernels.cuda.attention import attention_workspace, decode_attention
from edgemem.kernels.cuda.device_cache import DeviceCache, Kind, kinds
from edgemem.kernels.cuda.launching import device, interpreted

KINDS = kinds()
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One attention: its constants, its input, and a cache filled up to `position`."""

    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    pairs: int = 8
    amplitude: float = 1.0
    is_normed: bool = False
    window: int = 0
    softcap: float = 0.0
    kind: Kind = "fp16"
    capacity: int = 80
    scale: float = 0.25
    epsilon: float = 1e-5

    def frequencies(self) -> Array:
        return 100.0 ** (-np.arange(self.pairs) / self.pairs)

    def vectors(self, seed: int = 1) -> NDArray[np.float32]:
        random = np.random.default_rng(seed)
        return random.standard_normal((self.heads + 2 * self.kv_heads, self.head_dim)).astype(np.float32) * 2

    def norms(self) -> NDArray[np.float32]:
        """For queries and for keys."""
        return np.random.default_rng(2).uniform(0.5, 1.5, (2, self.head_dim)).astype(np.float32)

    def cache(self, position: int) -> DeviceCache:
        """Slots before `position` random, those from it on of no number at all."""
        cache = DeviceCache(2, self.kv_heads, self.head_dim, self.capacity, self.kind, device())
        random = np.random.default_rng(3)
        for layer in range(2):
            both = random.standard_normal((2, self.kv_heads, self.capacity, self.head_dim)).astype(np.float32)
            both[:, :, position:] = np.nan
            cache.write(layer, 0, *torch.from_numpy(both).to(device()))
        return cache

    def run(self, cache: DeviceCache, position: int, layer: int = 1) -> NDArray[np.float32]:
        norms = torch.from_numpy(self.norms()).to(device()) if self.is_normed else (None, None)
        out = torch.zeros(self.heads * self.head_dim, device=device())
        workspace = attention_workspace(self.heads, self.kv_heads, self.head_dim, self.capacity)
        decode_attention(
            torch.from_numpy(self.vectors().reshape(-1)).to(device()),
            cache,
            layer,
            torch.tensor([position], dtype=torch.int32, device=device()),
            out,
            frequencies=torch.from_numpy(self.frequencies()).to(device()),
            amplitude=self.amplitude,
            query_norm=norms[0],
            key_norm=norms[1],
            epsilon=self.epsilon,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            workspace=workspace,
        )
        assert not workspace.counters.any()
        result: NDArray[np.float32] = out.cpu().numpy()
        return result

    def turned(self, vectors: Array, norm: NDArray[np.float32], position: int) -> Array:
        if self.is_normed:
            vectors = vectors / np.sqrt((vectors**2).mean(axis=-1, keepdims=True) + self.epsilon) * norm
        pairs = vectors[:, : self.pairs] + 1j * vectors[:, self.pairs : 2 * self.pairs]
        pairs = pairs * np.exp(1j * position * self.frequencies()) * self.amplitude
        return np.concatenate([pairs.real, pairs.imag, vectors[:, 2 * self.pairs :]], axis=1)

    def new_slot(self, position: int) -> tuple[Array, Array]:
        """Key and value before they are rounded, (kv_heads, head_dim)."""
        vectors = self.vectors().astype(np.float64)
        keys = vectors[self.heads : self.heads + self.kv_heads]
        return self.turned(keys, self.norms()[1], position), vectors[self.heads + self.kv_heads :]

    def wanted(self, cache: DeviceCache, position: int, layer: int = 1) -> Array:
        """Attention in float64 over what the cache holds, the new slot among it."""
        queries = self.turned(self.vectors()[: self.heads].astype(np.float64), self.norms()[0], position)
        first = max(0, position + 1 - self.window) if self.window else 0
        keys, values = (p.cpu().numpy().astype(np.float64) for p in cache.read(layer, first, position + 1))
        group = self.heads // self.kv_heads
        scores = np.einsum("hgd,hsd->hgs", queries.reshape(self.kv_heads, group, -1), keys) * self.scale
        if self.softcap:
            scores = self.softcap * np.tanh(scores / self.softcap)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.einsum("hgs,hsd->hgd", weights, values).reshape(-1)


RICH: dict[str, Any] = {"pairs": 5, "amplitude": 1.25, "is_normed": True, "window": 37, "softcap": 5.0}
CASES = [
    *(Case(kind=kind) for kind in KINDS),
    *(Case(kind=kind, **RICH) for kind in KINDS),
    Case(head_dim=64, pairs=32, heads=2),
    Case(head_dim=96, pairs=48, heads=2, kv_heads=1, kind="int8"),
    Case(head_dim=128, pairs=64, heads=14, scale=0.09),
    Case(head_dim=256, pairs=32, heads=4, kv_heads=1, is_normed=True, scale=0.06),
    Case(head_dim=8, pairs=2, heads=3, kv_heads=3),
    Case(heads=20, kv_heads=1, window=16),
    Case(window=1),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.heads}x{case.head_dim}")
@pytest.mark.parametrize("position", [0, 16, 61])
def test_it_is_attention_over_what_the_cache_holds(case: Case, position: int) -> None:
    cache = case.cache(position)
    got = case.run(cache, position)
    np.testing.assert_allclose(got, case.wanted(cache, position), rtol=0, atol=2e-5)


@pytest.mark.parametrize("position", [1, 15, 17, 32, 33, 37, 48, 79])
def test_tiles_and_pieces_meet_without_a_gap(position: int) -> None:
    for case in (Case(kv_heads=1), Case(window=19)):
        cache = case.cache(position)
        np.testing.assert_allclose(case.run(cache, position), case.wanted(cache, position), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_new_slot_is_written_as_the_cache_itself_would_and_no_other(kind: Kind) -> None:
    case = Case(kind=kind, **RICH)
    cache, untouched, written = case.cache(20), case.cache(20), case.cache(20)
    case.run(cache, 20)
    slot = [torch.from_numpy(part[:, None].astype(np.float32)).to(device()) for part in case.new_slot(20)]
    written.write(1, 20, *slot)
    for got, wanted in zip(cache.read(1, 20, 21), written.read(1, 20, 21), strict=True):
        step = {"fp16": 2**-10, "bf16": 2**-7, "int8": 1 / 120, "fp8": 2**-3}[kind]  # where a hair decides the rounding
        assert ((got - wanted).abs() <= step * wanted.abs().amax(dim=-1, keepdim=True)).all()
        assert (got == wanted).float().mean() > 0.9
    for name in ("keys", "values", "key_scales", "value_scales"):
        ours, before = (getattr(one, name).clone() for one in (cache, untouched))
        if ours.numel():
            ours[1, :, 20] = before[1, :, 20]
        assert torch.equal(ours.view(torch.uint8), before.view(torch.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_rounded_to_the_very_bytes_of_the_cache(kind: Kind) -> None:
    case = Case(kind=kind)  # values are neither normed nor turned: nothing but the rounding
    cache, written = case.cache(3), case.cache(3)
    case.run(cache, 3)
    value = torch.from_numpy(case.vectors()[-2:, None]).to(device())
    written.write(1, 3, value, value)
    assert torch.equal(cache.values[1, :, 3].view(torch.uint8), written.values[1, :, 3].view(torch.uint8))
    assert torch.equal(cache.value_scales[1:, :, 3:4], written.value_scales[1:, :, 3:4])


def test_far_positions_are_turned_as_exactly_as_near_ones() -> None:
    case = Case(window=4, capacity=1 << 17)
    cache = DeviceCache(2, 2, 16, 1 << 17, "fp16", device())
    position = (1 << 17) - 3
    got = case.run(cache, position)
    np.testing.assert_allclose(got, case.wanted(cache, position), rtol=0, atol=2e-5)
    key, _ = case.new_slot(position)
    np.testing.assert_allclose(cache.read(1, position, position + 1)[0][:, 0].cpu(), key, atol=4e-3)


def test_the_same_call_gives_the_same_bits() -> None:
    case = Case(heads=6)
    first, second = (case.run(case.cache(70), 70) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fp8" or not interpreted()])
@pytest.mark.parametrize("slot", [0, 40, 69])
def test_a_number_that_is_none_comes_through(kind: Kind, slot: int) -> None:
    case = Case(kind=kind)  # the interpreter reads NaN of e4m3 as a number
    cache = case.cache(70)
    value = torch.full((2, 1, 16), torch.nan, device=device())
    value[0] = 1.0
    cache.write(1, slot, torch.ones_like(value), value)
    got = case.run(cache, 70).reshape(2, -1)
    assert np.isfinite(got[0]).all()
    assert np.isnan(got[1]).any()


def test_sizes_that_do_not_fit_are_refused() -> None:
    case, cache = Case(), Case().cache(1)
    good: dict[str, Any] = {
        "qkv": torch.zeros(128, device=device()),
        "out": torch.zeros(64, device=device()),
        "frequencies": torch.from_numpy(case.frequencies()).to(device()),
        "query_norm": None,
        "workspace": attention_workspace(4, 2, 16, 80),
    }
    bad: dict[str, Any] = {
        "qkv": torch.zeros(100, device=device()),
        "out": torch.zeros(60, device=device()),
        "frequencies": torch.zeros(9, dtype=torch.float64, device=device()),
        "query_norm": torch.zeros(16, device=device()),
        "workspace": attention_workspace(4, 1, 16, 80),
    }
    for name, value in bad.items():
        with pytest.raises(ValueError, match=r"fit|norm|workspace"):
            decode_attention(
                cache=cache,
                layer=0,
                position=torch.zeros(1, dtype=torch.int32, device=device()),
                amplitude=1.0,
                epsilon=1e-5,
                scale=0.25,
                **{**good, name: value},
            )
