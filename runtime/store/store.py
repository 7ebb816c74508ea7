"""Store: a conversation that outlasts the process. Entries go in as they happen and are on disk within 250 ms.

A disk that fails never stops the talk: the store stops acknowledging, keeps the error in `problem` and says so once.
It knows no engine and no policy: those who do hand it arrays and read them back.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemem.runtime.engine import KVState
from edgemem.runtime.errors import SettingsError, StoreError, shown
from edgemem.runtime.limits import LIMITS
from edgemem.runtime.store.conversation import Conversation
from edgemem.runtime.store.disk import Disk, RealDisk, disk_error, write_whole
from edgemem.runtime.store.entries import Entry, Keep, Role, Tokens, TurnBegin, TurnEnd, encode, merged
from edgemem.runtime.store.identity import Identity, plain_policy
from edgemem.runtime.store.journal import Journal
from edgemem.runtime.store.payload import Message
from edgemem.runtime.store.recovery import Recovered, position_of, read_newest, recover
from edgemem.runtime.store.segments import LARGEST_SEGMENT, Header, read_entries
from edgemem.runtime.store.snapshot import Position, Snapshot, snapshot_name, snapshot_numbers, snapshot_parts
from edgemem.runtime.store.writing_thread import WritingThread

_FRAME_BYTES = 4 << 20  # a frame takes entries until it has as many
_SNAPSHOTS = 2
_GOES_ON = "the talk goes on in memory"
_CUT_SHORT = "an interruption came while an entry was taken, so what is kept would not add up"


@dataclass(frozen=True)
class StoreSettings:
    """flush_ms: the longest that an entry waits for the disk; None: until `flush`. segment_bytes: of entries
    in a segment, after which the next begins. Raises SettingsError for bad values."""

    flush_ms: float | None = 250.0
    segment_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        flush = self.flush_ms
        if flush is not None and (isinstance(flush, bool) or not math.isfinite(flush) or flush <= 0):
            raise SettingsError("flush_ms is out of range", got=shown(flush), wanted="a positive number, or None")
        size = self.segment_bytes
        if type(size) is not int or not 0 < size <= LARGEST_SEGMENT // 4:
            raise SettingsError("segment_bytes is out of range", got=shown(size), wanted=f"1 to {LARGEST_SEGMENT // 4}")


class Store:
    """Use as a context manager. Every method may be called from any thread; entries come from one at a time.

    recovered: what was there when it was opened. problem: why the journal is not written any more, None while it is;
    snapshot_problem: the same of the last snapshot. durable_tokens: how many tokens are certainly on disk.
    """

    def __init__(
        self,
        disk: Disk,
        identity: Identity,
        policy: Mapping[str, Any],
        *,
        settings: StoreSettings,
        on_problem: Callable[[StoreError], None] | None,
        now: Callable[[], float],
    ) -> None:
        """See `open`, which also closes the disk if this raises."""
        self._disk, self._identity, self._policy = disk, identity, plain_policy(policy)
        self._settings, self._on_problem = settings, on_problem
        self.problem: StoreError | None = None
        self.snapshot_problem: StoreError | None = None
        self._buffer: list[Entry] = []
        self._state = threading.Lock()  # conversation and buffer; held for microseconds
        self._thread = WritingThread()  # alone touches the journal, once this is done
        self._closed = False
        self._journal = Journal(disk, Header(1, int(now()), identity, self._policy))
        with self._guarded("the conversation cannot be kept in this folder"):
            disk.lock()
        segment = read_newest(disk)
        if segment is None:
            self.recovered = Recovered(why_not="there is no conversation yet")
            self._conversation = Conversation(identity.vocabulary)
        else:
            self.recovered = recover(disk, segment, identity, self._policy)
            self._conversation = segment.conversation
            self._journal.stand_behind(segment)  # also where it cannot be written: it can be replayed
        self.durable_tokens = self._conversation.tokens
        if self.problem is None:
            with self._guarded("the conversation cannot be kept in this folder"):
                if segment is None:
                    self._journal.begin(self._conversation.checkpoint())
                else:
                    self._journal.resume(segment)

    @classmethod
    def open(
        cls,
        folder: Path | str,
        identity: Identity,
        policy: Mapping[str, Any],
        *,
        settings: StoreSettings | None = None,
        on_problem: Callable[[StoreError], None] | None = None,
        disk: Callable[[Path], Disk] = RealDisk,
        now: Callable[[], float] = time.time,
    ) -> Store:
        """The conversation in `folder`, or a new one.

        policy: plain JSON values; with another than its own a snapshot is not used, the journal is. on_problem: called
        at the first error of the journal and of snapshots, perhaps from the store's thread: it must not call the store.
        now: seconds since 1970.
        Raises StoreError if the folder cannot be made or read, is in use, holds something else or a conversation with
        another model, or if its journal is damaged; a torn end of it is cut off. A folder that can be read and not
        written is no error but a `problem`.
        """
        try:
            opened = disk(Path(folder))
        except OSError as problem:
            raise disk_error(problem, "cannot open the conversation's folder", Path(folder)) from problem
        try:
            return cls(opened, identity, policy, settings=settings or StoreSettings(), on_problem=on_problem, now=now)
        except BaseException:
            opened.close()
            raise

    def begin_turn(self, messages: Sequence[Message] = (), *, whole: bool = False) -> None:
        """A turn begins, with what it asks; `whole`: the messages are the whole conversation. Raises SettingsError
        inside a turn and for malformed messages."""
        self._append(lambda: TurnBegin(tuple(dict(message) for message in messages), whole))

    def append_tokens(
        self,
        ids: ArrayLike,
        role: Role,
        *,
        generated: bool,
        scores: NDArray[np.float32] | None = None,
        pinned: bool = False,
    ) -> None:
        """Tokens that went into the next slots: those of one `extend`, or `generated` by the model one step each.

        pinned: they are to stay there. scores: their surprisal, nan where unknown. A token that is drawn but not
        consumed in the end leaves its slot by `append_keep`. Both arrays are copied. Raises SettingsError for what are
        no token ids.
        """
        self._append(lambda: self._tokens(ids, role, generated, scores, pinned))

    def append_keep(self, slots: NDArray[np.int64]) -> None:
        """Of the slots in use only these stayed: eviction, and truncation too. Strictly rising; else SettingsError."""
        self._append(lambda: Keep.of_slots(np.asarray(slots)))

    def end_turn(self, answer: str | None) -> None:
        """The turn ends and is flushed. answer: "" for a note, None where it has none, or is no conversation: then its
        messages are not said. Raises SettingsError outside a turn."""
        self._append(lambda: TurnEnd(answer))
        self.flush()

    def flush(self) -> bool:
        """Whether all that was appended before is now certain to be on disk."""
        self._check_open()
        return self._thread.now(self._flush)

    def position(self) -> Position | None:
        """Flush, and the place in the journal where it now stands; None if it is not written any more.

        Call it where nothing is being appended, with the engine's state as it then is.
        """
        self._check_open()
        return self._thread.now(self._position)

    def snapshot(self, position: Position, state: KVState, tables: Mapping[str, NDArray[Any]]) -> bool:
        """Write what the engine held at `position`; whether it is on disk. Blocks while it writes, not the journal.

        tables: up to 64 arrays of numbers, none empty, by names of [a-z0-9_]. The last two snapshots stay.
        Raises SettingsError for arrays it cannot hold.
        """
        parts = snapshot_parts(Snapshot(position, state, tables), self._identity, self._policy)
        if self.problem or self._closed or position.sequence < self._journal.header.begins:
            return False
        previous, self.snapshot_problem = self.snapshot_problem, None
        try:
            write_whole(self._disk, snapshot_name(position.sequence), parts)
            for number in snapshot_numbers(self._disk.names())[_SNAPSHOTS:]:
                self._disk.remove(snapshot_name(number))
        except OSError as problem:
            self.snapshot_problem = disk_error(problem, "cannot write a snapshot", self._disk.folder)
            if previous is None and self._on_problem:
                self._on_problem(self.snapshot_problem)
        return self.snapshot_problem is None

    def replay(self, after: Position | None = None) -> Iterator[Entry]:
        """The entries since `after`, or all of the conversation, as they are on disk; read segment by segment.

        Raises StoreError where an old segment is missing or damaged.
        """
        begins, last = self._journal.header.begins, self._journal.sequence
        yield from read_entries(self._disk, begins, after.sequence if after else begins, last)

    def let_go_of_snapshot(self) -> None:
        """Unmap the snapshot that was recovered, for whoever has taken it in: its file may be replaced meanwhile."""
        self.recovered = replace(self.recovered, snapshot=None)

    def forget(self) -> bool:
        """Forget the conversation: a new one begins and the old files are removed; whether that is on disk."""
        self._check_open()
        return self._thread.now(self._forget)

    def close(self) -> None:
        """Flush and let go of the folder. Again, it does nothing."""
        if self._closed:
            return
        self._closed = True
        self._thread.now(self._flush)
        self._thread.close()
        self._journal.close()
        self._disk.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, make: Callable[[], Entry]) -> None:
        self._check_open()
        try:
            entry = make()
            with self._state:
                self._conversation.apply(entry)
                if self.problem is None:
                    self._buffer.append(entry)
        except (TypeError, ValueError) as problem:
            raise SettingsError("this cannot come next in a conversation", got=problem) from problem
        except BaseException as interruption:
            self._stop(StoreError(f"{_CUT_SHORT}; {_GOES_ON}", where=self._disk.folder, got=repr(interruption)))
            raise
        if self._settings.flush_ms is not None and self.problem is None:
            self._thread.soon(self._flush, self._settings.flush_ms / 1e3)

    def _tokens(
        self, ids: ArrayLike, role: Role, generated: bool, scores: NDArray[np.float32] | None, pinned: bool
    ) -> Tokens:
        given = np.asarray(ids)
        if given.dtype.kind not in "iu" or (given.dtype != np.int32 and np.any(given >= LIMITS.vocabulary)):
            raise ValueError(f"token ids of {given.dtype}{given.shape}, wanted whole numbers below {LIMITS.vocabulary}")
        copied = None if scores is None else np.array(scores, dtype=np.float32)
        return Tokens(given.astype(np.int32), Role(role), generated, copied, pinned)

    def _flush(self) -> bool:
        with self._state:
            taken = self._take()
        self._write(*taken)
        return self.problem is None

    def _position(self) -> Position | None:
        with self._state:
            taken = self._take()
            here = position_of(self._conversation, 0)
        self._write(*taken)
        return None if self.problem else Position(self._journal.sequence, here.tokens, here.digest)

    def _forget(self) -> bool:
        with self._state:
            self._buffer.clear()
            self._conversation = Conversation(self._identity.vocabulary)
            checkpoint = self._conversation.checkpoint()
        self.durable_tokens = 0
        if self.problem is None:
            with self._guarded("cannot forget the conversation"):
                self._journal.begin_anew(checkpoint)
        return self.problem is None

    def _take(self) -> tuple[list[Entry], bytes | None, int]:
        """What waits to be written, the checkpoint behind it if a new segment is due, and the tokens up to there."""
        entries, self._buffer = self._buffer, []
        full = bool(entries) and self.problem is None and self._journal.size >= self._settings.segment_bytes
        return entries, self._conversation.checkpoint() if full else None, self._conversation.tokens

    def _write(self, entries: list[Entry], checkpoint: bytes | None, tokens: int) -> None:
        if self.problem is not None or not entries:
            return
        with self._guarded("the conversation is not being kept any more"):
            payload = bytearray()
            for part in map(encode, merged(entries)):
                if payload and len(payload) + len(part) > _FRAME_BYTES:
                    self._journal.append(bytes(payload))
                    payload.clear()
                payload += part
            self._journal.append(bytes(payload))
            self.durable_tokens = tokens
            if checkpoint is not None:
                self._journal.begin(checkpoint)

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """An OSError inside ends the writing, for good: after a failed write or sync nothing is known of the file."""
        try:
            yield
        except OSError as problem:
            self._journal.close()
            self._stop(disk_error(problem, f"{what}; {_GOES_ON}", self._disk.folder))

    def _stop(self, problem: StoreError) -> None:
        if self.problem is None:
            self.problem = problem
            if self._on_problem is not None:
                self._on_problem(problem)

    def _check_open(self) -> None:
        if self._closed:
            raise SettingsError("the store is closed", do="open it again")
