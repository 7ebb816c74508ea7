"""Moves: when a conversation is to go on at another split. A pure state machine over what a token takes, and time.

It moves only where every one of some tokens in a row had been better there by a margin, where what is left to be said
gains more than it takes to catch up, and not again for a while.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

from edgemem.runtime.errors import SettingsError
from edgemem.split.sides import check_number

Verdict = Literal["stay", "dear", "move"]


@dataclass(frozen=True)
class MoveSettings:
    """factor, least_ms: by which a token must be faster elsewhere, both. in_a_row: so many tokens. pause_s: between
    two moves at least. look_s: between two looks at the link. Raises SettingsError for a value out of range."""

    factor: float = 1.25
    least_ms: float = 2.0
    in_a_row: int = 8
    pause_s: float = 20.0
    look_s: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 1.0 if field.name in ("factor", "in_a_row") else 0.0
            check_number(f"a move's {field.name}", getattr(self, field.name), least=least)
        if type(self.in_a_row) is not int:
            raise SettingsError("a move's in_a_row is out of range", got=self.in_a_row, wanted="a whole number from 1")

    def better(self, there_ms: float, here_ms: float) -> bool:
        return here_ms > self.factor * there_ms and here_ms - there_ms > self.least_ms


@dataclass(frozen=True)
class Offer:
    """A split to go on at: what a token would take there, and to catch up there with all that was said."""

    split: int
    token_ms: float
    cost_ms: float


@dataclass(frozen=True)
class Moves:
    """towards: the best offer of the last token, if it was better by enough; so it was in_a_row times. moved_s: when
    the last move was. verdict: "dear" where a move would be due but takes longer than it would gain."""

    towards: Offer | None = None
    in_a_row: int = 0
    moved_s: float = -math.inf
    verdict: Verdict = "stay"

    def after(
        self, here_ms: float, offers: Iterable[Offer], tokens_left: int, now_s: float, settings: MoveSettings
    ) -> Moves:
        """After a token that took here_ms here. tokens_left: to be said yet, at most."""
        better = [offer for offer in offers if settings.better(offer.token_ms, here_ms)]
        if not better:
            return Moves(moved_s=self.moved_s)
        best = min(better, key=lambda offer: offer.token_ms)
        again = self.towards is not None and self.towards.split == best.split
        count = self.in_a_row + 1 if again else 1
        verdict: Verdict = "stay"
        if count >= settings.in_a_row and now_s - self.moved_s >= settings.pause_s:
            verdict = "move" if (here_ms - best.token_ms) * tokens_left > best.cost_ms else "dear"
        return Moves(best, count, self.moved_s, verdict)
