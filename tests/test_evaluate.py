"""eval: exact where engine and reference hold the same weights, worse where weights were rounded, windows pooled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_packages import small_package
from tiny_models import tiny_folder

from edgemem.compiler.quality import NO_NEXT, QualityMeter
from edgemem.runtime.errors import SettingsError
from edgemem.runtime.package import Package
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.tools.cli import main
from edgemem.tools.evaluate import pooled, text_windows

TEXT = "The river ran slowly past the mill. She asked whether the lamp was there, and he said that it was. " * 3


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def eval_json(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    assert main(["eval", *map(str, argv), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_float_package_loses_nothing(tiny_package: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = eval_json(capsys, tiny_package, "--text", text, "--tokens", 40, "-c", 16)
    assert result["tokens"] == 40
    assert result["context"] == 16
    assert result["kl_mean"] < 1e-6
    assert result["top1_agreement"] == 1.0
    assert result["perplexity"] == pytest.approx(result["reference_perplexity"], rel=1e-4)
    assert result["perplexity"] > 1
    assert result["reference"] == "package"


def test_rounding_shows_against_the_checkpoint_and_not_against_itself(
    tiny_source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "rounded.edgemem"
    assert main(["compile", str(tiny_source), "-o", str(package), "--head", "int4", "--check-tokens", "0"]) == 0
    capsys.readouterr()
    own = eval_json(capsys, package, "--text", text, "--tokens", 32)
    before = eval_json(capsys, package, "--text", text, "--tokens", 32, "--reference", tiny_source)
    assert before["reference"] == str(tiny_source)
    assert own["kl_mean"] < before["kl_mean"] / 2
    assert own["perplexity"] == pytest.approx(before["perplexity"], rel=1e-6)


def test_the_reference_has_the_rotary_factors_of_the_package(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_folder(tmp_path, "phi3", tied=True)
    package = tmp_path / "long.edgemem"
    argv = ["compile", str(source), "-o", str(package), "--weights", "fp32", "--max-context", "512"]
    assert main([*argv, "--check-tokens", "0"]) == 0
    capsys.readouterr()
    against = eval_json(capsys, package, "--text", text, "--tokens", 32, "--reference", source)
    assert against["kl_mean"] < 1e-4


def test_limits_are_those_of_run(tiny_package: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert eval_json(capsys, tiny_package, "--text", text, "--tokens", 10**26, "-c", 64)["tokens"] < 1000
    assert main(["eval", str(tiny_package), "--text", str(text), "-c", "100000"]) == 1
    assert "512" in capsys.readouterr().err


def test_help_says_what_the_reference_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--help"]) == 0
    out = capsys.readouterr().out
    assert "the engine's error" in out
    assert "--reference SOURCE shows what compression lost" in out
    assert "--context" not in out


def test_another_package_serves_as_reference(
    tiny_package: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["eval", str(tiny_package), "--text", str(text), "--tokens", "8", "--reference", str(tiny_package)]) == 0
    )
    out, err = capsys.readouterr()
    for part in ("perplexity", "KL divergence", "top-1 agreement", "8 in windows of 512", str(tiny_package)):
        assert part in out
    assert "evaluate ..." in err


def test_reference_of_another_vocabulary_is_refused(
    tiny_package: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = small_package(tmp_path / "other.edgemem")
    assert main(["eval", str(tiny_package), "--text", str(text), "--reference", str(other)]) == 1
    assert "another model" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "", "a"])
def test_text_that_says_nothing_is_refused(
    content: str | None, tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "short.txt"
    if content is not None:
        path.write_text(content)
    assert main(["eval", str(tiny_package), "--text", str(path), "--tokens", "1"]) == 1
    assert "the text" in capsys.readouterr().err


def test_windows_hold_the_text_once(tiny_package: Path, text: Path) -> None:
    with Package.open(tiny_package) as package:
        tokenizer = Tokenizer.open(package)
    ids = tokenizer.encode(TEXT)[:50]
    windows = text_windows(text, tokenizer, tokens=50, context=12)
    assert [len(window) for window in windows] == [12, 12, 12, 12, 2]
    assert np.concatenate(windows).tolist() == ids
    tokenizer.adds_bos = True
    begun = text_windows(text, tokenizer, tokens=50, context=12)
    assert [window[0] for window in begun] == [tokenizer.bos_id] * 5
    assert np.concatenate([window[1:] for window in begun]).tolist() == ids
    with pytest.raises(SettingsError, match="too short"):
        text_windows(text, tokenizer, tokens=50, context=1)


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(2, 6), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_pooled_windows_equal_one_meter_over_all(lengths: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    whole, parts = QualityMeter(), []
    for length in lengths:
        reference, candidate = random.standard_normal((2, length, 9)).astype(np.float32)
        following = np.append(random.integers(0, 9, length - 1), NO_NEXT)
        meter = QualityMeter()
        for each in (whole, meter):
            each.update(reference, candidate, following)
        parts.append(meter.result())
    expected, got = whole.result(), pooled(parts)
    assert got.tokens == expected.tokens
    for name in ("perplexity", "reference_perplexity", "kl_mean", "top1_agreement"):
        assert getattr(got, name) == pytest.approx(getattr(expected, name), rel=1e-9)
