from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgemem.kernels.native import native
from edgemem.runtime.errors import FileError, SettingsError
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.split.calibration import DELTAS, OUTLIER_SHARES, Divergence, calibrate, measure, outlier_threshold
from edgemem.split.codec import Codec, CodecSettings
from edgemem.split.codec_file import CodecFile, read_codec_file
from edgemem.tools.cli import main
from edgemem.tools.evaluate import text_windows
from edgemem.tools.split_states import SplitDivergence, spread_windows, states_at

_HIDDEN = 96
needs_kernels = pytest.mark.skipif(native() is None, reason="the native kernels were not built")


def _windows(count: int = 2) -> list[NDArray[np.float32]]:
    source = np.random.default_rng(5)
    windows = [source.standard_t(4, (40, _HIDDEN)).astype(np.float32) for _ in range(count)]
    for window in windows:
        window[:, 3] += 60  # without splitting it off, the rest would get few codes
    return windows


def _squared_error(windows: list[NDArray[np.float32]]) -> Divergence:
    """As if a token's KL were the squared error of all but its large channel, relative to them."""
    small = np.arange(_HIDDEN) != 3

    def divergence(codec: Codec) -> NDArray[np.float64]:
        decoded = [codec.decode(codec.encode(window), len(window)) for window in windows]
        wrong = np.concatenate(decoded) - np.concatenate(windows)
        scale = np.linalg.norm(np.concatenate(windows)[:, small], axis=1)
        relative: NDArray[np.float64] = (np.linalg.norm(wrong[:, small], axis=1) / scale).astype(np.float64) ** 2
        return relative

    return divergence


@pytest.mark.parametrize("limit", [0.03, 0.003])
def test_the_fewest_bytes_within_the_limit(limit: float) -> None:
    windows, shares = _windows(), []
    found = calibrate(windows, _squared_error(windows), limit, shares.append)
    assert found.best.kl_bound <= limit
    assert found.best.token_bytes == min(one.token_bytes for one in found.tried if one.kl_bound <= limit)
    assert found.best.settings.mode == "adaptive"
    assert found.best.token_bytes < 2 * _HIDDEN / 2
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1
    for delta in DELTAS:
        other = measure(replace(found.best.settings, delta=delta), windows, _squared_error(windows))
        assert other.kl_bound > limit or other.token_bytes >= found.best.token_bytes
    assert len(found.tried) <= 2 + 5 * (1 + len(OUTLIER_SHARES))


def test_a_limit_that_nothing_else_keeps_leaves_fp16() -> None:
    windows = _windows()
    found = calibrate(windows, _squared_error(windows), 1e-6)
    assert found.best.settings == CodecSettings("fp16")
    assert found.best.token_bytes == 2 * _HIDDEN + 1


def test_a_limit_that_fp16_exceeds_is_refused() -> None:
    windows = _windows()
    with pytest.raises(SettingsError, match="not even fp16"):
        calibrate(windows, _squared_error(windows), -1.0)
    with pytest.raises(SettingsError, match="no hidden states"):
        calibrate([], _squared_error(windows))


def test_a_measurement_by_hand() -> None:
    windows = _windows(3)
    nats = np.array([0.01, 0.03])
    found = measure(CodecSettings("adaptive", 30.0, 0.2), windows, lambda codec: nats)
    codec = Codec(CodecSettings("adaptive", 30.0, 0.2), _HIDDEN)
    states = np.concatenate(windows)
    payload = codec.encode(states)
    wrong = np.linalg.norm(codec.decode(payload, 120) - states, axis=1) / np.linalg.norm(states, axis=1)
    assert found.token_bytes == len(payload) / 120
    assert found.error == pytest.approx(wrong.mean(), rel=1e-5)
    assert found.outliers == np.count_nonzero(np.abs(states) >= 30) / states.size
    assert found.kl == pytest.approx(0.02)
    assert found.kl_bound == pytest.approx(0.02 + 1.645 * 0.01 / math.sqrt(2))


def test_outlier_thresholds_leave_their_share() -> None:
    windows = _windows(4)
    values = np.abs(np.concatenate(windows))
    for share in OUTLIER_SHARES:
        beyond = np.count_nonzero(values >= outlier_threshold(windows, share)) / values.size
        assert beyond == pytest.approx(share, rel=0.1)
    assert outlier_threshold(windows, 0) == math.inf
    assert CodecSettings("adaptive", outlier_threshold([np.zeros((3, 8), np.float32)], 0.01)).tau > 0


_FILE = CodecFile(
    "a model", "ab" * 32, 7, CodecSettings("adaptive", 41.5, 0.1), {"text": "a: # b", "kl": 1e-05, "tokens": 3}
)


@pytest.mark.parametrize("settings", [CodecSettings(), CodecSettings("adaptive", 7.25, 0.0841, rans=False)], ids=str)
def test_a_codec_file_reads_back(settings: CodecSettings, tmp_path: Path) -> None:
    file = CodecFile("a model", "ab" * 32, 7, settings, _FILE.measured)
    (tmp_path / "codec.yaml").write_text(file.dump(), encoding="utf-8")
    assert read_codec_file(tmp_path / "codec.yaml") == file


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format: 1", "format: 2", "format 2"),
        ("format: 1", "format: true", "format is True"),
        ("split: 7", "split: 7.0", "split is 7.0"),
        ("package:", "pakage:", "keys"),
        ("delta: 0.1", "delta: 2", "delta"),
        ("  delta: 0.1\n", "", "other keys"),
        ("codec:", "codec: &a", "anchors"),
        ("measured:", "measured: []\nmore:", "keys"),
        ("rans: true", "rans: true\n" + " " * (1 << 16), "longer"),
    ],
)
def test_a_codec_file_that_is_none_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = _FILE.dump()
    assert old in text
    (tmp_path / "codec.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(FileError, match=message):
        read_codec_file(tmp_path / "codec.yaml")


def test_a_codec_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        read_codec_file(tmp_path / "codec.yaml")


def test_settings_are_for_one_model_and_split() -> None:
    assert _FILE.settings_for("ab" * 32, 7) == _FILE.settings
    for model_hash, split in (("ab" * 32, 8), ("ac" * 32, 7)):
        with pytest.raises(SettingsError, match="another model or split"):
            _FILE.settings_for(model_hash, split)


def test_windows_come_from_all_over_a_text(tiny_package: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(str(number) for number in range(2000)), encoding="utf-8")
    with Package.open(tiny_package) as package:
        tokenizer = Tokenizer.open(package)
    whole = text_windows(text, tokenizer, tokens=1 << 20, context=32)
    windows = spread_windows(text, tokenizer, tokens=32 * 4, context=32)
    assert [len(window) for window in windows] == [32] * 4
    places = [next(i for i, one in enumerate(whole) if np.array_equal(one, window)) for window in windows]
    assert places == [place * len(whole) // 4 for place in range(4)]
    everything = spread_windows(text, tokenizer, tokens=1 << 20, context=32)
    assert [window.tolist() for window in everything] == [window.tolist() for window in whole]


@needs_kernels
def test_the_divergence_of_a_model(tiny_package: Path) -> None:
    with Package.open(tiny_package) as package:
        source = np.random.default_rng(0)
        tokens = [source.integers(0, package.model.vocabulary, 20).astype(np.int32) for _ in range(2)]
        states = states_at(package, 1, tokens, threads=1)
        assert [window.shape for window in states] == [(20, package.model.hidden)] * 2
        back = NativeEngine(package, layers=(1, package.model.layers), capacity=20, threads=1)
        divergence = SplitDivergence(back, states)
        nats = [
            divergence(Codec(settings, package.model.hidden))
            for settings in (
                CodecSettings("fp16"),
                CodecSettings("adaptive", delta=0.05),
                CodecSettings("adaptive", delta=0.5),
            )
        ]
        back.close()
    assert all(one.shape == (40,) for one in nats)
    assert np.abs(nats[0]).max() < 1e-6
    assert nats[0].mean() < nats[1].mean() < nats[2].mean()


@needs_kernels
def test_split_calibrate_writes_the_codec(tiny_package: Path, tmp_path: Path, capsys: Any) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "codec.yaml"
    text.write_text("the lamp of the house and the water of the river, " * 4, encoding="utf-8")
    command = ["split", "calibrate", str(tiny_package), "--at", "1", "--text", str(text), "--tokens", "40"]
    assert main([*command, "--limit", "0.05", "-o", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    with Package.open(tiny_package) as package:
        model_hash = package.manifest.model_hash
    assert read_codec_file(out).settings_for(model_hash, 1).to_dict() == report["best"]["settings"]
    assert report["best"]["kl"] <= 0.05
    assert report["best"]["token_bytes"] <= report["fp16_bytes"] + 1
    assert main(command) == 0
    assert "bytes a token" in capsys.readouterr().out


@needs_kernels
def test_split_codec_writes_its_record(tiny_package: Path, tmp_path: Path, capsys: Any) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "record"
    text.write_text("the lamp of the house and the water of the river, " * 8, encoding="utf-8")
    command = ["split", "codec", str(tiny_package), "--text", str(text), "--tokens", "24", "--limit", "0.1"]
    assert main([*command, "--at", "1,2", "--out", str(out)]) == 0
    assert "As calibrated" in capsys.readouterr().out
    record = json.loads((out / "record.json").read_text(encoding="utf-8"))
    assert [curve["split"] for curve in record["curves"]] == [1, 2]
    for curve in record["curves"]:
        parts = {point["part"] for point in curve["points"]}
        assert parts == {"fp32", "int8", "threshold splitting", "adaptive bits", "both"}
        assert all(0 <= point["kl"] < math.inf for point in curve["points"])
        adaptive = [point for point in curve["points"] if point["rans_bytes"] is not None]
        assert all(point["rans_bytes"] <= point["packed_bytes"] for point in adaptive)
    assert "| 2 |" in (out / "table.md").read_text(encoding="utf-8")
    assert (out / "report.html").read_text(encoding="utf-8").count("<svg ") == 2
