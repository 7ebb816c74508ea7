"""The comparison with other runtimes: its arithmetic, its files of random weights, its processes. Installs nothing."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runnable_packages import plain_model

from edgemem.compiler.checkpoint import open_checkpoint
from edgemem.profiles.process import last_words
from edgemem.runtime.errors import EngineError, SettingsError
from edgemem.runtime.token_prefix import common_prefix
from edgemem.tools import bench_peers
from edgemem.tools.peers import comparison as comparison_module
from edgemem.tools.peers.comparison import Comparison
from edgemem.tools.peers.environments import RUNTIMES, prepare
from edgemem.tools.peers.models import BenchModel, compiled
from edgemem.tools.peers.process import Outcome, read_lines, run_adapter
from edgemem.tools.peers.results import HEADERS, Row, comma_separated, decode_figures, markdown, rates, speedup
from edgemem.tools.peers.shapes import Shape, random_blocks, write_shape
from edgemem.tools.peers.timing import measure, p99
from edgemem.tools.peers.workload import SpeedTest, parse_speed_test

_MODEL = plain_model(
    architecture="qwen2", layers=2, intermediate=96, vocabulary=300, norm_epsilon=1e-6, tied_head=True, qkv_bias=True
)
_TINY = Shape("tiny", _MODEL, 10_000.0, context=128)
_TESTS = [SpeedTest("pp9", 9, 0), SpeedTest("tg6@d7", 7, 6)]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> BenchModel:
    folder = tmp_path_factory.mktemp("shape")
    return compiled("tiny", write_shape(folder / "tiny.gguf", _TINY), folder / "tiny.edgemem", 64)


def job(model: BenchModel, **changes: Any) -> dict[str, Any]:
    made = Comparison(_TESTS, ["edgemem-onnx"], threads=1, rounds=1, repetitions=2).job(model, "onnx")
    return {**made, **changes}


# names of tests


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pp512", SpeedTest("pp512", 512, 0)),
        ("tg128", SpeedTest("tg128", 113, 128)),
        ("tg128@d2048", SpeedTest("tg128@d2048", 2048, 128)),
    ],
)
def test_tests_have_llama_benchs_names(name: str, expected: SpeedTest) -> None:
    assert parse_speed_test(name) == expected


@pytest.mark.parametrize("name", ["", "pp", "pp0", "tg128@2048", "tg1", "tg8@d1", "pp12x", "pp٣", "tg128@d99999999"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(SettingsError):
        parse_speed_test(name)


def test_a_decode_test_counts_its_steps_and_the_slots_they_find() -> None:
    test = parse_speed_test("tg128@d2048")
    found = [2048 - 1 + step for step in range(128)]
    assert test.tokens == 128
    assert abs(test.mean_slots - np.mean(found)) <= 0.5
    assert test.context > max(found) + 1


# arithmetic


def test_rates_are_tokens_over_seconds() -> None:
    mean, deviation = rates(SpeedTest("pp100", 100, 0), [[1.0, 2.0], [4.0]])
    assert mean == pytest.approx((100 + 50 + 25) / 3)
    assert deviation == pytest.approx(np.std([100, 50, 25], ddof=1))
    assert rates(SpeedTest("tg10", 113, 10), [[2.0]]) == (5.0, 0.0)


def test_bandwidth_is_the_median_steps() -> None:
    figures = decode_figures(SpeedTest("tg10", 113, 10), [[0.1, 0.2], [0.4]], 50_000_000, 5e9)
    assert figures == {"step_ms": 20.0, "step_bytes": 50_000_000, "bandwidth": 2.5e9, "ceiling_share": 0.5}
    assert decode_figures(SpeedTest("tg10", 113, 10), [[0.1]], 1, None)["ceiling_share"] is None


def test_the_ratio_pairs_the_rounds_that_both_finished() -> None:
    ours, theirs = {0: [1.0, 1.0], 1: [2.0, 2.0], 3: [1.0, 1.0]}, {0: [2.0, 2.0], 1: [4.0, 4.0], 2: [100.0, 100.0]}
    gain = speedup(ours, theirs)
    assert gain == (2.0, (2.0, 2.0))  # each round says 2, however the rounds differ
    assert speedup(ours, {2: [1.0, 1.0]}) is None
    assert speedup(ours, {}) is None


def test_the_interval_holds_the_ratio_and_widens_with_the_spread() -> None:
    random = np.random.default_rng(0)
    theirs = {round_: [3.0, 3.0] for round_ in range(6)}
    widths = []
    for spread in (0.01, 0.2):
        ours = {round_: list(1.0 + spread * random.standard_normal(2)) for round_ in range(6)}
        gain = speedup(ours, theirs)
        assert gain is not None
        ratio, (low, high) = gain
        assert low <= ratio <= high
        widths.append(high - low)
    assert widths[1] > 5 * widths[0]


def test_p99_is_by_nearest_rank() -> None:
    assert p99([float(value) for value in range(1, 201)]) == 198.0
    assert p99([3.0, 1.0, 2.0]) == 3.0


def test_common_prefix() -> None:
    assert [common_prefix([1, 2, 3], other) for other in ([1, 2, 3], [1, 2, 4], [2], [1, 2], [])] == [3, 2, 0, 2, 0]


# tables

_ROW = Row("m", 96_600_000, "edgemem-native", 2, "tg128", 310.25, 2.0, 3.22, 100_000_000, 31e9, 0.93, 2.5, (2.4, 2.6))
_FAILED = Row("m", 96_600_000, "llama.cpp", 2, "all", failure="no compiler | none")


def test_a_row_reads_as_llama_benchs_do() -> None:
    assert _ROW.cells() == (
        *("m", "96.6 MB", "edgemem-native", "2", "tg128", "310.2 ± 2.0"),
        *("3.22", "100.0", "31.0", "93%", "2.50 [2.40, 2.60]"),
    )
    assert _FAILED.cells()[-1] == "no figure: no compiler | none"


def test_markdown_has_as_many_columns_in_every_line() -> None:
    lines = markdown([_ROW, _FAILED]).splitlines()
    assert len(lines) == 4
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(HEADERS) + 1}


def test_comma_separated_values_are_plain_numbers() -> None:
    first, second = csv.DictReader(io.StringIO(comma_separated([_ROW, _FAILED])))
    assert (float(first["rate"]), float(first["ratio_low"]), float(first["ratio_high"])) == (310.25, 2.4, 2.6)
    assert (second["rate"], second["failure"]) == ("", "no compiler | none")


# files of random weights


def test_our_reader_opens_a_shape(tiny_model: BenchModel) -> None:
    spec = tiny_model.spec
    assert (spec.layers, spec.hidden, spec.intermediate, spec.vocabulary) == (2, 64, 96, 300)
    assert (spec.heads, spec.kv_heads, spec.head_dim, spec.tied_head, spec.qkv_bias) == (4, 2, 16, True, True)
    assert {str(precision) for name, precision in tiny_model.precision.items() if name != "embedding"} == {"int4-g32"}
    assert str(tiny_model.precision["embedding"]) == "int8-g32"


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_random_blocks_have_the_deviation_that_keeps_activations_level(kind: str) -> None:
    import gguf

    blocks = random_blocks(np.random.default_rng(0), 64, 512, kind)
    weights = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    assert weights.shape == (64, 512)
    assert np.std(weights) == pytest.approx(512**-0.5, rel=0.05)


def test_a_shape_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    first, second = write_shape(tmp_path / "a.gguf", _TINY), write_shape(tmp_path / "b.gguf", _TINY)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_a_llama_shape_has_no_biases(tmp_path: Path) -> None:
    llama = replace(_MODEL, architecture="llama", qkv_bias=False)
    checkpoint = open_checkpoint(write_shape(tmp_path / "a.gguf", replace(_TINY, model=llama)))
    assert not checkpoint.model.qkv_bias
    checkpoint.close()


# the timing program


class Counting:
    """A runtime that counts what it is asked."""

    def __init__(self, steps_missing: int = 0) -> None:
        self.about = {"kv_element_bytes": 2}
        self.calls: list[tuple[str, int, int]] = []
        self._missing = steps_missing

    def prefill(self, ids: list[int]) -> float:
        self.calls.append(("prefill", len(ids), 0))
        return 0.5

    def decode(self, prompt: list[int], steps: int) -> tuple[list[float], list[int]]:
        self.calls.append(("decode", len(prompt), steps))
        return [0.25 * step for step in range(steps + 1 - self._missing)], list(range(steps))


_JOB = {
    "ids": list(range(50)),
    "repetitions": 2,
    "tests": [{"name": "pp9", "prompt": 9, "steps": 0}, {"name": "tg20", "prompt": 7, "steps": 20}],
}


def test_every_test_is_warmed_up_and_then_timed() -> None:
    runtime, lines = Counting(), list[dict[str, Any]]()
    measure(runtime, _JOB, lines.append)
    assert runtime.calls == [("prefill", 9, 0)] * 3 + [("decode", 7, 8)] + [("decode", 7, 20)] * 2
    outcome = read_lines("\n".join(map(json.dumps, lines)))
    assert outcome.about == {"kv_element_bytes": 2}
    assert outcome.seconds == {"pp9": [0.5, 0.5], "tg20": [5.0, 5.0]}
    assert outcome.steps == {"tg20": [{"median": 250.0, "p99": 250.0}] * 2}
    assert outcome.ids == {"tg20": list(range(16))}


def test_a_runtime_that_stops_early_is_not_timed_as_if_it_had_not() -> None:
    with pytest.raises(RuntimeError, match="19 steps were made, wanted 20"):
        measure(Counting(steps_missing=1), _JOB, lambda line: None)


def test_the_adapter_of_our_engine_continues_as_the_engine_does(tiny_model: BenchModel) -> None:
    outcome = run_adapter(Path(sys.executable), "run_edgemem", job(tiny_model), 120)
    assert [len(outcome.seconds[test.name]) for test in _TESTS] == [2, 2]
    assert all(value > 0 for values in outcome.seconds.values() for value in values)
    assert outcome.about["kv_element_bytes"] == 4
    assert outcome.ids["tg6@d7"] == _greedy(tiny_model, tiny_model.ids[:7], 6)


def _greedy(model: BenchModel, prompt: list[int], steps: int) -> list[int]:
    """The continuation, by consuming everything anew for each token."""
    from edgemem.runtime.open import open_engine
    from edgemem.runtime.package import Package

    ids = list(prompt)
    with Package.open(model.package) as package:
        engine = open_engine(package, "onnx", capacity=32, threads=1)
        for _ in range(steps):
            engine.truncate(0)
            logits = engine.extend(np.array(ids, dtype=np.int32)).logits
            assert logits is not None
            ids.append(int(logits.argmax()))
        engine.close()
    return ids[len(prompt) :]


def test_a_process_that_fails_says_why_in_one_line(tiny_model: BenchModel) -> None:
    with pytest.raises(EngineError, match=r"^there is no such engine; got: 'abacus'; wanted: ") as caught:
        run_adapter(Path(sys.executable), "run_edgemem", job(tiny_model, engine="abacus"), 120)
    assert "\n" not in str(caught.value)


def test_a_process_that_takes_too_long_is_ended(tiny_model: BenchModel) -> None:
    started = time.monotonic()
    with pytest.raises(EngineError, match="too long"):
        run_adapter(Path(sys.executable), "run_edgemem", job(tiny_model, repetitions=10**9), 3)
    assert time.monotonic() - started < 60


def test_last_words() -> None:
    assert last_words("Traceback:\n  File x\nValueError: bad\n  got: 3\n\n", 1) == "ValueError: bad; got: 3"
    assert last_words("loading\n", -11) == "ended by SIGSEGV: loading"
    assert last_words("", -9) == "ended by SIGKILL"
    assert last_words("", 3) == "exit status 3"


# the whole


def test_a_comparison_fills_its_table(tiny_model: BenchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_module, "_SWEEP_BYTES", 1 << 20)
    made = Comparison(_TESTS, ["edgemem-onnx", "llama.cpp"], threads=1, rounds=2, repetitions=1)
    made.environments["edgemem-onnx"] = prepare(RUNTIMES["edgemem-onnx"], Path("unused"))
    made.failures["llama.cpp"] = "no compiler"
    made.run(tiny_model)
    rows = made.rows()
    assert [(row.runtime, row.test) for row in rows] == [
        ("edgemem-onnx", "pp9"),
        ("edgemem-onnx", "tg6@d7"),
        ("llama.cpp", "all"),
    ]
    prompt, decode, absent = rows
    assert prompt.step_ms is None
    assert decode.step_bytes == tiny_model.step_bytes(9, 4)
    assert decode.bandwidth == pytest.approx(1e3 * decode.step_bytes / (decode.step_ms or 0))
    assert absent.failure == "no compiler"
    record = json.loads(json.dumps(made.record()))
    assert len(record["samples"]) == 2
    assert record["versions"]["edgemem-onnx"]["onnxruntime"]
    assert record["read_ceiling_gb_s"] == max(record["read_sweeps_gb_s"])


def test_rounds_alternate_and_one_failure_ends_a_runtime(
    tiny_model: BenchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def adapter(python: Path, name: str, job: dict[str, Any], timeout_s: float) -> Outcome:
        order.append(name)
        if name == "run_llama_cpp":
            raise EngineError("it fell over")
        return Outcome({"kv_element_bytes": 2}, {"pp9": [1.0]})

    monkeypatch.setattr(comparison_module, "_SWEEP_BYTES", 1 << 20)
    monkeypatch.setattr(comparison_module, "run_adapter", adapter)
    made = Comparison(_TESTS[:1], ["edgemem-onnx", "llama.cpp", "openvino-genai"], threads=1, rounds=3, repetitions=1)
    made.environments = dict.fromkeys(made.runtimes, prepare(RUNTIMES["edgemem-onnx"], Path("unused")))
    made.run(tiny_model)
    first, second, third = "run_edgemem", "run_llama_cpp", "run_openvino_genai"
    assert order == [first, second, third, third, first, first, third]
    assert made.failures == {"tiny/llama.cpp": "it fell over"}


def test_tokens_are_compared_with_llama_cpps_on_real_models(tiny_model: BenchModel) -> None:
    made = Comparison(_TESTS, ["edgemem-onnx", "llama.cpp"], threads=1, rounds=1, repetitions=1)
    made.models = {"tiny": replace(tiny_model, real=True)}
    made.outcomes = {
        ("tiny", "llama.cpp"): {0: Outcome(ids={"tg6@d7": [1, 2, 3, 4]})},
        ("tiny", "edgemem-onnx"): {0: Outcome(ids={"tg6@d7": [1, 2, 3, 4]}), 1: Outcome(ids={"tg6@d7": [1, 2, 9, 4]})},
    }
    assert made.same_tokens() == {"tiny": {"edgemem-onnx": {"tg6@d7": 2}}}
    made.models = {"tiny": tiny_model}
    assert made.same_tokens() == {}


def test_an_installation_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMEM_CACHE", str(tmp_path))
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "openvino-genai").write_text("where a folder should be made")
    made = Comparison(_TESTS, ["openvino-genai"], threads=1, rounds=1, repetitions=1)
    made.install()
    assert made.failures["openvino-genai"].startswith("the peer was not installed")
    assert "directory" in made.failures["openvino-genai"]
    assert made.environments == {}


@pytest.mark.parametrize(
    "wrong", [["--models", "gpt-5"], ["--runtimes", "abacus"], ["--tests", "tg128@2048"]], ids=lambda wrong: wrong[0]
)
def test_a_wrong_name_is_told_before_anything_is_installed(
    wrong: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMEM_CACHE", str(tmp_path))
    assert bench_peers.main(wrong) == 1
    assert wrong[1] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_keeps_what_was_finished(
    tiny_model: BenchModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = iter([Outcome({"kv_element_bytes": 4}, {"pp9": [1.0]}), KeyboardInterrupt()])

    def adapter(*_: Any) -> Outcome:
        run = next(runs)
        if isinstance(run, Outcome):
            return run
        raise run

    monkeypatch.setattr(comparison_module, "_SWEEP_BYTES", 1 << 20)
    monkeypatch.setattr(comparison_module, "run_adapter", adapter)
    monkeypatch.setattr(bench_peers, "prepare_model", lambda name, cache, length: tiny_model)
    settings = [
        "--models",
        "qwen2.5-0.5b",
        "--runtimes",
        "edgemem-onnx",
        "--tests",
        "pp9",
        "--md",
        "--out",
        str(tmp_path),
    ]
    assert bench_peers.main(settings) == 130
    assert "| tiny |" in capsys.readouterr().out
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md"]


def test_a_model_that_fails_loses_nothing_of_the_others(
    tiny_model: BenchModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare_model(name: str, cache: Path, length: int) -> BenchModel:
        if name == "llama-3.2-1b":
            raise EngineError("the disk is full")
        return tiny_model

    monkeypatch.setattr(comparison_module, "_SWEEP_BYTES", 1 << 20)
    monkeypatch.setattr(
        comparison_module, "run_adapter", lambda *_: Outcome({"kv_element_bytes": 4}, {"pp9": [1.0, 1.0]})
    )
    monkeypatch.setattr(bench_peers, "prepare_model", prepare_model)
    names = ["--models", "llama-3.2-1b,qwen2.5-0.5b", "--runtimes", "edgemem-onnx", "--tests", "pp9", "--rounds", "1"]
    assert bench_peers.main([*names, "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["failures"] == {"llama-3.2-1b": "the disk is full"}
    assert [row["rate"] for row in record["rows"]] == [9.0]
