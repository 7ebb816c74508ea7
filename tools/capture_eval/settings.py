"""EvalSettings: which streams are composed and how many, checked."""

from __future__ import annotations

from dataclasses import dataclass

from edgemem.runtime.errors import SettingsError

CLAIM_DB = 10.0  # the signal-to-noise ratio at which settings are chosen and aims are judged
_LEAST_S, _MOST_S = 30.0, 7200.0


@dataclass(frozen=True)
class Mix:
    """share: of the time that hands are at work. streams: for each fold and signal-to-noise ratio."""

    name: str
    share: float
    snrs_db: tuple[float, ...]
    streams: int

    def __post_init__(self) -> None:
        if not 0 < self.share <= 0.5 or not self.snrs_db or self.streams < 1:
            raise SettingsError("this is no mix", got=self, wanted="a share up to a half, and at least one stream")


USUAL, RARE = "usual", "rare"


@dataclass(frozen=True)
class EvalSettings:
    """Raises SettingsError for a value out of range.

    seconds: of each stream. folds: groups of clips that were recorded apart; on the first `development_folds` of them
    the trigger's settings are chosen, on the others it is judged. draws: of periodic and random capture.
    cost_seconds: of sound that the listener is measured on.
    """

    seconds: float = 1800.0
    folds: int = 5
    development_folds: int = 2
    usual: Mix = Mix(USUAL, 0.15, (0.0, 5.0, CLAIM_DB, 20.0), 1)
    rare: Mix = Mix(RARE, 0.03, (CLAIM_DB,), 3)
    draws: int = 200
    cost_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not _LEAST_S <= self.seconds <= _MOST_S:
            raise SettingsError("streams of this length", got=self.seconds, wanted=f"{_LEAST_S:g} to {_MOST_S:g} s")
        if not 1 <= self.development_folds < self.folds <= 20:
            got = f"{self.development_folds} of {self.folds}"
            raise SettingsError("folds to choose settings on", got=got, wanted="at least one, and one to judge on")
        for name, mix in ((USUAL, self.usual), (RARE, self.rare)):
            if mix.name != name or CLAIM_DB not in mix.snrs_db:
                raise SettingsError(
                    "this is not the mix that is wanted", got=mix, wanted=f"{name}, with {CLAIM_DB:g} dB"
                )
        if not 1 <= self.draws <= 10_000 or self.cost_seconds < 1:
            raise SettingsError("too little or too much is asked", got=f"{self.draws}, {self.cost_seconds}")


QUICK = EvalSettings(
    seconds=120.0,
    folds=3,
    development_folds=1,
    usual=Mix(USUAL, 0.15, (CLAIM_DB,), 1),
    rare=Mix(RARE, 0.06, (CLAIM_DB,), 1),
    draws=50,
    cost_seconds=5.0,
)
