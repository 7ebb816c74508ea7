"""Sessions: turns, reuse of slots, stopping, cancelling, errors, asyncio. Mostly on a real package and engine.

`ForcedEngine` stands in only where a real model cannot be made to do it: chosen tokens and failures on demand.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forced_engine import ForcedEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from leftovers import descriptors, threads

from edgemem.runtime.errors import ContextError, NumericError, SettingsError
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.runtime.session import Chunk, Session
from edgemem.runtime.tokenizer import TOKENIZER_FILES, Tokenizer

QUESTION = "Where is the lamp?"
WARM = Sampling(temperature=1.5, seed=7)


@pytest.fixture(scope="module")
def package(tiny_package: Path) -> Iterator[Package]:
    with Package.open(tiny_package) as opened:
        yield opened


@pytest.fixture(scope="module")
def tokenizer(package: Package) -> Tokenizer:
    return Tokenizer.open(package)


@pytest.fixture
def session(tiny_package: Path) -> Iterator[Session]:
    with Session.open(tiny_package, threads=1) as opened:
        yield opened


@pytest.fixture
def forced(package: Package, tokenizer: Tokenizer) -> Callable[..., tuple[Session, ForcedEngine]]:
    """A session whose answers are `text`, encoded, and then end tokens."""

    def make(answer: str | list[int], *, capacity: int = 512, **rest: Any) -> tuple[Session, ForcedEngine]:
        script = tokenizer.encode(answer) if isinstance(answer, str) else answer
        engine = ForcedEngine(package, lambda _, place: [*script, *[2] * 600][place], capacity)
        return Session(engine, tokenizer, **rest), engine

    return make


def _text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def _ids(chunks: list[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def _engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("edgemem-answer")]


# --- answers -------------------------------------------------------------------------------------------------------


def test_a_text_is_a_turn_and_its_answer_the_decoded_tokens(session: Session) -> None:
    chunks = list(session.stream(QUESTION, max_tokens=20, sampling=WARM))
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "length"
    assert len(_ids(chunks)) == 20
    assert _text(chunks) == session.tokenizer.decode(_ids(chunks))
    assert session.messages == [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": _text(chunks)},
    ]


def test_tokens_are_those_of_the_bare_engine(session: Session) -> None:
    prompt = session.tokenizer.encode("The river ran slowly past the mill")
    chunks = list(session.stream(prompt, max_tokens=16, ignore_eos=True))
    session.engine.truncate(0)
    session.engine.extend(np.array(prompt, dtype=np.int32))
    assert _ids(chunks) == [token.id for token in session.engine.decode(Sampler(Sampling()), 16)]
    assert session.messages == []


def test_a_prompt_in_parts_gives_what_one_part_gives(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = session.tokenizer.encode("The river ran slowly past the mill, and the miller counted the sacks")
    whole = list(session.stream(prompt, max_tokens=8))
    session.reset()
    monkeypatch.setattr("edgemem.runtime.memory.memory.PART_TOKENS", 5)
    assert _ids(list(session.stream(prompt, max_tokens=8))) == _ids(whole)
    assert session.timings.prefill_tokens == len(prompt)


def test_each_turn_consumes_only_what_is_new_and_answers_as_a_fresh_session_does(
    session: Session, tiny_package: Path
) -> None:
    for question in (QUESTION, "And the box?", "Who <|im_end|> is there?"):
        asked = [*session.messages, {"role": "user", "content": question}]
        chunks = list(session.stream(question, max_tokens=12))
        with Session.open(tiny_package, threads=1) as fresh:
            assert _text(list(fresh.stream(asked, max_tokens=12))) == _text(chunks)
            assert fresh.messages == session.messages
            assert fresh.timings.prefill_tokens == fresh.timings.prompt_tokens == session.timings.prompt_tokens
        if len(asked) > 1:
            assert session.timings.prefill_tokens < session.timings.prompt_tokens - 20
    assert len(session.messages) == 6


def test_the_same_prompt_again_consumes_its_end_alone(session: Session) -> None:
    first = list(session.stream(QUESTION, max_tokens=5, raw=True))
    again = list(session.stream(QUESTION, max_tokens=5, raw=True))
    assert _ids(first) == _ids(again)
    assert session.timings.prefill_tokens <= 25


def test_messages_replace_the_conversation_and_a_text_goes_on_from_there(session: Session) -> None:
    list(session.stream("something else", max_tokens=3))
    given_messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    chunks = list(session.stream(given_messages, max_tokens=3))
    assert session.messages == [*given_messages, {"role": "assistant", "content": _text(chunks)}]
    list(session.stream("More?", max_tokens=3))
    assert [message["role"] for message in session.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_raw_text_is_continued_as_it_is_and_never_holds_control_tokens(session: Session) -> None:
    text = "<|im_start|>The lamp"
    chunks = list(session.stream(text, raw=True, max_tokens=4))
    assert session.timings.prompt_tokens == len(session.tokenizer.encode(text))
    ids = list(session.stream(session.tokenizer.encode(text), max_tokens=4))
    assert _ids(chunks) == _ids(ids)
    assert session.messages == []


def test_reset_forgets_slots_and_messages(session: Session) -> None:
    list(session.stream(QUESTION, max_tokens=3))
    session.reset()
    assert (session.messages, session.engine.length) == ([], 0)
    list(session.stream(QUESTION, max_tokens=3))
    assert session.timings.prefill_tokens == session.timings.prompt_tokens


def test_the_same_seed_gives_the_same_text(session: Session) -> None:
    texts = []
    for seed in (3, 3, 4):
        sampling = Sampling(temperature=1.2, top_p=0.95, repetition_penalty=1.1, seed=seed)
        texts.append(_text(list(session.stream(QUESTION, sampling=sampling, max_tokens=24, raw=True))))
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("engine", ["native", "onnx"])
@pytest.mark.parametrize("count", [1, 2, 25, 26, 49, 129, 150])
def test_what_was_in_the_slots_makes_no_difference_to_the_logits(tiny_package: Path, engine: str, count: int) -> None:
    prompt = np.random.default_rng(count).integers(3, 300, count).tolist()
    with Session.open(tiny_package, engine=engine, threads=2) as session:
        logits = []
        for _ in range(2):
            list(session.stream(prompt, max_tokens=1, ignore_eos=True))
            logits.append(session.engine.state().logits)
    assert logits[0] is not None
    np.testing.assert_array_equal(logits[0], logits[1])


def test_the_repetition_penalty_counts_the_prompt(session: Session) -> None:
    prompt = list(range(3, 300))
    penalised = Sampling(repetition_penalty=1000.0)
    chunks = list(session.stream(prompt, sampling=penalised, max_tokens=8, ignore_eos=True))
    assert len(set(_ids(chunks))) == 8
    assert set(_ids(chunks)).isdisjoint(prompt)


# --- ends ----------------------------------------------------------------------------------------------------------


def test_an_end_token_ends_the_answer_and_is_not_in_it(forced: Callable[..., tuple[Session, ForcedEngine]]) -> None:
    session, engine = forced("the lamp")
    chunks = list(session.stream(QUESTION))
    assert (_text(chunks), chunks[-1].finish_reason) == ("the lamp", "stop")
    assert 2 not in _ids(chunks)
    assert engine.history[-1] == _ids(chunks)[-1]
    ignored = list(session.stream(QUESTION, ignore_eos=True, max_tokens=30))
    assert len(_ids(ignored)) == 30
    assert ignored[-1].finish_reason == "length"
    assert _text(ignored) == "the lamp"


def test_an_answer_of_nothing_is_an_answer(forced: Callable[..., tuple[Session, ForcedEngine]]) -> None:
    session, _ = forced("")
    assert list(session.stream(QUESTION)) == [Chunk("", (), "stop")]
    assert session.messages[-1] == {"role": "assistant", "content": ""}


def test_a_stop_string_ends_the_answer_and_never_shows(forced: Callable[..., tuple[Session, ForcedEngine]]) -> None:
    session, _ = forced("one, two; three")
    chunks = list(session.stream(QUESTION, stop=["; thr", "never"]))
    assert (_text(chunks), chunks[-1].finish_reason) == ("one, two", "stop")
    assert all(";" not in chunk.text for chunk in chunks)
    assert session.tokenizer.decode(_ids(chunks)).startswith("one, two; thr")
    assert session.messages[-1]["content"] == "one, two"


def test_what_was_held_for_a_stop_string_comes_at_the_end(forced: Callable[..., tuple[Session, ForcedEngine]]) -> None:
    session, _ = forced("wait EN")
    assert _text(list(session.stream(QUESTION, stop="END"))) == "wait EN"


def test_characters_are_never_split(forced: Callable[..., tuple[Session, ForcedEngine]]) -> None:
    answer = "héllo 🌍 你好 👩\u200d🚀!"
    session, _ = forced(answer)
    chunks = list(session.stream(QUESTION))
    assert _text(chunks) == answer
    assert all("\ufffd" not in chunk.text for chunk in chunks)


def test_max_tokens_and_full_slots_end_with_length(session: Session, tiny_package: Path) -> None:
    assert len(_ids(list(session.stream([5, 6, 7], max_tokens=1, ignore_eos=True)))) == 1
    with Session.open(tiny_package, context=20, threads=1) as small:
        for count in (17, 20):
            chunks = list(small.stream(list(range(3, 3 + count)), max_tokens=100, ignore_eos=True))
            assert len(_ids(chunks)) == 20 - count + 1  # the last token is drawn and needs no slot
            assert chunks[-1].finish_reason == "length"
            assert small.engine.length == 20
        assert len(_ids(list(small.stream([5, 6], max_tokens=4, ignore_eos=True)))) == 4


def test_the_usual_context_is_the_packages_but_not_a_very_long_one(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Package.open(tiny_package) as package:
        longest = package.manifest.max_context
    for usual in (longest + 1, longest - 1):
        monkeypatch.setattr("edgemem.runtime.session._USUAL_CONTEXT", usual)
        with Session.open(tiny_package, threads=1) as session:
            assert session.engine.capacity == min(usual, longest)
    with Session.open(tiny_package, threads=1, context=longest) as session:
        assert session.engine.capacity == longest


def test_a_prompt_longer_than_the_context_is_refused_before_anything_changes(tiny_package: Path) -> None:
    with Session.open(tiny_package, context=64, threads=1) as session:
        list(session.stream("Hi", max_tokens=4))
        before = (list(session.messages), session.engine.length)
        with pytest.raises(ContextError, match=r"(?s)got: \d\d\d tokens.*at most 64") as caught:
            list(session.stream("lamp " * 100))
        assert "trained for 512" in str(caught.value)
        with pytest.raises(ContextError):
            list(session.stream(list(range(3, 68))))
        assert (session.messages, session.engine.length) == before
        list(session.stream("Ho", max_tokens=4))
        assert len(session.messages) == 4


# --- cancelling, dropping, failing -----------------------------------------------------------------------------------


def test_cancel_from_another_thread_keeps_the_partial_answer(session: Session) -> None:
    chunks = []
    for chunk in session.stream(QUESTION, max_tokens=400, ignore_eos=True, sampling=WARM):
        chunks.append(chunk)
        if len(chunks) == 3:
            thread = threading.Thread(target=session.cancel)
            thread.start()
            thread.join()
    assert chunks[-1].finish_reason == "cancelled"
    assert 3 <= len(_ids(chunks)) < 20
    assert session.messages[-1]["content"] == _text(chunks)
    assert list(session.stream("Go on", max_tokens=2))[-1].finish_reason == "length"
    assert len(session.messages) == 4


def test_cancel_during_prefill(
    forced: Callable[..., tuple[Session, ForcedEngine]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemem.runtime.memory.memory.PART_TOKENS", 10)
    session, engine = forced("the lamp")
    engine.on_consume = lambda length: session.cancel() if length == 20 else None
    assert list(session.stream("word " * 20)) == [Chunk("", (), "cancelled")]
    assert (engine.length, session.messages) == (30, [])
    assert math.isnan(session.timings.time_to_first_token_ms)
    engine.on_consume = lambda length: None
    assert _text(list(session.stream("word " * 20))) == "the lamp"
    assert session.timings.prompt_tokens - session.timings.prefill_tokens == 30


def test_cancel_before_the_first_chunk_ends_that_answer(
    forced: Callable[..., tuple[Session, ForcedEngine]],
) -> None:
    session, _ = forced("the lamp")
    answer = session.stream(QUESTION)
    session.cancel()
    assert list(answer) == [Chunk("", (), "cancelled")]
    assert _text(list(session.stream(QUESTION))) == "the lamp"


def test_cancel_between_answers_does_nothing(forced: Callable[..., tuple[Session, ForcedEngine]]) -> None:
    session, _ = forced("the lamp")
    session.cancel()
    assert list(session.stream(QUESTION))[-1].finish_reason == "stop"
    session.cancel()
    assert list(session.stream(QUESTION))[-1].finish_reason == "stop"


def test_a_dropped_answer_leaves_a_session_that_goes_on_as_if_it_had_been_cut_there(
    session: Session, tiny_package: Path
) -> None:
    answer = session.stream(QUESTION, max_tokens=50, ignore_eos=True)
    text = next(answer).text + next(answer).text
    del answer
    assert session.messages[-1]["content"].startswith(text)
    follow_up = list(session.stream("And?", max_tokens=10))
    with Session.open(tiny_package, threads=1) as fresh:
        assert _text(list(fresh.stream(session.messages[:3], max_tokens=10))) == _text(follow_up)


def test_an_exception_in_the_consumer_leaves_the_session_free(
    forced: Callable[..., tuple[Session, ForcedEngine]],
) -> None:
    session, _ = forced("the lamp is in the box")

    def consume() -> None:
        for _ in session.stream(QUESTION):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    assert _text(list(session.stream(QUESTION))) == "the lamp is in the box"
    assert len(session.messages) == 4


def test_a_second_answer_at_once_is_refused_and_harms_nothing(session: Session) -> None:
    answer = session.stream(QUESTION, max_tokens=6)
    first = next(answer)
    for busy in (lambda: next(session.stream("Me too")), session.reset):
        with pytest.raises(SettingsError, match="answering already"):
            busy()
    chunks = [first, *answer]
    session.reset()
    assert _ids(list(session.stream(QUESTION, max_tokens=6))) == _ids(chunks)


def test_an_answer_that_was_never_begun_holds_nothing(session: Session) -> None:
    never = session.stream(QUESTION)
    assert list(session.stream(QUESTION, max_tokens=2))[-1].finish_reason == "length"
    del never


def _fail_at(length: int) -> Callable[[int], None]:
    def consume(at: int) -> None:
        if at == length:
            raise NumericError("the logits are not finite")

    return consume


def test_an_engine_error_comes_after_the_text_so_far(forced: Callable[..., tuple[Session, ForcedEngine]]) -> None:
    session, engine = forced("the lamp is in the box")
    list(session.stream(QUESTION, max_tokens=1))
    start = session.timings.prompt_tokens
    session.reset()
    engine.on_consume = _fail_at(start + 3)
    answer, chunks = session.stream(QUESTION), []
    with pytest.raises(NumericError, match="not finite"):
        chunks.extend(answer)
    assert chunks[-1].finish_reason == "error"
    assert len(_ids(chunks)) == 4
    assert session.messages[-1]["content"] == _text(chunks) != ""
    engine.on_consume = lambda length: None
    assert list(session.stream("Again"))[-1].finish_reason == "stop"


def test_an_engine_error_in_prefill_leaves_the_conversation(
    forced: Callable[..., tuple[Session, ForcedEngine]],
) -> None:
    session, engine = forced("the lamp")
    engine.on_consume = _fail_at(0)
    chunks = []
    with pytest.raises(NumericError):
        chunks.extend(session.stream(QUESTION))
    assert chunks == [Chunk("", (), "error")]
    assert session.messages == []
    engine.on_consume = lambda length: None
    assert _text(list(session.stream(QUESTION))) == "the lamp"


def test_an_error_of_ours_frees_the_session_too(forced: Callable[..., tuple[Session, ForcedEngine]]) -> None:
    session, engine = forced("the lamp")

    def interrupt(length: int) -> None:
        raise KeyboardInterrupt

    engine.on_consume = interrupt
    with pytest.raises(KeyboardInterrupt):
        list(session.stream(QUESTION))
    engine.on_consume = lambda length: None
    assert _text(list(session.stream(QUESTION))) == "the lamp"


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["turn", "raw", "ids", "messages"]),
            st.text("ab <|im_end|>é🌍", max_size=6),
            st.sampled_from(["finish", "close", "cancel", "fail"]),
            st.integers(1, 6),
        ),
        max_size=6,
    )
)
def test_slots_messages_and_engine_agree_whatever_happens(
    package: Package, tokenizer: Tokenizer, steps: list[tuple[str, str, str, int]]
) -> None:
    """After any history of answers, finished or not, the next answer is what a fresh session would give."""

    def choose(history: list[int], place: int) -> int:
        return (sum((at + 1) * token for at, token in enumerate(history)) + 7 * place) % 315 + 2

    engine = ForcedEngine(package, choose)
    session = Session(engine, tokenizer)
    for kind, text, ending, count in steps:
        prompt: Any = {"ids": [5, *tokenizer.encode(text)], "messages": [{"role": "user", "content": text}]}.get(kind)
        asked = text + "?" if prompt is None else prompt
        fresh = Session(ForcedEngine(package, choose), tokenizer)
        fresh.messages = list(session.messages)
        wanted = _ids(list(fresh.stream(asked, raw=kind == "raw", max_tokens=8)))
        got: list[int] = []
        engine.on_consume = _fail_at(engine.length + 40) if ending == "fail" else lambda length: None
        answer = session.stream(asked, raw=kind == "raw", max_tokens=8)
        try:
            for place, chunk in enumerate(answer):
                got += chunk.token_ids
                if place + 1 == count and ending == "close":
                    answer.close()  # type: ignore[attr-defined]
                elif place + 1 == count and ending == "cancel":
                    session.cancel()
        except NumericError:
            assert ending == "fail"
        assert got == wanted[: len(got)]
        assert ending != "finish" or got == wanted
        assert session.memory.tokens == engine.history


# --- settings, closing, timings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "options", "match"),
    [
        ("a", {"max_tokens": 0}, "max_tokens"),
        ("a", {"max_tokens": True}, "max_tokens"),
        ("a", {"max_tokens": None}, "max_tokens"),
        ("a", {"sampling": {"temperature": 1}}, "sampling"),
        ("a", {"stop": [""]}, "stop string"),
        ("a", {"stop": None}, "stop is no text"),
        ("a", {"stop": 5}, "stop is no text"),
        (b"hello", {}, "no known kind"),
        ("", {"raw": True}, "empty"),
        ([], {}, "empty"),
        ([1, 320], {}, "token 1"),
        ([-1], {}, "token 0"),
        ([True], {}, "token 0"),
        ([1.0], {}, "token 0"),
        (np.array([[1]]), {}, "token 0"),
        ([1, {"role": "user", "content": "a"}], {}, "token 1"),
        ([{"role": "user", "content": "a"}, 1], {}, "message 1"),
        ([{"role": "user"}], {}, "message 0"),
        (None, {}, "no known kind"),
        (7, {}, "no known kind"),
        ({"role": "user", "content": "a"}, {}, "no known kind"),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(
    forced: Callable[..., tuple[Session, ForcedEngine]], prompt: Any, options: dict[str, Any], match: str
) -> None:
    session, engine = forced("the lamp")
    with pytest.raises(SettingsError, match=match):
        next(session.stream(prompt, **options))
    assert (engine.history, session.messages) == ([], [])
    assert _text(list(session.stream(np.array([5, 6])))) == "the lamp"


def test_a_model_without_a_template_goes_on_with_texts_and_takes_no_messages(
    tiny_package: Path, package: Package
) -> None:
    files = {name: (tiny_package / name).read_bytes() for name in TOKENIZER_FILES}
    files["tokenizer_config.json"] = b'{"add_bos_token": true}'
    bare = Tokenizer(files, package.model.vocabulary)
    engine = ForcedEngine(package, lambda _, place: 5)
    session = Session(engine, bare)
    list(session.stream("The lamp", max_tokens=1))
    assert engine.history == [0, *bare.encode("The lamp")]
    assert session.messages == []
    with pytest.raises(SettingsError, match="no chat template"):
        next(session.stream([{"role": "user", "content": "a"}]))


def test_close_twice_and_use_afterwards(forced: Callable[..., tuple[Session, ForcedEngine]]) -> None:
    session, engine = forced("the lamp")
    with session:
        list(session.stream(QUESTION))
    session.close()
    assert engine.closed == 1
    for use in (lambda: next(session.stream(QUESTION)), session.reset):
        with pytest.raises(SettingsError, match="closed"):
            use()


def test_closing_under_an_answer_waits_for_its_end(forced: Callable[..., tuple[Session, ForcedEngine]]) -> None:
    session, engine = forced("the lamp is in the box")
    answer = session.stream(QUESTION)
    next(answer)
    session.close()
    assert engine.closed == 0
    assert list(answer)[-1].finish_reason == "cancelled"
    assert engine.closed == 1
    with pytest.raises(SettingsError, match="closed"):
        next(session.stream(QUESTION))


def test_an_opened_session_closes_its_package(tiny_package: Path) -> None:
    session = Session.open(tiny_package, threads=1)
    folder = session.package._folder  # type: ignore[union-attr]
    session.close()
    assert folder._descriptor == -1


def test_a_session_that_cannot_open_leaves_no_descriptor(tiny_package: Path) -> None:
    before = descriptors()
    with pytest.raises(SettingsError, match="no such engine"):
        Session.open(tiny_package, engine="steam")
    assert not descriptors() - before


def test_timings_count_the_engines_time_alone(forced: Callable[..., tuple[Session, ForcedEngine]]) -> None:
    now = [100.0]
    session, engine = forced("abcd", clock=lambda: now[0])

    def consume(length: int) -> None:
        now[0] += 0.5 if length == 0 else 0.01

    engine.on_consume = consume
    for _ in session.stream(QUESTION, max_tokens=4):
        now[0] += 10  # the consumer's own time
    timings = session.timings
    assert timings.prompt_tokens == timings.prefill_tokens == engine.length - 3
    assert timings.prefill_ms == pytest.approx(500)
    assert timings.time_to_first_token_ms == pytest.approx(500)
    assert (timings.decode_tokens, timings.decode_ms) == (3, pytest.approx(30))
    assert timings.decode_tokens_per_second == pytest.approx(100)
    assert timings.prefill_tokens_per_second == pytest.approx(timings.prompt_tokens / 0.5)


def test_timings_of_the_last_answer_are_there_with_its_last_chunk(session: Session) -> None:
    for chunk in session.stream(QUESTION, max_tokens=5, ignore_eos=True):
        if chunk.finish_reason:
            assert session.timings.decode_tokens == 4
            assert session.timings.decode_ms > 0
            assert session.timings.time_to_first_token_ms >= session.timings.prefill_ms > 0


# --- asyncio -------------------------------------------------------------------------------------------------------


def test_astream_gives_what_stream_gives(session: Session) -> None:
    wanted = list(session.stream(QUESTION, max_tokens=12, sampling=WARM))
    session.reset()

    async def run() -> list[Chunk]:
        return [chunk async for chunk in session.astream(QUESTION, max_tokens=12, sampling=WARM)]

    assert asyncio.run(run()) == wanted
    assert _wait_for(lambda: not _engine_threads())


def test_astream_is_never_ahead_of_its_consumer(forced: Callable[..., tuple[Session, ForcedEngine]]) -> None:
    session, engine = forced([67, 68, 69, 70, 71, 72, 73, 74])

    async def run() -> None:
        lengths = []
        async for chunk in session.astream(QUESTION):
            await asyncio.sleep(0.002)
            if chunk.finish_reason is None:
                lengths.append(engine.length)
        assert lengths == list(range(lengths[0], lengths[0] + 8))

    asyncio.run(run())


def test_cancelling_the_task_cancels_the_answer_and_leaves_no_thread(
    forced: Callable[..., tuple[Session, ForcedEngine]],
) -> None:
    session, engine = forced([5] * 400, capacity=2000)
    seen: list[Chunk] = []
    under_way, go_on = threading.Event(), threading.Event()

    def consume(length: int) -> None:
        if len(seen) == 3:
            under_way.set()
            go_on.wait(5)

    engine.on_consume = consume

    async def read() -> None:
        async for chunk in session.astream(QUESTION, max_tokens=400):
            seen.append(chunk)

    async def run() -> None:
        task = asyncio.create_task(read())
        await asyncio.to_thread(under_way.wait, 5)  # the worker stands inside the engine
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()  # it waits for the step that is under way
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert len(seen) == 3
    assert _wait_for(lambda: not _engine_threads())
    assert session.memory.tokens == engine.history
    assert session.messages[-1]["content"].startswith(_text(seen))
    engine.on_consume = lambda length: None
    assert list(session.stream("On", max_tokens=2))[-1].finish_reason == "length"


def test_leaving_the_loop_and_closing_frees_the_session(session: Session) -> None:
    async def run() -> None:
        answer = session.astream(QUESTION, max_tokens=200, ignore_eos=True)
        async for _ in answer:
            break
        await answer.aclose()  # type: ignore[attr-defined]
        chunks = [chunk async for chunk in session.astream("More", max_tokens=3)]
        assert chunks[-1].finish_reason == "length"

    asyncio.run(run())
    assert _wait_for(lambda: not _engine_threads())


def test_an_answer_after_a_loop_that_was_left_waits_for_its_end(session: Session) -> None:
    async def run() -> None:
        async for _ in session.astream(QUESTION, max_tokens=200, ignore_eos=True):
            break
        chunks = [chunk async for chunk in session.astream("More", max_tokens=3)]
        assert chunks[-1].finish_reason == "length"

    asyncio.run(run())


def test_errors_reach_the_awaiting_task(forced: Callable[..., tuple[Session, ForcedEngine]]) -> None:
    session, engine = forced("the lamp")

    async def run(prompt: Any) -> list[Chunk]:
        return [chunk async for chunk in session.astream(prompt)]

    with pytest.raises(ContextError):
        asyncio.run(run([5] * 600))
    engine.on_consume = _fail_at(0)
    with pytest.raises(NumericError):
        asyncio.run(run(QUESTION))
    assert _wait_for(lambda: not _engine_threads())


def test_many_answers_leave_no_thread_and_no_descriptor(session: Session) -> None:
    list(session.stream(QUESTION, max_tokens=2))
    before = descriptors(), threads()
    random = np.random.default_rng(0)
    for turn in range(60):
        answer = session.stream(f"turn {turn}", max_tokens=8, sampling=WARM, raw=turn % 2 == 0)
        for place, _ in enumerate(answer):
            if place == random.integers(6):
                session.cancel()
            if place == random.integers(12):
                break
        del answer
        session.reset()
    assert not descriptors() - before[0]
    assert not threads() - before[1]


def _wait_for(holds: Callable[[], bool]) -> bool:
    """Give a thread that has nothing left to do a moment to end."""
    for _ in range(500):
        if holds():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("bad", [None, "hi", [{"role": "user"}], [None]])
def test_messages_that_are_none_are_refused_where_they_are_set(session: Session, bad: Any) -> None:
    before = list(session.messages)
    with pytest.raises(SettingsError, match="message"):
        session.messages = bad
    assert session.messages == before
    session.messages = []
