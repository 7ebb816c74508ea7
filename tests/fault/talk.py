"""A talk that is stored, and a witness of it: what was said, what was acknowledged, and what must be found again.

The witness adds the entries up by itself, in plain lists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemem.runtime.engine import KVState
from edgemem.runtime.store import Entry, Identity, Keep, Recovered, Role, Store, StoreSettings, Tokens, TurnBegin

VOCABULARY = 1000
IDENTITY = Identity("a" * 64, "b" * 64, VOCABULARY, layers=2, kv_heads=1, head_dim=4, engine="native", kv="fp16")
POLICY = {"kind": "entropy", "budget": 64, "decay": 0.9}
SETTINGS = StoreSettings(flush_ms=None, segment_bytes=400)

Event = tuple[Any, ...]


def events(entries: Iterable[Entry]) -> list[Event]:
    """Entries as plain values; generated tokens one by one, as how many come together is the store's business."""
    plain: list[Event] = []
    for entry in entries:
        if isinstance(entry, Tokens):
            scores = [None] * len(entry.ids) if entry.scores is None else entry.scores.tolist()
            pairs = tuple(zip(entry.ids.tolist(), scores, strict=True))
            plain += (
                [("token", entry.role, pair) for pair in pairs] if entry.generated else [("read", entry.role, pairs)]
            )
        elif isinstance(entry, Keep):
            plain.append(("keep", *entry.slots.tolist()))
        elif isinstance(entry, TurnBegin):
            plain.append(("begin", entry.whole, *(tuple(sorted(message.items())) for message in entry.messages)))
        else:
            plain.append(("end", entry.answer))
    return plain


@dataclass
class Witness:
    """said: every event so far. flushed: how many there were at each flush. safe: how many are acknowledged. snapshots:
    the same for each snapshot that is."""

    said: list[Event] = field(default_factory=list)
    flushed: list[int] = field(default_factory=lambda: [0])
    safe: int = 0
    snapshots: list[int] = field(default_factory=list)

    def held(self, count: int) -> list[tuple[int, int, int, int]]:
        """(id, role, turn, place) of the slots after that many events."""
        slots: list[tuple[int, int, int, int]] = []
        turn = place = 0
        for kind, *values in self.said[:count]:
            if kind in ("token", "read"):
                role, pairs = values
                for token, _ in [pairs] if kind == "token" else pairs:
                    slots.append((token, role, turn, place))
                    place += 1
            elif kind == "keep":
                slots = [slots[slot] for slot in values]
            elif kind == "begin":
                turn += 1
        return slots

    def messages(self, count: int) -> list[dict[str, str]]:
        said: list[dict[str, str]] = []
        asked: list[dict[str, str]] = []
        for kind, *values in self.said[:count]:
            if kind == "begin":
                whole, *messages = values
                asked = [dict(message) for message in messages]
            elif kind == "end" and values[0] is not None:
                said = [*([] if whole else said), *asked, {"role": "assistant", "content": values[0]}]
        return said

    def check(self, store: Store) -> int:
        """Nothing that was acknowledged is missing, nothing is torn, nothing is mixed; how many events there are."""
        found = events(store.replay())
        count = len(found)
        assert found == self.said[:count]
        assert count >= self.safe
        assert count in self.flushed
        recovered = store.recovered
        names = ("id", "role", "turn", "place")
        assert [tuple(slot[name] for name in names) for slot in recovered.held] == self.held(count)
        assert recovered.messages == self.messages(count)
        assert recovered.tokens == store.durable_tokens == sum(_tokens_of(event) for event in found)
        begun = [event for event in found if event[0] in ("begin", "end")]
        assert (recovered.unfinished is not None) == bool(begun and begun[-1][0] == "begin")
        self._check_snapshot(store, recovered, count)
        return count

    def _check_snapshot(self, store: Store, recovered: Recovered, count: int) -> None:
        if recovered.snapshot is None:
            assert not self.snapshots
            return
        taken = int(recovered.snapshot.tables["said"][0])
        assert taken >= max(self.snapshots, default=0)
        assert taken <= count
        assert_state(recovered.snapshot.state, [slot[0] for slot in self.held(taken)])
        assert events(store.replay(recovered.snapshot.position)) == self.said[taken:count]
        assert recovered.tokens_to_replay == sum(_tokens_of(event) for event in self.said[taken:count])


def state_of(ids: list[int]) -> KVState:
    """An engine's memory that can be told from any other."""
    seed = int.from_bytes(hashlib.sha256(str(ids).encode()).digest()[:4], "little")
    values = np.random.default_rng(seed).standard_normal((2, 2, 1, len(ids), 4)).astype(np.float16)
    return KVState(values[0], values[1], np.full(VOCABULARY, float(len(ids)), dtype=np.float32))


def assert_state(state: KVState, ids: list[int]) -> None:
    wanted = state_of(ids)
    np.testing.assert_array_equal(state.keys, wanted.keys)
    np.testing.assert_array_equal(state.values, wanted.values)
    assert state.logits is not None
    np.testing.assert_array_equal(state.logits, wanted.logits)


class Talk:
    """Says things to a store and tells the witness."""

    def __init__(self, store: Store, witness: Witness) -> None:
        self.store, self.witness = store, witness

    def turn(self, number: int, *, read: int = 12, generated: int = 6) -> None:
        """A question of `read` tokens and an answer of `generated`, flushed in its middle."""
        self.begin([{"role": "user", "content": f"question {number} \ud800 ü"}])
        self.tokens([(7 * number + index) % VOCABULARY for index in range(read)], Role.USER, generated=False)
        for index in range(generated):
            self.tokens([(11 * number + index) % VOCABULARY], Role.ASSISTANT, generated=True)
            if index == generated // 2:
                self.flush()
        self.end(f"answer {number}")

    def begin(self, messages: list[dict[str, str]], *, whole: bool = False) -> None:
        self.witness.said.append(("begin", whole, *(tuple(sorted(message.items())) for message in messages)))
        self.store.begin_turn(messages, whole=whole)

    def tokens(self, ids: list[int], role: Role, *, generated: bool) -> None:
        scores = np.array([0.5 * (token % 9) for token in ids], dtype=np.float32)
        pairs = tuple(zip(ids, scores.tolist(), strict=True))
        self.witness.said += [("token", role, pair) for pair in pairs] if generated else [("read", role, pairs)]
        self.store.append_tokens(ids, role, generated=generated, scores=scores)

    def keep(self, slots: list[int]) -> None:
        self.witness.said.append(("keep", *slots))
        self.store.append_keep(np.array(slots, dtype=np.int64))

    def end(self, answer: str | None) -> None:
        self.witness.said.append(("end", answer))
        self.witness.flushed.append(len(self.witness.said))
        self.store.end_turn(answer)
        self._acknowledged(self.store.problem is None)

    def flush(self) -> None:
        self.witness.flushed.append(len(self.witness.said))
        self._acknowledged(self.store.flush())

    def snapshot(self) -> None:
        count = len(self.witness.said)
        self.witness.flushed.append(count)
        position = self.store.position()
        if position is None:
            return
        self._acknowledged(True)
        state = state_of([slot[0] for slot in self.witness.held(count)])
        tables = {"said": np.array([count]), "scores": np.ones(state.length, np.float32)}
        if self.store.snapshot(position, state, tables):
            self.witness.snapshots.append(count)

    def forget(self) -> None:
        """The witness that is left is of the talk after it."""
        self.witness = Witness()
        self.store.forget()

    def _acknowledged(self, done: bool) -> None:
        if done:
            self.witness.safe = len(self.witness.said)


def open_store(disk: Any, **changed: Any) -> Store:
    """A store on a simulated disk."""
    given = {"settings": SETTINGS, "now": lambda: 1.7e9, **changed}
    return Store.open(Path("simulated"), IDENTITY, POLICY, disk=lambda _: disk, **given)


def _tokens_of(event: Event) -> int:
    return len(event[-1]) if event[0] == "read" else int(event[0] == "token")
