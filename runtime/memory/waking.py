"""Waking: a stored conversation comes back into an engine: from its snapshot, or by playing its journal again.

The journal is the truth. What a snapshot holds must end up in the same slots, or it is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import EdgememError, PackageError, StoreError
from edgemem.runtime.memory.memory import Memory
from edgemem.runtime.package import Package
from edgemem.runtime.store import Entry, Identity, Keep, Recovered, Snapshot, Store, Tokens, TurnBegin
from edgemem.runtime.tokenizer import TOKENIZER_FILES

Progress = Callable[[str, float], None]  # (stage, fraction done of it, 0 to 1)
_STAGE = "reading the conversation again"


class Woken(NamedTuple):
    """replayed: tokens that went through the engine. read: how many tokens of the unfinished turn's question were read;
    None where there is no such turn, or it had begun before the snapshot."""

    replayed: int
    read: int | None


def identity_of(package: Package, engine: Engine) -> Identity:
    """Whose conversation it is."""
    files, model = package.manifest.files, package.model
    return Identity(
        weights=package.manifest.model_hash,
        tokenizer=files[TOKENIZER_FILES[0]].sha256,
        vocabulary=model.vocabulary,
        layers=model.layers,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        engine=engine.name,
        kv=getattr(engine, "kv", "fp32"),
    )


def wake(memory: Memory, store: Store, progress: Progress | None = None) -> Woken:
    """Bring the store's conversation into the memory, whose slots are empty.

    Raises StoreError if it does not fit into the engine's slots, or the journal is damaged where it is needed.
    """
    recovered = store.recovered
    if not recovered.turns:
        return Woken(0, None)
    if recovered.snapshot is not None:
        try:
            return _replay(memory, store, recovered.snapshot, progress)
        except (PackageError, StoreError):  # of another place, after all: the journal alone
            memory.engine.truncate(0)
    return _replay(memory, store, None, progress)


def _replay(memory: Memory, store: Store, snapshot: Snapshot | None, progress: Progress | None) -> Woken:
    engine, recovered = memory.engine, store.recovered
    if snapshot is not None:
        engine.restore(snapshot.state)
    total = recovered.tokens - (snapshot.position.tokens if snapshot else 0)
    replayed, read = 0, None
    for entry in store.replay(snapshot.position if snapshot else None):
        if isinstance(entry, Tokens):
            replayed += len(entry.ids)
            if read is not None and not entry.generated:
                read += len(entry.ids)
        elif not isinstance(entry, Keep):
            read = 0 if isinstance(entry, TurnBegin) else None
        _play(engine, entry, store)
        if progress is not None and total:
            progress(_STAGE, replayed / total)
    if engine.length != len(recovered.held):
        raise StoreError(
            "the stored conversation does not add up", got=f"{engine.length} slots", wanted=len(recovered.held)
        )
    memory.table.load(_tables(recovered))
    places = recovered.held["place"][recovered.held["turn"] == recovered.turns]
    memory.turn_start = int(places.min()) if recovered.unfinished and places.size else recovered.tokens
    return Woken(replayed, read)


def _play(engine: Engine, entry: Entry, store: Store) -> None:
    """The same steps as were made when the entry was written."""
    try:
        if isinstance(entry, Keep):
            engine.keep(entry.slots)  # where it was truncate, nothing asks for the logits that this leaves
        elif isinstance(entry, Tokens) and entry.generated:
            for token in entry.ids:
                engine.extend(token[None])
        elif isinstance(entry, Tokens):
            engine.extend(entry.ids, surprisal=entry.scores is not None)
    except EdgememError as problem:
        raise StoreError(
            "the stored conversation cannot be read again",
            got=problem,
            do="open it with as many slots of context as it was held with, or give another folder",
        ) from problem


def _tables(recovered: Recovered) -> dict[str, np.ndarray]:
    """What SlotTable.load takes. A score that is not known counts as 0."""
    held = recovered.held
    ended = recovered.turns - (recovered.unfinished is not None)
    return {
        "position": held["place"].astype(np.int64),
        "token": held["id"].astype(np.int32),
        "score": np.nan_to_num(held["score"], nan=0.0),
        "turn": np.maximum(held["turn"].astype(np.int32) - 1, 0),
        "pinned": held["pinned"].astype(np.bool_),
        "counts": np.array([ended, recovered.tokens], dtype=np.int64),
    }
