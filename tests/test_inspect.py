"""inspect: the table, the totals and the floors agree with the package, the engine and plain arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import interpreted_cuda  # noqa: F401
import numpy as np
import pytest
from small_packages import small_manifest, small_model, small_package

from edgemem.kernels.formats import Precision
from edgemem.kernels.native import native
from edgemem.profiles.floors import floors_at
from edgemem.runtime.open import ENGINES, default_engine, open_engine
from edgemem.runtime.package import Package
from edgemem.tools.cli import main
from edgemem.tools.contents import package_totals, tensor_runs


def inspect_json(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    assert main(["inspect", *map(str, argv), "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_bytes_per_token_are_what_the_engine_streams(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = inspect_json(capsys, tiny_package, "--bandwidth", 2, "--context", 5)
    with Package.open(tiny_package) as package:
        engine = open_engine(package, capacity=16)
        engine.extend(np.arange(3, 8, dtype=np.int32))
        traffic = engine.traffic()
        engine.close()
    assert shown["bytes_per_token"] == traffic.total
    assert shown["weight_bytes_per_token"] == traffic.weights
    assert shown["streamed_floor_ms"] == pytest.approx(traffic.total / 2e9 * 1e3)
    assert shown["bandwidth_source"] == "given"
    assert shown["engine"] == default_engine()


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "tensorrt"])  # which needs a plan and a GPU
def test_floors_are_what_each_engine_streams(tiny_package: Path, name: str) -> None:
    if name == "native" and native() is None:
        pytest.skip("the native kernels were not built")
    with Package.open(tiny_package) as package:
        engine = open_engine(package, name, capacity=16)
        engine.extend(np.arange(3, 8, dtype=np.int32))
        assert floors_at(package.manifest, 5, name).streamed_bytes == engine.traffic().total
        engine.close()


def test_totals_are_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_package(tmp_path / "small.edgemem")
    shown = inspect_json(capsys, path, "--bandwidth", 10)
    assert shown["file_bytes"] == sum(file.stat().st_size for file in path.iterdir() if file.name != "manifest.yaml")
    assert sum(run["bytes"] for run in shown["tensors"]) == shown["weight_bytes"]
    with Package.open(path) as package:
        stored = sum(entry.stop - entry.start for entry in package.tensors.values())
    assert shown["weight_bytes"] == stored
    assert shown["quality"]["perplexity"] == 23.5
    assert shown["origin"]["licence"] == "apache-2.0"


def test_floors_shrink_with_bandwidth_and_grow_with_context(
    tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = inspect_json(capsys, tiny_package, "--bandwidth", 1, "--context", 8)
    fast = inspect_json(capsys, tiny_package, "--bandwidth", 4, "--context", 8)
    long = inspect_json(capsys, tiny_package, "--bandwidth", 1, "--context", 256)
    assert slow["streamed_floor_ms"] == pytest.approx(4 * fast["streamed_floor_ms"])
    assert long["streamed_floor_ms"] > slow["streamed_floor_ms"]
    assert slow["footprint_floor_ms"] == pytest.approx(4 * fast["footprint_floor_ms"])


def test_footprint_is_the_weights_file_and_the_cache_of_the_context(
    tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Package.open(tiny_package) as package:
        model = package.model
    slot = model.layers * 2 * model.kv_heads * model.head_dim * (2 if default_engine() == "native" else 4)
    for context in (1, 200):
        shown = inspect_json(capsys, tiny_package, "--bandwidth", 1, "--context", context)
        held = (tiny_package / "weights.safetensors").stat().st_size + context * slot
        assert shown["footprint_bytes"] == held
        assert shown["footprint_floor_ms"] == pytest.approx(held / 1e6)
        assert shown["footprint_floor_ms"] > shown["streamed_floor_ms"]


def test_bandwidth_is_measured_where_none_is_given(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = inspect_json(capsys, tiny_package)
    assert shown["bandwidth_source"] == "measured"
    assert shown["bandwidth_gb_s"] > 0.1


def test_like_layers_are_one_line() -> None:
    model = small_model(tied_head=True, layers=5, layer_ropes=(0,) * 5, windows=(0,) * 5)
    precision = {name: Precision("int4", 32) for name, _ in model.matrices()}
    precision["layers.2.down"] = Precision("fp16")
    runs = tensor_runs(model, precision.get)
    downs = [(run.layers, run.precision, run.count) for run in runs if run.tensor == "down"]
    assert downs == [("0-1", "int4-g32", 2), ("2", "fp16", 1), ("3-4", "int4-g32", 2)]
    manifest = replace(small_manifest(model), precision=precision)
    assert sum(run.bytes or 0 for run in runs) == package_totals(manifest).weight_bytes
    assert (runs[0].tensor, runs[-1].tensor) == ("embedding", "norm")


def test_table_for_people(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_package), "--bandwidth", "50"]) == 0
    out = capsys.readouterr().out
    for part in ("tiny", "layers", "precision", "0-2", "320 x 64", "streamed floor", "footprint floor", "50.0 GB/s"):
        assert part in out
    assert "not measured when it was compiled" in out
    assert "front-1.onnx [0, 1)" in out


def test_checkpoint_shows_its_tensors(tiny_source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = inspect_json(capsys, tiny_source)
    assert shown["origin"]["format"] == "huggingface"
    by_name = {run["tensor"]: run for run in shown["tensors"]}
    assert by_name["down"]["shape"] == [64, 96]
    assert by_name["down"]["precision"] == "fp32"
    assert by_name["down"]["bytes"] == 3 * 64 * 96 * 4
    assert main(["inspect", str(tiny_source)]) == 0
    assert "sha256" in capsys.readouterr().out


def test_tensor_without_a_canonical_form_has_no_size() -> None:
    model = small_model()
    run = next(run for run in tensor_runs(model, lambda name: None) if run.tensor == "embedding")
    assert (run.precision, run.bytes) == ("other", None)


def test_what_is_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nonsense")
    for name in (tmp_path / "x.gguf", tmp_path, "absent"):
        assert main(["inspect", str(name)]) == 1
        assert capsys.readouterr().err.startswith("edgemem: ")
