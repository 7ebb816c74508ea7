"""A conversation on disk: a journal of tokens, which is the truth, and snapshots of the engine's memory."""

from edgemem.runtime.store.conversation import HELD, Unfinished
from edgemem.runtime.store.entries import NOTE, Entry, Keep, Role, Tokens, TurnBegin, TurnEnd
from edgemem.runtime.store.identity import Identity
from edgemem.runtime.store.recovery import Recovered
from edgemem.runtime.store.snapshot import Position, Snapshot
from edgemem.runtime.store.store import Store, StoreSettings

__all__ = [
    "HELD",
    "NOTE",
    "Entry",
    "Identity",
    "Keep",
    "Position",
    "Recovered",
    "Role",
    "Snapshot",
    "Store",
    "StoreSettings",
    "Tokens",
    "TurnBegin",
    "TurnEnd",
    "Unfinished",
]
