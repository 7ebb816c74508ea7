"""RetentionSettings: how much is kept, and by which rule. Checked numbers; the rules themselves are in policies.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from edgemem.runtime.errors import SettingsError, shown
from edgemem.runtime.limits import LIMITS

Policy = Literal["full", "window", "entropy"]
Score = Literal["paper", "as_released"]
When = Literal["turn", "full"]
Part = Literal["recent", "entropy"]


@dataclass(frozen=True)
class RetentionSettings:
    """What stays of a conversation that outgrows `budget` KV slots. Raises SettingsError for a value out of range.

    policy: "full" evicts nothing and refuses what does not fit; "window" keeps sinks and the newest slots
        (StreamingLLM); "entropy" keeps sinks, the slots of highest surprisal and the newest (SirLLM).
    sinks: the first slots, which always stay. Pinned slots stay too, under every policy, and count in the budget.
    when: "turn" makes room once, before a turn, for exactly what the turn may add; "full" makes room when the next
        tokens do not fit, and then for `margin` slots more, so that it happens once in margin + 1 tokens. margin: None
        for an eighth of the budget, which at 1,024 slots leaves 99 steps in 100 without an eviction.

    For "entropy" alone:
    recent: newest slots that stay whatever their surprisal.
    entropy_share: of what sinks, pins and `recent` leave of the budget, the share for the highest surprisal, from 0
        to 1; the rest is for the newest. SirLLM's published settings are share 1, recent 0.
    decay: a slot's score is multiplied by it at each turn's end, over 0 up to 1. SirLLM: 0.7 to 1.
    score: which score the slots carry; see scores.py.
    makes_room: which part gives way to incoming tokens first. SirLLM's rule takes all of it from "entropy", so that a
        long message drives out all that was kept for its surprisal; with "recent" (ours) the message's own tokens count
        as the newest. Without a recent part both are the same.
    """

    policy: Policy = "entropy"
    budget: int = 1024
    sinks: int = 4
    recent: int = 0
    entropy_share: float = 0.5
    decay: float = 0.9
    score: Score = "paper"
    when: When = "full"
    margin: int | None = None
    makes_room: Part = "recent"

    def __post_init__(self) -> None:
        for name, words in (("policy", Policy), ("score", Score), ("when", When), ("makes_room", Part)):
            if getattr(self, name) not in get_args(words):
                raise _bad(name, getattr(self, name), " or ".join(get_args(words)))
        _check_whole("budget", self.budget, 1)
        for name in ("sinks", "recent"):
            _check_whole(name, getattr(self, name), 0)
        if self.margin is not None:
            _check_whole("margin", self.margin, 0)
        taken = self.sinks + self.recent + self.room(0)
        if self.policy != "full" and taken >= self.budget:
            wanted = f"more than sinks, recent and room beyond them, {taken}"
            raise SettingsError("the budget leaves nothing to keep", got=f"budget {self.budget}", wanted=wanted)
        if not _number(self.entropy_share) or not 0 <= self.entropy_share <= 1:
            raise _bad("entropy_share", self.entropy_share, "a number from 0 to 1")
        if not _number(self.decay) or not 0 < self.decay <= 1:
            raise _bad("decay", self.decay, "a number over 0, up to 1")

    def room(self, incoming: int) -> int:
        """Slots to have free before `incoming` tokens, when something must be evicted for them."""
        margin = self.budget // 8 if self.margin is None else self.margin
        return incoming + (margin if self.when == "full" else 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or YAML; from_dict's inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> RetentionSettings:
        """Raises SettingsError for unknown or missing keys, and as the constructor does."""
        known = {field.name for field in fields(cls)}
        if set(plain) != known:
            unknown, missing = sorted(map(shown, set(plain) - known)), sorted(known - set(plain))
            raise SettingsError(
                "the retention settings have other keys than this version knows",
                got=f"unknown {unknown}, missing {missing}",
                wanted=", ".join(sorted(known)),
            )
        return cls(**plain)


def _check_whole(name: str, value: object, lowest: int) -> None:
    if type(value) is not int or not lowest <= value <= LIMITS.context:
        raise _bad(name, value, f"a whole number from {lowest} to {LIMITS.context}")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bad(name: str, got: object, wanted: str) -> SettingsError:
    return SettingsError(f"retention's {name} is out of range", got=shown(got), wanted=wanted)
