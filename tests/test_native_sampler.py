"""The native sampler against the NumPy one: the same token from the same logits, whatever the settings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgemem.kernels.native import native
from edgemem.runtime.sampling import Sampler, Sampling

_native: Any = native()
PATHS = _native.paths()


def native_sampler(sampler: Sampler, vocabulary: int, path: str) -> Any:
    settings = sampler.settings
    return _native.Sampler(
        vocabulary=vocabulary,
        path=path,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        log_min_p=math.log(settings.min_p) if settings.min_p else -math.inf,
        repetition_penalty=settings.repetition_penalty,
        seed=settings.seed,
        draws=sampler.draws,
        seen=sampler.penalised_tokens(vocabulary),
    )


def some_settings(random: np.random.Generator) -> Sampling:
    def pick(*values: float) -> float:
        return float(random.choice(values))

    return Sampling(
        temperature=pick(0.0, 0.3, 0.8, 1.0, 2.0),
        top_k=int(random.choice([0, 1, 3, 40, 1 << 40])),
        top_p=pick(1.0, 0.99, 0.9, 0.5, 0.01),
        min_p=pick(0.0, 0.05, 0.5, 1.0),
        repetition_penalty=pick(1.0, 1.1, 0.7, 3.0),
        seed=int(random.integers(0, 1 << 63)),
    )


def some_logits(random: np.random.Generator, vocabulary: int) -> NDArray[np.float32]:
    logits = (random.standard_normal(vocabulary) * random.choice([0.1, 3.0, 20.0])).astype(np.float32)
    return np.round(logits) if random.random() < 0.3 else logits  # ties


@pytest.mark.parametrize("path", PATHS)
def test_tokens_are_those_of_the_numpy_sampler(path: str) -> None:
    random = np.random.default_rng(7)
    for _ in range(1200):
        vocabulary = int(random.choice([1, 5, 16, 97, 400]))
        ours = Sampler(some_settings(random), random.integers(0, vocabulary, 5).tolist())
        theirs = native_sampler(ours, vocabulary, path)
        for _ in range(4):
            logits = some_logits(random, vocabulary)
            assert theirs.sample(logits) == ours.sample(logits), ours.settings


def test_a_large_vocabulary_is_no_different() -> None:
    random = np.random.default_rng(8)
    for _ in range(60):
        ours = Sampler(some_settings(random), random.integers(0, 50_001, 50).tolist())
        theirs = native_sampler(ours, 50_001, PATHS[0])
        logits = some_logits(random, 50_001)
        for _ in range(2):
            assert theirs.sample(logits) == ours.sample(logits), ours.settings


def test_a_sampler_taken_up_half_way_goes_on_alike() -> None:
    random = np.random.default_rng(9)
    settings = Sampling(temperature=1.0, repetition_penalty=1.3, seed=4)
    ours = Sampler(settings, [3, 5])
    for _ in range(7):
        ours.sample(some_logits(random, 50))
    theirs = native_sampler(ours, 50, PATHS[0])
    for _ in range(20):
        logits = some_logits(random, 50)
        assert theirs.sample(logits) == ours.sample(logits)


@pytest.mark.parametrize(
    "change",
    [
        {"vocabulary": 0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_p": math.nan},
        {"log_min_p": 0.1},
        {"log_min_p": math.nan},
        {"repetition_penalty": 0.0},
        {"seen": np.array([50], dtype=np.int32)},
        {"seen": np.array([-1], dtype=np.int32)},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "vocabulary": 50,
        "path": "plain",
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "log_min_p": -math.inf,
        "repetition_penalty": 1.0,
        "seed": 0,
        "draws": 0,
        "seen": np.zeros(0, dtype=np.int32),
    }
    _native.Sampler(**good).sample(np.zeros(50, dtype=np.float32))
    with pytest.raises(ValueError, match=r"range|vocabulary"):
        _native.Sampler(**{**good, **change})
