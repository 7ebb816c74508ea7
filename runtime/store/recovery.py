"""Recovery: what a folder says of its conversation, and which snapshot fits it. It reads and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import FileError, StoreError, shown
from edgemem.runtime.folder_lock import LOCK_FILE
from edgemem.runtime.store.conversation import HELD, Conversation, Unfinished
from edgemem.runtime.store.disk import TEMPORARY, Disk, disk_error
from edgemem.runtime.store.identity import Identity
from edgemem.runtime.store.segments import Segment, apply_frame, read_segment, segment_numbers
from edgemem.runtime.store.snapshot import Position, Snapshot, read_snapshot, snapshot_name, snapshot_numbers


@dataclass(frozen=True)
class Recovered:
    """A conversation as it was when it was opened.

    messages: the last ones, up to 1 MiB of text, after messages_before others. held: (n,) HELD, the tokens in the
    slots, with role, surprisal, turn and place. tokens, turns: how many there ever were. unfinished: a turn that a
    crash or close cut off: it wants an `end_turn` before the next. snapshot: the newest that fits; why_not: why there
    is none, or not the newest. cut_bytes: how much of a write that a crash cut short was dropped.
    """

    messages: list[dict[str, str]] = field(default_factory=list)
    messages_before: int = 0
    held: NDArray[np.void] = field(default_factory=lambda: np.empty(0, HELD))
    tokens: int = 0
    turns: int = 0
    unfinished: Unfinished | None = None
    snapshot: Snapshot | None = None
    why_not: str | None = None
    cut_bytes: int = 0

    @property
    def tokens_to_replay(self) -> int:
        """How many tokens the entries after the snapshot, or all without one, put through the engine."""
        return self.tokens - (self.snapshot.position.tokens if self.snapshot else 0)


def read_newest(disk: Disk) -> Segment | None:
    """The newest segment, its frames not applied yet; None in a folder that is empty.

    Raises StoreError for damage, and for a folder of other things.
    """
    try:
        names = disk.names()
    except OSError as problem:
        raise disk_error(problem, "cannot read the conversation's folder", disk.folder) from problem
    numbers = segment_numbers(names)
    if numbers:
        return read_segment(disk, numbers[-1], newest=True)
    others = sorted(name for name in names if name != LOCK_FILE and not name.endswith(TEMPORARY))
    if others:
        raise StoreError(
            "the folder holds other files and no journal",
            where=disk.folder,
            got=shown(others[0]),
            do="give an empty folder, or one that does not exist",
        )
    return None


def check_model(segment: Segment, identity: Identity, where: object) -> None:
    """StoreError if the conversation was held with another model or tokenizer."""
    stored = segment.header.identity
    for what, got, wanted in (
        ("model", stored.weights, identity.weights),
        ("tokenizer", stored.tokenizer, identity.tokenizer),
        ("vocabulary", stored.vocabulary, identity.vocabulary),
    ):
        if got != wanted:
            raise StoreError(
                f"the conversation was held with another {what}",
                where=where,
                got=got,
                wanted=wanted,
                do="open it with the package it began with, or give another folder",
            )


def apply_frames(
    disk: Disk, segment: Segment, marks: Collection[int] = (), until: int | None = None
) -> dict[int, Position]:
    """Bring the segment's conversation to its end, or to frame `until`; gives its position at the frames `marks`."""
    conversation, positions = segment.conversation, {}
    if segment.first in marks:
        positions[segment.first] = position_of(conversation, segment.first)
    for found in segment.entry_frames:
        if until is not None and found.sequence > until:
            break
        apply_frame(disk, segment, found)
        if found.sequence in marks:
            positions[found.sequence] = position_of(conversation, found.sequence)
    return positions


def position_of(conversation: Conversation, sequence: int) -> Position:
    return Position(sequence, conversation.tokens, conversation.digest())


def recover(disk: Disk, segment: Segment, identity: Identity, policy: Mapping[str, Any]) -> Recovered:
    """All that the newest segment and the snapshots give. `segment`: from read_newest; it is brought to its end."""
    check_model(segment, identity, disk.folder)
    sequences = [number for number in snapshot_numbers(disk.names()) if number >= segment.header.begins]
    positions = apply_frames(disk, segment, sequences)
    conversation, why_not = segment.conversation, None
    snapshot: Snapshot | None = None
    for sequence in sequences:
        try:
            wanted = positions.get(sequence) or _position_before(disk, segment, sequence)
            snapshot = _fitting(disk, sequence, wanted, identity, policy)
            break
        except FileError as problem:
            why_not = why_not or str(problem)
    if snapshot is None and why_not is None:
        why_not = "no snapshot was taken"
    return Recovered(
        messages=[dict(message) for message in conversation.messages],
        messages_before=conversation.messages_before,
        held=conversation.held.copy(),
        tokens=conversation.tokens,
        turns=conversation.turns,
        unfinished=conversation.unfinished,
        snapshot=snapshot,
        why_not=why_not,
        cut_bytes=len(segment.torn),
    )


def _position_before(disk: Disk, segment: Segment, sequence: int) -> Position:
    """The position at a frame of an older segment."""
    if sequence > segment.last:
        raise StoreError("the snapshot is ahead of the journal", where=snapshot_name(sequence), wanted=segment.last)
    first = max((number for number in segment_numbers(disk.names()) if number <= sequence), default=0)
    older = read_segment(disk, first, newest=False)
    positions = apply_frames(disk, older, (sequence,), until=sequence)
    if sequence not in positions:
        raise StoreError("the journal has no such frame", where=snapshot_name(sequence), wanted=sequence)
    return positions[sequence]


def _fitting(disk: Disk, sequence: int, wanted: Position, identity: Identity, policy: Mapping[str, Any]) -> Snapshot:
    """The snapshot taken at `sequence`; StoreError unless it is sound and of this place in this journal."""
    name = snapshot_name(sequence)
    where = disk.folder / name
    try:
        descriptor = disk.open(name)
        try:
            snapshot = read_snapshot(descriptor, where, identity, policy)
        finally:
            os.close(descriptor)
    except OSError as problem:
        raise disk_error(problem, f"cannot read {name}", disk.folder) from problem
    if snapshot.position != wanted:
        raise StoreError("the snapshot is of another conversation", where=where, got=snapshot.position, wanted=wanted)
    return snapshot
