"""A split engine over real links to a real server, and the verb that talks through one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import split_servers
from split_conversation import converse

from edgemem.runtime.manifest import WEIGHTS_FILE
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.split.codec import LEAST_DELTA, CodecSettings
from edgemem.split.codec_file import CodecFile
from edgemem.split.frames import Hello
from edgemem.split.link import Link
from edgemem.split.opening import open_split_engine
from edgemem.split.server import ServerSettings
from edgemem.split.switching import SwitchSettings
from edgemem.tools.cli import main


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

        def dial(hello: Hello) -> Link:
            return Link.open(server.address, hello, identity=None, timeout_s=5)

        def disturb() -> None:
            if next(steps) % 5 == 2:
                server.restart()

        engine, back = open_split_engine(
            package,
            1,
            dial,
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
