"""`edgemem split plan` and `bench` as commands, over small real packages and a real server; and quantities."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest

from edgemem.runtime.package import Package
from edgemem.split.codec import CodecSettings
from edgemem.split.codec_file import CodecFile
from edgemem.split.planner import Choice
from edgemem.split.shaping import Shape, shaped
from edgemem.tools.cli import main
from edgemem.tools.quantities import bits_per_second, link_of, milliseconds, number_within, size_bytes
from edgemem.tools.split_bench_server import serving_slowly
from edgemem.tools.split_plan_view import mixed_package

LINK = ("--link", "20Mbit,30ms")


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["split", "plan", *arguments, "--threads", "1", "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_everything_fits_here_and_nothing_is_sent(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = planned(capsys, str(tiny_package), "--memory", "1GiB", "--deadline", "10s", *LINK)
    assert code == 0
    assert found["chosen"]["choice"]["split"] == 3
    assert found["chosen"]["wire_bytes"] == 0
    assert found["link"] == {"bits_per_s": 20e6, "round_trip_ms": 30.0, "overhead_bytes": 224}


def test_little_memory_leaves_layers_to_the_server(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["split", "plan", str(tiny_package), "--memory", "1kB", "--deadline", "10s", *LINK])
    out = capsys.readouterr().out
    assert code == 0
    assert re.search(r"\* +0 of 3 +– +\S+ +tokens", out)
    assert "over the device memory by" in out


def test_nothing_feasible_says_what_would_do(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--memory", "1kB", "--deadline", "10ms", *LINK)
    code, found = planned(capsys, str(tiny_package), *arguments)
    assert code == 1
    assert found["chosen"] is None
    assert set(found["nearest"]["over"]) == {"deadline"}
    assert main(["split", "plan", str(tiny_package), *arguments]) == 1
    assert re.search(r"a deadline of [\d.]+ ms would do", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("limit", "message"), [(("--context", "99999999"), "the context is out of range"), (("--least", "4"), "layers")]
)
def test_a_limit_beyond_the_model_is_refused(
    tiny_package: Path, capsys: pytest.CaptureFixture[str], limit: tuple[str, str], message: str
) -> None:
    arguments = ("--memory", "1GiB", "--deadline", "10s", *LINK)
    assert main(["split", "plan", str(tiny_package), *arguments, *limit]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "measuring" not in err


def test_a_calibrated_codec_is_offered_at_its_split(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Package.open(tiny_package) as package:
        weights, name = package.manifest.files["weights.safetensors"].sha256, package.manifest.name
    file = tmp_path / "codec.yaml"
    settings = CodecSettings("adaptive", 2.0, 0.1)
    file.write_text(CodecFile(name, weights, 2, settings, {"kl": 0.002, "token_bytes": 40.0}).dump())
    limits = (str(tiny_package), "--deadline", "10s", "--least", "1", "--context", "64", *LINK)
    _, roomy = planned(capsys, *limits, "--memory", "1GiB")
    too_little = str(roomy["chosen"]["device_bytes"] - 1)  # for all layers
    code, found = planned(capsys, *limits, "--memory", f"{too_little}B", "--codec", str(file))
    assert code == 0
    assert found["chosen"]["choice"]["activation"] == "fp16"
    adaptive = [one for one in found["front"] if one["choice"]["activation"] == "adaptive at 2"]
    assert [(one["choice"]["split"], one["kl_nats"], one["wire_bytes"]) for one in adaptive] == [(2, 0.002, 40.0)]


def test_a_server_and_its_link_are_measured(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = (str(tiny_package), "--memory", "1GiB", "--deadline", "10s")
    with (
        Package.open(tiny_package) as package,
        serving_slowly(package, (1,), slots=256, threads=1, slowdown=1.0) as port,
        shaped(port, Shape(bits_per_s=20e6, delay_s=0.01)) as proxy,
    ):
        code, found = planned(capsys, *limits, "--insecure-loopback", str(proxy.port), "--at", "1")
    assert code == 0
    assert found["link"]["round_trip_ms"] >= 20
    assert 1e6 < found["link"]["bits_per_s"] < 200e6  # not exact where the machine is loaded; loopback is Gbit/s
    assert "times what they take here" in found["notes"][0]


def test_a_link_that_stays_different_is_planned_for_anew(
    tiny_package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = iter(range(5))
    with (
        Package.open(tiny_package) as package,
        serving_slowly(package, (1,), slots=256, threads=1, slowdown=1.0) as port,
        shaped(port) as proxy,
    ):

        def pause(seconds: float) -> None:
            assert seconds == 0.25
            proxy.shape = Shape(delay_s=0.04)
            if next(pauses) == 4:
                raise KeyboardInterrupt

        monkeypatch.setattr("edgemem.tools.split_plan.sleep", pause)
        words = ("--memory", "1kB", "--deadline", "10s", "--at", "1", "--watch", "250ms")
        assert main(["split", "plan", str(tiny_package), *words, "--insecure-loopback", str(proxy.port)]) == 130
    found = capsys.readouterr()
    trips = [float(trip) for trip in re.findall(r"round trip ([\d.]+) ms", found.out)]
    assert len(trips) == 2
    assert trips[0] < 80 <= trips[1]
    assert found.err.count("the link has changed") == 1


def test_a_server_of_another_split_refuses(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        Package.open(tiny_package) as package,
        serving_slowly(package, (1,), slots=256, threads=1, slowdown=1.0) as port,
    ):
        arguments = ("--memory", "1GiB", "--deadline", "10s", "--insecure-loopback", str(port), "--at", "2")
        assert main(["split", "plan", str(tiny_package), *arguments]) != 0
    assert "refuses" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ("--memory", "1GiB", "--deadline", "80ms"),
        ("--memory", "1GiB", "--deadline", "80ms", "--link", "fast"),
        ("--memory", "1", "--deadline", "80ms", *LINK),
        ("--memory", "1GiB", "--deadline", "80ms", "--server", "home", "--server-speedup", "2"),
        ("--memory", "1GiB", "--deadline", "80ms", "--server", "home", *LINK),
        ("--memory", "1GiB", "--deadline", "80ms", "--watch", "1s", *LINK),
    ],
)
def test_flags_that_make_no_sense(wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["split", "plan", "anything", *wrong]) == 2
    assert "usage: edgemem split plan" in capsys.readouterr().err


def test_a_small_bench_is_run_and_written(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench"
    arguments = ["--rates", "10Mbit,1Gbit", "--trips", "1ms", "--tokens", "3", "--out", str(out)]
    assert main(["split", "bench", str(tiny_package), *arguments, "--device-slowdown", "2"]) == 0
    printed = capsys.readouterr().out
    assert "predictions:" in printed
    assert "choices:" in printed
    record = json.loads((out / "record.json").read_text())
    assert [one["bits_per_s"] for one in record["links"]] == [10e6, 1e9]
    for link in record["links"]:
        assert [arm["split"] for arm in link["arms"]] == [0, 1, 2, 3]
        assert all(len(arm["samples"]) == 3 and arm["predicted_ms"] > 0 for arm in link["arms"])
        # A round trip of a millisecond is paid by all but the device alone.
        assert all(min(arm["samples"]) >= 1.0 for arm in link["arms"][:-1])
    assert "| 10 | 1 ms |" in (out / "table.md").read_text()


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (size_bytes, "1GiB", 1 << 30),
        (size_bytes, "1.5 GB", 1_500_000_000),
        (size_bytes, "12B", 12),
        (milliseconds, "80ms", 80.0),
        (milliseconds, "2s", 2000.0),
        (milliseconds, "250us", 0.25),
        (bits_per_second, "20Mbit", 20e6),
        (bits_per_second, "1Gbit", 1e9),
        (link_of, "20Mbit,30ms", (20e6, 30.0)),
    ],
)
def test_quantities_are_read(read: Any, text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize("text", ["", "1", "GiB", "-1GiB", "0B", "1e9B", "1gib", "nanB", "1GiB extra", "9" * 30 + "B"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        size_bytes(text)


@pytest.mark.parametrize("text", ["", "20Mbit", "20Mbit,", ",30ms", "20Mbit,30", "20MB,30ms", "20Mbit,30ms,1"])
def test_links_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        link_of(text)


@pytest.mark.parametrize("text", ["", "fast", "0.5", "1001", "nan", "inf"])
def test_numbers_that_are_not_within(text: str) -> None:
    assert number_within(1, 1000)("2.5") == 2.5
    with pytest.raises(argparse.ArgumentTypeError, match="from 1 to 1,000"):
        number_within(1, 1000)(text)


def test_two_widths_are_said_to_need_a_package_of_their_own() -> None:
    needed = mixed_package(Choice(5, "int4", "int8", "fp16", 512))
    assert needed is not None
    assert "--front-layers 5 --front-weights (those of int4) --back-weights (those of int8)" in needed
    assert "split cut PACKAGE --at 5" in needed
    for choice in (Choice(5, "int4", "int4", "fp16", 512), Choice(0, None, "int8", None, 512)):
        assert mixed_package(choice) is None
