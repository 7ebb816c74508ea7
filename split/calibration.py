"""Calibration: the codec's tau and delta that take the fewest bytes while the answers stay near those of fp16 states.

The search is ours: how arXiv 2511.04002 chooses tau and delta is not public. It goes over a grid, on hidden states that
it is given; what the layers behind the split make of them is asked of a function. It knows neither model nor text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import SettingsError
from edgemem.split.codec import LEAST_TAU, Codec, CodecSettings

Windows = Sequence[NDArray[np.float32]]  # each (n, hidden), n > 0: a text's states from an empty memory
Divergence = Callable[[Codec], NDArray[np.float64]]  # KL(fp16 || coded) of every token, nats

OUTLIER_SHARES = (0.0005, 0.001, 0.0025, 0.005, 0.01)  # of all values; papers have 0.1 to 1 %
DELTAS = tuple(round(0.4 * 2 ** (-step / 4), 4) for step in range(21))  # from coarse to fine, down to 0.0125
_ONE_SIDED_95 = 1.645  # standard errors


@dataclass(frozen=True)
class Measured:
    """What one setting does. kl: mean of all tokens, nats, against fp16 states, and its standard error.
    token_bytes: mean of a token's payload; payloads add up, so it is the same in chunks as in decoding.
    error: mean of ||x - x'|| / ||x|| of a token. outliers: their share of all values."""

    settings: CodecSettings
    kl: float
    kl_error: float
    token_bytes: float
    error: float
    outliers: float

    @property
    def kl_bound(self) -> float:
        """What KL is at most in tokens like these, with 95 % confidence."""
        return self.kl + _ONE_SIDED_95 * self.kl_error


@dataclass(frozen=True)
class Calibration:
    """best: the fewest token_bytes among those tried whose kl_bound is at most the limit."""

    best: Measured
    tried: tuple[Measured, ...]


def outlier_threshold(windows: Windows, share: float) -> float:
    """The tau beyond which this share of all values lies; infinity for none."""
    if share == 0:
        return math.inf
    values = np.concatenate([np.abs(window).reshape(-1) for window in windows])
    return max(float(np.quantile(values, 1 - share)), LEAST_TAU)


def measure(settings: CodecSettings, windows: Windows, divergence: Divergence) -> Measured:
    """One setting on these states. Raises what Codec and `divergence` do."""
    codec = Codec(settings, windows[0].shape[1])
    payload_bytes, errors, outliers = 0, [], 0
    for window in windows:
        payload = codec.encode(window)
        payload_bytes += len(payload)
        errors.append(_errors(window, codec.decode(payload, len(window))))
        if settings.mode == "adaptive":
            outliers += int(np.count_nonzero(np.abs(window) >= settings.tau))
    nats = divergence(codec)
    return Measured(
        settings=settings,
        kl=max(0.0, float(nats.mean())),  # rounding can leave a hair below zero
        kl_error=float(nats.std()) / math.sqrt(len(nats)),
        token_bytes=payload_bytes / sum(map(len, windows)),
        error=float(np.concatenate(errors).mean()),
        outliers=outliers / sum(window.size for window in windows),
    )


def calibrate(
    windows: Windows,
    divergence: Divergence,
    limit: float = 0.01,
    progress: Callable[[float], None] = lambda share: None,
) -> Calibration:
    """The best of fp16, int8 and adaptive settings. limit: of KL, nats a token.

    For each tau the coarsest delta within the limit is found by halving the grid, as if KL rose with delta; what is
    taken was measured itself. Raises SettingsError for no states, or a limit that even fp16 exceeds.
    """
    if not windows:
        raise SettingsError("there are no hidden states to calibrate with")
    shares = (0.0, *OUTLIER_SHARES)
    tried = [measure(CodecSettings(mode), windows, divergence) for mode in ("fp16", "int8")]
    for done, share in enumerate(shares):
        progress(done / len(shares))
        tried += _along_delta(windows, divergence, limit, outlier_threshold(windows, share))
    within = [one for one in tried if one.kl_bound <= limit]
    if not within:
        raise SettingsError("not even fp16 keeps to the limit of KL", got=limit, wanted="more")
    return Calibration(min(within, key=lambda one: one.token_bytes), tuple(tried))


def _along_delta(windows: Windows, divergence: Divergence, limit: float, tau: float) -> list[Measured]:
    found: list[Measured] = []
    coarse, fine = -1, len(DELTAS)  # places in the grid: beyond the limit, and within it
    while fine - coarse > 1:
        middle = (coarse + fine) // 2
        found.append(measure(CodecSettings("adaptive", tau, DELTAS[middle]), windows, divergence))
        if found[-1].kl_bound <= limit:
            fine = middle
        else:
            coarse = middle
    return found


def _errors(states: NDArray[np.float32], decoded: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) relative to each row's norm; 0 for a row of zeros."""
    lost = np.linalg.norm(states.astype(np.float64) - decoded, axis=1)
    norms = np.linalg.norm(states.astype(np.float64), axis=1)
    relative: NDArray[np.float64] = lost / np.where(norms > 0, norms, 1.0)
    return relative
