"""A smaller model goes on in the server's place, at the same token, and the server comes back to all that was said."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import split_servers
from faulty_link import FaultyServer
from hypothesis import given, settings
from hypothesis import strategies as st
from runnable_packages import plain_model, runnable_package, same_precision
from split_conversation import Clock, local_back, remote_back, some_tokens, split_engine
from tiny_models import tiny_folder

from edgemem.compiler.build import CompileOptions, compile_model
from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import EngineError
from edgemem.runtime.manifest import WEIGHTS_FILE
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.runtime.session import Session
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.split.back import Ask
from edgemem.split.codec import CodecSettings
from edgemem.split.engine import SplitEngine
from edgemem.split.fallback_back import FallbackBack
from edgemem.split.link import Link
from edgemem.split.opening import open_split_engine
from edgemem.split.remote_back import RemoteBack
from edgemem.split.switching import SwitchSettings
from edgemem.tools.cli import main

SPLIT, VOCABULARY = 1, 97


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Package, Package]]:
    """A model, and a smaller one: fewer layers, narrower, and with a few ids more that no token has."""
    folder = tmp_path_factory.mktemp("fallback")
    large, small = plain_model(), plain_model(layers=1, hidden=32, intermediate=64, heads=2, vocabulary=VOCABULARY + 3)
    paths = [
        runnable_package(folder / f"{name}.edgemem", model, same_precision(model, "int8-g32"), seed=seed)
        for name, model, seed in (("large", large, 0), ("small", small, 5))
    ]
    with Package.open(paths[0]) as one, Package.open(paths[1]) as other:
        yield one, other


def whole(package: Package, capacity: int = 64) -> NativeEngine:
    return NativeEngine(package, capacity=capacity, threads=1)


def fallback_engine(
    packages: tuple[Package, Package], server: FaultyServer, split: int = SPLIT, **switch: object
) -> tuple[SplitEngine, RemoteBack]:
    large, small = packages
    clock = Clock()
    back = remote_back(large, split, server.dial, clock=clock, settings=SwitchSettings(**switch))  # type: ignore[arg-type]
    back._local = FallbackBack(whole(small), VOCABULARY)
    return split_engine(large, split, back), back


def next_tokens(engine: Engine, tokens: list[int], count: int, vocabulary: int | None = VOCABULARY) -> list[int]:
    """What an engine says after these, greedily."""
    engine.truncate(0)
    said: list[int] = []
    logits = engine.extend(np.array(tokens, dtype=np.int32)).logits
    for _ in range(count):
        assert logits is not None
        said.append(int(logits[:vocabulary].argmax()))
        logits = engine.extend(np.array(said[-1:], dtype=np.int32)).logits
    return said


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("warm", [False, True])
def test_each_model_says_what_it_would_after_all_that_was_said(
    packages: tuple[Package, Package], warm: bool, split: int
) -> None:
    server = FaultyServer(lambda: local_back(packages[0], split))
    engine, back = fallback_engine(packages, server, split, warm=warm)
    prompt, said, routes = some_tokens(9).tolist(), [], []
    with closing(engine), closing(whole(packages[0])) as large, closing(whole(packages[1])) as small:
        engine.extend(some_tokens(9))
        decoding = engine.decode(Sampler(Sampling()), 12)
        for step in range(12):
            server.down = 3 <= step < 6
            said.append(next(decoding).id)
            routes.append(engine.route)
            back.probe()
        assert routes == ["remote"] * 3 + ["fallback"] * 6 + ["remote"] * 3
        assert said[:3] == next_tokens(large, prompt, 3)
        assert said[3:9] == next_tokens(small, prompt + said[:3], 6)
        assert said[9:] == next_tokens(large, prompt + said[:9], 3)
        assert said[3:9] != next_tokens(large, prompt + said[:3], 6)


@given(
    faults=st.lists(st.sampled_from([None, None, None, "before", "after", "forget", "failed"]), max_size=50),
    warm=st.booleans(),
)
@settings(max_examples=25)
def test_after_any_faults_the_server_knows_what_was_said_and_what_was_evicted(
    packages: tuple[Package, Package], faults: list[str | None], warm: bool
) -> None:
    server = FaultyServer(lambda: local_back(packages[0], SPLIT), faults)
    engine, back = fallback_engine(packages, server, warm=warm)
    kept, begun = np.array([0, 1, 5, 6, 11, 12, 13]), some_tokens(9)

    def said(count: int) -> list[int]:
        tokens = []
        for token in engine.decode(Sampler(Sampling()), count):
            tokens.append(token.id)
            back.probe()
        return tokens

    with closing(engine), closing(whole(packages[0])) as alone:
        engine.extend(begun)
        first = said(8)
        engine.keep(kept)
        engine.extend(some_tokens(3, seed=1))
        second = said(5)
        server._faults = iter(())
        for _ in range(4):
            back.probe()
        assert engine.route == "remote"
        engine.truncate(13)
        engine.extend(some_tokens(2, seed=2))
        third = said(4)
        alone.extend(begun)
        for token in first[:7]:
            alone.extend(np.array([token], dtype=np.int32))
        alone.keep(kept)
        alone.extend(some_tokens(3, seed=1))
        for token in second[:4]:
            alone.extend(np.array([token], dtype=np.int32))
        alone.truncate(13)
        alone.extend(some_tokens(2, seed=2))
        assert third == [token.id for token in alone.decode(Sampler(Sampling()), 4)]


def test_what_waits_is_read_together_and_forgotten_where_it_is_cut_off(packages: tuple[Package, Package]) -> None:
    tokens = some_tokens(20)
    with closing(FallbackBack(whole(packages[1]), VOCABULARY)) as back, closing(whole(packages[1])) as engine:
        for token in tokens[:12]:
            back.extend(b"", 1, Ask(0, None, token[None]))
        assert (back.length, back._engine.length) == (12, 0)
        back.truncate(9)
        back.keep(np.array([0, 2, 4, 8]))
        assert (back.length, back._engine.length) == (4, 4)
        answer = back.extend(b"", 8, Ask(VOCABULARY, tokens[12:], tokens[12:]))
        engine.extend(tokens[:9])
        engine.keep(np.array([0, 2, 4, 8]))
        wanted = engine.extend(tokens[12:], surprisal=True)
        assert wanted.logits is not None
        np.testing.assert_array_equal(answer.values, wanted.logits[:VOCABULARY])
        np.testing.assert_array_equal(answer.surprisal[1:], wanted.surprisal[1:])  # type: ignore[index]
        assert len(back.logits(3).ids) == 3
        back.truncate(11)
        with pytest.raises(EngineError, match="no logits"):
            back.logits(1)
        for refused in (back.state, lambda: back.restore(engine.state()), lambda: back.extend(b"", 1, Ask())):
            with pytest.raises(EngineError):
                refused()


def test_a_smaller_vocabulary_leaves_the_last_ids_unsaid(packages: tuple[Package, Package]) -> None:
    with closing(FallbackBack(whole(packages[1]), VOCABULARY + 7)) as back:
        answer = back.extend(b"", 3, Ask(VOCABULARY + 7, None, some_tokens(3)))
        assert np.isfinite(answer.values).tolist() == [True] * (VOCABULARY + 3) + [False] * 4
        assert answer.log_sum == pytest.approx(back.logits(1).log_sum)


@pytest.fixture(scope="module")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model than `tiny_package`, with its tokenizer."""
    folder = tmp_path_factory.mktemp("small")
    out = folder / "small.edgemem"
    compile_model(tiny_folder(folder, "llama", tied=True, seed=9), out, CompileOptions(weights="fp32", check_tokens=0))
    return out


def test_a_conversation_with_retention_goes_through_both(tiny_package: Path, small_path: Path) -> None:
    with Package.open(tiny_package) as package, Package.open(small_path) as small:
        server = FaultyServer(lambda: local_back(package, SPLIT))
        back = remote_back(package, SPLIT, server.dial)
        back._local = FallbackBack(whole(small), package.model.vocabulary)
        engine = split_engine(package, SPLIT, back)
        entropy = RetentionSettings(policy="entropy", budget=40, sinks=2)
        with closing(engine):
            session = Session(engine, Tokenizer.open(package), memory=entropy)
            routes = set()
            for turn in range(6):
                server.down = turn in (2, 3)
                for chunk in session.stream("one two three four five", max_tokens=12, ignore_eos=True, raw=True):
                    routes.add(chunk.route)
                for _ in range(3):
                    back.probe()
            assert session.memory.evictions > 3
            assert engine.length == session.memory.table.length == back.length <= 40
            assert routes == {"remote", "fallback"}
            assert engine.route == "remote"


def test_a_real_server_that_stops_and_comes_back(
    tiny_package: Path, small_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Package.open(tiny_package) as package, Package.open(small_path) as small:
        monkeypatch.setattr(split_servers, "MODEL_HASH", package.manifest.model_hash)
        with split_servers.serving(tiny_package) as server:
            engine, back = open_split_engine(
                package,
                SPLIT,
                lambda: Link(server.address, None),
                version="test",
                codec=CodecSettings("fp32"),
                capacity=200,
                threads=1,
                fallback=small,
                settings=SwitchSettings(probe_s=0.02, deadline_s=10.0),
            )
            prompt, said, routes = some_tokens(9).tolist(), [], []
            with closing(engine), closing(whole(package, 200)) as large, closing(whole(small, 200)) as little:
                back.sync()
                engine.extend(some_tokens(9))
                for token in engine.decode(Sampler(Sampling()), 150):
                    said.append(token.id)
                    routes.append(str(engine.route))
                    if len(said) == 4:
                        server.stop()
                    if len(said) == 7:
                        server.restart()
                    if routes.count("fallback") > 5 and engine.route == "fallback":
                        time.sleep(0.02)  # it looks for the server meanwhile
                    if routes[-4:] == ["remote"] * 4 and len(said) > 8:
                        break
                turns = [place for place in range(1, len(said)) if routes[place] != routes[place - 1]]
                assert [routes[0], *(routes[place] for place in turns)] == ["remote", "fallback", "remote"]
                lost, again = turns
                assert said[:lost] == next_tokens(large, prompt, lost, None)
                assert said[lost:again] == next_tokens(little, prompt + said[:lost], again - lost, None)
                assert said[again:] == next_tokens(large, prompt + said[:again], len(said) - again, None)


def words(package: Path, *more: str) -> list[str]:
    return ["split", "run", str(package), "--raw", "-p", "one two", "-n", "12", "-t", "1", *more]


def test_the_verb_goes_on_with_the_fallback_and_says_so(
    tiny_package: Path, small_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(words(small_path, "--at", "all")) == 0
    alone = capsys.readouterr().out
    with Package.open(tiny_package) as package:
        monkeypatch.setattr(split_servers, "MODEL_HASH", package.manifest.files[WEIGHTS_FILE].sha256)
    with split_servers.serving(tiny_package) as server:
        port = str(server.port)
        remote = words(
            tiny_package, "--insecure-loopback", port, "--at", "1", "--fallback", str(small_path), "-c", "64"
        )
        assert main(remote) == 0
        assert capsys.readouterr().err == ""
    assert main(remote) == 0
    out, err = capsys.readouterr()
    assert out == alone
    assert err.startswith("fallback: the server cannot be reached")


def test_a_fallback_with_other_tokens_is_refused(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, other = tiny_folder(tmp_path, "llama", tied=True, seed=1), tmp_path / "other.edgemem"
    tokens = json.loads((source / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (source / "tokenizer.json").write_text(json.dumps(tokens))
    compile_model(source, other, CompileOptions(weights="fp32", check_tokens=0))
    assert main(words(tiny_package, "--insecure-loopback", "1", "--at", "1", "--fallback", str(other))) == 1
    assert "another tokenizer" in capsys.readouterr().err
    assert main(words(tiny_package, "--insecure-loopback", "1", "--local", "--fallback", str(other))) == 2
