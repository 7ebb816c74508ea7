"""Notes in a session: where they stand in the conversation, in the memory and on disk, and what may come between."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forced_engine import ForcedEngine
from hypothesis import given
from hypothesis import strategies as st

from edgemem.runtime.errors import ContextError, NumericError, SettingsError
from edgemem.runtime.memory.memory import Memory
from edgemem.runtime.package import Package
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.session import Session
from edgemem.runtime.tokenizer import TOKENIZER_FILES, Tokenizer
from edgemem.tools.forgetting import forget_last

ENTROPY = RetentionSettings(policy="entropy", budget=120, recent=16, margin=8)
WINDOW = RetentionSettings(policy="window", budget=120, when="turn")
KEYS, CUP = "[14:03:10] heard: drawer; seen: keys", "[14:05:02] heard: cupboard; seen: a cup"
NOTE = "note"
OPTIONS: dict[str, Any] = {"max_tokens": 6, "ignore_eos": True}
policies = pytest.mark.parametrize("policy", [ENTROPY, WINDOW, None], ids=["entropy", "window", "full"])
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"


@pytest.fixture(scope="module")
def package(tiny_package: Path) -> Iterator[Package]:
    with Package.open(tiny_package) as opened:
        yield opened


@pytest.fixture(scope="module")
def tokenizer(package: Package) -> Tokenizer:
    return Tokenizer.open(package)


@pytest.fixture
def opened(tiny_package: Path, tmp_path: Path) -> Callable[..., Session]:
    def make(policy: RetentionSettings | None = ENTROPY, folder: str | None = "store", **rest: Any) -> Session:
        store = None if folder is None else tmp_path / folder
        return Session.open(tiny_package, memory=policy, store=store, threads=1, **rest)

    return make


def with_template(tiny_package: Path, package: Package, template: str) -> Tokenizer:
    files = {name: (tiny_package / name).read_bytes() for name in TOKENIZER_FILES}
    settings = json.loads(files["tokenizer_config.json"]) | {"chat_template": template}
    return Tokenizer(files | {"tokenizer_config.json": json.dumps(settings).encode()}, package.model.vocabulary)


def spelled(session: Session) -> str:
    """What the slots hold, control tokens included."""
    return session.tokenizer._library.decode(session.memory.tokens, skip_special_tokens=False)


def remembered(session: Session) -> tuple[Any, ...]:
    state, table = session.engine.state(), session.memory.table
    return session.messages, state.keys.tobytes(), table.rows.tobytes(), table.turn, table.position


def say(session: Session, question: str, **options: Any) -> str:
    return "".join(chunk.text for chunk in session.stream(question, **OPTIONS | options))


def note(text: str) -> dict[str, str]:
    return {"role": NOTE, "content": text}


# --- where a note stands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [CHATML, STRICT, BARE], ids=["ChatML", "strict", "bare"])
@pytest.mark.parametrize("policy", [replace(WINDOW, budget=600), None], ids=["window", "full"])
def test_notes_begin_the_message_of_the_next_question(
    tiny_package: Path, package: Package, template: str, policy: RetentionSettings | None
) -> None:
    tokenizer = with_template(tiny_package, package, template)
    engine = ForcedEngine(package, lambda _, place: tokenizer.encode("in the box")[place], 600)
    session = Session(engine, tokenizer, memory=policy)
    answer = {"max_tokens": len(tokenizer.encode("in the box"))}
    list(session.stream("Hello?", **answer))
    session.note(KEYS)
    session.note(CUP)
    assert session.note_problem is None
    open_end = f"{KEYS}\n{CUP}\n"
    assert spelled(session).endswith(open_end)
    list(session.stream("Where are my keys?", **answer))
    begins, closes = spelled(session).split(open_end)
    middle = {CHATML: "<|im_end|>\n<|im_start|>user\n", STRICT: "<|im_end|>\n<|im_start|>user\n", BARE: "\nuser: "}
    behind = {CHATML: "<|im_end|>\n<|im_start|>assistant\n", BARE: "\nassistant: "}
    assert begins.endswith("in the box" + middle[template])
    assert closes.startswith("\nWhere are my keys?" + behind.get(template, behind[CHATML]))
    assert [message["role"] for message in session.messages[1:]] == ["assistant", NOTE, NOTE, "user", "assistant"]


@pytest.mark.parametrize("policy", [replace(ENTROPY, budget=500), None], ids=["entropy", "full"])
def test_notes_and_a_question_are_read_as_the_whole_conversation_would_be(
    tiny_package: Path, opened: Callable[..., Session], policy: RetentionSettings | None
) -> None:
    system = {"role": "system", "content": "Be brief."}
    with opened(policy, None, context=500) as session, opened(policy, None, context=500) as whole:
        session.messages = [system]
        session.note(KEYS)
        say(session, "Where?")
        session.note(CUP)
        say(session, "And the cup?")
        list(whole.stream(session.messages[:-1], **OPTIONS))
        assert spelled(session).startswith(spelled(whole).removesuffix(session.messages[-1]["content"]))
        assert session.messages == whole.messages


def test_a_list_of_messages_may_hold_notes_anywhere(opened: Callable[..., Session]) -> None:
    talk = [note(KEYS), {"role": "assistant", "content": "I see."}, note(CUP), {"role": "user", "content": "Where?"}]
    with opened(None, None) as session:
        list(session.stream(talk, **OPTIONS))
        assert f"user\n{KEYS}\n<|im_end|>\n<|im_start|>assistant\nI see.<|im_end|>" in spelled(session)
        assert f"user\n{CUP}\n\nWhere?<|im_end|>" in spelled(session)


def test_a_pinned_note_stays_and_others_go(opened: Callable[..., Session]) -> None:
    with opened(WINDOW, None) as session:
        session.note(KEYS, pinned=True)
        session.note(CUP)
        for _ in range(4):
            say(session, "Who has seen the lamp by the river?", max_tokens=20)
        assert KEYS in spelled(session)
        assert CUP not in spelled(session)


def test_a_note_changes_neither_timings_nor_the_next_answer(opened: Callable[..., Session]) -> None:
    with opened(None, None) as noted, opened(None, None) as asked:
        say(noted, "Hello?")
        timings = replace(noted.timings)
        noted.note(KEYS)
        assert noted.timings == timings
        answer = say(noted, "Where?")
        assert noted.timings.prefill_tokens < noted.timings.prompt_tokens / 2
        list(asked.stream(noted.messages[:-1], **OPTIONS))
        assert asked.messages[-1]["content"] == answer


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_cannot_be_a_note_is_refused(opened: Callable[..., Session], tiny_package: Path, package: Package) -> None:
    with opened(None, None) as session, pytest.raises(SettingsError, match="no text"):
        session.note(7)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="closed"):
        session.note(KEYS)
    files = {name: (tiny_package / name).read_bytes() for name in TOKENIZER_FILES}
    bare = Tokenizer(files | {"tokenizer_config.json": b"{}"}, package.model.vocabulary)
    with pytest.raises(SettingsError, match="takes no notes"):
        Session(ForcedEngine(package, lambda *_: 5), bare).note(KEYS)


@policies
def test_a_note_without_room_leaves_the_conversation_as_it_was(
    opened: Callable[..., Session], policy: RetentionSettings | None
) -> None:
    with opened(policy, context=120) as session:
        say(session, "Hello?")
        before = remembered(session)
        session.note("a drawer " * 200, pinned=True)
        assert isinstance(session.note_problem, ContextError)
        assert remembered(session) == before
        session.note(KEYS)
        assert session.note_problem is None
        assert session.messages[-1] == note(KEYS)


@pytest.mark.parametrize("policy", [ENTROPY, None], ids=["entropy", "full"])
def test_a_note_that_the_engine_fails_to_read_is_not_in_the_conversation(
    package: Package, tokenizer: Tokenizer, policy: RetentionSettings | None
) -> None:
    engine = ForcedEngine(package, lambda _, place: 5 + place, 120)
    session = Session(engine, tokenizer, memory=policy)
    list(session.stream("Hello?", max_tokens=3))
    said, held = session.messages, list(engine.history)

    def fail(length: int) -> None:
        raise NumericError("the logits are not finite")

    engine.on_consume = fail
    session.note(KEYS)
    assert isinstance(session.note_problem, NumericError)
    assert session.messages == said
    assert session.memory.tokens == engine.history == held[: engine.length]
    engine.on_consume = lambda length: None
    session.note(CUP)
    assert session.note_problem is None
    assert session.memory.tokens == engine.history


# --- a session that is busy -------------------------------------------------------------------------------------------


@policies
def test_a_note_waits_for_the_end_of_the_answer(
    opened: Callable[..., Session], policy: RetentionSettings | None
) -> None:
    with opened(policy, None, context=400) as session:
        answer = session.stream("Hello?", **OPTIONS)
        next(answer)
        session.note(KEYS)
        session.note(CUP)
        assert session.messages == []
        list(answer)
        assert [message["role"] for message in session.messages] == ["user", "assistant", NOTE, NOTE]
        assert spelled(session).endswith(f"{KEYS}\n{CUP}\n")


def test_a_question_waits_for_a_note_that_is_being_read(package: Package, tokenizer: Tokenizer) -> None:
    engine = ForcedEngine(package, lambda _, place: 5 + place, 400)
    session = Session(engine, tokenizer)
    reading, go_on = threading.Event(), threading.Event()

    def hold(length: int) -> None:
        reading.set()
        assert go_on.wait(10)

    engine.on_consume = hold
    noting = threading.Thread(target=session.note, args=(KEYS,))
    noting.start()
    assert reading.wait(10)
    asking = threading.Thread(target=lambda: list(session.stream("Where?", max_tokens=2)))
    asking.start()
    go_on.set()
    noting.join(10)
    asking.join(10)
    assert [message["role"] for message in session.messages] == [NOTE, "user", "assistant"]


def test_a_session_that_is_closed_while_a_note_is_read_closes_behind_it(package: Package, tokenizer: Tokenizer) -> None:
    engine = ForcedEngine(package, lambda _, place: 5 + place, 400)
    session = Session(engine, tokenizer)
    engine.on_consume = lambda length: session.close()
    session.note(KEYS)
    assert engine.closed == 1
    assert session.messages == [note(KEYS)]


def test_notes_from_many_threads_are_all_there_once(package: Package, tokenizer: Tokenizer) -> None:
    engine = ForcedEngine(package, lambda _, place: 5 + place, 120)
    session = Session(engine, tokenizer, memory=WINDOW)
    threads = [
        threading.Thread(target=lambda number=number: [session.note(f"{number} {part}") for part in range(5)])
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for _ in range(5):
        list(session.stream("Where?", max_tokens=3))
    for thread in threads:
        thread.join(30)
    noted = [message["content"] for message in session.messages if message["role"] == NOTE]
    assert sorted(noted) == sorted(f"{number} {part}" for number in range(4) for part in range(5))
    assert session.memory.tokens == engine.history


# --- a session that is stored -----------------------------------------------------------------------------------------


@policies
@pytest.mark.parametrize("snapshot", [True, False], ids=["snapshot", "journal"])
def test_notes_come_back_with_the_conversation(
    opened: Callable[..., Session], tmp_path: Path, policy: RetentionSettings | None, snapshot: bool
) -> None:
    def parts(session: Session, part: int) -> None:
        if part == 1:
            say(session, "Hello?")
        else:
            session.note(f"{part}: {KEYS}", pinned=part == 0)
            session.note(CUP)

    with opened(policy, "unbroken", context=400) as unbroken:
        for part in range(4):
            parts(unbroken, part)
        say(unbroken, "Where?")
        wanted = remembered(unbroken)
    for part in range(5):
        with opened(policy, context=400) as session:
            assert session.unfinished is None
            parts(session, part) if part < 4 else say(session, "Where?")
            got = remembered(session)
        for path in () if snapshot else (tmp_path / "store").glob("snapshot-*"):
            path.unlink()
    assert got == wanted


@policies
@pytest.mark.parametrize("after", ["an answer", "a note", "other messages", "nothing"])
def test_a_note_that_a_kill_cut_off_is_read_again(
    opened: Callable[..., Session],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: RetentionSettings | None,
    after: str,
) -> None:
    consume, copied = Memory.consume, tmp_path / "killed"

    def copying(memory: Memory, *args: Any, **rest: Any) -> int:
        count = consume(memory, args[0][:20], *args[1:], **rest)
        if said and not copied.exists():
            assert memory.store is not None
            memory.store.flush()
            shutil.copytree(tmp_path / "store", copied)
        return count

    said: list[str] = []
    monkeypatch.setattr(Memory, "consume", copying)
    with opened(policy, context=400) as session:
        if after != "nothing":
            say(session, "Hello?")
        if after == "a note":
            session.note(CUP)
        if after == "other messages":
            session.messages = [{"role": "system", "content": "Be brief."}]
        said.append(KEYS)
        session.note(KEYS)
        wanted = session.messages
    monkeypatch.undo()
    with opened(policy, "killed", context=400) as session:
        assert session.unfinished is None
        assert session.note_problem is None
        assert session.messages == wanted
        assert spelled(session).count(KEYS) == 1
        assert spelled(session).endswith(f"{KEYS}\n")
    with opened(policy, "killed", context=400) as session:
        assert session.messages == wanted


def test_a_note_waits_while_an_answer_that_was_cut_off_may_be_gone_on_with(
    opened: Callable[..., Session], tmp_path: Path
) -> None:
    with opened() as session:
        for place, _ in enumerate(session.stream("Hello?", max_tokens=30, ignore_eos=True)):
            if place == 8 and session.memory.store is not None:
                session.memory.store.flush()
                shutil.copytree(tmp_path / "store", tmp_path / "killed")
        wanted = session.messages
    with opened(folder="killed") as session:
        session.note(KEYS)
        assert session.unfinished is not None
        list(session.resume(max_tokens=30, ignore_eos=True))
        assert session.messages == [*wanted, note(KEYS)]


def test_a_note_can_be_forgotten_like_a_turn(opened: Callable[..., Session], tmp_path: Path) -> None:
    with opened(replace(WINDOW, budget=400)) as session:
        session.note(KEYS)
        say(session, "Hello?")
        session.note(CUP)
        held = spelled(session)
    assert forget_last(tmp_path / "store", 1) == 3
    with opened(replace(WINDOW, budget=400)) as session:
        assert [message["role"] for message in session.messages] == [NOTE, "user", "assistant"]
        assert held.startswith(spelled(session))
        assert CUP not in spelled(session)
    assert forget_last(tmp_path / "store", 1) == 1
    with opened(replace(WINDOW, budget=400)) as session:
        assert session.messages == [note(KEYS)]
        assert spelled(session).endswith(f"{KEYS}\n")
        say(session, "Where?")
        assert f"{KEYS}\n\nWhere?" in spelled(session)


# --- whatever happens -------------------------------------------------------------------------------------------------


@given(
    policy=st.sampled_from([ENTROPY, WINDOW, replace(ENTROPY, when="turn"), None]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["note", "ask", "cancel", "raw", "anew", "reset"]), st.text("ab <|im_end|>\n", max_size=9)
        ),
        max_size=8,
    ),
)
def test_memory_engine_and_messages_agree_whatever_happens(
    package: Package, tokenizer: Tokenizer, policy: RetentionSettings | None, steps: list[tuple[str, str]]
) -> None:
    engine = ForcedEngine(package, lambda history, place: (sum(history) + 7 * place) % 250 + 5, 120)
    session = Session(engine, tokenizer, memory=policy)
    for kind, text in steps:
        before = list(session.messages)
        try:
            if kind == "note":
                session.note(text)
                grown = [] if session.note_problem else [note(text)]
                assert session.messages == [*before, *grown]
                assert session.note_problem is None or policy is None
            elif kind == "anew":
                session.messages = [{"role": "system", "content": text}]
            elif kind == "reset":
                session.reset()
            else:
                answer = session.stream(text + "?", max_tokens=4, ignore_eos=True, raw=kind == "raw")
                if kind == "cancel":
                    session.cancel()
                list(answer)
        except ContextError:
            assert policy is None
        assert session.memory.tokens == engine.history
        assert engine.length <= 120
