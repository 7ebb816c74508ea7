"""TrainSettings: how the head is trained and judged, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgemem.runtime.errors import SettingsError, shown

_NUMBERS = {"lead_s": (0.0, 5.0), "mixed_share": (0.0, 1.0), "quiet_db": (1.0, 120.0), "regularisation": (1e-9, 1e9)}
_RANGES = ("snr_db", "level_db", "noise_db")


@dataclass(frozen=True)
class TrainSettings:
    """Raises SettingsError for a value out of range.

    folds: of the cross-validation; a group is in one of them. copies: augmented takes of each clip, beside the clip
    itself: it begins up to lead_s late; mixed_share of them lie over a background of the same fold at snr_db; white
    noise is noise_db below, and all of it level_db of full scale. Pairs are (lowest, highest), drawn evenly. quiet_db:
    windows with hands this far below the loudest of their clip are silence, and teach nothing. regularisation: C of the
    logistic regression, the inverse strength of its L2 penalty, for embeddings of variance 1. without_tier: of clips
    whose tier begins so, none is trained on or mixed in, but they are judged all the same; empty: all are trained on.
    """

    seed: int = 7
    folds: int = 5
    copies: int = 6
    lead_s: float = 1.0
    mixed_share: float = 0.75
    snr_db: tuple[float, float] = (-2.0, 22.0)
    level_db: tuple[float, float] = (-58.0, -16.0)
    noise_db: tuple[float, float] = (-60.0, -25.0)
    quiet_db: float = 15.0
    regularisation: float = 2e-3
    without_tier: str = ""

    def __post_init__(self) -> None:
        for name, (lowest, highest) in {"seed": (0, 2**32 - 1), "folds": (2, 20), "copies": (0, 64)}.items():
            value = getattr(self, name)
            if type(value) is not int or not lowest <= value <= highest:
                raise SettingsError(f"{name} is out of range", got=shown(value), wanted=f"{lowest} to {highest}")
        for name, (low, high) in _NUMBERS.items():
            value = getattr(self, name)
            if not _is_number(value) or not low <= value <= high:
                raise SettingsError(f"{name} is out of range", got=shown(value), wanted=f"{low:g} to {high:g}")
        for name in _RANGES:
            pair = getattr(self, name)
            if len(pair) != 2 or not all(map(_is_number, pair)) or not -120 <= pair[0] <= pair[1] <= 120:
                wanted = "lowest, highest, within -120 and 120"
                raise SettingsError(f"{name} is no range of decibels", got=shown(pair), wanted=wanted)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
