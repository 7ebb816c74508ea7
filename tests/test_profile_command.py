"""`edgemem profile` as a user meets it: a real small run, its files, resuming, comparing, predicting, and refusals."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from profile_records import KEY, cell, record, session, unmeasured

from edgemem.compiler.build import CompileOptions, compile_model
from edgemem.profiles.record_file import read_record, write_record
from edgemem.profiles.shapes import SHAPES
from edgemem.runtime.errors import FileError, SettingsError
from edgemem.tools.cli import main
from edgemem.tools.profile_output import write_files, write_text
from edgemem.tools.profile_targets import contexts_that_fit, find_packages, parse_weights

SMALL = ("--engines", "native", "--sessions", "2", "--steps", "8", "--contexts", "16", "--threads", "1")
FILES = {"record.json", "table.md", "table.csv", "samples.jsonl", "report.html"}
BOARD = """
name: my-board
kind: gpu
aliases: [My Board]
bandwidth_gb_s: 123.0
memory_gib: [8]
l2_mib: null
compute_capability: null
power_w: null
source: its datasheet
"""
PROFILE = [sys.executable, "-c", "import sys; from edgemem.tools.cli import main; sys.exit(main())", "profile"]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGEMEM_THREADS", raising=False)
    monkeypatch.setenv("EDGEMEM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def finished(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of both engines."""
    out = tmp_path_factory.mktemp("profile") / "out"
    words = [str(tiny_package), *SMALL, "--engines", "native,onnx", "--out", str(out)]
    done = subprocess.run([*PROFILE, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith(("native decodes tiny at", "onnx decodes tiny at"))
    assert "of the" in done.stdout.splitlines()[0]
    assert f"written to {out}" in done.stderr
    return out


def answered(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What the command prints on stdout."""
    capsys.readouterr()
    status = main(["profile", *map(str, words)])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one message of a command that fails."""
    capsys.readouterr()
    assert main(["profile", *map(str, words)]) == 1
    return capsys.readouterr().err


def test_a_run_writes_record_tables_samples_and_report(finished: Path) -> None:
    assert {entry.name for entry in finished.iterdir()} == FILES
    found = read_record(finished / "record.json")
    assert [(one.key.engine, one.status, len(one.sessions)) for one in found.cells] == [
        ("native", "measured", 2),
        ("onnx", "measured", 2),
    ]
    assert (finished / "report.html").read_text().count("<svg ") == 3
    assert "| tiny |" in (finished / "table.md").read_text()
    lines = list(csv.DictReader(io.StringIO((finished / "table.csv").read_text())))
    assert [float(line["step_ms"]) > 0 for line in lines] == [True, True]


def test_the_same_command_again_measures_nothing_anew(
    finished: Path, tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "samples.jsonl").read_bytes()
    out = answered(capsys, tiny_package, *SMALL, "--engines", "native,onnx", "--out", finished, "--json")
    (line,) = out.splitlines()
    assert [len(one["sessions"]) for one in json.loads(line)["cells"]] == [2, 2]
    assert (finished / "samples.jsonl").read_bytes() == before


def test_another_run_does_not_mix_with_the_one_that_is_there(
    finished: Path, tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "another run" in refused(capsys, tiny_package, *SMALL, "--seed", "1", "--out", finished)


def test_an_interrupted_run_shows_what_it_has_and_goes_on(tiny_package: Path, tmp_path: Path) -> None:
    words = [str(tiny_package), *SMALL, "--sessions", "200", "--out", str(tmp_path / "out"), "--csv"]
    pipe = subprocess.PIPE
    run = subprocess.Popen([*PROFILE, *words], stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    assert run.stderr is not None
    for line in run.stderr:
        if line.strip().startswith("2 of 200"):  # so one session is finished
            break
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    (line,) = list(csv.DictReader(io.StringIO(out)))
    assert line["status"] == "measured"
    assert "the same command goes on from here" in err
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == FILES
    assert read_record(tmp_path / "out" / "record.json").interrupted


def test_a_full_disk_loses_no_figure_that_was_measured(tiny_package: Path, tmp_path: Path) -> None:
    words = [str(tiny_package), *SMALL, "--sessions", "20", "--out", str(tmp_path / "out")]
    # No file of this process may grow beyond 8 kB: its first line fits, 20 sessions do not.
    limited = ["sh", "-c", 'ulimit -f 16; exec "$@"', "sh", *PROFILE, *words]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the samples cannot be kept" in done.stderr
    assert "bug" not in done.stderr
    assert done.stdout.startswith("native decodes tiny at")
    assert not list((tmp_path / "out").glob(".*"))


def test_stdout_holds_the_asked_form_alone(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (tiny_package, *SMALL, "--sessions", "1")
    (line,) = answered(capsys, *words, "--jsonl").splitlines()
    assert json.loads(line)["target"] == "tiny"
    lines = answered(capsys, *words, "--md").splitlines()
    assert [line[:7] for line in lines] == ["| model", "| --- |", "| tiny "]


def test_what_cannot_run_is_a_row_and_without_any_other_the_status_is_1(
    tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tiny_package), *SMALL, "--engines", "cuda,native", "--contexts", "100000"]
    assert main(["profile", *words]) == 1
    out = capsys.readouterr().out
    assert out.startswith("nothing was measured: ")
    assert "skipped: there is no NVIDIA GPU" in out
    assert "slots" in out


def test_a_shape_is_filled_with_random_weights_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("smollm2-135m", *SMALL, "--sessions", "1", "--weights", "int4", "--cache", tmp_path / "shapes", "--jsonl")
    first = json.loads(answered(capsys, *words))
    assert first["status"] == "measured"
    assert first["target"] == "smollm2-135m-int4"
    (package,) = (tmp_path / "shapes").iterdir()
    written = package.stat().st_mtime_ns
    assert json.loads(answered(capsys, *words))["size_bytes"] == first["size_bytes"]
    assert package.stat().st_mtime_ns == written


def test_a_compiled_package_goes_before_the_shape_of_its_name(tmp_path: Path, tiny_source: Path) -> None:
    compiled = tmp_path / "cache" / "packages" / "smollm2-135m.edgemem"
    compile_model(tiny_source, compiled, CompileOptions(weights="fp32", check_tokens=0))
    (found,) = find_packages("smollm2-135m", None, 0, None, lambda stage, share: None)
    assert (found.name, found.path, found.kind) == ("smollm2-135m", compiled, "package")


def test_a_name_that_is_nothing_lists_the_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "no-such-model")
    assert all(name in message for name in SHAPES)


def test_weights_are_for_shapes(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such shape" in refused(capsys, tiny_package, "--weights", "int8")


@pytest.mark.parametrize(("text", "precision"), [("int8", "int8-g32"), ("bf16", "bf16"), ("int4-g128", "int4-g128")])
def test_weights_by_their_names(text: str, precision: str) -> None:
    assert str(parse_weights(text)) == precision


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(SettingsError, match="int5"):
        parse_weights("int5")


@pytest.mark.parametrize(("weights", "said"), [("int8,int8", "each once"), (",", "none"), ("int8,int5", "int5")])
def test_bad_weights_are_refused_before_any_package_is_written(
    weights: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert said in refused(capsys, "smollm2-135m", *SMALL, "--weights", weights, "--cache", tmp_path / "shapes")
    assert not (tmp_path / "shapes").exists()


@pytest.mark.parametrize("flags", [("--steps", "1"), ("--engines", "abacus"), ("--contexts", ",")])
def test_bad_settings_are_refused_before_any_package_is_written(
    flags: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("smollm2-135m", *SMALL, "--weights", "int8", "--cache", tmp_path / "shapes")
    assert "out of range" in refused(capsys, *words, *flags)
    assert not (tmp_path / "shapes").exists()


def test_default_contexts_are_those_that_fit(tiny_package: Path) -> None:
    packages = find_packages(str(tiny_package), None, 0, None, lambda stage, share: None)
    (longest,) = contexts_that_fit(packages, (100_000,), 8)
    assert 16 < longest < 100_000
    assert contexts_that_fit(packages, (16, longest, longest + 1), 8) == (16, longest)


def test_a_package_called_like_a_verb_is_reached_by_its_path(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "compare").symlink_to(tiny_package)
    monkeypatch.chdir(tmp_path)
    out = answered(capsys, "./compare", *SMALL, "--sessions", "1", "--jsonl")
    assert json.loads(out)["target"] == "compare"


def test_compare_shows_conditions_first_then_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, step_ms, version in (("a", 2.0, "1.22"), ("b", 1.0, "1.23")):
        steps = (step_ms, 1.01 * step_ms, 0.99 * step_ms)
        timed = cell(KEY, [session(number, steps) for number in range(3)])
        write_record(record(timed, versions={"onnxruntime": version}), tmp_path / f"{name}.json")
    files = (tmp_path / "a.json", tmp_path / "b.json")
    out = answered(capsys, "compare", *files)
    assert out.index("1.22") < out.index("B as fast as A")
    assert "faster" in out
    assert json.loads(answered(capsys, "compare", *files, "--json"))["pairs"][0]["times_as_fast"] == pytest.approx(2.0)
    assert "| --- |" in answered(capsys, "compare", *files, "--md")


def test_compare_of_nothing_in_common_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(record(cell()), tmp_path / "a.json")
    write_record(record(unmeasured(KEY, "failed", "no memory")), tmp_path / "b.json")
    out = answered(capsys, "compare", tmp_path / "a.json", tmp_path / "b.json")
    assert "cells that both measured: none" in out
    assert "only in A: tiny native default at 16" in out


def test_report_is_written_beside_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(record(), tmp_path / "record.json")
    assert answered(capsys, "report", tmp_path / "record.json") == f"{tmp_path / 'report.html'}\n"
    other = tmp_path / "other.html"
    answered(capsys, "report", tmp_path / "record.json", "-o", other)
    assert other.read_bytes() == (tmp_path / "report.html").read_bytes()


def test_report_of_what_is_no_record_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "record.json").write_text("{}")
    assert "not a profile record" in refused(capsys, "report", tmp_path / "record.json")
    assert "not a profile record" in refused(capsys, "compare", tmp_path / "none.json", tmp_path / "none.json")


def test_predict_is_labelled_and_shows_its_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("predict", "--shape", "qwen2.5-7b", "--weights", "int4")
    out = answered(capsys, *words, "--device", "agx-orin")
    assert out.startswith("prediction: ")
    for text in ("205 GB/s", "another engine", "TensorRT Edge-LLM 0.10.0, on agx-orin", "qwen2.5-7b int4-g32"):
        assert text in out
    plain = json.loads(answered(capsys, *words, "--peak", "204.8", "--json"))
    assert plain["label"] == "prediction"
    assert {given["name"] for given in plain["inputs"]} >= {"streamed bytes", "peak bandwidth", "phase cost"}
    wider = json.loads(answered(capsys, *words, "--peak", "225.28", "--json"))
    assert wider["streaming_ms"] == pytest.approx(plain["streaming_ms"] / 1.1)


def test_predict_fits_to_own_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(record(cell()), tmp_path / "record.json")
    words = ("predict", "--shape", "qwen2.5-7b", "--peak", "100", "--from", tmp_path / "record.json")
    assert "measure a second shape" in refused(capsys, *words)  # one cell cannot be fitted


def test_predict_for_a_cpu_asks_for_a_peak(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--peak" in refused(capsys, "predict", "--device", "cpu", "--shape", "qwen2.5-7b")


def test_devices_lists_shipped_and_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = answered(capsys, "devices")
    assert "h100-sxm" in shipped
    assert "my-board" not in shipped
    (tmp_path / "board.yaml").write_text(BOARD)
    mine = json.loads(answered(capsys, "devices", "--devices", tmp_path / "board.yaml", "--json"))
    assert {"my-board", "h100-sxm"} <= {device["name"] for device in mine["devices"]}


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["x", "--json", "--csv"],
        ["x", "--contexts", "many"],
        ["x", "--seed", "-1"],
        ["compare", "only-one.json"],
        ["predict", "--shape", "qwen2.5-7b"],
        ["predict", "--shape", "qwen2.5-7b", "--peak", "nan"],
        ["predict", "--shape", "qwen2.5-7b", "--peak", "1e-300"],
        ["predict", "--shape", "qwen2.5-7b", "--peak", "1e300"],
        ["predict", "--shape", "smollm2-135m", "--peak", "9", "--context", "99999"],
        ["report"],
    ],
)
def test_wrong_usage_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *words]) == 2
    assert "usage: edgemem profile" in capsys.readouterr().err


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("compare", "predict", "report", "devices"):
        assert main(["profile", verb, "--help"]) == 0
        assert f"usage: edgemem profile {verb}" in capsys.readouterr().out


def test_without_matplotlib_all_but_the_report_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    reason = write_files(record(), tmp_path / "out")
    assert reason is not None
    assert 'pip install "edgemem-runtime[report]"' in reason
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == {"record.json", "table.md", "table.csv"}


def test_a_folder_that_cannot_be_written_leaves_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "table.csv").mkdir()
    with pytest.raises(FileError, match=r"table\.csv"):
        write_files(record(), tmp_path / "out")
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == {"record.json", "table.md", "table.csv"}


def test_a_file_in_place_of_a_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        write_text(tmp_path / "file" / "report.html", "")
