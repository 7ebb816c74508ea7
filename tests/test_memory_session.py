"""Sessions whose memory evicts: conversations without end, and what of them stays, whatever happens in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forced_engine import ForcedEngine
from hypothesis import given
from hypothesis import strategies as st

from edgemem.runtime.errors import ContextError, NumericError, PackageError, SettingsError
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.runtime.session import Chunk, Session
from edgemem.runtime.tokenizer import TOKENIZER_FILES, Tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
WARM = Sampling(temperature=1.5, seed=7)
WINDOW = RetentionSettings(policy="window", budget=80, margin=8)
POLICIES = {
    "window": WINDOW,
    "window, a turn": replace(WINDOW, when="turn"),
    "entropy": RetentionSettings(policy="entropy", budget=80, recent=16, margin=8),
    "SirLLM": RetentionSettings(policy="entropy", budget=80, entropy_share=1.0, when="turn", makes_room="entropy"),
}
anywhere = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
Forced = Callable[..., tuple[Session, ForcedEngine]]


@pytest.fixture(scope="module")
def package(tiny_package: Path) -> Iterator[Package]:
    with Package.open(tiny_package) as opened:
        yield opened


@pytest.fixture(scope="module")
def tokenizer(package: Package) -> Tokenizer:
    return Tokenizer.open(package)


@pytest.fixture
def forced(package: Package, tokenizer: Tokenizer) -> Forced:
    """A session with a window of 80 slots, whose answers are `answer`, and then end tokens."""

    def make(answer: str, policy: RetentionSettings = WINDOW, **rest: Any) -> tuple[Session, ForcedEngine]:
        script = tokenizer.encode(answer)
        engine = ForcedEngine(package, lambda _, place: [*script, *[2] * 600][place], policy.budget)
        return Session(engine, rest.pop("tokenizer", tokenizer), memory=policy, **rest), engine

    return make


def _text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def _ids(chunks: list[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def _tokens_of(session: Session, *messages: dict[str, str]) -> list[int]:
    """The conversation as the template writes it, without an answer to come."""
    template = session._dialogue._reader._prompts._template
    return session.tokenizer.encode_pieces(template.render(messages, ask=False))


# --- without end ----------------------------------------------------------------------------------------------------


def test_full_is_as_without_memory(tiny_package: Path) -> None:
    outcomes = []
    for memory in (None, RetentionSettings(policy="full", budget=150)):
        said: list[Any] = []
        with Session.open(tiny_package, context=150, threads=1, memory=memory) as session:
            for question in ("Where is the lamp?", "And the box?", "the river " * 60, "Who?", "the river " * 40):
                try:
                    said.append(list(session.stream(question, max_tokens=40, sampling=WARM)))
                except ContextError as error:
                    said.append(str(error))
                said.append((list(session.messages), session.timings.prefill_tokens, session.engine.length))
        outcomes.append(said)
    assert outcomes[0] == outcomes[1]
    assert sum(isinstance(part, str) for part in outcomes[0]) >= 1


@anywhere
@pytest.mark.parametrize("engine", ["native", "onnx"])
def test_a_conversation_of_many_budgets_goes_on_and_keeps_its_system_prompt(
    tiny_package: Path, engine: str, policy: RetentionSettings
) -> None:
    with Session.open(tiny_package, engine=engine, memory=policy, threads=1) as session:
        assert session.engine.capacity == policy.budget
        session.messages = [SYSTEM]
        for turn in range(14):
            question = f"Question {turn}: " + "where is the lamp? " * (8 if turn % 5 == 4 else 1)
            chunks = list(session.stream(question, max_tokens=12 + 30 * (turn % 3), ignore_eos=True, sampling=WARM))
            assert len(_ids(chunks)) == 12 + 30 * (turn % 3)
            assert chunks[-1].finish_reason == "length"
            assert session.messages[-1]["content"] == _text(chunks) == session.tokenizer.decode(_ids(chunks))
            assert session.engine.length == session.memory.table.length <= policy.budget
        assert session.memory.table.position > 5 * policy.budget
        assert session.memory.evictions > 5
        assert len(session.messages) == 29
        opening = _tokens_of(session, SYSTEM)
        assert session.memory.tokens[: len(opening)] == opening
        assert session.memory.table.rows["pinned"][: len(opening)].all()


@anywhere
def test_it_answers_as_full_context_does_while_all_fits(tiny_package: Path, policy: RetentionSettings) -> None:
    roomy = replace(policy, budget=300)
    with Session.open(tiny_package, memory=roomy, threads=1) as session:
        engine = open_engine(session.package, capacity=300, threads=1)  # type: ignore[arg-type]
        answers = []
        for question in ("Where is the lamp?", "And the box?", "Who <|im_end|> is there?"):
            answers.append(_ids(list(session.stream(question, max_tokens=20, ignore_eos=True))))
            held = session.memory.tokens
            engine.truncate(0)
            engine.extend(np.array(held[: len(held) - 20], dtype=np.int32))
            assert [token.id for token in engine.decode(Sampler(Sampling()), 20)] == answers[-1]
        assert session.memory.evictions == 0
        engine.close()
    with Session.open(tiny_package, threads=1) as plain:
        assert _ids(list(plain.stream("Where is the lamp?", max_tokens=20, ignore_eos=True))) == answers[0]


def test_a_turn_adds_its_own_tokens_to_those_of_the_answer(forced: Forced) -> None:
    session, engine = forced("the lamp", replace(WINDOW, budget=400))
    session.messages = [SYSTEM]
    for question in ("Where?", "And <|im_end|> there?", "\ud800 é\U0001f30d", " spaces "):
        before = engine.length
        assert _text(list(session.stream(question))) == "the lamp"
        said = _tokens_of(session, *session.messages)
        assert engine.history == session.memory.tokens == said[: len(engine.history)]
        assert session.tokenizer.decode(said[len(engine.history) :]).strip() == ""  # the answer's end token alone
        assert session.timings.prefill_tokens == session.timings.prompt_tokens
        assert session.timings.prompt_tokens < engine.length - before
    assert session.memory.table.turn == 4


def test_an_answer_that_was_cut_by_its_length_is_whole_in_the_slots(forced: Forced) -> None:
    session, engine = forced("the lamp is in the box", replace(WINDOW, budget=400))
    list(session.stream("Where?", max_tokens=6))
    said = _tokens_of(session, *session.messages)
    assert engine.history == said[: len(engine.history)]
    assert engine.history[-6:] == session.tokenizer.encode("the lamp is in the box")[:6]


def test_tokens_of_a_stop_string_stay_and_the_end_token_does_not(forced: Forced) -> None:
    session, engine = forced("one; two", replace(WINDOW, budget=400))
    list(session.stream("Count", stop="; t"))
    assert session.messages[-1]["content"] == "one"
    assert session.tokenizer.decode(engine.history).endswith("one;")  # the token that completed it is in no slot


def test_a_prompt_longer_than_the_budget_is_read_in_parts(forced: Forced) -> None:
    session, engine = forced("the lamp")
    session.messages = [SYSTEM]
    chunks = list(session.stream("the river ran slowly " * 60_000))  # 1.2 MB
    assert _text(chunks) == "the lamp"
    assert session.timings.prefill_tokens == session.timings.prompt_tokens > 300_000
    assert engine.length <= 80
    opening = _tokens_of(session, SYSTEM)
    assert engine.history[: len(opening)] == opening


# --- what stays -------------------------------------------------------------------------------------------------------


@anywhere
def test_a_message_that_was_pinned_stays(tiny_package: Path, policy: RetentionSettings) -> None:
    with Session.open(tiny_package, memory=policy, threads=1) as session:
        list(session.stream("My name is Ada.", max_tokens=3, ignore_eos=True, pinned=True))
        name = session.tokenizer.encode("My name is Ada.")
        for _ in range(8):
            list(session.stream("Who has seen the lamp?", max_tokens=30, ignore_eos=True))
        assert session.memory.evictions > 2
        held = session.memory.table.rows
        pinned = held["token"][held["pinned"]].tolist()
        assert any(pinned[place : place + len(name)] == name for place in range(len(pinned)))


def test_pins_that_fill_the_memory_are_refused_and_nothing_changes(forced: Forced) -> None:
    session, engine = forced("the lamp")
    list(session.stream("Where?"))
    before = list(engine.history), list(session.messages)
    with pytest.raises(ContextError, match="leaves no room"):
        next(session.stream("where is it " * 30, pinned=True))
    with pytest.raises(ContextError, match="leaves no room"):
        next(session.stream([{"role": "system", "content": "Be brief. " * 30}, {"role": "user", "content": "?"}]))
    assert (engine.history, session.messages) == before
    assert _text(list(session.stream("Where?"))) == "the lamp"


def test_other_messages_begin_anew_and_raw_texts_are_added(forced: Forced) -> None:
    session, engine = forced("the lamp", replace(WINDOW, budget=400))
    list(session.stream("Where?"))
    asked = [SYSTEM, {"role": "user", "content": "There?"}]
    list(session.stream(asked))
    assert engine.history == _tokens_of(session, *session.messages)[: engine.length]
    session.messages = [SYSTEM]
    list(session.stream("Why?"))
    assert engine.history == _tokens_of(session, *session.messages)[: engine.length]
    before = list(engine.history)
    list(session.stream("The lamp is lit.", raw=True))
    added = [*session.tokenizer.encode("The lamp is lit."), *session.tokenizer.encode("the lamp")]
    assert engine.history == [*before, *added]
    list(session.stream([5, 6], max_tokens=1))
    assert engine.history[len(before) + len(added) :][:2] == [5, 6]
    assert len(session.messages) == 3
    with pytest.raises(SettingsError, match="empty"):
        next(session.stream("", raw=True))
    list(session.stream("So?"))
    assert len(session.messages) == 5
    session.reset()
    assert (engine.history, session.messages, session.memory.table.position) == ([], [], 0)
    list(session.stream("Where?"))
    assert engine.history == _tokens_of(session, *session.messages)[: engine.length]


def test_a_text_of_a_model_that_adds_a_beginning_begins_once(package: Package, tiny_package: Path) -> None:
    files = {name: (tiny_package / name).read_bytes() for name in TOKENIZER_FILES}
    files["tokenizer_config.json"] = b'{"add_bos_token": true}'
    bare = Tokenizer(files, package.model.vocabulary)
    engine = ForcedEngine(package, lambda _, place: 5, 80)
    session = Session(engine, bare, memory=WINDOW)
    for _ in range(2):
        list(session.stream("The lamp", max_tokens=1))
    assert engine.history == [0, *bare.encode("The lamp"), 5, *bare.encode("The lamp"), 5]


# --- templates --------------------------------------------------------------------------------------------------------


def _with_template(tiny_package: Path, package: Package, template: str) -> Tokenizer:
    files = {name: (tiny_package / name).read_bytes() for name in TOKENIZER_FILES}
    settings = json.loads(files["tokenizer_config.json"]) | {"chat_template": template}
    return Tokenizer(files | {"tokenizer_config.json": json.dumps(settings).encode()}, package.model.vocabulary)


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] | trim if m.role == 'assistant' else m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = "{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
MERGED = (
    "{% set s = messages[0].content if messages[0].role == 'system' else '' %}<|endoftext|>"
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ s if loop.index0 < 2 }} {{ m.content }}"
    "{% elif m.role == 'assistant' %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)


def test_an_answer_stays_as_it_was_given_though_the_template_would_drop_its_thinking(
    tiny_package: Path, package: Package, forced: Forced
) -> None:
    tokenizer = _with_template(tiny_package, package, THINKING)
    answer = "hmm</think> the lamp "
    session, engine = forced(answer, replace(WINDOW, budget=400), tokenizer=tokenizer)
    list(session.stream("Where?"))
    first = list(engine.history)
    list(session.stream("And now?"))
    assert first[-len(tokenizer.encode(answer)) :] == tokenizer.encode(answer)
    added = engine.history[len(first) :][: -len(tokenizer.encode(answer))]
    assert added == tokenizer.encode(
        "<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n", special=True
    )


def test_a_template_that_leaves_answers_out_is_refused(tiny_package: Path, package: Package, forced: Forced) -> None:
    session, engine = forced("the lamp", tokenizer=_with_template(tiny_package, package, FORGETFUL))
    list(session.stream("Where?"))
    before = list(engine.history)
    with pytest.raises(PackageError, match="leaves answers out"):
        next(session.stream("And now?"))
    assert engine.history == before


def test_a_system_prompt_inside_the_first_question_is_pinned(
    tiny_package: Path, package: Package, forced: Forced
) -> None:
    tokenizer = _with_template(tiny_package, package, MERGED)
    session, engine = forced("the lamp", replace(WINDOW, budget=400), tokenizer=tokenizer)
    session.messages = [SYSTEM]
    list(session.stream("where?"))
    opening = tokenizer.encode("<|endoftext|><|im_start|>Be brief.", special=True)
    pinned = session.memory.table.rows["pinned"]
    assert engine.history[: len(opening)] == opening
    assert pinned[: len(opening)].all()
    assert pinned.sum() <= len(opening) + 1
    before = engine.length
    list(session.stream("and now?"))
    added = tokenizer.encode("<|im_end|><|im_start|> and now?", special=True)
    assert engine.history[before:][: len(added)] == added


# --- ends -----------------------------------------------------------------------------------------------------------


def test_a_turn_that_is_cancelled_while_it_is_read_leaves_nothing_of_itself(forced: Forced) -> None:
    session, engine = forced("the lamp")
    session.messages = [SYSTEM]
    list(session.stream("Where?"))
    said = list(engine.history)
    reads = []

    def cancel(length: int) -> None:
        reads.append(length)
        if len(reads) == 3:
            session.cancel()

    engine.on_consume = cancel
    assert list(session.stream("where is it " * 100)) == [Chunk("", (), "cancelled")]
    assert session.memory.evictions > 0
    assert engine.history == session.memory.tokens == said[: engine.length]  # the opening at least
    assert engine.length >= len(_tokens_of(session, SYSTEM))
    engine.on_consume = lambda length: None
    assert _text(list(session.stream("And now?"))) == "the lamp"
    assert len(session.messages) == 5


def test_an_answer_that_is_cancelled_between_evictions_stays_as_far_as_it_came(tiny_package: Path) -> None:
    with Session.open(tiny_package, memory=WINDOW, threads=1) as session:
        for stop_at in (3, 70, 150):
            got: list[Chunk] = []
            for chunk in session.stream("Where?", max_tokens=400, ignore_eos=True, sampling=WARM):
                got.append(chunk)
                if len(_ids(got)) >= stop_at:
                    session.cancel()
            assert got[-1].finish_reason == "cancelled"
            assert session.messages[-1]["content"] == _text(got)
            assert session.memory.tokens[-3:] == _ids(got)[-3:]  # the last one too
            assert session.engine.length == session.memory.table.length
        assert session.memory.evictions > 2


def test_an_answer_that_fails_half_way_leaves_memory_and_messages_in_agreement(forced: Forced) -> None:
    session, engine = forced("the lamp is in the box, and the box is in the house by the river " * 3)
    failing: list[int] = []

    def fail(length: int) -> None:
        failing.append(length)
        if len(failing) == 90:
            raise NumericError("the logits are not finite")

    engine.on_consume = fail
    chunks: list[Chunk] = []
    with pytest.raises(NumericError):
        chunks.extend(session.stream("Where?", max_tokens=200))
    assert chunks[-1].finish_reason == "error"
    assert session.memory.evictions > 0
    assert session.memory.tokens == engine.history
    assert session.messages[-1]["content"] == _text(chunks)
    engine.on_consume = lambda length: None
    assert list(session.stream("Again", max_tokens=5))[-1].finish_reason == "length"


@given(
    policy=st.sampled_from(list(POLICIES.values())),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["turn", "long", "raw", "messages", "pinned"]),
            st.text("ab <|im_end|>\ud800é\U0001f30d", max_size=6),
            st.sampled_from(["finish", "close", "cancel", "fail"]),
            st.integers(1, 90),
        ),
        max_size=6,
    ),
)
def test_memory_engine_and_messages_agree_whatever_happens(
    package: Package, tokenizer: Tokenizer, policy: RetentionSettings, steps: list[tuple[str, str, str, int]]
) -> None:
    engine = ForcedEngine(package, lambda history, place: (sum(history) + 7 * place) % 250 + 5, policy.budget)
    session = Session(engine, tokenizer, memory=policy)
    for kind, text, ending, count in steps:
        messages = [{"role": "user", "content": text}]
        prompt: Any = {"messages": messages, "long": "where " * 60 + text}.get(kind, text + "?")
        said, consumed = list(session.messages), [0]

        def consume(length: int) -> None:
            consumed[0] += 1  # noqa: B023
            if consumed[0] == count and ending == "fail":  # noqa: B023
                raise NumericError("the logits are not finite")

        engine.on_consume = consume
        chunks: list[Chunk] = []
        options = {
            "raw": kind == "raw",
            "pinned": kind == "pinned" and not session.memory.table.rows["pinned"].sum() > 20,
        }
        answer = session.stream(prompt, max_tokens=count, ignore_eos=True, **options)
        try:
            for place, chunk in enumerate(answer):
                chunks.append(chunk)
                if place == 2 and ending == "close":
                    break
                if place == 2 and ending == "cancel":
                    session.cancel()
        except NumericError:
            assert ending == "fail"
        answer.close()
        assert session.memory.tokens == engine.history
        assert engine.length <= policy.budget
        assert (np.diff(session.memory.table.rows["position"]) > 0).all()
        if kind == "raw" or not _ids(chunks):
            assert session.messages == said or ending == "close"
        elif ending != "close":
            assert session.messages[-1]["content"] == _text(chunks)
            assert _text(chunks) == tokenizer.decode(_ids(chunks))
