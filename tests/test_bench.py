"""The benchmark against onnxruntime-genai runs, and its interval is one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgemem.kernels.native import native
from edgemem.runtime.errors import SettingsError
from edgemem.tools.bench import _show, compare, main
from edgemem.tools.targets import Target, print_targets
from edgemem.tools.waits import compile_seconds


def test_the_ratio_is_their_median_over_ours_and_lies_in_its_interval() -> None:
    ours, theirs = np.array([[2.0, 2.5], [2.0, 1.9], [2.1, 2.0]]), np.array([[3.0, 2.9], [3.3, 3.0], [3.1, 3.0]])
    result = compare(ours, theirs)
    assert (result.ours, result.theirs) == (2.05, 3.05)
    assert result.ratio == 3.05 / 2.05
    assert 2.9 / 2.5 <= result.interval[0] < result.ratio < result.interval[1] <= 3.3 / 1.9


def test_equal_rounds_leave_no_doubt() -> None:
    assert compare(np.full((3, 2), 2.0), np.full((3, 2), 2.0)).interval == (1.0, 1.0)


def test_both_sides_are_timed_and_give_the_same_tokens(
    tiny_package: Path, tiny_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai has no wheel for this Python")
    small = ["--processes", "1", "--rounds", "2", "--prompt-tokens", "9", "--new-tokens", "5", "--threads", "1"]
    assert main([str(tiny_package), *small, "--source", str(tiny_source), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["same_tokens"] is True
    assert list(report["engines"]) == (["onnx", "native"] if native() is not None else ["onnx"])
    for figures in report["engines"].values():
        for key in ("first_token_ms", "token_ms"):
            assert figures[key]["ours"] > 0
            assert figures[key]["theirs"] > 0
    assert report["context"] == 14
    assert report["precision"]["embedding"] == "fp32"
    assert report["quality"] is None
    assert report["device"]
    assert report["streamed_floor_ms"] == pytest.approx(report["bytes_per_token"] / 1e6 / report["read_bandwidth_gb_s"])
    assert report["footprint_floor_ms"] > report["streamed_floor_ms"]
    targets = {target["what"]: target for target in report["targets"]}
    assert [target["limit"] for target in targets.values()] == [0.97, 1.0, 30.0, 0.3, 0.5]
    assert targets["onnx: first token, times as fast"]["value"] == report["engines"]["onnx"]["first_token_ms"]["ratio"]
    for target in targets.values():
        assert target["value"] > 0
    _show(report)
    out = capsys.readouterr().out
    assert "times as fast" in out
    assert all(engine in out for engine in report["engines"])


def test_a_target_is_met_from_its_own_side(capsys: pytest.CaptureFixture[str]) -> None:
    targets = [Target("fast enough", 0.98, 0.97, "x", least=True), Target("soon enough", 0.31, 0.3, "s")]
    assert [target.met for target in targets] == [True, False]
    assert targets[1].to_dict()["met"] is False
    print_targets(targets)
    fast, soon = capsys.readouterr().out.splitlines()[-2:]
    assert fast.split() == ["fast", "enough", "0.98", "x", "at", "least", "0.97", "x", "met"]
    assert soon.split() == ["soon", "enough", "0.31", "s", "at", "most", "0.3", "s", "NOT", "met"]


def test_a_command_that_fails_is_not_timed(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="to be timed failed") as caught:
        compile_seconds(tmp_path / "absent")
    assert "no such file or folder" in str(caught.value.got)


def test_what_is_no_package_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai has no wheel for this Python")
    assert main([str(tmp_path), "--processes", "1"]) == 1
    assert str(tmp_path) in capsys.readouterr().err
