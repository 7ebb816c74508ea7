"""Sampling: filters against a plain slow reference, the random stream against published numbers, settings' limits."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgemem.runtime.errors import NumericError, SettingsError
from edgemem.runtime.sampling import Sampler, Sampling, splitmix64, uniform


def _reference(logits: NDArray[np.float32], sampling: Sampling, history: list[int]) -> dict[int, float]:
    """Probabilities of the kept tokens, written token by token."""
    values = [float(value) for value in logits]
    for token in set(history):
        penalty = sampling.repetition_penalty
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
    ranked = sorted(range(len(values)), key=lambda token: (-values[token], token))
    if sampling.top_k:
        ranked = ranked[: sampling.top_k]
    odds = [math.exp(values[token] - values[ranked[0]]) for token in ranked]
    total, running, nucleus = sum(odds), 0.0, []
    for token, weight in zip(ranked, odds, strict=True):
        nucleus.append(token)
        running += weight
        if running >= sampling.top_p * total:
            break
    best = values[ranked[0]]
    kept = [token for token in nucleus if math.exp(values[token] - best) >= sampling.min_p]
    weights = {token: math.exp((values[token] - best) / sampling.temperature) for token in sorted(kept)}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=5),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(temperature=1.0, min_p=0.1),
        Sampling(temperature=0.9, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.5),
    ],
)
def test_draws_follow_the_reference_distribution(sampling: Sampling) -> None:
    logits = (np.random.default_rng(3).standard_normal(40) * 2).astype(np.float32)
    history = [1, 7, 7, 30]
    wanted = _reference(logits, sampling, history)
    counts: dict[int, int] = {}
    draws = 4000
    for seed in range(draws):
        token = Sampler(dataclasses.replace(sampling, seed=seed), history).sample(logits)
        counts[token] = counts.get(token, 0) + 1
    assert set(counts) <= set(wanted)
    for token, probability in wanted.items():
        deviation = math.sqrt(probability * (1 - probability) / draws)
        assert abs(counts.get(token, 0) / draws - probability) < 5 * deviation + 1e-9


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32),
    top_k=st.integers(0, 70),
    top_p=st.floats(0.05, 0.999) | st.just(1.0),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    ties=st.booleans(),
)
def test_every_draw_walks_the_reference_in_id_order(
    seed: int, top_k: int, top_p: float, min_p: float, ties: bool
) -> None:
    logits = np.random.default_rng(seed).standard_normal(64).astype(np.float32) * 3
    if ties:
        logits = np.round(logits)
    sampling = Sampling(temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    wanted = _reference(logits, sampling, [])
    for change in (-1e-5, 1e-5):  # a filter's edge may fall either way in float32
        nudged = {"top_p": min(top_p + change, 1.0), "min_p": min(max(min_p + change, 0.0), 1.0)}
        assume(top_p == 1.0 or set(_reference(logits, dataclasses.replace(sampling, **nudged), [])) == set(wanted))
    share, sums = uniform(seed, 0), np.cumsum(list(wanted.values()))
    assume(np.abs(sums[:-1] - share).min(initial=1.0) > 1e-5)
    assert Sampler(sampling).sample(logits) == list(wanted)[int(np.searchsorted(sums, share))]


def test_ties_at_the_edge_of_top_k_keep_the_lowest_ids() -> None:
    logits = np.array([1, 5, 5, 5, 5, 0], dtype=np.float32)
    sampled = {Sampler(Sampling(temperature=1.0, top_k=2, seed=seed)).sample(logits) for seed in range(200)}
    assert sampled == {1, 2}


def test_top_p_keeps_the_token_that_reaches_it_and_no_other() -> None:
    logits = np.log(np.array([0.1, 0.5, 0.3, 0.1], dtype=np.float32))
    for top_p, wanted in ((0.45, {1}), (0.6, {1, 2}), (0.85, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        seen = {Sampler(Sampling(temperature=1.0, top_p=top_p, seed=seed)).sample(logits) for seed in range(300)}
        assert seen == wanted


def test_top_p_looks_at_probabilities_before_temperature() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1], dtype=np.float32))
    hot = {Sampler(Sampling(temperature=50.0, top_p=0.55, seed=seed)).sample(logits) for seed in range(200)}
    assert hot == {0}


def test_greedy_takes_the_first_of_equal_logits_and_leaves_the_logits_alone() -> None:
    logits = np.array([0, 3, 3, -1], dtype=np.float32)
    logits.flags.writeable = False
    sampler = Sampler(Sampling())
    assert [sampler.sample(logits) for _ in range(3)] == [1, 1, 1]
    assert sampler.draws == 0


def test_the_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    sampler = Sampler(Sampling(repetition_penalty=2.0), history=[1, 1])
    logits = np.array([2.5, 4.0, -3.0], dtype=np.float32)
    assert sampler.sample(logits) == 0  # 4 / 2 = 2, counted once although seen twice
    assert sampler.sample(logits) == 1  # token 0 was drawn and is now 1.25
    negative = np.array([-1.0, -1.5, -1.9], dtype=np.float32)
    assert sampler.sample(negative) == 2  # -2, -3, -1.9
    assert logits.tolist() == [2.5, 4.0, -3.0]


def test_the_penalty_matches_transformers() -> None:
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    torch.set_num_threads(1)
    logits = (np.random.default_rng(0).standard_normal(50) * 4).astype(np.float32)
    history = [3, 9, 9, 41]
    processor = processors.RepetitionPenaltyLogitsProcessor(1.7)
    theirs = processor(torch.tensor([history]), torch.from_numpy(logits)[None].clone())[0].numpy()
    sampler = Sampler(Sampling(repetition_penalty=1.7), history)
    np.testing.assert_array_equal(sampler._penalise(logits), theirs)


def test_accepted_tokens_count_as_seen() -> None:
    sampler = Sampler(Sampling(repetition_penalty=10.0))
    sampler.accept(0)
    assert sampler.sample(np.array([3.0, 1.0], dtype=np.float32)) == 1


@pytest.mark.parametrize("token", [-1, 4])
def test_a_seen_token_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(SettingsError, match="outside the vocabulary"):
        Sampler(Sampling(repetition_penalty=2.0), [token]).sample(np.zeros(4, dtype=np.float32))


def test_the_stream_is_splitmix64() -> None:
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [splitmix64(1234567, draw) for draw in range(5)] == published
    assert all(0 <= uniform(2**64 - 1, draw) < 1 for draw in range(1000))


def test_a_draw_depends_on_seed_and_number_alone() -> None:
    random = np.random.default_rng(1)
    steps = random.standard_normal((20, 100)).astype(np.float32)
    sampling = Sampling(temperature=1.0, seed=42)
    first, second = Sampler(sampling), Sampler(sampling)
    texts = [[sampler.sample(step) for step in steps] for sampler in (first, second)]
    assert texts[0] == texts[1]
    assert texts[0] != [Sampler(dataclasses.replace(sampling, seed=43)).sample(step) for step in steps]
    jumped = Sampler(sampling)
    jumped.draws = 19
    assert jumped.sample(steps[19]) == texts[0][19]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(temperature: float, bad: float) -> None:
    logits = np.zeros(10, dtype=np.float32)
    logits[4] = bad
    with pytest.raises(NumericError, match="token 4"):
        Sampler(Sampling(temperature=temperature)).sample(logits)


def test_minus_infinity_is_never_drawn_and_extreme_logits_pass() -> None:
    logits = np.array([-np.inf, 3e38, -3e38, 3e38], dtype=np.float32)
    for seed in range(50):
        sampling = Sampling(temperature=1e-3, top_k=3, top_p=0.99, seed=seed)
        assert Sampler(sampling).sample(logits) in (1, 3)


def test_a_vocabulary_of_one() -> None:
    one = np.zeros(1, dtype=np.float32)
    assert Sampler(Sampling(temperature=1.0, top_k=5, top_p=0.5, min_p=0.5)).sample(one) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 1e-9),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", True),
        ("temperature", "1"),
        ("top_k", -1),
        ("top_k", 2.0),
        ("top_k", True),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.01),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.nan),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", None),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=name):
        Sampling(**{name: value})  # type: ignore[arg-type]
