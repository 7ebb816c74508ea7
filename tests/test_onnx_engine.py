"""The onnx engine against transformers and the NumPy reference, and what is its own: providers, chunks, old kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from runnable_packages import plain_model, rich_model, runnable_package, same_precision
from tiny_models import FAMILIES, VOCABULARY, hf_logits, tiny_folder, tiny_hf_model

from edgemem.compiler.build import CompileOptions, compile_model
from edgemem.compiler.reference import ReferenceDecoder
from edgemem.runtime.errors import BudgetError, EngineError, SettingsError
from edgemem.runtime.onnx_engine import OnnxEngine
from edgemem.runtime.onnx_session import check_providers, import_onnxruntime, open_session, shorten_windows
from edgemem.runtime.package import Package


def some_tokens(count: int, vocabulary: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, vocabulary, count).astype(np.int32)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(tmp_path: Path, family: str, tied: bool) -> None:
    source = tiny_folder(tmp_path, family, tied=tied)
    options = CompileOptions(weights="fp32", head="fp32", check_tokens=0, max_context=64)
    compile_model(source, tmp_path / "p.edgemem", options)
    tokens = some_tokens(40, VOCABULARY)
    wanted = hf_logits(tiny_hf_model(source), tokens)
    tolerance = 1e-4 * np.abs(wanted).max()
    with Package.open(tmp_path / "p.edgemem") as package:
        engine = OnnxEngine(package, threads=1)
        prefilled = engine.extend(tokens).logits
        assert prefilled is not None
        np.testing.assert_allclose(prefilled, wanted[-1], rtol=0, atol=tolerance)
        engine.truncate(0)
        for position, token in enumerate(tokens):
            stepped = engine.extend(np.array([token])).logits
            assert stepped is not None
            np.testing.assert_allclose(stepped, wanted[position], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "text",
    [
        "fp16",
        "bf16",
        "int4-g32",
        "int4-g32-min",
        "int4-g64",
        "int4-g64-min",
        "int8-g32",
        "int8-g32-min",
        "int8-g64-min",
    ],
)
def test_logits_are_those_of_the_dequantised_weights(tmp_path: Path, text: str) -> None:
    model = rich_model()
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, text))
    tokens = some_tokens(30, model.vocabulary)
    with Package.open(path) as package:
        wanted = ReferenceDecoder(package).logits(tokens)
        engine = OnnxEngine(package, threads=1)
        got = np.empty_like(wanted)
        for i in range(30):
            got[i] = engine.extend(tokens[i : i + 1]).logits
        engine.truncate(0)
        at_once = engine.extend(tokens).logits
    assert at_once is not None
    error = np.sqrt(np.mean((got - wanted) ** 2)) / np.std(wanted)
    # Four layers of int8 activations; float weights are exact.
    limit = 0.04 if text.startswith("int") else 1e-5
    assert error < limit
    assert np.sqrt(np.mean((at_once - wanted[-1]) ** 2)) / np.std(wanted) < 2 * limit


@pytest.mark.parametrize("text", ["int4-g32", "int4-g32-min", "int8-g64-min", "int4-g128-min"])
def test_the_embedding_is_looked_up_exactly(tmp_path: Path, text: str) -> None:
    model = plain_model(layers=2, hidden=128, heads=8)
    precision = same_precision(model, "fp32", embedding=text)
    path = runnable_package(tmp_path / "p.edgemem", model, precision)
    tokens = some_tokens(12, model.vocabulary)
    with Package.open(path) as package:
        wanted = ReferenceDecoder(package).logits(tokens)[-1]
        got = OnnxEngine(package, threads=1).extend(tokens).logits
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_chunks_of_every_size_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain_model()
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "fp32"))
    tokens = some_tokens(50, model.vocabulary)
    with Package.open(path) as package:
        whole = OnnxEngine(package, threads=1).extend(tokens, surprisal=True)
        for chunk in (1, 2, 7, 49):
            monkeypatch.setattr("edgemem.runtime.onnx_engine._CHUNK", chunk)
            engine = OnnxEngine(package, threads=1)
            assert engine.chunk == chunk
            for surprisal in (True, False):
                engine.truncate(0)
                pieces = engine.extend(tokens, surprisal=surprisal)
                np.testing.assert_allclose(pieces.logits, whole.logits, atol=1e-4)
                if surprisal:
                    np.testing.assert_allclose(pieces.surprisal, whole.surprisal, atol=1e-4)


def test_memory_that_is_not_there_is_refused_with_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain_model()
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "fp32"))
    monkeypatch.setattr("edgemem.runtime.onnx_engine.available_memory", lambda: 1 << 20)
    monkeypatch.setattr("edgemem.runtime.onnx_engine.open_session", None)  # would be a TypeError
    with Package.open(path) as package, pytest.raises(BudgetError, match=r"1,048,576 bytes available(.|\n)*KV cache"):
        OnnxEngine(package)


def test_a_context_that_the_package_has_not_says_what_to_do(tmp_path: Path) -> None:
    model = plain_model(layers=1)
    for max_context, advice in ((96, "larger --max-context, up to 512"), (512, "trained for no more")):
        path = tmp_path / f"{max_context}.edgemem"
        runnable_package(path, model, same_precision(model, "fp32"), max_context=max_context)
        with Package.open(path) as package, pytest.raises(SettingsError, match="context is out of range") as caught:
            OnnxEngine(package, capacity=100_000)
        for part in (str(path), "100000", f"1 to {max_context}", advice):
            assert part in str(caught.value)


def test_a_closed_engine_gives_its_memory_back(tmp_path: Path) -> None:
    model = plain_model(layers=1)
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "fp32"))
    with Package.open(path) as package:
        engine = OnnxEngine(package, threads=1)
        cache = weakref.ref(engine._cache)
        engine.close()
        assert cache() is None


def test_a_missing_provider_is_an_error_that_names_the_wheel() -> None:
    with pytest.raises(EngineError, match="pip install onnxruntime-gpu"):
        check_providers(["CUDAExecutionProvider"], ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match="NoSuchProvider"):
        check_providers(["CPUExecutionProvider", "NoSuchProvider"], ["CPUExecutionProvider"])
    with pytest.raises(SettingsError):
        check_providers([], ["CPUExecutionProvider"])
    check_providers(["CPUExecutionProvider"], ["CPUExecutionProvider"])


def test_a_provider_that_does_not_start_is_an_error_and_nothing_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    class Session:
        """A stand-in for one that finds no driver: it holds what could be started."""

        def __init__(self, source: object, options: object, **settings: Any) -> None:
            asked.append(settings)

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    onnxruntime = import_onnxruntime()
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(both))
    both = ("CUDAExecutionProvider", "CPUExecutionProvider")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(EngineError, match=r"did not start(.|\n)*CUDAExecutionProvider first"):
        open_session(tmp_path / "model.onnx", providers=both, threads=1)
    assert asked == [{"providers": list(both), "enable_fallback": False}]
    assert open_session(tmp_path / "model.onnx", providers=both[1:], threads=1)


def test_a_provider_that_fails_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = import_onnxruntime()

    def fail(*_: object) -> None:
        raise RuntimeError("no device")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(EngineError, match="no device"):
        open_session(tmp_path / "model.onnx", providers=["CPUExecutionProvider"], threads=1)
    assert capfd.readouterr().out == ""


def test_layers_without_a_graph_are_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    model = plain_model()
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "fp32"))
    with Package.open(path) as package, pytest.raises(EngineError, match=r"\[0, 3\)"):
        OnnxEngine(package, layers=(0, 2))


def test_a_graph_that_does_not_open_is_an_engine_error(tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"no graph")
    with pytest.raises(EngineError, match="cannot open the graph"):
        open_session(graph, providers=["CPUExecutionProvider"], threads=1)


_TELEMETRY = """
import builtins, os, sys
from pathlib import Path
import edgemem.runtime.onnx_session as adapter

order, plain_import = [], builtins.__import__

def watched(name, *rest):
    if name == "onnxruntime" and "onnxruntime" not in sys.modules:
        order.append("import with " + os.environ.get("ORT_DISABLE_TELEMETRY", "nothing"))
        module = plain_import(name, *rest)
        off, session = module.disable_telemetry_events, module.InferenceSession
        module.disable_telemetry_events = lambda: (order.append("off"), off())
        module.InferenceSession = lambda *a, **k: (order.append("session"), session(*a, **k))[1]
        return module
    return plain_import(name, *rest)

builtins.__import__ = watched
try:
    adapter.open_session(Path(sys.argv[1]), providers=["CPUExecutionProvider"], threads=1)
except adapter.EngineError:
    pass
print(order)
"""


def test_telemetry_is_off_before_the_import_and_before_any_session(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    script = [sys.executable, "-c", _TELEMETRY, str(tmp_path / "model.onnx")]
    printed = subprocess.check_output(script, text=True, env=environment)
    assert printed == "['import with 1', 'off', 'session']\n"


def test_windows_are_shortened_by_one_and_nothing_else_changes(tmp_path: Path) -> None:
    model = rich_model(windows=(2, 128, 1, 16384), trained_context=20000)
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "fp32"), max_context=20000)
    content = (path / "model.onnx").read_bytes()
    before, after = onnx.load_from_string(content), onnx.load_from_string(shorten_windows(content))
    windows = []
    for old, new in zip(before.graph.node, after.graph.node, strict=True):
        for attribute, changed in zip(old.attribute, new.attribute, strict=True):
            if attribute.name == "local_window_size":
                windows.append((attribute.i, changed.i))
                changed.i = attribute.i
    assert windows == [(2, 1), (128, 127), (1, 0), (16384, 16383)]
    assert before == after
