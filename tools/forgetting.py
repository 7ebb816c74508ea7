"""Forgetting the last turns of a stored conversation. The journal says so: nothing in it is rewritten."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgemem.runtime.errors import StoreError
from edgemem.runtime.store import NOTE, Entry, Store, StoreSettings, Tokens, TurnBegin, TurnEnd
from edgemem.runtime.store.upkeep import look


class _Said(NamedTuple):
    """A turn with an answer, or a note. number: as the slots' tokens have it. whole: its messages are the whole
    conversation."""

    number: int
    messages: list[dict[str, str]]
    whole: bool


def forget_last(folder: Path, count: int) -> int:
    """Forget the last `count` turns that have an answer, and notes, and what came after; how many messages are left.

    Where none would be left, the conversation begins anew. Raises StoreError as Store.open and its replay do.
    """
    header = look(folder).header
    with Store.open(folder, header.identity, header.policy, settings=StoreSettings(flush_ms=None)) as store:
        said = _turns(store.replay())
        left = _messages(said[:-count])
        if not left:
            store.forget()
        else:
            if store.recovered.unfinished is not None:
                store.end_turn(None)
            store.append_keep(np.arange(np.count_nonzero(store.recovered.held["turn"] < said[-count].number)))
            noted = left[-1]["role"] == NOTE
            store.begin_turn(left if noted else left[:-1], whole=True)
            store.end_turn("" if noted else left[-1]["content"])
        if store.problem is not None:
            problem = store.problem
            raise StoreError("the turns cannot be forgotten", where=folder, got=problem.got, do=problem.do)
    return len(left)


def _turns(entries: Iterable[Entry]) -> list[_Said]:
    """The turns that count. One of a whole conversation without a token is what forget_last wrote: those behind the
    messages that it left are forgotten."""
    said: list[_Said] = []
    number = tokens = 0
    begun = TurnBegin(())
    for entry in entries:
        if isinstance(entry, TurnBegin):
            number, tokens, begun = number + 1, 0, entry
        elif isinstance(entry, Tokens):
            tokens += len(entry.ids)
        elif isinstance(entry, TurnEnd) and entry.answer is not None:
            messages = begun.said(entry.answer)
            if tokens or not begun.whole:
                said.append(_Said(number, messages, begun.whole))
                continue
            while said and _messages(said) != messages:
                said.pop()
    return said


def _messages(said: Sequence[_Said]) -> list[dict[str, str]]:
    """The conversation that these turns make."""
    begins = max((place for place, turn in enumerate(said) if turn.whole), default=0)
    return [message for turn in said[begins:] for message in turn.messages]
