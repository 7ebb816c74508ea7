"""Policies: which slots stay so that room is made. Pure functions of a table, settings and a number of slots.

StreamingLLM (Xiao et al., ICLR 2024) and SirLLM (Yao et al., ACL 2024), with pinned slots added. Never the engine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import ContextError, SettingsError
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.retention.slots import SlotTable


def slots_to_keep(table: SlotTable, settings: RetentionSettings, incoming: int) -> NDArray[np.int64]:
    """The slots to keep, strictly rising, before `incoming` tokens are consumed: all of them if those fit.

    Else at most budget - settings.room(incoming), or sinks and pins alone where those are more.
    StreamingLLM's two forms are "window" with when="turn" before each turn, and with margin 0 before each token.
    Raises ContextError where even sinks, pins and `incoming` alone exceed the budget, and, by the policy "full", where
    anything would have to go.
    """
    if incoming < 0:
        raise SettingsError("a negative number of tokens cannot come", got=incoming)
    if table.length + incoming <= settings.budget:
        return np.arange(table.length)
    if settings.policy == "full":
        raise ContextError(
            "the conversation has filled its memory, and its policy evicts nothing",
            got=f"{table.length} slots in use and {incoming} more asked for",
            wanted=f"at most {settings.budget}",
            do="choose the policy window or entropy, a larger budget, or start anew",
        )
    kept = _forced(table, settings, incoming)
    room = settings.room(incoming)
    if settings.policy == "entropy":
        kept |= _most_surprising(table, settings, room, kept)
    others = np.flatnonzero(~kept)
    missing = max(0, settings.budget - room - (table.length - len(others)))
    kept[others[len(others) - missing :]] = True
    return np.flatnonzero(kept)


def _forced(table: SlotTable, settings: RetentionSettings, incoming: int) -> NDArray[np.bool_]:
    """(length,) the slots that stay under every policy: pinned ones and sinks."""
    kept = table.rows["pinned"].copy()
    pins = int(np.count_nonzero(kept[settings.sinks :]))
    kept[: settings.sinks] = True
    forced = int(np.count_nonzero(kept))
    if forced + incoming > settings.budget:
        raise ContextError(
            "what must stay and what comes are more than the memory",
            got=f"{forced - pins} sinks, {pins} pinned slots and {incoming} tokens coming",
            wanted=f"at most {settings.budget} together",
            do="shorten the message, pin less, or choose a larger budget",
        )
    return kept


def _most_surprising(
    table: SlotTable, settings: RetentionSettings, room: int, forced: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(length,) the slots kept for their score. Sinks compete, as in SirLLM, and pins do not."""
    beyond_forced = settings.budget - int(np.count_nonzero(forced))
    size = round(settings.entropy_share * max(0, beyond_forced - settings.recent))
    gives_way = room if settings.makes_room == "entropy" else max(0, room - (beyond_forced - size))
    scores = table.effective_scores(settings.decay)
    scores[table.rows["pinned"]] = -1.0
    return highest(scores, max(0, size - gives_way))


def highest(scores: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """(n,) true for the `count` highest of (n,) scores; of equal ones the newest, which lie last."""
    if count == 0:
        return np.zeros(len(scores), dtype=np.bool_)
    lowest = np.partition(scores, len(scores) - count)[len(scores) - count]
    chosen: NDArray[np.bool_] = scores > lowest
    equal = np.flatnonzero(scores == lowest)
    chosen[equal[len(equal) - (count - int(np.count_nonzero(chosen))) :]] = True
    return chosen
