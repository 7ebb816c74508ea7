"""Damaged and hostile stores: torn ends are cut, damage is named, doubtful snapshots not used, memory stays small."""

from __future__ import annotations

import hashlib
import json
import os
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault.simulated_disk import SimulatedDisk
from fault.talk import IDENTITY, POLICY, Talk, Witness, events, open_store, state_of

from edgemem.runtime.engine import KVState
from edgemem.runtime.errors import SettingsError, StoreError
from edgemem.runtime.store import Store, StoreSettings
from edgemem.runtime.store.entries import packed
from edgemem.runtime.store.frames import frame, read_frames
from edgemem.runtime.store.journal import CUT_FILE
from edgemem.runtime.store.payload import messages_bytes
from edgemem.runtime.store.segments import MAGIC, Header, opening, segment_name
from edgemem.runtime.store.snapshot import Position, Snapshot, read_snapshot, snapshot_name, snapshot_parts
from edgemem.runtime.store.upkeep import forget, look, read_history, repair

ONE_SEGMENT = StoreSettings(flush_ms=None)
MEBIBYTE = 1 << 20


def talked(turns: int = 3, settings: StoreSettings = ONE_SEGMENT) -> tuple[dict[str, bytes], Witness]:
    """The files of a talk, with a snapshot behind each turn."""
    disk, witness = SimulatedDisk(), Witness()
    talk = Talk(open_store(disk, settings=settings), witness)
    for number in range(turns):
        talk.turn(number)
        talk.snapshot()
    return disk.files, witness


def bounds_of(data: bytes, first: int = 1) -> list[int]:
    """Where each frame starts, and where the last stops."""
    frames, damage = read_frames(data, len(MAGIC), first)
    assert damage is None
    return [*(found.start for found in frames), frames.stop]


def refused(files: dict[str, bytes]) -> StoreError:
    with pytest.raises(StoreError) as caught:
        open_store(SimulatedDisk(files))
    return caught.value


def opens(files: dict[str, bytes], witness: Witness) -> tuple[Store, SimulatedDisk]:
    """The store of a journal with less in it than was acknowledged; what is there must be sound."""
    disk = SimulatedDisk(files)
    store = open_store(disk)
    count = len(events(store.replay()))
    Witness(witness.said[:count], [count]).check(store)
    return store, disk


def test_an_end_torn_at_any_byte_is_cut_and_set_aside() -> None:
    files, witness = talked()
    name = segment_name(1)
    whole = files[name]
    *_, start, stop = bounds_of(whole)
    for cut in range(start, stop + 1):
        store, disk = opens({name: whole[:cut]}, witness)
        torn = whole[start:cut] if cut < stop else b""
        assert store.recovered.cut_bytes == len(torn)
        assert disk.files.get(CUT_FILE, b"") == torn
        assert disk.files[name] == whole[: cut - len(torn)]


@pytest.mark.parametrize("end", [b"\0" * 5000, b"\xff" * 5000, random.Random(1).randbytes(5000)])
def test_rubbish_behind_the_end_is_cut(end: bytes) -> None:
    files, witness = talked()
    store, _ = opens({segment_name(1): files[segment_name(1)] + end}, witness)
    assert store.recovered.cut_bytes == 5000
    assert witness.check(open_store(SimulatedDisk(files))) == len(events(store.replay()))


def test_any_flipped_bit_is_found() -> None:
    files, witness = talked()
    name = segment_name(1)
    whole = files[name]
    bounds = bounds_of(whole)
    source = random.Random(2)
    for _ in range(300):
        place, bit = source.randrange(len(whole)), 1 << source.randrange(8)
        flipped = bytearray(whole)
        flipped[place] ^= bit
        if place >= bounds[-2]:
            store, _ = opens({name: bytes(flipped)}, witness)
            assert store.recovered.cut_bytes == len(whole) - bounds[-2]
        else:
            problem = refused({name: bytes(flipped)})
            hit = max(start for start in bounds if start <= max(place, bounds[0]))
            assert place < len(MAGIC) or f"offset {hit}" in str(problem.where)
            assert problem.got
            assert problem.wanted
            assert "edgemem memory repair" in str(problem.do)


def test_frames_that_are_missing_doubled_or_swapped_are_found() -> None:
    whole = talked()[0][segment_name(1)]
    bounds = bounds_of(whole)
    parts = [whole[start:stop] for start, stop in pairwise(bounds)]
    assert len(parts) > 5
    for changed in (
        [*parts[:2], *parts[3:]],
        [*parts[:3], parts[2], *parts[3:]],
        [*parts[:2], parts[3], parts[2], *parts[4:]],
        parts[1:],
    ):
        assert "damaged in its middle" in refused({segment_name(1): MAGIC + b"".join(changed)}).what


def test_damage_in_an_old_segment_hinders_only_those_who_read_it() -> None:
    files, witness = talked(settings=StoreSettings(flush_ms=None, segment_bytes=300))
    oldest = files[segment_name(1)]
    store, _ = opens(files, witness)
    store = open_store(SimulatedDisk({**files, segment_name(1): oldest[:-1]}))
    assert store.recovered.snapshot is not None
    assert store.recovered.messages == witness.messages(len(witness.said))
    with pytest.raises(StoreError, match="damaged"):
        list(store.replay())


def test_a_frame_whose_entries_cannot_be_is_named() -> None:
    files, _ = talked()
    name, stop = segment_name(1), bounds_of(files[segment_name(1)])[-1]
    number = len(bounds_of(files[name]))
    for payload in (b"", packed(99, b""), packed(4, bytes(range(8))), packed(6, b"\0"), packed(3, b"\1\1abc"), b"\3"):
        problem = refused({name: files[name] + frame(number, payload)})
        assert problem.what == f"frame {number} of the journal is malformed"
        assert f"offset {stop}" in str(problem.where)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`talked` in a folder, with several segments."""
    for name, data in talked(5, StoreSettings(flush_ms=None, segment_bytes=400))[0].items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def open_folder(folder: Path) -> Store:
    return Store.open(folder, IDENTITY, POLICY, settings=ONE_SEGMENT)


def test_repair_keeps_what_comes_before_the_damage(folder: Path) -> None:
    path = max(folder.glob("journal-*"))
    first = int(path.name[-20:])
    whole = path.read_bytes()
    bounds = bounds_of(whole, first)
    assert len(bounds) > 3
    assert repair(folder) == 0
    damaged = bytearray(whole)
    damaged[bounds[1] + 20] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(StoreError, match="middle"):
        open_folder(folder)
    assert repair(folder) == len(whole) - bounds[1]
    assert (folder / CUT_FILE).read_bytes() == damaged[bounds[1] :]
    with open_folder(folder) as store:
        assert store.recovered.tokens > 0
        assert all(path.name[9:29] <= f"{first:020d}" for path in folder.glob("snapshot-*"))


def test_repair_without_a_sound_beginning_goes_back_to_the_segment_before(folder: Path) -> None:
    newest = max(folder.glob("journal-*"))
    newest.write_bytes(b"")
    with pytest.raises(StoreError, match="no segment"):
        open_folder(folder)
    repair(folder)
    assert not newest.exists()
    with open_folder(folder) as store:
        assert store.recovered.tokens > 0


def test_repair_does_not_destroy_the_last_segment(tmp_path: Path) -> None:
    (tmp_path / segment_name(1)).write_bytes(b"not a journal")
    with pytest.raises(StoreError, match="no sound beginning"):
        repair(tmp_path)
    assert (tmp_path / segment_name(1)).read_bytes() == b"not a journal"
    assert forget(tmp_path) == 1
    open_folder(tmp_path).close()


def test_upkeep_of_nothing_is_refused(tmp_path: Path) -> None:
    for work in (look, repair, lambda path: list(read_history(path))):
        with pytest.raises(StoreError, match=r"no conversation|no journal"):
            work(tmp_path)
    with pytest.raises(StoreError, match="no conversation"):
        forget(tmp_path / "missing")


def test_looking_needs_no_lock_and_changing_does(folder: Path) -> None:
    with open_folder(folder) as store:
        seen = look(folder)
        assert (seen.header.identity, dict(seen.header.policy)) == (IDENTITY, POLICY)
        assert seen.conversation.tokens == store.recovered.tokens
        assert seen.conversation.messages == store.recovered.messages
        assert len(seen.segments) > 1
        assert len(seen.snapshots) == 2
        assert events(read_history(folder)) == events(store.replay())
        for work in (repair, forget):
            with pytest.raises(StoreError, match="another process"):
                work(folder)
    assert forget(folder) > 3
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_a_damaged_snapshot_is_not_used_and_the_older_one_is() -> None:
    files, witness = talked()
    older, newest = sorted(name for name in files if name.startswith("snapshot"))
    source = random.Random(3)
    for _ in range(100):
        flipped = bytearray(files[newest])
        flipped[source.randrange(len(flipped))] ^= 1 << source.randrange(8)
        store = open_store(SimulatedDisk({**files, newest: bytes(flipped)}))
        assert store.recovered.snapshot is not None
        assert snapshot_name(store.recovered.snapshot.position.sequence) == older
        assert newest in str(store.recovered.why_not)
        assert events(store.replay(store.recovered.snapshot.position)) == witness.said[-9:]
    short = {name: data[:-1] if name.startswith("snapshot") else data for name, data in files.items()}
    store = open_store(SimulatedDisk(short))
    assert store.recovered.snapshot is None
    assert "snapshot" in str(store.recovered.why_not)
    assert store.recovered.tokens_to_replay == store.recovered.tokens


def test_a_snapshot_of_another_conversation_is_not_used() -> None:
    files, _ = talked()
    other, witness = SimulatedDisk(), Witness()
    talk = Talk(open_store(other, settings=ONE_SEGMENT), witness)
    for number in range(5, 8):
        talk.turn(number)
        talk.snapshot()
    swapped = {name: other.files[name] if name.startswith("snapshot") else data for name, data in files.items()}
    assert swapped.keys() == other.files.keys()
    recovered = open_store(SimulatedDisk(swapped)).recovered
    assert recovered.snapshot is None
    assert "another conversation" in str(recovered.why_not)


def test_snapshots_that_the_journal_does_not_reach_are_removed() -> None:
    files, witness = talked()
    name = segment_name(1)
    start = bounds_of(files[name])[2]
    store, disk = opens({**files, name: files[name][:start]}, witness)
    assert store.recovered.snapshot is None
    assert "ahead of the journal" in str(store.recovered.why_not)
    assert not [name for name in disk.files if name.startswith("snapshot")]


POSITION = Position(3, 5, "d" * 64)


def written(snapshot: Snapshot, **changed: Any) -> bytes:
    return b"".join(snapshot_parts(snapshot, replace(IDENTITY, **changed), POLICY))


def read(data: bytes) -> Snapshot:
    descriptor = os.memfd_create("snapshot")
    try:
        os.write(descriptor, data)
        return read_snapshot(descriptor, Path("snapshot"), IDENTITY, POLICY)
    finally:
        os.close(descriptor)


def test_a_snapshot_comes_back_bit_for_bit() -> None:
    tables = {"ids": np.arange(5), "pinned": np.array([[True, False]]), "score": np.array([np.nan, -0.0])}
    state = state_of([1, 2, 3, 4, 5])
    columns = KVState(np.asfortranarray(state.keys), state.values[:, :, ::1], None)
    snapshot = read(written(Snapshot(POSITION, columns, tables)))
    assert snapshot.position == POSITION
    assert snapshot.state.keys.tobytes() == state.keys.tobytes()
    assert snapshot.state.values.tobytes() == state.values.tobytes()
    assert snapshot.state.logits is None
    assert {name: (table.dtype, table.tobytes()) for name, table in snapshot.tables.items()} == {
        name: (table.dtype, table.tobytes()) for name, table in tables.items()
    }


def _edited(change: Callable[[dict[str, Any]], None]) -> bytes:
    """A snapshot whose header says something else, with a checksum that fits."""
    data = written(Snapshot(POSITION, state_of([1, 2]), {"ids": np.arange(2)}))
    stop = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:stop])
    plain = json.loads(header["__metadata__"]["edgemem"])
    header["__metadata__"]["edgemem"] = plain
    change(header)
    header["__metadata__"]["edgemem"] = json.dumps(plain)
    raw = json.dumps(header).encode()
    fixed = len(raw).to_bytes(8, "little") + raw + data[stop:-32]
    return fixed + hashlib.sha256(fixed).digest()


def _nan_keys() -> bytes:
    state = state_of([1, 2])
    state.keys[1, 0, 1, 3] = np.nan
    return written(Snapshot(POSITION, state, {}))


def _metadata(header: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = header["__metadata__"]["edgemem"]
    return plain


HOSTILE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a huge header": lambda: (1 << 40).to_bytes(8, "little") + b"{}",
    "no snapshot": lambda: (2).to_bytes(8, "little") + b"{}",
    "other heads": lambda: written(
        Snapshot(POSITION, KVState(np.ones((2, 3, 2, 4), np.float16), np.ones((2, 3, 2, 4), np.float16), None), {})
    ),
    "whole numbers": lambda: written(
        Snapshot(POSITION, KVState(np.ones((2, 1, 2, 4), np.int32), np.ones((2, 1, 2, 4), np.int32), None), {})
    ),
    "two lengths": lambda: written(
        Snapshot(POSITION, KVState(np.ones((2, 1, 2, 4), np.float16), np.ones((2, 1, 3, 4), np.float16), None), {})
    ),
    "other logits": lambda: written(Snapshot(POSITION, replace(state_of([1]), logits=np.ones(7, np.float32)), {})),
    "not a number": _nan_keys,
    "another vocabulary": lambda: written(Snapshot(POSITION, state_of([1]), {}), vocabulary=7),
    "another format": lambda: _edited(lambda header: _metadata(header).update(format=2)),
    "another key": lambda: _edited(lambda header: _metadata(header).update(more=1)),
    "a position of text": lambda: _edited(lambda header: _metadata(header).update(sequence="3")),
    "a true position": lambda: _edited(lambda header: _metadata(header).update(tokens=True)),
    "no identity": lambda: _edited(lambda header: _metadata(header).update(identity=[])),
    "no metadata": lambda: written(Snapshot(POSITION, state_of([1]), {})).replace(b'"edgemem"', b'"edgemen"'),
    "another array": lambda: _edited(lambda header: header.update(other=header.pop("table.ids"))),
    "an array of bad name": lambda: _edited(lambda header: header.update({"table.A": header.pop("table.ids")})),
    "no keys": lambda: _edited(lambda header: header.update({"table.keys": header.pop("keys")})),
    "no checksum": lambda: _edited(lambda header: header.update({"table.x": header.pop("checksum")})),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_snapshots_are_refused(make: Callable[[], bytes]) -> None:
    read_refused(make())


def read_refused(data: bytes) -> None:
    with pytest.raises(StoreError):
        read(data)


def test_an_edited_header_that_says_the_same_is_read() -> None:
    assert read(_edited(lambda header: None)).position == POSITION


@pytest.mark.parametrize(
    "snapshot",
    [
        Snapshot(POSITION, state_of([]), {}),
        Snapshot(POSITION, state_of([1]), {"A": np.arange(2)}),
        Snapshot(POSITION, state_of([1]), {"a/b": np.arange(2)}),
        Snapshot(POSITION, state_of([1]), {"empty": np.arange(0)}),
        Snapshot(POSITION, state_of([1]), {"text": np.array(["a"])}),
        Snapshot(POSITION, state_of([1]), {"objects": np.array([None])}),
        Snapshot(POSITION, state_of([1]), {f"t{number}": np.arange(1) for number in range(65)}),
    ],
)
def test_what_a_snapshot_cannot_hold_is_refused_before_it_is_written(snapshot: Snapshot) -> None:
    with pytest.raises(SettingsError):
        written(snapshot)


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def first_frames() -> bytes:
    empty = SimulatedDisk()
    open_store(empty)
    return empty.files[segment_name(1)]


def _many_small_frames() -> bytes:
    keep = packed(4, b"")
    return first_frames() + b"".join(frame(number, keep) for number in range(2, 10_000))


def _many_messages() -> bytes:
    claimed = (1 << 20).to_bytes(4, "little") + messages_bytes([{"role": "a", "content": ""}])[4:] * (1 << 20)
    return first_frames() + frame(2, packed(5, b"\0" + claimed))


def _many_entries_in_the_opening() -> bytes:
    return MAGIC + frame(1, packed(1, b"") * (1 << 20))


def _many_later_frames() -> bytes:
    """What looks like numbers of frames that come later, at every eighth byte."""
    return first_frames() + b"\xff" * 9 + np.full(1 << 19, 5, "<u8").tobytes()


def _huge_header() -> bytes:
    plain = {"format": 1, "identity": [[]] * (1 << 20)}
    return MAGIC + frame(1, packed(1, json.dumps(plain).encode()) + packed(2, b""))


@pytest.mark.parametrize(
    "make", [_many_small_frames, _many_messages, _many_entries_in_the_opening, _many_later_frames, _huge_header]
)
def test_a_hostile_journal_costs_little_memory(make: Callable[[], bytes]) -> None:
    data = make()
    disk = SimulatedDisk({segment_name(1): data})

    def work() -> None:
        try:
            open_store(disk)
        except StoreError:
            return

    # The simulated disk makes copies of its own. Small inputs are to stay small too: they could be larger.
    assert peak_bytes(work) < 3 * len(data) + min(64 * MEBIBYTE, 12 * len(data))


def test_a_hostile_snapshot_costs_little_memory() -> None:
    names = ",".join(f'"table.a{number}":[]' for number in range(1 << 16))
    raw = f"{{{names}}}".encode()[: (1 << 20) - 1] + b"}"
    for data in (len(raw).to_bytes(8, "little") + raw, (1 << 20).to_bytes(8, "little") + b"[" * (1 << 20)):
        assert peak_bytes(lambda data=data: read_refused(data)) < 64 * MEBIBYTE  # type: ignore[misc]


def test_a_segment_of_another_format_is_refused() -> None:
    header = Header(1, 0, IDENTITY, POLICY)
    good = opening(1, header, b"")
    assert "malformed" in refused({segment_name(1): good}).what
    assert "malformed" in refused({segment_name(1): opening(1, replace(header, begins=2), b"")}).what
