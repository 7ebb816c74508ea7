"""QualityMeter against torch's own losses, and the texts that figures rest on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem.compiler.quality import NO_NEXT, QualityMeter, calibration_text, fixed_text
from edgemem.runtime.errors import NumericError, SettingsError


def streams(rows: int, vocabulary: int, seed: int, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    reference = (random.standard_normal((rows, vocabulary)) * scale).astype(np.float32)
    candidate = reference + random.standard_normal((rows, vocabulary)).astype(np.float32)
    return reference, candidate, random.integers(0, vocabulary, rows)


def test_figures_are_those_of_torch() -> None:
    import torch
    from torch.nn import functional

    reference, candidate, following = streams(50, 30, seed=0)
    meter = QualityMeter()
    meter.update(reference, candidate, following)
    result = meter.result()
    logits = [torch.from_numpy(values).double() for values in (reference, candidate)]
    losses = [functional.cross_entropy(values, torch.from_numpy(following)).exp().item() for values in logits]
    logs = [values.log_softmax(dim=1) for values in logits]
    divergence = functional.kl_div(logs[1], logs[0], reduction="batchmean", log_target=True).item()
    assert result.reference_perplexity == pytest.approx(losses[0], rel=1e-9)
    assert result.perplexity == pytest.approx(losses[1], rel=1e-9)
    assert result.kl_mean == pytest.approx(divergence, rel=1e-9)
    assert result.top1_agreement == np.mean(reference.argmax(1) == candidate.argmax(1))
    assert result.tokens == 50


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 20), st.integers(1, 19), st.integers(0, 1000))
def test_chunks_change_nothing(rows: int, cut: int, seed: int) -> None:
    reference, candidate, following = streams(rows, 7, seed)
    whole, parts = QualityMeter(), QualityMeter()
    whole.update(reference, candidate, following)
    for piece in (slice(0, cut), slice(cut, None)):
        parts.update(reference[piece], candidate[piece], following[piece])
    assert parts.result().kl_mean == pytest.approx(whole.result().kl_mean, rel=1e-9, abs=1e-12)
    assert parts.result().perplexity == pytest.approx(whole.result().perplexity, rel=1e-9)
    assert parts.result().top1_agreement == whole.result().top1_agreement


@pytest.mark.parametrize("shift", [0.0, 5.0, -3e4])
def test_a_stream_agrees_with_itself_at_any_offset(shift: float) -> None:
    reference, _, following = streams(9, 11, seed=1, scale=200.0)
    meter = QualityMeter()
    meter.update(reference, (reference.astype(np.float64) + shift), following)
    result = meter.result()
    assert 0 <= result.kl_mean < 1e-9
    assert result.top1_agreement == 1
    assert result.perplexity == pytest.approx(result.reference_perplexity)


def test_the_last_position_predicts_nothing_but_is_compared() -> None:
    reference, candidate, following = streams(2, 5, seed=2)
    following[1] = NO_NEXT
    meter, first = QualityMeter(), QualityMeter()
    meter.update(reference, candidate, following)
    first.update(reference[:1], candidate[:1], following[:1])
    assert meter.result().perplexity == first.result().perplexity
    assert meter.result().kl_mean != first.result().kl_mean
    assert meter.result().tokens == 2


def test_an_impossible_token_gives_a_finite_perplexity() -> None:
    meter = QualityMeter()
    certain = np.array([[3e38, 0.0]], dtype=np.float32)
    meter.update(certain, certain, np.array([1]))
    assert np.isfinite(meter.result().perplexity)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused_with_their_place(bad: float) -> None:
    reference, candidate, following = streams(4, 5, seed=3)
    meter = QualityMeter()
    meter.update(reference, candidate, following)
    candidate[2, 1] = bad
    with pytest.raises(NumericError, match=r"candidate.*\n?.*position 6"):
        meter.update(reference, candidate, following)


@pytest.mark.parametrize("token", [-2, 5])
def test_tokens_outside_the_vocabulary_are_refused(token: int) -> None:
    reference, candidate, following = streams(4, 5, seed=3)
    following[2] = token
    with pytest.raises(SettingsError, match="outside"):
        QualityMeter().update(reference, candidate, following)


def test_streams_of_different_shape_are_refused() -> None:
    reference, candidate, following = streams(4, 5, seed=3)
    for arguments in ((reference, candidate[:3], following), (reference, candidate, following[:3])):
        with pytest.raises(SettingsError, match="shapes"):
            QualityMeter().update(*arguments)
    with pytest.raises(SettingsError, match="nothing"):
        QualityMeter().result()


def test_the_texts_are_there_and_disjoint() -> None:
    fixed, calibration = fixed_text(), calibration_text()
    assert 6000 < len(fixed) < 8500
    assert 55_000 < len(calibration) < 70_000
    assert not {line for line in fixed.splitlines() if len(line) > 40} & set(calibration.splitlines())
