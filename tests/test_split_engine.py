"""A split engine gives what one engine gives, at every split, and asks its back stage for no more than it needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from faulty_link import FaultyServer
from runnable_packages import plain_model, rich_model, runnable_package, same_precision
from split_conversation import converse, local_back, remote_back, some_tokens, split_engine

from edgemem.runtime.answer import Chunk, Writer
from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import LinkError, NumericError, PackageError, ProtocolError, SettingsError
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.runtime.session import Session
from edgemem.runtime.text_stream import TextStream
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.split.back import Answer, Ask
from edgemem.split.coder import TokenCoder
from edgemem.split.engine import logits_wanted
from edgemem.split.local_back import LocalBack
from edgemem.split.opening import open_split_engine


class WatchedBack(LocalBack):
    """Remembers what it was asked. fails_at: the extend that is lost, and is not done."""

    def __init__(self, inner: LocalBack) -> None:
        super().__init__(inner._engine, inner._coder)
        self.asks: list[tuple[int, int]] = []  # tokens and logits, or 0 tokens where more logits were asked for
        self.fails_at = -1

    def extend(self, payload: bytes, count: int, ask: Ask) -> Answer:
        self.asks.append((count, ask.logits))
        if len(self.asks) - 1 == self.fails_at:
            raise LinkError("the link is lost")
        return super().extend(payload, count, ask)

    def logits(self, count: int) -> Answer:
        self.asks.append((0, count))
        return super().logits(count)


@pytest.fixture(scope="module", params=["plain", "rich"])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    model, precision = (plain_model(), "fp32") if request.param == "plain" else (rich_model(), "int4-g32-min")
    path = tmp_path_factory.mktemp("split") / "p.edgemem"
    written = runnable_package(path, model, same_precision(model, precision), max_context=512)
    with Package.open(written) as opened:
        yield opened


def whole_engine(package: Package, **settings: int) -> NativeEngine:
    return NativeEngine(package, **{"capacity": 64, "threads": 1, **settings})


def watched(package: Package, split: int = 1, **settings: int) -> WatchedBack:
    return WatchedBack(local_back(package, split, **settings))


def test_every_split_gives_the_same_text(package: Package) -> None:
    with closing(whole_engine(package)) as whole:
        wanted = converse(whole)
    for split in range(package.model.layers):
        with closing(split_engine(package, split, local_back(package, split))) as engine:
            assert converse(engine) == wanted
            assert engine.route == "local"


def test_a_long_prompt_goes_in_chunks(package: Package) -> None:
    back = watched(package, capacity=512)
    with (
        closing(split_engine(package, 1, back, capacity=512)) as engine,
        closing(whole_engine(package, capacity=512)) as whole,
    ):
        tokens = some_tokens(300)
        got = engine.extend(tokens, surprisal=True)
        assert back.asks == [(128, 0), (128, 0), (44, 1)]
        wanted = [whole.extend(part, surprisal=True) for part in np.split(tokens, [128, 256])]
        assert got.surprisal is not None
        np.testing.assert_array_equal(got.surprisal, np.concatenate([step.surprisal for step in wanted]))
        np.testing.assert_array_equal(got.logits, wanted[-1].logits)


def test_no_more_logits_are_asked_for_than_the_sampler_needs(package: Package) -> None:
    back, vocabulary = watched(package), package.model.vocabulary
    with closing(split_engine(package, 1, back)) as engine:
        engine.extend(some_tokens(5))
        list(engine.decode(Sampler(Sampling()), 3))
        assert back.asks == [(5, 1), (1, 1), (1, 1)]
        back.asks.clear()
        list(engine.decode(Sampler(Sampling(temperature=1, top_k=7)), 3))
        assert back.asks == [(0, 7), (1, 7), (1, 7)]
        back.asks.clear()
        step = engine.extend(some_tokens(2))
        assert back.asks == [(2, 7)]
        assert np.isfinite(step.logits).all()
        assert back.asks == [(2, 7), (0, vocabulary)]


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        (Sampling(), 1),
        (Sampling(top_k=5), 1),
        (Sampling(temperature=1, top_k=5), 5),
        (Sampling(temperature=1, top_k=500), 97),
        (Sampling(temperature=1, top_p=0.9), 97),
        (Sampling(repetition_penalty=1.1), 97),
    ],
)
def test_the_logits_that_a_sampler_needs(sampling: Sampling, wanted: int) -> None:
    assert logits_wanted(sampling, 97) == wanted


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.8, top_k=4, seed=1),
        Sampling(temperature=1.5, top_k=12, top_p=0.7, min_p=0.05, seed=2),
        Sampling(temperature=1.0, seed=3),
        Sampling(repetition_penalty=1.5),
    ],
)
def test_few_logits_draw_the_tokens_that_all_would(package: Package, sampling: Sampling) -> None:
    with closing(split_engine(package, 1, local_back(package, 1))) as engine, closing(whole_engine(package)) as whole:
        drawn = []
        for each in (engine, whole):
            each.extend(some_tokens(9))
            drawn.append(list(each.decode(Sampler(sampling), 20, surprisal=True)))
        assert [token.id for token in drawn[0]] == [token.id for token in drawn[1]]
        for mine, theirs in zip(*drawn, strict=True):
            assert mine.surprisal == pytest.approx(theirs.surprisal, abs=1e-3)


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_chunk_that_fails_takes_all_with_it(package: Package, fails_at: int) -> None:
    back = watched(package, capacity=512)
    with closing(split_engine(package, 1, back, capacity=512)) as engine:
        engine.extend(some_tokens(9))
        back.asks.clear()
        back.fails_at = fails_at
        with pytest.raises(LinkError):
            engine.extend(some_tokens(300))
        assert engine.length == back.length == 9
        assert (engine.state().logits is None) == (fails_at > 0)
        back.fails_at = -1
        engine.extend(some_tokens(2))
        assert len(list(engine.decode(Sampler(Sampling()), 4))) == 4


def test_states_that_are_not_finite_leave_both_sides_as_they_were(package: Package) -> None:
    for layer in (0, 1):
        with closing(split_engine(package, 1, local_back(package, 1))) as engine:
            engine.extend(some_tokens(7))
            state = engine.state()
            state.values[layer, 0, 3, 2] = np.nan
            engine.restore(state)
            with pytest.raises(NumericError, match="not finite"):
                engine.extend(some_tokens(2))
            assert engine.length == 7
            np.testing.assert_array_equal(engine.state().logits, state.logits)


def test_memory_moves_between_splits(package: Package) -> None:
    with (
        closing(whole_engine(package)) as whole,
        closing(split_engine(package, 1, local_back(package, 1))) as one,
        closing(split_engine(package, 2, local_back(package, 2))) as two,
    ):
        whole.extend(some_tokens(11))
        wanted = [token.id for token in whole.decode(Sampler(Sampling()), 8)]
        one.extend(some_tokens(11))
        two.restore(one.state())
        assert two.length == 11
        assert [token.id for token in two.decode(Sampler(Sampling()), 8)] == wanted
        with closing(local_back(package, 1)) as part, pytest.raises(PackageError, match="not of this engine"):
            two.restore(part.state())


def test_tokens_cross_as_they_are_and_are_checked() -> None:
    coder = TokenCoder(97)
    tokens = some_tokens(5)
    payload = coder.encode(tokens)
    assert len(payload) == 20
    np.testing.assert_array_equal(coder.decode(payload, 5), tokens)
    for bad, count in ((payload, 4), (payload, 6), (np.array([97], "<i4").tobytes(), 1), (b"\xff" * 4, 1)):
        with pytest.raises(ProtocolError):
            coder.decode(bad, count)


def test_a_split_that_is_none_is_refused(package: Package) -> None:
    for split in (-1, package.model.layers, True):
        with pytest.raises(SettingsError, match="split"):
            open_split_engine(package, split, FaultyServer(lambda: local_back(package, 1)).dial, version="0")


def test_chunks_say_where_they_come_from(tiny_package: Path) -> None:
    with Package.open(tiny_package) as package:
        tokenizer = Tokenizer.open(package)
        server = FaultyServer(lambda: local_back(package, 1))
        back = remote_back(package, 1, server.dial, local=True)
        with closing(split_engine(package, 1, back)) as engine:
            ids = tokenizer.encode("one two three four")
            writer, chunks = Writer(TextStream(tokenizer, ()), engine), []
            for place, token in enumerate(ids):
                server.down = place >= len(ids) // 2
                engine.extend(np.array([token], dtype=np.int32))
                if (chunk := writer.take(token)) is not None:
                    chunks.append(chunk)
        routes = [chunk.route for chunk in chunks]
        assert routes[0] == "remote"
        assert routes[-1] == "local"
        plain = Writer(TextStream(tokenizer, ()))
        assert {chunk.route for chunk in map(plain.take, ids) if chunk is not None} == {None}
        assert Chunk("", ()).route is None


@pytest.fixture(scope="module")
def real_answer(smollm2_package: Path) -> tuple[str, list[int]]:
    with Package.open(smollm2_package) as package:
        return answer(whole_engine(package, capacity=256, threads=None), Tokenizer.open(package))


@pytest.mark.model
@pytest.mark.parametrize("split", range(30))
def test_a_real_model_answers_alike_at_every_split(
    smollm2_package: Path, real_answer: tuple[str, list[int]], split: int
) -> None:
    with Package.open(smollm2_package) as package:
        server = FaultyServer(
            lambda: local_back(package, split, capacity=256, threads=None), ["after", None, "before", "forget"]
        )
        back = remote_back(package, split, server.dial, capacity=256)
        engine = split_engine(package, split, back, capacity=256, threads=None)
        assert answer(engine, Tokenizer.open(package)) == real_answer
    assert (package.model.layers, len(real_answer[1])) == (30, 24)


def answer(engine: Engine, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    """A text and its tokens, by an engine that is closed then."""
    with Session(engine, tokenizer) as session:
        chunks = list(session.stream("Why is the sky blue? Answer in two sentences.", max_tokens=24))
        return "".join(chunk.text for chunk in chunks), [token for chunk in chunks for token in chunk.token_ids]
