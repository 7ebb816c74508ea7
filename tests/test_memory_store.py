"""Sessions that are stored: they come back in the middle of a conversation and go on as if they had never left."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault.simulated_disk import SimulatedDisk
from forced_engine import ForcedEngine

from edgemem.runtime.errors import SettingsError, StoreError
from edgemem.runtime.memory.keeper import SnapshotKeeper
from edgemem.runtime.memory.memory import Memory
from edgemem.runtime.memory.waking import identity_of
from edgemem.runtime.package import Package
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.sampling import Sampling
from edgemem.runtime.session import Chunk, Session
from edgemem.runtime.store import Store, StoreSettings
from edgemem.runtime.store.upkeep import look
from edgemem.runtime.tokenizer import Tokenizer

ENTROPY = RetentionSettings(policy="entropy", budget=72, recent=16, margin=8)
WINDOW = RetentionSettings(policy="window", budget=72, when="turn")
OPTIONS: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True}
QUESTIONS = ("Where is the lamp?", "And the box, is it in the house by the river? " * 4, "Who has seen it?", "Why?")
both = pytest.mark.parametrize("policy", [ENTROPY, WINDOW, None], ids=["entropy", "window", "full"])


@pytest.fixture
def opened(tiny_package: Path, tmp_path: Path) -> Callable[..., Session]:
    def make(policy: RetentionSettings | None = ENTROPY, folder: Path = tmp_path / "store", **rest: Any) -> Session:
        return Session.open(tiny_package, memory=policy, store=folder, threads=1, **rest)

    return make


def say(session: Session, *questions: str, **options: Any) -> list[str]:
    return ["".join(chunk.text for chunk in session.stream(text, **OPTIONS | options)) for text in questions]


def remembered(session: Session) -> tuple[Any, ...]:
    """All that a session knows."""
    state, table = session.engine.state(), session.memory.table
    return state.keys.tobytes(), state.values.tobytes(), table.rows.tobytes(), table.turn, table.position


def unsnapped(folder: Path) -> list[Path]:
    return list(folder.glob("snapshot-*"))


# --- coming back ------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("engine", ["native", "onnx"])
@pytest.mark.parametrize("snapshot", ["sound", "none", "damaged", "old"])
def test_a_session_comes_back_and_answers_as_if_it_had_never_left(
    tiny_package: Path, tmp_path: Path, policy: RetentionSettings | None, engine: str, snapshot: str
) -> None:
    with Session.open(tiny_package, memory=policy, engine=engine, threads=1) as unbroken:
        unbroken.messages = [{"role": "system", "content": "Be brief."}]
        wanted = say(unbroken, *QUESTIONS)
        known = remembered(unbroken)
    folder, got, heard = tmp_path / "store", [], []
    for place, question in enumerate(QUESTIONS):
        if place and snapshot != "sound":
            for path in unsnapped(folder):
                path.write_bytes(b"\0" * path.stat().st_size) if snapshot == "damaged" else path.unlink()
        if place == 2 and snapshot == "old":
            shutil.copytree(tmp_path / "old", folder, dirs_exist_ok=True)
        with Session.open(
            tiny_package,
            memory=policy,
            store=folder,
            engine=engine,
            threads=1,
            progress=lambda stage, fraction: heard.append((place, fraction)),  # noqa: B023
        ) as session:
            if not place:
                session.messages = [{"role": "system", "content": "Be brief."}]
            assert (len(session.messages), session.unfinished) == (1 + 2 * place if place else 1, None)
            got += say(session, question)
            last = remembered(session)
        if not place:
            (tmp_path / "old").mkdir()
            for path in unsnapped(folder):
                shutil.copy(path, tmp_path / "old")
    assert got == wanted
    assert last == known
    assert heard == sorted(heard)
    assert [fraction for place, fraction in heard].count(1.0) >= {"sound": 0, "old": 3}.get(snapshot, 3)
    assert bool(heard) == (snapshot != "sound")


def test_a_sampled_conversation_with_pins_and_raw_texts_comes_back_too(
    opened: Callable[..., Session], tmp_path: Path
) -> None:
    warm = Sampling(temperature=1.4, top_k=40, repetition_penalty=1.1, seed=3)

    def talk(session: Session, part: int) -> None:
        say(session, "My name is Ada.", sampling=warm, pinned=part == 0)
        say(session, "It is late.", sampling=warm, raw=True)
        say(session, "What is my name?", sampling=warm)

    with opened(folder=tmp_path / "a") as unbroken:
        for part in range(3):
            talk(unbroken, part)
        wanted = unbroken.messages, remembered(unbroken)
        assert unbroken.memory.table.rows["pinned"].sum() > 15
    for part in range(3):
        for path in unsnapped(tmp_path / "b"):
            path.unlink()
        with opened(folder=tmp_path / "b") as session:
            talk(session, part)
            got = session.messages, remembered(session)
    assert got == wanted


def test_another_policy_goes_on_from_the_same_slots(opened: Callable[..., Session]) -> None:
    with opened() as session:
        say(session, *QUESTIONS)
        held = session.memory.tokens
    with opened(replace(WINDOW, budget=100)) as session:
        assert session.memory.tokens == held
        say(session, *QUESTIONS)
        assert session.memory.evictions > 0
    with opened(replace(WINDOW, budget=40), context=100) as session:
        assert session.engine.length > 40
        say(session, "Why?")
        assert session.engine.length <= 40


@pytest.mark.parametrize("policy", ["window", "full"])
def test_an_answer_that_was_cut_off_beyond_a_smaller_budget_ends(
    opened: Callable[..., Session], tmp_path: Path, policy: str
) -> None:
    cut = tmp_path / "cut"
    with opened() as session:
        answer = session.stream(QUESTIONS[0], max_tokens=30, ignore_eos=True)
        for _ in range(12):
            next(answer)
        assert session.memory.store is not None
        session.memory.store.flush()
        shutil.copytree(tmp_path / "store", cut)
        held = session.memory.table.length
        answer.close()
    smaller = RetentionSettings(policy=policy, budget=held - 4, margin=4)  # type: ignore[arg-type]
    with opened(smaller, cut, context=96) as session:
        assert session.unfinished is not None
        reasons = [chunk.finish_reason for chunk in session.resume(max_tokens=100, ignore_eos=True)]
        assert reasons[-1] == "length"
        if policy == "window":
            assert session.memory.evictions > 0
            assert session.engine.length <= held - 4


def test_a_smaller_cache_is_refused_with_the_reason(opened: Callable[..., Session], tmp_path: Path) -> None:
    with opened() as session:
        say(session, *QUESTIONS)
    files = sorted((path.name, path.read_bytes()) for path in (tmp_path / "store").glob("journal-*"))
    with pytest.raises(StoreError, match="as many slots"):
        opened(replace(WINDOW, budget=40))
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "store").glob("journal-*")) == files
    with opened() as session:
        assert len(session.messages) == 8


def test_another_model_is_refused_and_leaves_no_descriptor(
    opened: Callable[..., Session], tiny_package: Path, tmp_path: Path
) -> None:
    with Package.open(tiny_package) as package:
        engine: Any = ForcedEngine(package, lambda _, place: 5)
        other = replace(identity_of(package, engine), weights="0" * 64)
    Store.open(tmp_path / "store", other, ENTROPY.to_dict()).close()
    others = open_below(tiny_package)
    with pytest.raises(StoreError, match="another model"):
        opened()
    assert not open_below(tmp_path)
    assert len(open_below(tiny_package)) <= len(others)


def test_a_second_session_on_the_same_folder_is_refused(opened: Callable[..., Session]) -> None:
    with opened(), pytest.raises(StoreError, match="another process"):
        opened()


def test_reset_forgets_on_disk_too(opened: Callable[..., Session]) -> None:
    with opened() as session:
        say(session, "My name is Ada.")
        session.reset()
        wanted = say(session, "Why?")
    with opened() as session:
        assert [message["content"] for message in session.messages] == ["Why?", *wanted]
        assert session.memory.table.rows["position"][0] == 0


# --- a turn that was cut off -----------------------------------------------------------------------------------------


def cut_off(session: Session, folder: Path, question: str, after: int, **options: Any) -> list[Chunk]:
    """Ask, and copy what is on disk after so many chunks; the answer to its end."""
    chunks = []
    for chunk in session.stream(question, **OPTIONS | options):
        chunks.append(chunk)
        if len(chunks) == after and session.memory.store is not None:
            session.memory.store.flush()
            shutil.copytree(session.memory.store._disk.folder, folder)
    return chunks


@both
@pytest.mark.parametrize("engine", ["native", "onnx"])
def test_an_answer_that_was_cut_off_is_gone_on_with(
    opened: Callable[..., Session], tmp_path: Path, policy: RetentionSettings | None, engine: str
) -> None:
    warm = Sampling(temperature=1.4, seed=5)
    with opened(policy, engine=engine) as session:
        say(session, *QUESTIONS[:2])
        chunks = cut_off(session, tmp_path / "copy", "Who is there?", 12, sampling=warm, max_tokens=60)
        wanted = "".join(chunk.text for chunk in chunks), say(session, "Why?")
        known = session.messages, remembered(session)
    with opened(policy, tmp_path / "copy", engine=engine) as session:
        assert session.unfinished is not None
        assert len(session.messages) == 4
        so_far = session.tokenizer.decode(session.unfinished.generated)
        answer = "".join(chunk.text for chunk in session.resume(**OPTIONS | {"sampling": warm, "max_tokens": 60}))
        assert answer.startswith(so_far)
        assert so_far
        assert (answer, say(session, "Why?")) == wanted
        assert (session.messages, remembered(session)) == known
        assert session.unfinished is None
        with pytest.raises(SettingsError, match="no turn was cut off"):
            next(session.resume())


@both
def test_an_answer_that_was_cut_off_and_left_is_as_one_that_was_cancelled(
    opened: Callable[..., Session], tmp_path: Path, policy: RetentionSettings | None
) -> None:
    with opened(policy) as session:
        say(session, *QUESTIONS[:2])
        cut_off(session, tmp_path / "copy", "Who?", 9)
    with opened(policy, tmp_path / "copy") as session:
        assert session.unfinished is not None
        so_far = session.tokenizer.decode(session.unfinished.generated)
        say(session, "Why?")
        assert session.unfinished is None
        assert [message["content"] for message in session.messages[4:7]] == ["Who?", so_far, "Why?"]
        messages = session.messages
    with opened(policy, tmp_path / "copy") as session:
        assert session.messages == messages


def test_a_question_that_was_cut_off_is_gone_on_with(
    opened: Callable[..., Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consume = Memory.consume

    def copying(memory: Memory, *args: Any, **rest: Any) -> int:
        count = consume(memory, *args, **rest)
        if not (tmp_path / "copy").exists() and memory.turn_start and memory.store is not None:
            memory.store.flush()
            shutil.copytree(memory.store._disk.folder, tmp_path / "copy")
        return count

    monkeypatch.setattr(Memory, "consume", copying)
    with opened() as session:
        wanted = say(session, "Where?", QUESTIONS[1])
        known = remembered(session)
    monkeypatch.undo()
    shutil.copytree(tmp_path / "copy", tmp_path / "left")
    with opened(folder=tmp_path / "copy") as session:
        assert session.unfinished is not None
        assert session.unfinished.generated == ()
        assert 0 < session.memory.table.position - session.memory.turn_start < 150
        assert "".join(chunk.text for chunk in session.resume(**OPTIONS)) == wanted[1]
        assert remembered(session) == known
    with opened(folder=tmp_path / "left") as session:
        say(session, "Why?")
        assert [message["content"] for message in session.messages[:3]] == ["Where?", wanted[0], "Why?"]
        assert (session.memory.table.rows["turn"] != 1).all()  # nothing of the question that was left


def test_resume_where_nothing_was_cut_off(opened: Callable[..., Session]) -> None:
    with opened() as session, pytest.raises(SettingsError, match="no turn was cut off"):
        next(session.resume())


# --- a disk that fails --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tiny_package: Path) -> Iterator[Package]:
    with Package.open(tiny_package) as found:
        yield found


@pytest.fixture
def on_disk(package: Package) -> Callable[[SimulatedDisk], Session]:
    """A session whose engine answers by what it holds, stored on a simulated disk."""
    tokenizer = Tokenizer.open(package)

    def make(disk: SimulatedDisk) -> Session:
        engine = ForcedEngine(package, lambda history, place: (sum(history) + 7 * place) % 200 + 5, 72)
        identity, settings = identity_of(package, engine), StoreSettings(flush_ms=None, segment_bytes=600)
        store = Store.open(Path("x"), identity, WINDOW.to_dict(), settings=settings, disk=lambda _: disk)
        return Session(engine, tokenizer, memory=WINDOW, store=store)

    return make


@pytest.mark.parametrize("error", [28, 5, 30], ids=["full", "EIO", "read-only"])
def test_a_disk_that_fails_at_any_step_does_not_end_the_talk(
    on_disk: Callable[[SimulatedDisk], Session], error: int
) -> None:
    sound = SimulatedDisk()
    with on_disk(sound) as session:
        wanted = say(session, *QUESTIONS)
    assert session.store_problem is None
    for step in range(1, sound.steps + 1):
        disk = SimulatedDisk()
        disk.failures[step] = error
        with on_disk(disk) as session:
            assert say(session, *QUESTIONS) == wanted
            assert session.memory.tokens == session.engine.history  # type: ignore[attr-defined]
        assert session.store_problem is not None
        assert ("full disk" in str(session.store_problem)) == (error == 28)


def test_a_conversation_on_a_disk_that_cannot_be_written_any_more_is_gone_on_with(
    on_disk: Callable[[SimulatedDisk], Session],
) -> None:
    with on_disk(SimulatedDisk()) as session:
        wanted = say(session, *QUESTIONS)
    for snapshots in (True, False):
        disk = SimulatedDisk()
        with on_disk(disk) as session:
            say(session, *QUESTIONS[:2])
        files = {name: data for name, data in disk.files.items() if snapshots or "snapshot" not in name}
        again = SimulatedDisk(files)
        again.failures = dict.fromkeys(range(1, 99), 30)
        with on_disk(again) as session:
            assert session.store_problem is not None
            assert len(session.messages) == 4
            assert say(session, *QUESTIONS[2:]) == wanted[2:]
        assert again.files == files


def open_below(folder: Path) -> list[str]:
    """What this process has open in the folder: what other tests leave behind elsewhere may come and go."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{entry}"))
    return [name for name in found if Path(name).is_relative_to(folder)]


def test_sessions_that_were_stored_leave_no_thread_and_no_descriptor(
    opened: Callable[..., Session], tiny_package: Path, tmp_path: Path
) -> None:
    threads, others = set(threading.enumerate()), open_below(tiny_package)  # of other tests: they may go meanwhile
    for turn in range(30):
        with opened() as session:
            answer = session.stream(QUESTIONS[turn % 4], **OPTIONS)
            for place, _ in enumerate(answer):
                if place == turn % 7 and turn % 3:
                    session.cancel() if turn % 2 else answer.close()
            assert open_below(tmp_path)
        assert not open_below(tmp_path)
        assert len(open_below(tiny_package)) <= len(others)
        assert set(threading.enumerate()) <= threads


# --- snapshots ----------------------------------------------------------------------------------------------------


def test_snapshots_are_taken_now_and_then_and_at_the_close(opened: Callable[..., Session], tmp_path: Path) -> None:
    now = [0.0]
    with opened() as session:
        store = session.memory.store
        assert store is not None
        keeper = session._keeper = SnapshotKeeper(session.memory, store, clock=lambda: now[0])
        say(session, "Where?")
        assert not unsnapped(tmp_path / "store")
        now[0] = 11.0
        say(session, "Why?")
        assert len(unsnapped(tmp_path / "store")) == 1
        keeper.take()  # nothing has changed
        assert len(unsnapped(tmp_path / "store")) == 1
        now[0] = 20.0
        say(session, "So?")
        assert len(unsnapped(tmp_path / "store")) == 1
    assert len(unsnapped(tmp_path / "store")) == 2
    for _ in range(2):
        before = sorted(unsnapped(tmp_path / "store"))
        with opened():
            pass
        assert sorted(unsnapped(tmp_path / "store")) == before


def test_a_journal_that_does_not_add_up_is_refused(opened: Callable[..., Session], tmp_path: Path) -> None:
    with opened() as session:
        say(session, "Where?")
    with Store.open(tmp_path / "store", look(tmp_path / "store").header.identity, ENTROPY.to_dict()) as store:
        store.begin_turn([{"role": "user", "content": "?"}])
        store.append_tokens([5] * 80, 2, generated=False)  # type: ignore[arg-type]  # more than the engine's slots
    with pytest.raises(StoreError, match=r"(?s)cannot be read again.*slots"):
        opened()


def test_unknown_scores_count_as_none(opened: Callable[..., Session]) -> None:
    with opened(WINDOW) as session:
        say(session, "Where?")
    with opened(ENTROPY) as session:
        assert not session.memory.table.rows["score"].any()
        say(session, *QUESTIONS)
        assert np.isfinite(session.memory.table.rows["score"]).all()
