"""The command line as a user meets it: help, statuses, run, compile and chat over a real small package."""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_config, write_folder

from edgemem.runtime.errors import EngineError, SettingsError
from edgemem.runtime.open import default_engine
from edgemem.runtime.session import Session
from edgemem.tools.cli import VERBS, main
from edgemem.tools.commands import chat, pull
from edgemem.tools.commands import compile as compile_command
from edgemem.tools.console import print_table
from edgemem.tools.machine_report import cpu_model
from edgemem.tools.providers import provider_names

EDGEMEM = [sys.executable, "-c", "import sys; from edgemem.tools.cli import main; sys.exit(main())"]
RUN_KEYS = {
    "text",
    "token_ids",
    "finish_reason",
    "time_to_first_token_ms",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "engine",
    "prompt_tokens",
    "bytes_per_token",
    "read_bandwidth_gb_s",
    "bandwidth_share",
    "streamed_floor_ms",
    "footprint_floor_ms",
    "precision",
    "context",
    "device",
    "quality",
    "threads",
    "package",
    "versions",
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("EDGEMEM_MODEL", "EDGEMEM_THREADS", "EDGEMEM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EDGEMEM_CACHE", str(tmp_path / "cache"))


def run_json(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    """The one object that a command prints under --json, with nothing else on stdout."""
    capsys.readouterr()
    status = main([*map(str, argv), "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    (line,) = out.splitlines()
    answer: dict[str, Any] = json.loads(line)
    return answer


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for verb, summary in VERBS.items():
        assert verb in out
        assert summary in out
    assert "edgemem run -m smollm2-135m" in out


@pytest.mark.parametrize("verb", VERBS)
def test_each_command_shows_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"example: edgemem {verb}" in capsys.readouterr().out


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from edgemem.tools.cli import main; main(['--help']); "
        "print('LOADED', {'numpy', 'onnxruntime', 'rich', 'huggingface_hub', 'tokenizers', 'yaml'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("LOADED set()\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("edgemem 0.")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["dance"],
        ["run", "-p", "x"],
        ["run", "a", "-m", "b", "-p", "x"],
        ["run", "a", "-p", "x", "-n", "0"],
        ["run", "a", "-p", "x", "--raw", "--system", "s"],
        ["run", "a", "-p", "x", "-t", "two"],
        ["compile", "a", "--weights", "int5"],
        ["compile", "a", "--check-tokens", "1"],
        ["inspect", "a", "--bandwidth", "0"],
    ],
)
def test_wrong_usage_ends_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: edgemem" in err


def test_clear_error_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", "absent", "-p", "x"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("there is no such package") == 1
    assert err.startswith("edgemem: ")
    assert "\n  do: edgemem compile" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("how", ["neither", "flag before", "flag after", "environment"])
def test_bug_shows_its_traceback_only_when_asked(
    how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise ZeroDivisionError("by design")

    monkeypatch.setattr(pull, "run", fail)
    if how == "environment":
        monkeypatch.setenv("EDGEMEM_DEBUG", "1")
    argv = {"flag before": ["--debug", "pull", "x"], "flag after": ["pull", "x", "--debug"]}.get(how, ["pull", "x"])
    assert main(argv) == 70
    err = capsys.readouterr().err
    assert "this is a bug: ZeroDivisionError: by design" in err
    assert ("Traceback" in err) == (how != "neither")


def test_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(pull, "run", interrupted)
    assert main(["pull", "x"]) == 130
    assert capsys.readouterr() == ("", "")


def test_sigterm_cleans_up_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned: list[bool] = []

    def terminated(_: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(pull, "run", terminated)
    assert main(["pull", "x"]) == 143
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_without_memory_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def exhausted(_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(pull, "run", exhausted)
    assert main(["pull", "x"]) == 1
    assert "no memory is left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("redirection", "status", "message"),
    [(">&-", 0, ""), ("2>&-", 0, ""), ("<&-", 0, ""), (">/dev/full", 1, "edgemem: the output cannot be written")],
)
def test_streams_that_are_closed_or_full(tiny_package: Path, redirection: str, status: int, message: str) -> None:
    line = f'"$0" "$@" {redirection}'
    argv = ["sh", "-c", line, *EDGEMEM, "run", str(tiny_package), "-p", "-", "-n", "2", "--no-speed"]
    result = subprocess.run(argv, input="", capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.partition("\n")[0]) == (status, message)


def test_text_that_stdout_cannot_encode_and_stdin_cannot_decode_is_replaced(tiny_package: Path) -> None:
    argv = [*EDGEMEM, "run", str(tiny_package), "-p", "-", "-n", "8", "--ignore-eos", "--no-speed"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    subprocess.run(argv, input=b"caf\xe9", capture_output=True, check=True, env=environment)
    environment["PYTHONIOENCODING"] = "ascii"
    out = subprocess.run(
        [*EDGEMEM, "inspect", str(tiny_package), "--bandwidth", "1"], capture_output=True, check=True, env=environment
    ).stdout
    assert b"?" in out


def test_outputs_that_cannot_be_made_are_one_error(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "x.edgemem", tmp_path / ("x" * 300)):
        assert main(["compile", str(tiny_source), "-o", str(out), "--check-tokens", "0"]) == 1
        assert "cannot write the package" in capsys.readouterr().err
    monkeypatch.setenv("EDGEMEM_CACHE", str(tmp_path / "file"))
    assert main(["compile", str(tiny_source), "--check-tokens", "0"]) == 1
    assert "cannot write the package" in capsys.readouterr().err


def test_compile_names_the_tensors_that_the_group_does_not_divide(
    tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.edgemem"
    assert main(["compile", str(tiny_source), "-o", str(out), "--group", "128", "--check-tokens", "0"]) == 0
    assert "down as int4-g32-min: 128 does not divide the rows" in capsys.readouterr().out


def test_closed_pipe_is_quiet(tiny_package: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # whoever read our output has gone
    argv = ["run", str(tiny_package), "-p", "the", "--raw", "-n", "8", "--ignore-eos", "--no-speed"]
    with os.fdopen(writing, "w") as stdout:
        result = subprocess.run([*EDGEMEM, *argv], stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 141
    assert result.stderr == ""


def test_run_streams_what_the_session_answers(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Session.open(tiny_package) as session:
        expected = "".join(chunk.text for chunk in session.stream("The river", max_tokens=12, ignore_eos=True))
    assert main(["run", str(tiny_package), "-p", "The river", "-n", "12", "--ignore-eos", "--no-speed"]) == 0
    assert capsys.readouterr() == (expected + "\n", "")


def test_run_reports_its_speed_on_one_line(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", str(tiny_package), "-p", "The", "-n", "8", "--ignore-eos"]) == 0
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    for part in ("tokens/s", "first token after", "MB/token", "GB/s", "of the measured", default_engine()):
        assert part in err


def test_run_json_is_one_object(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_json(capsys, "run", tiny_package, "-p", "The river", "-n", 12, "--ignore-eos", "-t", 1, "--raw")
    assert set(answer) == RUN_KEYS
    assert answer["finish_reason"] == "length"
    assert answer["engine"] == default_engine()
    assert answer["threads"] == 1
    assert answer["package"] == str(tiny_package)
    assert len(answer["token_ids"]) == 12
    with Session.open(tiny_package) as session:
        ids = [
            token
            for chunk in session.stream("The river", max_tokens=12, ignore_eos=True, raw=True)
            for token in chunk.token_ids
        ]
        prompt = session.timings.prompt_tokens
        last = session.engine.traffic()
    assert answer["token_ids"] == ids
    assert answer["prompt_tokens"] == prompt
    assert last.weights < answer["bytes_per_token"] <= last.total
    got = answer["bytes_per_token"] * answer["decode_tokens_per_second"] / 1e9 / answer["read_bandwidth_gb_s"]
    assert answer["bandwidth_share"] == pytest.approx(got)
    per_ms = answer["read_bandwidth_gb_s"] * 1e6
    assert answer["streamed_floor_ms"] == pytest.approx(answer["bytes_per_token"] / per_ms)
    assert answer["footprint_floor_ms"] > (tiny_package / "weights.safetensors").stat().st_size / per_ms
    assert answer["precision"]["embedding"] == "fp32"
    assert answer["context"] == session.engine.capacity
    assert answer["quality"] is None
    assert answer["device"] == cpu_model()


def test_one_token_has_no_rate(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tiny_package), "-p", "The", "-n", "1", "--ignore-eos"]) == 0
    err = capsys.readouterr().err
    assert "first token after" in err
    assert "nan" not in err
    answer = run_json(capsys, "run", tiny_package, "-p", "The", "-n", 1, "--ignore-eos")
    assert answer["read_bandwidth_gb_s"] > 0
    assert answer["decode_tokens_per_second"] is None
    assert answer["bandwidth_share"] is None


def test_run_without_speed_measures_no_bandwidth(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_json(capsys, "run", tiny_package, "-p", "The", "-n", 1, "--ignore-eos", "--no-speed")
    assert answer["read_bandwidth_gb_s"] is None
    assert answer["bandwidth_share"] is None
    assert answer["streamed_floor_ms"] is None
    assert answer["footprint_floor_ms"] is None


def test_run_seed_decides_the_text(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ids(seed: int) -> list[int]:
        argv = ("run", tiny_package, "-p", "The", "-n", 16, "--ignore-eos", "--no-speed", "--temp", 1.5, "--seed", seed)
        found: list[int] = run_json(capsys, *argv)["token_ids"]
        return found

    assert ids(7) == ids(7)
    assert ids(7) != ids(8)


def test_run_reads_the_prompt_from_stdin(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("run", tiny_package, "-n", 6, "--ignore-eos", "--no-speed")
    given = run_json(capsys, *argv, "-p", "The garden")
    monkeypatch.setattr(sys, "stdin", io.StringIO("The garden"))
    assert run_json(capsys, *argv, "-p", "-")["token_ids"] == given["token_ids"]


def test_run_system_message_and_template_lengthen_the_prompt(
    tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("run", tiny_package, "-p", "The", "-n", 1, "--no-speed")
    raw, plain, system = (
        run_json(capsys, *argv, *more)["prompt_tokens"] for more in (["--raw"], [], ["--system", "Be kind."])
    )
    assert raw < plain < system


def test_run_stop_text_ends_the_answer(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("run", tiny_package, "-p", "The", "-n", 24, "--ignore-eos", "--no-speed", "--temp", 1, "--seed", 1)
    text = run_json(capsys, *argv)["text"]
    stop = text[len(text) // 2 :][:2]
    stopped = run_json(capsys, *argv, "--stop", "never in it", "--stop", stop)
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == text[: text.index(stop)]


def test_run_reports_what_came_before_the_engine_failed(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgemem.runtime.onnx_engine import OnnxEngine

    whole, steps = OnnxEngine._run, iter(range(4))

    def failing(self: OnnxEngine, binding: Any, count: int) -> None:
        if next(steps, None) is None:
            raise EngineError("the device went away")
        whole(self, binding, count)

    monkeypatch.setattr(OnnxEngine, "_run", failing)
    assert main(["run", str(tiny_package), "-p", "The", "-n", "9", "--ignore-eos", "--json", "--engine", "onnx"]) == 1
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer["finish_reason"] == "error"
    assert len(answer["token_ids"]) == 4
    assert err == "edgemem: the device went away\n"


def test_environment_names_model_and_threads(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEMEM_MODEL", str(tiny_package))
    monkeypatch.setenv("EDGEMEM_THREADS", "1")
    answer = run_json(capsys, "run", "-p", "The", "-n", 2, "--no-speed")
    assert (answer["package"], answer["threads"]) == (str(tiny_package), 1)
    monkeypatch.setenv("EDGEMEM_THREADS", "many")
    assert main(["run", "-p", "The"]) == 2


def test_prompt_over_the_context_gives_the_numbers(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tiny_package), "-p", "the river " * 20, "-c", "16", "--no-speed"]) == 1
    err = capsys.readouterr().err
    assert "longer than the context" in err
    assert "at most 16" in err
    assert "larger context (-c, at most 512)" in err


def test_compile_then_run_by_name(tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiled = run_json(capsys, "compile", tiny_source, "--weights", "int8", "--check-tokens", 32)
    path = Path(compiled["path"])
    assert path == tmp_path / "cache" / "packages" / f"{tiny_source.name}.edgemem"
    assert compiled["bytes"] == sum(file.stat().st_size for file in path.iterdir() if file.name != "manifest.yaml")
    assert 8 < compiled["bits_per_weight"] < 10
    assert compiled["quality"]["tokens"] == 32
    assert compiled["quality"]["kl_mean"] < 0.05
    answer = run_json(capsys, "run", "-m", tiny_source.name, "-p", "The", "-n", 2, "--no-speed")
    assert answer["package"] == str(path)


def test_compile_shows_a_table_and_writes_where_told(
    tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new folder" / "mine.edgemem"
    argv = ["compile", str(tiny_source), "-o", str(out), "--stages", "all", "--max-context", "64"]
    assert main([*argv, "--check-tokens", "16", "--front-layers", "1", "--front-weights", "fp16"]) == 0
    text, err = capsys.readouterr()
    for part in (str(out), "bits per weight", "perplexity", "KL divergence", "top-1 agreement", "compiled in"):
        assert part in text
    assert "quantise ..." in err.splitlines()
    graphs = [(graph["first"], graph["last"]) for graph in run_json(capsys, "inspect", out, "--bandwidth", 1)["graphs"]]
    assert graphs == [(0, 3), (0, 1), (1, 3), (0, 2), (2, 3)]


def test_another_source_does_not_take_a_name_in_the_cache(
    tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "elsewhere" / tiny_source.name
    write_folder(source, tiny_config("llama", tied=True), seed=2)
    package = Path(run_json(capsys, "compile", tiny_source, "--check-tokens", 0)["path"])
    before = (package / "manifest.yaml").read_bytes()
    assert main(["compile", str(source), "--check-tokens", "0"]) == 1
    err = capsys.readouterr().err
    assert "a package of this name from another source" in err
    assert f"-o {package}" in err
    assert (package / "manifest.yaml").read_bytes() == before
    run_json(capsys, "compile", tiny_source, "--weights", "int8", "--check-tokens", 0)  # the same source may
    run_json(capsys, "compile", source, "-o", package, "--check-tokens", 0)  # and so may who names it


def test_damaged_package_in_the_cache_is_replaced(tiny_source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = Path(run_json(capsys, "compile", tiny_source, "--check-tokens", 0)["path"])
    (package / "manifest.yaml").write_text("nonsense")
    run_json(capsys, "compile", tiny_source, "--check-tokens", 0)
    assert run_json(capsys, "inspect", package, "--bandwidth", 1)["name"] == tiny_source.name


def test_calibrate_takes_no_word_from_the_source() -> None:
    parser = argparse.ArgumentParser()
    compile_command.configure(parser)
    for argv, wanted in (
        (["--calibrate", "model.gguf"], True),
        (["model.gguf", "--calibrate"], True),
        (["--calibrate-text", "~/own.txt", "model.gguf"], Path.home() / "own.txt"),
        (["model.gguf"], False),
    ):
        args = parser.parse_args(argv)
        assert args.source == "model.gguf"
        assert (args.calibrate_text or args.calibrate) == wanted


def test_output_in_the_home_folder(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    compiled = run_json(capsys, "compile", tiny_source, "-o", "~/mine.edgemem", "--check-tokens", 0)
    assert compiled["path"] == str(tmp_path / "mine.edgemem")
    assert (tmp_path / "mine.edgemem" / "manifest.yaml").is_file()


def test_default_context_reserves_no_more_than_4096_slots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {**tiny_config("llama", tied=True), "max_position_embeddings": 8192}
    source = write_folder(tmp_path / "long", config, seed=1)
    run_json(capsys, "compile", source, "--check-tokens", 0)
    argv = ("run", "long", "-p", "The", "-n", 1, "--no-speed")
    assert run_json(capsys, *argv)["context"] == 4096
    assert run_json(capsys, *argv, "-c", 5000)["context"] == 5000


def test_providers_have_short_names(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert provider_names(None) is None
    asked = ["CPU", "cuda", "TensorRT", "nvtensorrtrtx", "openvinoexecutionprovider", "CUDAExecutionProvider"]
    assert provider_names(asked) == [
        "CPUExecutionProvider",
        "CUDAExecutionProvider",
        "TensorrtExecutionProvider",
        "NvTensorRTRTXExecutionProvider",
        "OpenVINOExecutionProvider",
        "CUDAExecutionProvider",
    ]
    argv = ["run", str(tiny_package), "-p", "The", "-n", "1", "--no-speed", "--providers"]
    assert main([*argv, "cpu"]) == 0
    assert main([*argv, "gpu"]) == 1
    err = capsys.readouterr().err
    for part in ("no such execution provider", "'gpu'", "cpu, cuda", "CPUExecutionProvider"):
        assert part in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stages", "9"], "stage boundary"),
        (["--front-weights", "int8"], "front and back weights"),
        (["--plan", "absent.yaml"], "plan file"),
        (["--calibrate-text", "absent.txt"], "calibration text"),
        (["--max-context", "100000"], "not trained for this context"),
    ],
)
def test_compile_refuses_wrong_settings(
    flags: list[str], message: str, tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(tiny_source), "-o", str(tmp_path / "x.edgemem"), *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.edgemem").exists()


def test_compile_says_which_libraries_are_missing(
    tiny_source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgemem.tools.commands.compile._NEEDS", ("onnx", "absent_library"))
    assert main(["compile", str(tiny_source)]) == 1
    err = capsys.readouterr().err
    assert "absent_library" in err
    assert 'pip install "edgemem-runtime[compile]"' in err


def test_chat_takes_piped_lines(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["/speed", "The river", "The lamp", "", "/speed", "/help", "/reset", "The river", "/exit", "never read"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    assert main(["chat", "-m", str(tiny_package), "-n", "6", "--system", "Be kind."]) == 0
    out = capsys.readouterr().out
    with Session.open(tiny_package) as session:
        answers = []
        for text in ("The river", "The lamp"):
            session.messages = session.messages or [{"role": "system", "content": "Be kind."}]
            answers.append("".join(chunk.text for chunk in session.stream(text, max_tokens=6)))
    first, second = answers
    assert out.startswith(f"no answer yet\n{first}\n{second}\n")
    assert "of the measured" in out
    assert "/reset   forget the conversation" in out
    assert out.endswith(f"forgotten\n{first}\n")


def test_chat_says_a_line_that_begins_with_a_slash_and_takes_an_empty_system_message(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("//etc\n"))
    assert main(["chat", "-m", str(tiny_package), "-n", "6", "--system", ""]) == 0
    with Session.open(tiny_package) as session:
        session.messages = [{"role": "system", "content": ""}]
        answer = "".join(chunk.text for chunk in session.stream("/etc", max_tokens=6))
    assert capsys.readouterr().out == f"{answer}\n"


def test_chat_goes_on_after_a_turn_that_does_not_fit(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the river " * 30 + "\n/reset\nHi\n"))
    assert main(["chat", str(tiny_package), "-n", "4", "-c", "64"]) == 1
    out, err = capsys.readouterr()
    assert "larger context (-c, at most 512)" in err
    assert "longer than the context" in err
    assert "/reset" in err
    assert out.startswith("forgotten\n")
    assert len(out) > len("forgotten\n\n")


def test_interrupt_stops_the_answer_and_keeps_the_conversation(tiny_package: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Session.open(tiny_package) as session:
        reason = None
        with chat._cancelled_by_interrupt(session):
            for number, chunk in enumerate(session.stream("The river", max_tokens=400, ignore_eos=True)):
                if number == 2:
                    os.kill(os.getpid(), signal.SIGINT)
                reason = chunk.finish_reason
        assert reason == "cancelled"
        assert [message["role"] for message in session.messages] == ["user", "assistant"]
        assert session.messages[1]["content"]
    assert signal.getsignal(signal.SIGINT) is before


def test_chat_on_a_terminal_prompts_and_leaves_at_ctrl_d(tiny_package: Path) -> None:
    master, slave = pty.openpty()
    argv = [*EDGEMEM, "chat", str(tiny_package), "-n", "4"]
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, close_fds=True)
    os.close(slave)
    seen = _read_until(master, b"> ")
    assert b"/help lists the commands" in seen
    os.write(master, b"Hi\n")
    answered = _read_until(master, b"> ")
    os.write(master, b"\x04")
    assert process.wait(timeout=60) == 0
    os.close(master)
    with Session.open(tiny_package) as session:
        answer = "".join(chunk.text for chunk in session.stream("Hi", max_tokens=4))
    assert answer.strip()
    assert answer.replace("\n", "\r\n").encode() in answered


def test_chat_needs_a_template(tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    source = tmp_path / "base"
    shutil.copytree(tiny_source, source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    assert main(["compile", str(source), "--weights", "int8", "--check-tokens", "0"]) == 0
    assert main(["chat", "-m", "base"]) == 1
    assert "no chat template" in capsys.readouterr().err
    assert main(["run", "-m", "base", "-p", "The", "-n", "2", "--no-speed"]) == 0


def test_errors_of_the_tree_keep_their_lines() -> None:
    error = SettingsError("what", where="here", got=1, wanted=2, do="this")
    assert str(error).splitlines() == ["what (here)", "  got: 1", "  wanted: 2", "  do: this"]


def _read_until(descriptor: int, end: bytes) -> bytes:
    """What the terminal shows up to `end`; the test's own timeout ends a wait that is in vain."""
    seen = b""
    while not seen.endswith(end):
        seen += os.read(descriptor, 1024)
    return seen


def test_a_table_on_a_terminal_shows_strangers_brackets_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    print_table("", ["name", "n"], [["[/bold] [red]drawer :smile:", 1]])
    assert "[/bold] [red]drawer :smile:" in sys.stdout.getvalue()  # type: ignore[attr-defined]
