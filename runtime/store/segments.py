"""Segments: the files that a journal is made of, and reading them. It writes nothing.

A segment begins with a frame of its own: a header (whose conversation) and a checkpoint (all that came before). So a
reader needs the newest segment alone; older ones are there for those who want every token again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from edgemem.runtime.errors import EdgememError, StoreError, shown
from edgemem.runtime.safe_files import read_at_most
from edgemem.runtime.store.conversation import Conversation
from edgemem.runtime.store.disk import Disk, disk_error
from edgemem.runtime.store.entries import Entry, decode, packed, unpacked
from edgemem.runtime.store.frames import Damage, Frame, Frames, frame, read_frames
from edgemem.runtime.store.identity import Identity, plain_policy
from edgemem.runtime.tensor_file import parse_json_object

MAGIC = b"edgememJ"
FORMAT = 1
LARGEST_SEGMENT = 1 << 28  # the largest settings.segment_bytes, and room for the frames that come on top
MEND = "`edgemem memory repair` keeps what comes before and sets the rest aside; `edgemem memory forget` begins anew"

_NAME = re.compile(r"journal-([0-9]{20})")
_HEADER, _CHECKPOINT = 1, 2
_HEADER_BYTES = 1 << 18


@dataclass(frozen=True)
class Header:
    """begins: the number of the frame with which the conversation begins, older segments being leftovers of one that
    was forgotten. created: seconds since 1970. policy: the one in use as the segment began."""

    begins: int
    created: int
    identity: Identity
    policy: Mapping[str, Any]


@dataclass(frozen=True)
class Segment:
    """A segment that was read. conversation: as its first frame has it, until more are applied. torn: what a crash
    left behind the last sound frame."""

    header: Header
    conversation: Conversation
    frames: Frames
    torn: bytes

    @property
    def first(self) -> int:
        return self.frames.first

    @property
    def last(self) -> int:
        return self.first + len(self.frames) - 1

    @property
    def entry_bytes(self) -> int:
        return self.frames.stop - next(iter(self.frames)).stop

    @property
    def entry_frames(self) -> Iterator[Frame]:
        """All frames but the first, which has no entries of the conversation."""
        return islice(self.frames, 1, None)


def segment_name(first: int) -> str:
    return f"journal-{first:020d}"


def segment_numbers(names: Iterable[str]) -> list[int]:
    """The first frames of the segments among a folder's names, rising."""
    return sorted(int(found[1]) for found in map(_NAME.fullmatch, names) if found)


def opening(first: int, header: Header, checkpoint: bytes) -> bytes:
    """What a new segment holds."""
    plain = {
        "format": FORMAT,
        "begins": header.begins,
        "created": header.created,
        "identity": header.identity.to_dict(),
        "policy": header.policy,
    }
    payload = packed(_HEADER, json.dumps(plain).encode()) + packed(_CHECKPOINT, checkpoint)
    return MAGIC + frame(first, payload)


def read_segment(disk: Disk, first: int, *, newest: bool) -> Segment:
    """Raises StoreError for damage that no crash explains: in the newest segment, with sound frames behind it."""
    where = disk.folder / segment_name(first)
    data = read_file(disk, segment_name(first))
    if data[: len(MAGIC)] != MAGIC:
        raise StoreError("no segment of a journal", where=where, got=shown(data[:8]), wanted=shown(MAGIC), do=MEND)
    frames, damage = read_frames(data, len(MAGIC), first)
    if damage is not None and (not frames or damage.later is not None or not newest):
        raise _damaged(where, damage)
    if not frames:
        raise StoreError("the journal's segment is empty", where=where, do=MEND)
    opened = next(iter(frames))
    try:
        header, conversation = _opened(opened.payload, first)
    except (ValueError, EdgememError) as problem:
        raise _malformed(where, opened, problem) from problem
    return Segment(header, conversation, frames, data[frames.stop :])


def apply_frame(disk: Disk, segment: Segment, found: Frame) -> None:
    """Let the segment's conversation take a frame's entries. Raises StoreError if they cannot come here."""
    try:
        for entry in decode(found.payload):
            segment.conversation.apply(entry)
    except ValueError as problem:
        raise _malformed(disk.folder / segment_name(segment.first), found, problem) from problem


def read_entries(disk: Disk, begins: int, after: int, last: int) -> Iterator[Entry]:
    """The entries of the frames numbered after+1 to last, segment by segment.

    Raises StoreError where a segment is missing or damaged.
    """
    numbers = [number for number in segment_numbers(disk.names()) if begins <= number <= last]
    after = max(after, begins)
    earlier = [number for number in numbers if number <= after]
    if not earlier:
        raise _missing(disk, after)
    expected = earlier[-1]
    for number in numbers[len(earlier) - 1 :]:
        if number != expected:
            raise _missing(disk, expected)
        segment = read_segment(disk, number, newest=number == numbers[-1])
        for found in segment.entry_frames:
            if after < found.sequence <= last:
                yield from _decoded(disk, segment, found)
        expected = segment.last + 1
    if expected <= last:
        raise _missing(disk, expected)


def sound_bytes(disk: Disk, first: int) -> int:
    """How much of a segment is sound, frame by frame and entry by entry; 0 where its beginning is not."""
    data = read_file(disk, segment_name(first))
    frames, _ = read_frames(data, len(MAGIC), first)
    sound, conversation = 0, None
    try:
        for found in frames:
            if conversation is None:
                _, conversation = _opened(found.payload, first)
            else:
                for entry in decode(found.payload):
                    conversation.apply(entry)
            sound = found.stop
    except (ValueError, EdgememError):
        pass  # the first frame that is malformed ends it
    return sound if data[: len(MAGIC)] == MAGIC else 0


def read_file(disk: Disk, name: str) -> bytes:
    """A whole segment; StoreError for one that is too large, as for what the system refuses."""
    try:
        descriptor = disk.open(name)
        try:
            size = os.fstat(descriptor).st_size  # another process may be writing: what comes later is not looked at
            if size > LARGEST_SEGMENT:
                wanted = f"at most {LARGEST_SEGMENT} bytes"
                raise StoreError("a segment is too large", where=disk.folder / name, got=size, wanted=wanted)
            return read_at_most(descriptor, size)
        finally:
            os.close(descriptor)
    except OSError as problem:
        raise disk_error(problem, f"cannot read {name}", disk.folder) from problem


def _opened(payload: memoryview, first: int) -> tuple[Header, Conversation]:
    parts = list(islice(unpacked(payload), 3))
    if [kind for kind, _ in parts] != [_HEADER, _CHECKPOINT]:
        raise ValueError(f"entries of kinds {[kind for kind, _ in parts]}, wanted header and checkpoint")
    if len(parts[0][1]) > _HEADER_BYTES:
        raise ValueError(f"a header of {len(parts[0][1])} bytes, wanted at most {_HEADER_BYTES}")
    plain = parse_json_object(bytes(parts[0][1]))
    if set(plain) != {"format", "begins", "created", "identity", "policy"} or plain["format"] != FORMAT:
        raise ValueError(f"a header of {shown(plain)}, wanted format {FORMAT}")
    begins, created = plain["begins"], plain["created"]
    if type(begins) is not int or not 0 < begins <= first or type(created) is not int:
        raise ValueError(f"a header that begins at {shown(begins)} and was created at {shown(created)}")
    if not isinstance(plain["policy"], dict):
        raise ValueError(f"a policy that is {shown(plain['policy'])}")
    header = Header(begins, created, Identity.from_dict(plain["identity"]), plain_policy(plain["policy"]))
    return header, Conversation.from_checkpoint(parts[1][1], header.identity.vocabulary)


def _decoded(disk: Disk, segment: Segment, found: Frame) -> Iterator[Entry]:
    try:
        yield from decode(found.payload)
    except ValueError as problem:
        raise _malformed(disk.folder / segment_name(segment.first), found, problem) from problem


def _damaged(where: object, damage: Damage) -> StoreError:
    behind = "nothing sound behind it" if damage.later is None else f"a sound frame behind it at {damage.later}"
    return StoreError(
        "the journal is damaged in its middle",
        where=f"{where}, offset {damage.offset}",
        got=f"{damage.got}, {behind}",
        wanted=damage.wanted,
        do=MEND,
    )


def _malformed(where: object, found: Frame, problem: Exception) -> StoreError:
    return StoreError(
        f"frame {found.sequence} of the journal is malformed",
        where=f"{where}, offset {found.start}",
        got=problem,
        do=MEND,
    )


def _missing(disk: Disk, sequence: int) -> StoreError:
    return StoreError(
        "a segment of the journal is missing",
        where=disk.folder,
        wanted=f"one with frame {sequence}",
        do="go on from what the slots hold, or `edgemem memory forget`",
    )
