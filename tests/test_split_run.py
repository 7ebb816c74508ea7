"""A split engine over real links to a real server, and the verb that talks through one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import split_servers
from faulty_link import FaultyServer
from split_conversation import Clock, converse, local_back, remote_back, some_tokens, split_engine

from edgemem.runtime.manifest import WEIGHTS_FILE
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.split.codec import LEAST_DELTA, CodecSettings
from edgemem.split.codec_file import CodecFile
from edgemem.split.link import Link
from edgemem.split.opening import open_split_engine
from edgemem.split.server import ServerSettings
from edgemem.split.switching import SwitchSettings
from edgemem.tools.cli import main
from edgemem.tools.split_run import reason


@pytest.fixture
def package(tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    with Package.open(tiny_package) as opened:
        monkeypatch.setattr(split_servers, "MODEL_HASH", opened.manifest.files[WEIGHTS_FILE].sha256)
        yield opened


@pytest.mark.parametrize("local", [False, True], ids=["alone", "with-local"])
def test_a_server_that_is_restarted_at_any_step_changes_nothing(package: Package, local: bool) -> None:
    with closing(NativeEngine(package, capacity=64, threads=1)) as whole:
        wanted = converse(whole)
    steps = iter(range(1000))
    with split_servers.serving(package.path) as server:

        def disturb() -> None:
            if next(steps) % 5 == 2:
                server.restart()

        engine, back = open_split_engine(
            package,
            1,
            lambda: Link(server.address, None),
            version="test",
            codec=CodecSettings("fp32"),
            capacity=64,
            threads=1,
            local=local,
            settings=SwitchSettings(probe_s=0.02),
        )
        with closing(engine):
            back.sync()
            assert engine.route == "remote"
            assert converse(engine, disturb) == wanted
        assert server.back.sessions == 0 or local


def run_words(package: Package, *more: str) -> list[str]:
    return ["split", "run", str(package.path), "--raw", "-p", "one two", "-n", "12", "-t", "1", *more]


def test_the_verb_prints_the_text_of_this_device_and_says_who_answers(
    package: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(run_words(package, "--at", "3")) == 0
    wanted = capsys.readouterr().out
    assert len(wanted) > 12
    with split_servers.serving(package.path, settings=ServerSettings(slots=512)) as server:
        words = run_words(package, "--insecure-loopback", str(server.port), "--at", "1", "--codec", "fp32")
        assert main(words) == 0
        assert capsys.readouterr() == (wanted, "")
    assert main(words) == 1
    assert "cannot be reached" in capsys.readouterr().err
    assert main([*words, "--local"]) == 0
    out, err = capsys.readouterr()
    assert out == wanted
    assert err.startswith("local: the server cannot be reached")


def test_the_verb_prints_the_same_at_every_split(package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    layers, texts = package.model.layers, set()
    with split_servers.serving(package.path, range(layers), ServerSettings(slots=512)) as server:
        words = run_words(package, "--insecure-loopback", str(server.port), "--codec", "fp32")
        for split in range(layers + 1):
            assert main([*words, "--at", str(split)]) == 0
            texts.add(capsys.readouterr().out)
    [text] = texts
    assert len(text) > 12


def test_the_verb_sends_by_a_calibrated_codec(
    package: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(run_words(package, "--at", "3")) == 0
    wanted = capsys.readouterr().out
    file = tmp_path / "codec.yaml"
    fine = CodecSettings("adaptive", 8.0, LEAST_DELTA)
    file.write_text(CodecFile("tiny", package.manifest.model_hash, 1, fine, {"kl": 0.0, "token_bytes": 9.0}).dump())
    with split_servers.serving(package.path, splits=(1, 2), settings=ServerSettings(slots=512)) as server:
        words = run_words(package, "--insecure-loopback", str(server.port), "--codec", str(file))
        assert main([*words, "--at", "1"]) == 0
        assert capsys.readouterr() == (wanted, "")
        assert main([*words, "--at", "2"]) == 1
        assert "another model or split" in capsys.readouterr().err
    assert main([*words, "--at", "1", "--codec", "adaptive"]) == 1
    assert "no calibrated codec" in capsys.readouterr().err


def test_the_verb_says_what_the_two_sides_have_each(package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    with split_servers.serving(package.path, splits=(2,)) as server:
        assert main(run_words(package, "--insecure-loopback", str(server.port), "--at", "1", "-c", "64")) == 1
    shown = capsys.readouterr().err
    assert "layer 1 of 3" in shown
    assert "layer 2 of 3" in shown


def test_the_verb_wants_a_server_unless_all_is_here(package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(run_words(package, "--at", "1")) == 2
    assert "--server" in capsys.readouterr().err
    assert main(run_words(package, "--at", "4", "--insecure-loopback", "1")) == 1
    assert "0 to 2" in capsys.readouterr().err
    for at in ("0,1", "all,1", "3,1"):
        assert main(run_words(package, "--at", at, "--insecure-loopback", "1")) == 1
        assert "cannot move to other splits" in capsys.readouterr().err


@pytest.mark.parametrize("lost", [False, True])
def test_a_degraded_answer_comes_with_its_reason(package: Package, lost: bool) -> None:
    server = FaultyServer(lambda: local_back(package, 1))
    settings = SwitchSettings(deadline_s=1e3 if lost else 1e-4)
    back = remote_back(package, 1, server.dial, settings=settings, clock=Clock())
    with closing(split_engine(package, 1, back)) as engine:
        engine.extend(some_tokens(5))
        assert (engine.route, reason(engine)) == ("remote", "")
        if lost:
            server._faults = iter(["before"])
        engine.extend(some_tokens(1))
        assert engine.route == "degraded"
        assert reason(engine) == (": the link is lost" if lost else ": the server's answer came late")
        back._settings = SwitchSettings()
        for _ in range(3):
            engine.extend(some_tokens(1))
        assert (engine.route, reason(engine)) == ("remote", "")
