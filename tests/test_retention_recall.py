"""The second tier: what is put away comes back as it was, what matches is found, and memory stays in its budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from runnable_packages import plain_model, rich_model, runnable_package, same_precision

from edgemem.runtime.engine import KVState
from edgemem.runtime.errors import BudgetError, SettingsError
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.retention.recall import (
    RecallSettings,
    RecallTier,
    match_vectors,
    splice,
    storage_shape,
)
from edgemem.runtime.retention.slots import SLOT, Rows

MODEL = rich_model()  # two ropes, one of which turns a part of the head
KV = (MODEL.layers, MODEL.kv_heads, MODEL.head_dim)


def settings_for(blocks: int, block: int = 4, representatives: int = 2, top: int = 2) -> RecallSettings:
    """Just enough budget for so many float32 blocks."""
    one = RecallSettings(1 << 40, block, representatives, top)
    each = (1 << 40) // storage_shape(one, MODEL, np.float32)[0]
    return RecallSettings((each + 1) * blocks, block, representatives, top)


def tier_of(settings: RecallSettings) -> RecallTier:
    return RecallTier(settings, MODEL, np.zeros(storage_shape(settings, MODEL, np.float32), dtype=np.float32))


def random_kv(random: np.random.Generator, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    shape = (KV[0], KV[1], count, KV[2])
    keys, values = random.standard_normal((2, *shape)).astype(np.float32)
    return keys, values


def rows_of(positions: range, scores: Any = 1.0) -> Rows:
    rows = np.zeros(len(positions), dtype=SLOT)
    rows["position"] = rows["token"] = np.array(positions)
    rows["score"] = scores
    return rows


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_what_is_put_away_in_any_portions_comes_back_in_whole_blocks_the_newest(
    portions: list[int], blocks: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    tier, count = tier_of(settings_for(blocks)), sum(portions)
    keys, values = random_kv(random, count)
    rows = rows_of(range(count), random.uniform(0, 5, count))
    start = 0
    for portion in portions:
        part = slice(start, start + portion)
        tier.add(rows[part], keys[:, :, part], values[:, :, part], np.zeros(portion, dtype=np.int64))
        start += portion
    held = min(count // 4, blocks - 1)  # one block is always being filled
    assert len(tier) == held
    found = tier.match(match_vectors(keys, np.zeros(count, dtype=np.int64), MODEL), top=99)
    recalled = tier.take(found)
    last = count // 4 * 4
    np.testing.assert_array_equal(recalled.rows, rows[last - 4 * held : last])
    np.testing.assert_array_equal(recalled.keys, keys[:, :, last - 4 * held : last])
    np.testing.assert_array_equal(recalled.values, values[:, :, last - 4 * held : last])
    assert len(tier) == 0


def test_a_block_that_was_taken_and_put_away_again_outlasts_those_put_away_before() -> None:
    random, tier = np.random.default_rng(1), tier_of(settings_for(4))
    none = np.zeros(4, dtype=np.int64)
    kept = {first: random_kv(random, 4) for first in (0, 4, 8)}
    for first, (keys, values) in kept.items():
        tier.add(rows_of(range(first, first + 4)), keys, values, none)
    (oldest,) = tier.match(match_vectors(kept[0][0], none, MODEL), top=1)
    again = tier.take([oldest])
    assert again.rows["position"].tolist() == [0, 1, 2, 3]
    tier.add(again.rows, again.keys, again.values, none)
    keys, values = random_kv(random, 4)
    tier.add(rows_of(range(12, 16)), keys, values, none)
    everything = tier.take(tier.match(match_vectors(keys, none, MODEL), top=9))
    assert everything.rows["position"].tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15]


def test_blocks_are_found_by_the_keys_of_their_highest_scores_wherever_these_were() -> None:
    """All keys share a great part, beside which block 0 is almost nothing: it is nearer to a half-hearted query than
    the block that is meant. The query comes from other slots."""
    random = np.random.default_rng(2)
    common = 20 * random.standard_normal((*KV[:2], 1, KV[2])).astype(np.float32)
    plain, values = random_kv(random, 32)
    plain[:, :, :4] *= 0.05
    tier, slots = tier_of(settings_for(9)), np.sort(random.permutation(200)[:32])
    tier.add(rows_of(range(32), np.tile([1.0, 9.0, 0.0, 8.0], 8)), rotated(common + plain, slots), values, slots)
    at = np.array([500])
    for block in range(1, 8):
        best = {}
        for place in range(4):
            token = 0.4 * plain[:, :, [4 * block + place]] + 0.05 * random_kv(random, 1)[0]
            found = tier.match(match_vectors(rotated(common + token, at), at, MODEL))
            assert len(found) == tier.settings.top
            best[place] = int(tier._rows[found[0]]["position"][0]) // 4
        assert (best[1], best[3]) == (block, block)
        assert best[2] != block


def test_one_word_in_a_long_query_finds_its_block() -> None:
    """Six tokens are somewhat like those of another block, one is the very token of this one."""
    random, none = np.random.default_rng(6), np.zeros(7, dtype=np.int64)
    tier, (keys, values) = tier_of(settings_for(9)), random_kv(random, 32)
    tier.add(rows_of(range(32)), keys, values, np.zeros(32, dtype=np.int64))
    query = random_kv(random, 7)[0] + 0.5 * keys[:, :, [31]]
    query[:, :, 3] = keys[:, :, 11]
    assert tier._rows[tier.match(match_vectors(query, none, MODEL))[0]]["position"].tolist() == [8, 9, 10, 11]


def rotated(plain: NDArray[np.float32], slots: NDArray[np.int64]) -> NDArray[np.float32]:
    """The textbook rotation by complex numbers, layer by layer."""
    out = plain.astype(np.float64)
    for layer, rope in enumerate(MODEL.layer_ropes):
        frequencies = np.array(MODEL.ropes[rope].inverse_frequencies)
        half = len(frequencies)
        pairs = plain[layer, ..., :half] + 1j * plain[layer, ..., half : 2 * half]
        pairs = pairs * np.exp(1j * slots[:, None] * frequencies)
        out[layer, ..., :half], out[layer, ..., half : 2 * half] = pairs.real, pairs.imag
    return out.astype(np.float32)


def test_of_equal_blocks_the_newer_is_better() -> None:
    tier, none = tier_of(settings_for(5)), np.zeros(4, dtype=np.int64)
    keys, values = random_kv(np.random.default_rng(3), 4)
    for first in (0, 4, 8):
        tier.add(rows_of(range(first, first + 4)), keys, values, none)
    best = tier.match(match_vectors(keys, none, MODEL))
    assert [int(tier._rows[block]["position"][0]) for block in best] == [8, 4]


@given(st.integers(0, 12), st.integers(0, 6), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_a_splice_rotates_every_key_to_its_new_slot(length: int, count: int, at: int, seed: int) -> None:
    at = min(at, length)
    random = np.random.default_rng(seed)
    (keys, values), (new_keys, new_values) = random_kv(random, length), random_kv(random, count)
    state = KVState(rotated(keys, np.arange(length)), values, None)
    tier = tier_of(settings_for(2, block=max(1, count), representatives=1))
    slots = np.sort(random.permutation(400)[:count])
    tier.add(rows_of(range(count)), rotated(new_keys, slots), new_values, slots)
    recalled = tier.take(tier.match(match_vectors(new_keys, np.zeros(count, dtype=np.int64), MODEL)))
    spliced = splice(state, at, recalled, MODEL)
    expected = np.concatenate([keys[:, :, :at], new_keys, keys[:, :, at:]], axis=2)
    np.testing.assert_allclose(spliced.keys, rotated(expected, np.arange(length + count)), atol=2e-5)
    np.testing.assert_array_equal(
        spliced.values, np.concatenate([values[:, :, :at], new_values, values[:, :, at:]], axis=2)
    )
    np.testing.assert_array_equal(spliced.keys[:, :, :at], state.keys[:, :, :at])
    assert spliced.keys.dtype == state.keys.dtype


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    model = plain_model()
    path = runnable_package(tmp_path_factory.mktemp("recall") / "plain.edgemem", model, same_precision(model, "fp32"))
    package = Package.open(path)
    yield package
    package.close()


def test_an_engine_goes_on_as_if_what_was_recalled_had_never_left(package: Package, tmp_path: Path) -> None:
    """Evict slots 4 to 11, put them away in a mapped file, bring them back: the next logits are the same."""
    model = package.model
    engine = open_engine(package, "onnx", capacity=64, threads=1)
    engine.extend(np.arange(24, dtype=np.int32))
    before, gone = engine.state(), np.arange(4, 12)
    expected = np.array(engine.extend(np.array([5], dtype=np.int32)).logits)
    settings = RecallSettings(1 << 20, block=8)
    shape = storage_shape(settings, model, np.float16)
    mapped = np.memmap(tmp_path / "recall", dtype=np.float16, mode="w+", shape=shape)
    tier = RecallTier(settings, model, mapped)
    tier.add(rows_of(range(4, 12)), before.keys[:, :, gone], before.values[:, :, gone], gone)
    engine.truncate(24)
    engine.keep(np.delete(np.arange(24), gone))
    without = np.array(engine.extend(np.array([5], dtype=np.int32)).logits)
    engine.truncate(16)
    query = match_vectors(before.keys[:, :, gone], gone, model)
    engine.restore(splice(engine.state(), 4, tier.take(tier.match(query)), model))
    again = np.array(engine.extend(np.array([5], dtype=np.int32)).logits)
    engine.close()
    scale = float(np.abs(expected).max())
    assert np.abs(again - expected).max() < 3e-3 * scale  # keys and values were fp16 meanwhile
    assert np.abs(without - expected).max() > 3e-2 * scale


@given(st.integers(1, 1 << 22), st.integers(1, 64), st.integers(1, 64), st.sampled_from([np.float16, np.float32]))
def test_all_that_a_tier_holds_is_within_its_budget(
    budget: int, block: int, representatives: int, dtype: type[np.floating[Any]]
) -> None:
    settings = RecallSettings(budget, block, min(block, representatives))
    try:
        shape = storage_shape(settings, MODEL, dtype)
    except BudgetError as error:
        need = int(str(error.wanted).split()[2])
        assert storage_shape(replace(settings, budget_bytes=need), MODEL, dtype)[0] == 2
        with pytest.raises(BudgetError):
            storage_shape(replace(settings, budget_bytes=need - 1), MODEL, dtype)
        return
    tier = RecallTier(settings, MODEL, np.zeros(shape, dtype=dtype))
    assert tier._storage.nbytes + tier._rows.nbytes + tier._representatives.nbytes <= budget


def test_what_does_not_fit_is_refused() -> None:
    tier, none = tier_of(settings_for(3)), np.zeros(4, dtype=np.int64)
    keys, values = random_kv(np.random.default_rng(4), 4)
    query = match_vectors(keys, none, MODEL)
    assert tier.match(query) == []
    tier.add(rows_of(range(4)), keys, values, none)
    (block,) = tier.match(query)
    assert tier.match(query[:0]) == []
    for call in (
        lambda: tier.match(query[:, :-1]),
        lambda: tier.match(query[0]),
        lambda: tier.take([block, block]),
        lambda: tier.take([block + 1]),
        lambda: tier.take([-1]),
        lambda: tier.add(rows_of(range(3)), keys, values, none),
        lambda: tier.add(rows_of(range(4)), keys, values, none[:3]),
        lambda: tier.add(rows_of(range(4)), keys, values[:, :, :3], none),
        lambda: tier.add(rows_of(range(4)), keys[1:], values[1:], none),
        lambda: tier.add(np.zeros(4), keys, values, none),  # type: ignore[arg-type]
        lambda: splice(KVState(keys, values, None), 5, tier.take([block]), MODEL),
        lambda: RecallTier(settings_for(3), MODEL, np.zeros((1, 2), dtype=np.float32)),
    ):
        with pytest.raises(SettingsError):
            call()


@pytest.mark.parametrize(
    "change",
    [{"budget_bytes": 0}, {"block": 0}, {"block": True}, {"block": 5}, {"representatives": 0}, {"top": 1.0}],
    ids=str,
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        RecallSettings(**change)
