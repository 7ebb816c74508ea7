"""EvalSettings: how much is measured, checked. And the retention settings of each policy that is compared."""

from __future__ import annotations

from dataclasses import dataclass

from edgemem.runtime.errors import SettingsError
from edgemem.runtime.limits import LIMITS
from edgemem.runtime.retention.settings import RetentionSettings, When

PARTS = ("stream", "grocery", "dialogue", "facts", "speed", "rps")
FULL, RESTART, NO_SINKS, WINDOW = "full", "restart", "no sinks", "window"
ENTROPY, SIRLLM, RELEASED = "entropy", "sirllm", "sirllm as released"
WINDOW_RECALL, ENTROPY_RECALL = "window + recall", "entropy + recall"
POLICIES = {
    FULL: "everything stays",
    WINDOW: "4 sinks and the newest slots",
    ENTROPY: "4 sinks; of the rest, half for the highest surprisal and half for the newest",
    NO_SINKS: "the newest slots",
    RESTART: "all but the last token is forgotten when the slots are full",
    SIRLLM: "4 sinks and the highest surprisal, by SirLLM's published settings: no recent share",
    RELEASED: "sirllm, with the score that its released code computes",
    WINDOW_RECALL: "window; what is evicted is put away, and what is like a question brought back for it",
    ENTROPY_RECALL: "entropy, with recall likewise",
}
WITH_RECALL = {WINDOW_RECALL: WINDOW, ENTROPY_RECALL: ENTROPY}  # and the policy beneath
_SINKS = 4
_MARGIN = 32
_MOST = 1 << 24


@dataclass(frozen=True)
class EvalSettings:
    """Raises SettingsError for a value out of range.

    budgets: KV slots. seeds: of the generators. text_tokens: of the perplexity stream, in blocks of `block` tokens that
    are consumed at once; `turn` tokens of text make a turn. groups, dialogues, trials: for each seed. rounds: of rock,
    paper, scissors. facts: planted in a trial of filler_tokens. stream_tokens: of the speed run. pairs: timed with
    scores and without.
    """

    budgets: tuple[int, ...] = (128, 256, 512, 1024)
    seeds: int = 3
    text_tokens: int = 61_000
    block: int = 32
    turn: int = 256
    groups: int = 8
    dialogues: int = 8
    rounds: int = 2000
    trials: int = 3
    facts: int = 6
    filler_tokens: int = 2000
    stream_tokens: int = 200_000
    pairs: int = 15

    def __post_init__(self) -> None:
        if not self.budgets or len(set(self.budgets)) != len(self.budgets):
            raise SettingsError("budgets are to be different, and at least one", got=self.budgets)
        for budget in self.budgets:
            _check("a budget", budget, 3 * self.block, LIMITS.context)
        for name in ("seeds", "text_tokens", "groups", "dialogues", "rounds", "trials", "stream_tokens", "pairs"):
            _check(name, getattr(self, name), 1, _MOST)
        _check("block", self.block, 1, self.turn)
        _check("facts", self.facts, 1, 8)
        _check("filler_tokens", self.filler_tokens, 64 * self.facts, _MOST)

    @property
    def stream_budgets(self) -> tuple[int, ...]:
        """Those of the perplexity stream: from 256 on, if there are any."""
        return tuple(budget for budget in self.budgets if budget >= 256) or self.budgets


def retention(policy: str, budget: int, *, decay: float, turns: bool) -> RetentionSettings:
    """turns: room is made once a turn, for its tokens alone; else when the slots are full, for 32 more."""
    when: When = "turn" if turns else "full"
    if policy == FULL:
        return RetentionSettings(policy="full", budget=budget, margin=_MARGIN)
    if policy in (WINDOW, NO_SINKS):
        sinks = 0 if policy == NO_SINKS else _SINKS
        return RetentionSettings(policy="window", budget=budget, sinks=sinks, when=when, margin=_MARGIN)
    if policy == ENTROPY:
        return RetentionSettings(policy="entropy", budget=budget, sinks=_SINKS, decay=decay, when=when, margin=_MARGIN)
    if policy not in (SIRLLM, RELEASED):
        raise SettingsError("there is no such policy", got=policy, wanted=", ".join(POLICIES))
    return RetentionSettings(
        policy="entropy",
        budget=budget,
        sinks=_SINKS,
        entropy_share=1.0,
        decay=decay,
        score="paper" if policy == SIRLLM else "as_released",
        when="turn",
        margin=_MARGIN,
        makes_room="entropy",
    )


def _check(name: str, value: int, lowest: int, highest: int) -> None:
    if type(value) is not int or not lowest <= value <= highest:
        raise SettingsError(f"{name} is out of range", got=value, wanted=f"{lowest} to {highest}")


QUICK = EvalSettings(
    budgets=(128, 256),
    seeds=1,
    text_tokens=3000,
    groups=2,
    dialogues=1,
    rounds=100,
    trials=1,
    filler_tokens=800,
    stream_tokens=3000,
    pairs=4,
)
