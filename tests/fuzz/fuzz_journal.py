"""Any bytes are a segment of a journal, whole or with a torn end, or a StoreError; what is read is what was written.

Each input is read as it is, and with the checksums of its frames put right, so that changes reach what lies beneath.
"""

from __future__ import annotations

import zlib

import driver  # the path to the tests' own helpers
from fault.simulated_disk import SimulatedDisk
from fault.talk import Talk, Witness, open_store

from edgemem.runtime.errors import StoreError
from edgemem.runtime.store import Role
from edgemem.runtime.store.entries import decode, encode
from edgemem.runtime.store.recovery import apply_frames
from edgemem.runtime.store.segments import MAGIC, read_segment, segment_name, sound_bytes

_HEADER = 16


def _seeds() -> list[bytes]:
    """A young journal; one that goes on from a checkpoint inside a turn; one with a torn end."""
    disk = SimulatedDisk()
    talk = Talk(open_store(disk), Witness())
    talk.turn(1, read=3, generated=2)
    talk.keep([0, 1, 3])
    talk.begin([{"role": "user", "content": "a"}, {"role": "tool", "content": ""}], whole=True)
    talk.tokens([5, 6], Role.TOOL, generated=False)
    talk.tokens(list(range(99)), Role.TEXT, generated=True)
    talk.flush()
    talk.end(None)
    talk.turn(2, read=1, generated=2)
    first, second = (disk.files[name] for name in sorted(disk.files))
    return [_numbered(data) for data in (first, second, first[:-3])]


def _numbered(data: bytes) -> bytes:
    """The same frames, numbered from 1 on."""
    return _repaired(data.replace(b'"begins": 6', b'"begins": 1'))


def _repaired(data: bytes) -> bytes:
    """With the number and the checksum put right of every frame that its length gives."""
    fixed, start, sequence = bytearray(data), len(MAGIC), 1
    while start + _HEADER <= len(data):
        stop = start + _HEADER + int.from_bytes(data[start : start + 4], "little")
        if stop > len(data):
            break
        fixed[start + 8 : start + 16] = sequence.to_bytes(8, "little")
        checked = bytes(fixed[start : start + 4] + fixed[start + 8 : stop])
        fixed[start + 4 : start + 8] = zlib.crc32(checked).to_bytes(4, "little")
        start, sequence = stop, sequence + 1
    return bytes(fixed)


def fuzz_one_input(data: bytes) -> bool:
    return _read(data) | _read(_repaired(data))


def _read(data: bytes) -> bool:
    disk = SimulatedDisk({segment_name(1): data})
    try:
        segment = read_segment(disk, 1, newest=True)
    except StoreError:
        if 0 < sound_bytes(disk, 1) == len(data):
            raise AssertionError("refused, and yet sound to its end") from None
        return False
    stop = segment.frames.stop
    if data[stop:] != segment.torn:
        raise AssertionError("bytes that are neither read nor torn")
    try:
        apply_frames(disk, segment)
    except StoreError:
        if sound_bytes(disk, 1) >= stop:
            raise AssertionError("refused, and yet sound") from None
        return False
    if sound_bytes(disk, 1) != stop:
        raise AssertionError(f"sound to {sound_bytes(disk, 1)}, and read to {stop}")
    for found in segment.entry_frames:
        if b"".join(map(encode, decode(found.payload))) != bytes(found.payload):
            raise AssertionError(f"frame {found.sequence} is not what its entries give")
    again = type(segment.conversation).from_checkpoint(
        segment.conversation.checkpoint(), segment.header.identity.vocabulary
    )
    if again.digest() != segment.conversation.digest():
        raise AssertionError("a checkpoint that does not come back")
    return True


SEEDS = _seeds()

if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
