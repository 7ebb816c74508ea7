"""The standard graph in a package, for ONNX Runtime's TensorRT providers: run here by its CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from runnable_packages import plain_model, runnable_package, same_precision

from edgemem.compiler.onnx_plan import build_onnx_plan
from edgemem.runtime.engine_plan import DATA_FILE
from edgemem.runtime.errors import EdgememError, EngineError, UnsafePathError
from edgemem.runtime.onnx_plan import open_onnx_plan
from edgemem.runtime.open import STANDARD_PROVIDERS, open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.plan_shape import plan_shape
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.tools.cli import main

CPU = ("CPUExecutionProvider",)


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Package]:
    model = plain_model(layers=2)
    with Package.open(runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "fp16"))) as opened:
        yield opened


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_the_graph_answers_as_the_main_one_and_has_no_contrib_operators(package: Package, keys: Path) -> None:
    for _ in range(2):  # the second takes the first's place
        path, record = build_onnx_plan(package, plan_shape(package.model, (0, 2), 64, (16,)), keys=keys)
    assert {node.domain for node in onnx.load(path, load_external_data=False).graph.node} == {""}
    tokens = np.random.default_rng(0).integers(0, 97, 20).astype(np.int32)
    answers = []
    main_graph = open_engine(package, "onnx", capacity=64, threads=1)
    for engine in (main_graph, open_onnx_plan(package, threads=1, providers=CPU, keys=keys)):
        assert (engine.name, engine.capacity) == ("onnx", 64)
        engine.extend(tokens)
        answers.append([token.id for token in engine.decode(Sampler(Sampling()), 12)])
        engine.close()
    assert answers[0] == answers[1]
    assert record.data_bytes == (path.parent / DATA_FILE).stat().st_size


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    path.symlink_to(path.rename(path.parents[3] / "moved"))


@pytest.mark.parametrize("change", [flip, link, Path.unlink])
@pytest.mark.parametrize("name", ["decoder.onnx", "decoder.data"])
def test_an_altered_graph_is_refused(package: Package, keys: Path, name: str, change: Callable[[Path], None]) -> None:
    path, _ = build_onnx_plan(package, plan_shape(package.model, (0, 2), 64), keys=keys)
    change(path.parent / name)
    with pytest.raises(EdgememError) as caught:
        open_onnx_plan(package, threads=1, providers=CPU, keys=keys)
    assert isinstance(caught.value, (EngineError, UnsafePathError))


def test_tensorrt_s_providers_ask_for_that_graph(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemem.runtime import onnx_plan

    for provider, problem in zip(STANDARD_PROVIDERS, ("no such execution provider", "plugin is not inst"), strict=True):
        with pytest.raises(EngineError, match=problem):
            open_engine(package, "onnx", providers=[provider])
    monkeypatch.setattr(onnx_plan, "check_providers", lambda wanted, available: None)
    monkeypatch.setattr(onnx_plan, "plugin_devices", lambda runtime, provider: [])
    for provider in STANDARD_PROVIDERS:
        with pytest.raises(EngineError, match=r"no plan for this(.|\n)*edgemem compile"):
            open_engine(package, providers=[provider])


def test_the_command_writes_the_graph(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert main(["compile", str(package.path), "--engine", "onnx", "--max-context", "32", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [plan["capacity"] for plan in answer["plans"]] == [32]
    open_onnx_plan(package, threads=1, providers=CPU).close()
    assert main(["compile", str(package.path), "--engine", "onnx", "--target", "sm86"]) == 2
