"""Sampling on the device against the NumPy sampler: the same token from the same logits, whatever the settings."""

from __future__ import annotations

import math

import interpreted_cuda  # noqa: F401  # before torch
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgemem.kernels.cuda.launching import device
from edgemem.kernels.cuda.sampling import DeviceSampler
from edgemem.runtime.errors import NumericError
from edgemem.runtime.sampling import Sampler, Sampling


class OnDevice:
    """A device sampler with outputs of its own."""

    def __init__(self, ours: Sampler, vocabulary: int) -> None:
        self.sampler = DeviceSampler(vocabulary, device())
        self.token, self.drawn, self.position = (
            torch.full((1,), 7, dtype=torch.int32, device=device()) for _ in range(3)
        )
        self.surprisal = torch.zeros(1, device=device())
        self.take_over(ours, vocabulary)

    def take_over(self, ours: Sampler, vocabulary: int) -> None:
        settings = ours.settings
        self.sampler.set(
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            log_min_p=math.log(settings.min_p) if settings.min_p else -math.inf,
            repetition_penalty=settings.repetition_penalty,
            seed=settings.seed,
            draws=ours.draws,
            seen=ours.penalised_tokens(vocabulary),
        )

    def sample(self, logits: NDArray[np.float32]) -> int:
        given = torch.from_numpy(logits.copy()).to(device())
        self.sampler.sample(given, self.token, self.drawn, surprisal=self.surprisal, position=self.position)
        np.testing.assert_array_equal(given.cpu().numpy(), logits)
        return int(self.drawn)


def some_settings(random: np.random.Generator) -> Sampling:
    def pick(*values: float) -> float:
        return float(random.choice(values))

    return Sampling(
        temperature=pick(0.0, 0.3, 0.8, 1.0, 2.0, 50.0),
        top_k=int(random.choice([0, 1, 3, 40, 1 << 40])),
        top_p=pick(1.0, 0.99, 0.9, 0.5, 0.01),
        min_p=pick(0.0, 0.05, 0.5, 1.0),
        repetition_penalty=pick(1.0, 1.1, 0.7, 3.0),
        seed=int(random.integers(0, 1 << 64, dtype=np.uint64)),
    )


def some_logits(random: np.random.Generator, vocabulary: int) -> NDArray[np.float32]:
    logits = (random.standard_normal(vocabulary) * random.choice([0.1, 3.0, 20.0])).astype(np.float32)
    return np.round(logits) if random.random() < 0.3 else logits  # ties


def test_tokens_are_those_of_the_numpy_sampler() -> None:
    random = np.random.default_rng(7)
    for _ in range(12):
        vocabulary = int(random.choice([1, 5, 97, 128, 300]))
        ours = Sampler(some_settings(random), random.integers(0, vocabulary, 5).tolist())
        theirs = OnDevice(ours, vocabulary)
        for _ in range(2):
            logits = some_logits(random, vocabulary)
            assert theirs.sample(logits) == ours.sample(logits), ours.settings
            assert int(theirs.token) == int(theirs.drawn)


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(),
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.7, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=2),
    ],
    ids=["greedy", "all", "narrow"],
)
def test_a_larger_vocabulary_is_no_different(settings: Sampling) -> None:
    random = np.random.default_rng(8)
    ours = Sampler(settings, random.integers(0, 601, 50).tolist())
    theirs = OnDevice(ours, 601)
    for _ in range(2):
        logits = some_logits(random, 601)
        assert theirs.sample(logits) == ours.sample(logits)


def test_one_sampler_serves_answer_after_answer() -> None:
    random = np.random.default_rng(9)
    theirs = OnDevice(Sampler(Sampling()), 50)
    structures = set()
    for seed in range(4):
        ours = Sampler(Sampling(temperature=1.0, repetition_penalty=1.3, seed=seed), [3, 5])
        for _ in range(3):
            ours.sample(some_logits(random, 50))
        theirs.take_over(ours, 50)  # half way
        structures.add(theirs.sampler.structure)
        for _ in range(3):
            logits = some_logits(random, 50)
            assert theirs.sample(logits) == ours.sample(logits)
    assert len(structures) == 1


@pytest.mark.parametrize("settings", [Sampling(), Sampling(temperature=1.0, top_k=9, top_p=0.8)])
def test_of_equal_logits_the_lowest_ids_are_in_the_draw(settings: Sampling) -> None:
    logits = np.zeros(150, dtype=np.float32)
    logits[:100:2] = 2.0
    ours = Sampler(settings)
    theirs = OnDevice(ours, 150)
    for _ in range(3):
        token = theirs.sample(logits)
        assert token == ours.sample(logits)
        assert token in range(0, 16, 2)


@pytest.mark.parametrize(
    ("places", "value"),
    [(slice(None, None, 3), -np.inf), (slice(None, None, 3), -3e38), (slice(0, 128), -np.inf), (slice(20, 30), 80.0)],
)
def test_extreme_logits_are_drawn_from_alike(places: slice, value: float) -> None:
    random = np.random.default_rng(10)
    for settings in (
        Sampling(temperature=2.0, top_k=90, top_p=0.95, seed=3),
        Sampling(temperature=900.0, top_k=99, min_p=1e-30, repetition_penalty=1.5),
    ):
        ours = Sampler(settings, [1, 2, 3])
        theirs = OnDevice(ours, 200)
        logits = some_logits(random, 200)
        logits[places] = value
        with np.errstate(over="ignore"):
            assert theirs.sample(logits) == ours.sample(logits)


@pytest.mark.parametrize("settings", [Sampling(), Sampling(temperature=0.5, top_k=5, top_p=0.9)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 99])
def test_numbers_that_are_not_finite_are_told(settings: Sampling, value: float, place: int) -> None:
    ours = Sampler(settings)
    theirs = OnDevice(ours, 100)
    logits = some_logits(np.random.default_rng(11), 100)
    logits[place] = value
    assert theirs.sample(logits) == -1
    assert int(theirs.token) == 0
    with pytest.raises(NumericError):
        ours.sample(logits)
    theirs.take_over(ours, 100)
    logits[place] = 0
    assert theirs.sample(logits) == ours.sample(logits)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_surprisal_is_by_the_logits_as_they_are(temperature: float) -> None:
    random = np.random.default_rng(12)
    ours = Sampler(Sampling(temperature=temperature, repetition_penalty=2.0), [1, 2, 3])
    theirs = OnDevice(ours, 200)
    for step in range(3):
        logits = some_logits(random, 200) - 200
        logits[:128] = -np.inf
        token = theirs.sample(logits)
        exact = logits.astype(np.float64)
        wanted = np.log(np.exp(exact - exact.max()).sum()) + exact.max() - exact[token]
        np.testing.assert_allclose(float(theirs.surprisal), wanted, atol=3e-5)
        assert int(theirs.position) == 8 + step


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        DeviceSampler(1 << 21, device())
    with pytest.raises(ValueError, match="logits"):
        OnDevice(Sampler(Sampling()), 50).sample(np.zeros(51, dtype=np.float32))
