"""Windows in, head out: class-balanced logistic regression on the embeddings. The one adapter over scikit-learn."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.capture.head import Head
from edgemem.runtime.errors import EngineError
from edgemem.tools.hands.settings import TrainSettings

_ITERATIONS = 3000
_UNPENALISED = 1e6
_LEAST_SPREAD = 1e-9


class Calibration(NamedTuple):
    """How far logits are from the log odds of being right, both kinds being as frequent: odds = slope * logit + shift.
    1 and 0 are perfect; a slope under 1 is too sure of itself."""

    slope: float
    shift: float


def train_head(
    embeddings: NDArray[np.float32], hands: NDArray[np.bool_], weights: NDArray[np.float64], settings: TrainSettings
) -> Head:
    """embeddings: (n, 1024). hands: (n,), of both kinds. weights: (n,), how much each counts; the two kinds are then
    made to count the same. The same input gives the same head."""
    spread = max(float(embeddings.var(dtype=np.float64)), _LEAST_SPREAD)  # so that the ear's unit does not matter
    model = _fitted(settings.regularisation / spread, embeddings, hands, _balanced(weights, hands))
    return Head(model.coef_[0].astype(np.float32), float(model.intercept_[0]))


def calibration(logits: NDArray[np.float32], hands: NDArray[np.bool_], weights: NDArray[np.float64]) -> Calibration:
    """Of windows (n,) that the head was not trained on (Platt scaling)."""
    model = _fitted(_UNPENALISED, logits[:, np.newaxis], hands, _balanced(weights, hands))
    return Calibration(float(model.coef_[0, 0]), float(model.intercept_[0]))


def _balanced(weights: NDArray[np.float64], hands: NDArray[np.bool_]) -> NDArray[np.float64]:
    result = weights.copy()
    for kind in (hands, ~hands):
        result[kind] *= len(hands) / (2 * result[kind].sum())
    return result


def check_installed() -> None:
    """Raises EngineError where there is nothing to train with."""
    _logistic_regression()


def _fitted(
    c: float, values: NDArray[np.float32], truth: NDArray[np.bool_], weights: NDArray[np.float64]
) -> Any:  # an estimator
    model = _logistic_regression()(C=c, max_iter=_ITERATIONS)
    return model.fit(values.astype(np.float64), truth, sample_weight=weights)


def _logistic_regression() -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as missing:
        what = "training needs scikit-learn, which is not installed"
        raise EngineError(what, got=missing, do='pip install "edgemem-runtime[train]"') from missing
    return LogisticRegression
