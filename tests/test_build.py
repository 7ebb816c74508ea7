"""The compile flow from end to end: what the options make, what the package says of itself, what a failure leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import tiny_config, tiny_folder, write_folder

from edgemem.compiler.build import CompileOptions, compile_model
from edgemem.kernels.formats import Kind
from edgemem.runtime.errors import NumericError, SettingsError
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package

UNCHECKED = CompileOptions(check_tokens=0)


def test_default_makes_int4_with_an_int8_head(tiny_source: Path, tmp_path: Path) -> None:
    manifest = compile_model(tiny_source, tmp_path / "a.edgemem", CompileOptions(check_tokens=32))
    assert str(manifest.precision_of("embedding")) == "int8-g32"
    assert str(manifest.precision_of("layers.0.query")) == "int4-g32-min"
    assert manifest.name == "a"
    assert manifest.quality is not None
    assert manifest.quality.tokens == 32
    assert 0 < manifest.quality.kl_mean < 0.5
    with Package.open(tmp_path / "a.edgemem") as package:
        assert package.manifest == manifest


def test_float32_loses_nothing(tiny_source: Path, tmp_path: Path) -> None:
    manifest = compile_model(tiny_source, tmp_path / "a.edgemem", CompileOptions(weights="fp32", check_tokens=64))
    assert manifest.quality is not None
    assert manifest.quality.kl_mean < 1e-8
    assert manifest.quality.top1_agreement == 1.0
    assert manifest.quality.perplexity == pytest.approx(manifest.quality.reference_perplexity, rel=1e-5)


def test_two_precisions_part_at_the_front_layers(tiny_source: Path, tmp_path: Path) -> None:
    options = CompileOptions(front_layers=1, front_weights="int4", back_weights="int8", stages=(1,), check_tokens=0)
    manifest = compile_model(tiny_source, tmp_path / "a.edgemem", options)
    kinds = [manifest.precision_of(f"layers.{layer}.down").kind for layer in range(3)]
    assert kinds == ["int4", "int8", "int8"]
    assert [(graph.first, graph.last) for graph in manifest.graphs] == [(0, 3), (0, 1), (1, 3)]


def test_plan_file_has_the_last_word(tiny_source: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("layers.0-1.down: int8-g32\nlayers.2.*: fp16\n")
    manifest = compile_model(tiny_source, tmp_path / "a.edgemem", CompileOptions(plan=plan, check_tokens=0))
    assert str(manifest.precision_of("layers.1.down")) == "int8-g32"
    assert str(manifest.precision_of("layers.1.up")) == "int4-g32-min"
    assert str(manifest.precision_of("layers.2.query")) == "fp16"


def test_calibration_text_of_ones_own(tiny_source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The miller counted the sacks of grain. " * 200)
    options = CompileOptions(calibrate=text, check_tokens=0)
    compile_model(tiny_source, tmp_path / "a.edgemem", options)
    compile_model(tiny_source, tmp_path / "plain.edgemem", UNCHECKED)
    with Package.open(tmp_path / "a.edgemem") as package, Package.open(tmp_path / "plain.edgemem") as plain:
        for name in ("layers.0.query", "layers.2.down"):
            assert not np.array_equal(package.matrix(name).rows(), plain.matrix(name).rows())
        assert np.array_equal(package.matrix("embedding").rows(), plain.matrix("embedding").rows())
    text.write_text("too short")
    with pytest.raises(SettingsError, match="too short"):
        compile_model(tiny_source, tmp_path / "a.edgemem", options)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (CompileOptions(max_context=513, check_tokens=0), "trained"),
        (CompileOptions(max_context=1, check_tokens=0), "holds no answer"),
        (CompileOptions(stages=(3,), check_tokens=0), "boundary"),
        (CompileOptions(front_layers=3, front_weights="int8", check_tokens=0), "front_layers"),
        (CompileOptions(plan=Path("/nonexistent/plan.yaml"), check_tokens=0), "plan"),
    ],
)
def test_options_out_of_range(tiny_source: Path, tmp_path: Path, options: CompileOptions, word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        compile_model(tiny_source, tmp_path / "a.edgemem", options)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_the_manifest_cannot_name_is_refused_at_once(tiny_source: Path, tmp_path: Path) -> None:
    for source, out in ((tiny_source, tmp_path / "caf\udce9.edgemem"), (tmp_path / "caf\udce9", tmp_path / "a")):
        with pytest.raises(SettingsError, match="not valid UTF-8"):
            compile_model(source, out, UNCHECKED)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensor", "weights", "outlier", "message"),
    [
        ("layers.1.mlp.down_proj", "fp16", 1e5, "cannot be stored as fp16"),
        ("embed_tokens", "fp32", 7e4, "the model's answers are no text"),
    ],
)
def test_an_outlier_is_named_as_what_it_is(
    tmp_path: Path, tensor: str, weights: Kind, outlier: float, message: str
) -> None:
    source = tiny_folder(tmp_path, "llama", tied=True)
    tensors = load_file(source / "model.safetensors")
    tensors[f"model.{tensor}.weight"][3, 5] = outlier
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(NumericError, match=message):
        compile_model(source, tmp_path / "a.edgemem", CompileOptions(weights=weights, check_tokens=64))
    assert not (tmp_path / "a.edgemem").exists()


def test_failure_leaves_the_previous_package(tiny_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.edgemem"
    before = compile_model(tiny_source, out, UNCHECKED)
    spoilt = tiny_folder(tmp_path / "spoilt", "llama", tied=True, seed=2)
    tensors = load_file(spoilt / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][3, 5] = np.nan
    save_file(tensors, spoilt / "model.safetensors")
    with pytest.raises(NumericError, match="down"):
        compile_model(spoilt, out, UNCHECKED)
    with Package.open(out) as package:
        assert package.manifest == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.edgemem", "spoilt"}


def test_progress_names_the_stages(tiny_source: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, float]] = []
    compile_model(
        tiny_source, tmp_path / "a.edgemem", CompileOptions(check_tokens=16), lambda *report: heard.append(report)
    )
    assert list(dict.fromkeys(stage for stage, _ in heard)) == ["read", "quantise", "compare"]
    assert all(0 <= share <= 1 for _, share in heard)


_PEAK = """
import sys
from pathlib import Path
from edgemem.compiler.build import CompileOptions, compile_model
import re, threading, time
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)))
        time.sleep(0.002)
watcher = threading.Thread(target=watch); watcher.start()
compile_model(Path(sys.argv[1]), Path(sys.argv[2]), CompileOptions(check_tokens=0))
done.set(); watcher.join(); print(peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_memory_does_not_grow_with_layers(tmp_path: Path) -> None:
    """Sixteen layers of 6 MB each compile in the memory of two, give or take what a graph and allocator need."""
    peaks = []
    for layers in (2, 16):
        config = {**tiny_config("llama", tied=True), "hidden_size": 512, "intermediate_size": 1024}
        config |= {"num_hidden_layers": layers, "head_dim": 64, "num_attention_heads": 8}
        source = write_folder(tmp_path / f"source{layers}", config, seed=0)
        command = [sys.executable, "-c", _PEAK, str(source), str(tmp_path / f"{layers}.edgemem")]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    weights_kib = 14 * 2_359_296 * 4 // 1024  # what fourteen layers more would hold as float32
    assert peaks[1] - peaks[0] < 0.1 * weights_kib, peaks


@pytest.mark.model
def test_smollm2_loses_nothing_but_int8_activations(smollm2_package: Path) -> None:
    with Package.open(smollm2_package) as package:
        quality = package.manifest.quality
        assert quality is not None
        assert quality.kl_mean < 0.005
        assert quality.top1_agreement > 0.95
        assert quality.perplexity == pytest.approx(quality.reference_perplexity, rel=0.01)
        assert str(package.precision("layers.7.up")) == "int4-g32-min"
        engine = open_engine(package, "onnx", capacity=64)
        assert engine.length == 0
        engine.close()


def test_package_that_cannot_be_run_here_is_kept_but_not_compared(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemem.runtime.onnx_engine.available_memory", lambda: 1 << 20)
    heard: list[str] = []
    manifest = compile_model(
        tiny_source, tmp_path / "a.edgemem", CompileOptions(), lambda stage, share: heard.append(stage)
    )
    assert manifest.quality is None
    assert heard[-1].startswith("not compared: ")
    Package.open(tmp_path / "a.edgemem").close()
