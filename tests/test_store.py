"""The store on a real disk: what comes back, who is kept out, and what is refused."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault.simulated_disk import SimulatedDisk
from fault.talk import IDENTITY, POLICY, SETTINGS, VOCABULARY, Talk, Witness, events, open_store, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from leftovers import descriptors

from edgemem.runtime.errors import SettingsError, StoreError, UnsafePathError
from edgemem.runtime.store import Identity, Role, Store, StoreSettings
from edgemem.runtime.store.conversation import MESSAGES_BYTES, Conversation


def opened(folder: Path, **changed: Any) -> Store:
    given = {"identity": IDENTITY, "policy": POLICY, "settings": SETTINGS, **changed}
    return Store.open(folder, **given)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "parent" / "store"


@pytest.fixture
def talked(folder: Path) -> tuple[Path, Witness]:
    """A folder with a talk of three turns, an eviction and two snapshots, in several segments."""
    witness = Witness()
    with opened(folder) as store:
        talk = Talk(store, witness)
        talk.turn(1)
        talk.snapshot()
        talk.turn(2)
        talk.keep([*range(4), *range(20, 36)])
        talk.snapshot()
        talk.turn(3)
    return folder, witness


def test_a_new_store_is_empty_and_private(folder: Path) -> None:
    with opened(folder) as store:
        recovered = store.recovered
        assert (recovered.tokens, recovered.turns, len(recovered.held), recovered.messages) == (0, 0, 0, [])
        assert recovered.snapshot is None
        assert recovered.why_not == "there is no conversation yet"
        talk = Talk(store, Witness())
        talk.turn(1)
        talk.snapshot()
        assert list(store.replay()) != []
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) == 3


def test_all_of_a_talk_comes_back(talked: tuple[Path, Witness]) -> None:
    folder, witness = talked
    with opened(folder) as store:
        assert witness.check(store) == len(witness.said)
        recovered = store.recovered
        assert recovered.turns == 3
        assert recovered.cut_bytes == 0
        assert recovered.why_not is None
        assert recovered.snapshot is not None
        assert recovered.snapshot.tables["scores"].dtype == np.float32
        np.testing.assert_array_equal(recovered.held["score"], recovered.held["id"] % 9 * np.float32(0.5))


def test_generated_tokens_come_back_together_and_read_ones_as_they_were_read(folder: Path) -> None:
    with opened(folder) as store:
        store.append_tokens([1, 2], Role.TEXT, generated=False)
        store.append_tokens([3], Role.TEXT, generated=False, scores=np.array([np.nan], np.float32))
        for token in (4, 5, 6):
            store.append_tokens([token], Role.ASSISTANT, generated=True)
        assert store.flush()
        assert [entry.ids.tolist() for entry in store.replay()] == [[1, 2], [3], [4, 5, 6]]  # type: ignore[union-attr]
    with opened(folder) as store:
        assert np.isnan(store.recovered.held["score"]).all()


def test_arrays_are_copied_as_engines_use_theirs_again(folder: Path) -> None:
    ids, scores = np.array([7, 8], np.int32), np.array([1, 2], np.float32)
    with opened(folder) as store:
        store.append_tokens(ids, Role.USER, generated=False, scores=scores)
        ids[:], scores[:] = 0, 0
        store.flush()
        assert events(store.replay()) == [("read", Role.USER, ((7, 1.0), (8, 2.0)))]


def test_a_turn_that_was_cut_off_says_what_it_was(folder: Path) -> None:
    asked = {"role": "user", "content": "why?"}
    with opened(folder) as store:
        store.begin_turn([asked], whole=True)
        store.append_tokens([1, 2, 3], Role.USER, generated=False)
        store.append_tokens([4, 5], Role.ASSISTANT, generated=True)
    with opened(folder) as store:
        unfinished = store.recovered.unfinished
        assert unfinished is not None
        assert (unfinished.messages, unfinished.whole, unfinished.generated) == ((asked,), True, (4, 5))
        assert store.recovered.messages == []
        store.end_turn("because")
    with opened(folder) as store:
        assert store.recovered.unfinished is None
        assert store.recovered.messages == [asked, {"role": "assistant", "content": "because"}]


def test_the_thread_takes_tokens_to_the_disk_by_itself(folder: Path) -> None:
    with opened(folder, settings=StoreSettings(flush_ms=1)) as store:
        for count in (3, 5):
            store.append_tokens([1] * (count - store.durable_tokens), Role.TEXT, generated=True)
            until = time.monotonic() + 60
            while store.durable_tokens < count and time.monotonic() < until:
                time.sleep(0.001)
            assert store.durable_tokens == count
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edgemem-store")]


def test_closing_flushes_and_ends(folder: Path) -> None:
    before = descriptors()
    store = opened(folder, settings=StoreSettings(flush_ms=60_000))
    store.append_tokens([1], Role.TEXT, generated=True)
    assert descriptors() - before
    store.close()
    store.close()
    assert not descriptors() - before
    with pytest.raises(SettingsError, match="closed"):
        store.append_tokens([1], Role.TEXT, generated=True)
    with opened(folder) as store:
        assert store.recovered.tokens == 1


def test_flushing_from_other_threads_loses_and_doubles_nothing(folder: Path) -> None:
    with opened(folder, settings=StoreSettings(flush_ms=1, segment_bytes=500)) as store:
        threads = [threading.Thread(target=lambda: [store.flush() for _ in range(50)]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for token in range(600):
            store.append_tokens([token], Role.ASSISTANT, generated=True)
        for thread in threads:
            thread.join()
        store.flush()
        assert [token for _, _, (token, _) in events(store.replay())] == list(range(600))


def test_closing_never_waits_for_what_is_to_come_later() -> None:
    for number in range(200):
        disk = SimulatedDisk()
        store = open_store(disk, settings=StoreSettings(flush_ms=0.01 if number % 2 else 1e6))
        store.append_tokens([number], Role.TEXT, generated=True)
        if number % 3:
            store.flush()
            store.append_tokens([number], Role.TEXT, generated=True)
        store.close()
        assert open_store(disk).recovered.tokens == (2 if number % 3 else 1)


class InterruptedDisk(SimulatedDisk):
    """The user presses Ctrl-C in the middle of each write."""

    armed = False

    def write(self, file: int, data: bytes | bytearray | memoryview) -> None:
        half = len(data) // 2
        super().write(file, data[:half])
        if self.armed:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.01)
        super().write(file, data[half:])


def test_an_interruption_cuts_no_write_short_and_doubles_none() -> None:
    disk = InterruptedDisk()
    talk = Talk(open_store(disk), Witness())
    talk.turn(1)
    talk.begin([])
    talk.tokens([1, 2, 3], Role.TEXT, generated=False)
    disk.armed = True
    with pytest.raises(KeyboardInterrupt):
        talk.flush()
    disk.armed = False
    talk.tokens([4], Role.TEXT, generated=True)
    talk.end(None)
    assert talk.store.problem is None
    assert talk.witness.check(open_store(disk.after_crash("drop"))) == len(talk.witness.said)


def test_an_interruption_within_an_entry_ends_the_keeping_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[StoreError] = []
    disk = SimulatedDisk()
    talk = Talk(open_store(disk, on_problem=told.append), Witness())
    talk.turn(1)
    apply = Conversation.apply

    def interrupted(conversation: Conversation, entry: Any) -> None:
        apply(conversation, entry)
        raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        talk.begin([])
    monkeypatch.undo()
    talk.end(None)
    talk.turn(2)
    assert told == [talk.store.problem]
    assert "interruption" in told[0].what
    talk.witness.check(open_store(disk))


def test_a_conversation_that_can_be_read_and_not_written_comes_back_whole() -> None:
    disk, witness, told = SimulatedDisk(), Witness(), list[StoreError]()
    talk = Talk(open_store(disk), witness)
    talk.turn(1)
    talk.snapshot()
    talk.turn(2)
    disk.failures = dict.fromkeys(range(disk.steps + 1, 10_000), errno.EROFS)
    store = open_store(disk, on_problem=told.append)
    assert witness.check(store) == len(witness.said)
    assert told == [store.problem]
    Talk(store, Witness()).turn(3)
    assert store.durable_tokens == 36
    store.close()


def test_only_one_process_may_write(folder: Path) -> None:
    with opened(folder), pytest.raises(StoreError) as caught:
        opened(folder)
    assert f"process {os.getpid()}" in str(caught.value)
    opened(folder).close()


BAD_CALLS: dict[str, Callable[[Store], object]] = {
    "a turn inside a turn": lambda store: store.begin_turn(),
    "no tokens": lambda store: store.append_tokens([], Role.TEXT, generated=True),
    "a token beyond the vocabulary": lambda store: store.append_tokens([VOCABULARY], Role.TEXT, generated=True),
    "a negative token": lambda store: store.append_tokens([-1], Role.TEXT, generated=True),
    "a token that would wrap": lambda store: store.append_tokens([1 << 32], Role.TEXT, generated=True),
    "a fraction": lambda store: store.append_tokens([1.5], Role.TEXT, generated=True),
    "a flag": lambda store: store.append_tokens([True], Role.TEXT, generated=True),
    "a table": lambda store: store.append_tokens([[1]], Role.TEXT, generated=True),
    "no role": lambda store: store.append_tokens([1], 9, generated=True),  # type: ignore[arg-type]
    "too few scores": lambda store: store.append_tokens(
        [1, 2], Role.TEXT, generated=True, scores=np.ones(1, np.float32)
    ),
    "an infinite score": lambda store: store.append_tokens(
        [1], Role.TEXT, generated=True, scores=np.array([np.inf], np.float32)
    ),
    "a slot not in use": lambda store: store.append_keep(np.array([0, 3])),
    "a negative slot": lambda store: store.append_keep(np.array([-1, 0])),
    "falling slots": lambda store: store.append_keep(np.array([1, 0])),
    "a slot twice": lambda store: store.append_keep(np.array([1, 1])),
    "fractional slots": lambda store: store.append_keep(np.array([0.0])),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_what_cannot_come_next_is_refused_and_changes_nothing(folder: Path, call: Callable[[Store], object]) -> None:
    witness = Witness()
    with opened(folder) as store:
        talk = Talk(store, witness)
        talk.begin([])
        talk.tokens([1, 2, 3], Role.TEXT, generated=False)
        with pytest.raises(SettingsError):
            call(store)
        talk.end(None)
        with pytest.raises(SettingsError):
            store.end_turn(None)
    with opened(folder) as store:
        witness.check(store)


@pytest.mark.parametrize(
    "message",
    [{"role": "user"}, {"role": "", "content": ""}, {"role": "x" * 65, "content": ""}, {"role": 1, "content": ""}],
)
def test_malformed_messages_are_refused(folder: Path, message: Any) -> None:
    with opened(folder) as store, pytest.raises(SettingsError):
        store.begin_turn([message])


@pytest.mark.parametrize(
    "changed", [{"flush_ms": 0}, {"flush_ms": float("nan")}, {"flush_ms": True}, {"segment_bytes": 0}]
)
def test_bad_settings_are_refused(changed: Any) -> None:
    with pytest.raises(SettingsError):
        StoreSettings(**changed)


@pytest.mark.parametrize(
    "changed", [{"weights": "A" * 64}, {"vocabulary": 0}, {"layers": True}, {"engine": "a/b"}, {"tokenizer": 3}]
)
def test_a_bad_identity_is_refused(changed: Any) -> None:
    with pytest.raises(SettingsError):
        replace(IDENTITY, **changed)


@pytest.mark.parametrize("policy", [{"a": {1, 2}}, {"a": float("nan")}, {"a": "x" * 70_000}])
def test_a_policy_that_json_cannot_hold_is_refused(folder: Path, policy: Any) -> None:
    with pytest.raises(SettingsError):
        opened(folder, policy=policy)


@pytest.mark.parametrize("changed", [{"weights": "c" * 64}, {"tokenizer": "c" * 64}, {"vocabulary": 999}])
def test_a_conversation_with_another_model_is_refused(talked: tuple[Path, Witness], changed: Any) -> None:
    folder, witness = talked
    with pytest.raises(StoreError, match="another") as caught:
        opened(folder, identity=replace(IDENTITY, **changed))
    assert caught.value.got is not None
    assert caught.value.do is not None
    with opened(folder) as store:
        witness.check(store)


@pytest.mark.parametrize("changed", [{"identity": replace(IDENTITY, kv="int8")}, {"policy": {"kind": "window"}}])
def test_with_another_engine_or_policy_the_journal_is_played_again(talked: tuple[Path, Witness], changed: Any) -> None:
    folder, witness = talked
    with opened(folder, **changed) as store:
        recovered = store.recovered
        assert recovered.snapshot is None
        assert "another" in str(recovered.why_not)
        assert recovered.tokens_to_replay == recovered.tokens == 54
        assert events(store.replay()) == witness.said
    with opened(folder) as store:
        witness.check(store)


def test_a_policy_may_hold_what_json_changes(folder: Path) -> None:
    policy = {"spans": ((0, 4), (9, 12)), "share": 0.5}
    with opened(folder, policy=policy) as store:
        talk = Talk(store, Witness())
        talk.turn(1)
        talk.snapshot()
    with opened(folder, policy=policy) as store:
        assert store.recovered.snapshot is not None


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(StoreError, match="other files") as caught:
        opened(tmp_path)
    assert "letters.txt" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letters.txt", "lock"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open"):
        opened(tmp_path / "file" / "store")


def test_links_are_not_followed(talked: tuple[Path, Witness], tmp_path: Path) -> None:
    folder, _ = talked
    newest = max(folder.glob("journal-*"))
    newest.rename(tmp_path / "elsewhere")
    newest.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError):
        opened(folder)


def test_a_missing_old_segment_is_noticed_by_those_who_need_it(talked: tuple[Path, Witness]) -> None:
    folder, witness = talked
    oldest = min(folder.glob("journal-*"))
    assert oldest != max(folder.glob("journal-*"))
    oldest.unlink()
    with opened(folder) as store:
        assert store.recovered.messages == witness.messages(len(witness.said))
        assert store.recovered.snapshot is not None
        with pytest.raises(StoreError, match="missing"):
            list(store.replay())


def test_messages_are_held_up_to_a_mebibyte(folder: Path) -> None:
    with opened(folder, settings=StoreSettings(flush_ms=None)) as store:
        for number in range(5):
            store.begin_turn([{"role": "user", "content": f"{number}" * (MESSAGES_BYTES // 3)}])
            store.end_turn(f"answer {number}")
    with opened(folder) as store:
        kept, before = store.recovered.messages, store.recovered.messages_before
        assert [message["content"][:8] for message in kept] == [
            "answer 2",
            "33333333",
            "answer 3",
            "44444444",
            "answer 4",
        ]
        assert before + len(kept) == 10


def test_forgetting_removes_all_of_it(talked: tuple[Path, Witness]) -> None:
    folder, _ = talked
    with opened(folder) as store:
        before = store.position()
        assert before is not None
        assert store.forget()
        assert store.durable_tokens == 0
        assert not store.snapshot(before, state_of([1]), {})
        assert sorted(path.name[:8] for path in folder.iterdir()) == ["journal-", "lock"]
        talk = Talk(store, Witness())
        talk.turn(4)
    with opened(folder) as store:
        talk.witness.check(store)
    assert not any(b"answer 1" in path.read_bytes() for path in folder.iterdir())


def test_a_real_disk_that_refuses_a_write_does_not_stop_the_talk(folder: Path) -> None:
    told: list[StoreError] = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(folder, on_problem=told.append) as store:
        talk = Talk(store, Witness())
        talk.turn(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(folder.glob("journal-*")).stat().st_size + 9, limits[1]))
        try:
            talk.turn(2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        talk.turn(3)
        assert [store.problem] == told
        assert not store.flush()
    with opened(folder) as store:
        assert store.recovered.cut_bytes == 9
        assert talk.witness.check(store) == talk.witness.safe > 0


@given(st.data())
@settings(max_examples=60)
def test_any_talk_comes_back(data: st.DataObject) -> None:
    disk, witness = SimulatedDisk(), Witness()
    pick = data.draw
    for _ in range(pick(st.integers(1, 3))):
        store = open_store(disk, settings=StoreSettings(flush_ms=None, segment_bytes=pick(st.integers(1, 400))))
        witness.check(store)
        talk = Talk(store, witness)
        open_turn = store.recovered.unfinished is not None
        for kind in pick(st.lists(st.sampled_from(["tokens", "keep", "turn", "flush", "snapshot"]), max_size=12)):
            if kind == "tokens":
                ids = pick(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=5))
                talk.tokens(ids, pick(st.sampled_from(Role)), generated=pick(st.booleans()))
            elif kind == "keep":
                slots = len(witness.held(len(witness.said)))
                talk.keep(sorted(pick(st.sets(st.integers(0, slots - 1)))) if slots else [])
            elif kind == "turn" and open_turn:
                talk.end(pick(st.none() | st.text(max_size=8)))
                open_turn = False
            elif kind == "turn":
                contents = pick(st.lists(st.text(max_size=8), max_size=2))
                talk.begin([{"role": "user", "content": text} for text in contents], whole=pick(st.booleans()))
                open_turn = True
            elif kind == "flush":
                talk.flush()
            elif witness.held(len(witness.said)):
                talk.snapshot()
        witness.flushed.append(len(witness.said))
        store.close()
        witness.safe = len(witness.said)
    witness.check(open_store(disk))


def test_identities_come_back() -> None:
    assert Identity.from_dict(IDENTITY.to_dict()) == IDENTITY
    for plain in ({}, {**IDENTITY.to_dict(), "more": 1}, [], {**IDENTITY.to_dict(), "layers": "2"}):
        with pytest.raises(SettingsError):
            Identity.from_dict(plain)
