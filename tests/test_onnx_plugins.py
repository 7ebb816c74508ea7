"""Execution providers that are plugin libraries: registered once, given to sessions as devices, or refused with advice.

The plugin is simulated: the real one needs an NVIDIA driver to load at all.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgemem.runtime import onnx_plugins, onnx_session
from edgemem.runtime.errors import EngineError, SettingsError
from edgemem.runtime.onnx_plugins import PLUGINS, plugin_devices

RTX = "NvTensorRTRTXExecutionProvider"


class Runtime:
    """As much of onnxruntime as a plugin needs."""

    __version__ = "1.32.0"
    GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=99)

    def __init__(self, devices: int = 1, problem: Exception | None = None) -> None:
        self.problem, self.registered, self.given = problem, [], []  # type: ignore[var-annotated]
        self._devices = [SimpleNamespace(ep_name="CPUExecutionProvider")]
        self._devices += [SimpleNamespace(ep_name=RTX) for _ in range(devices)]

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if self.problem is not None:
            raise self.problem
        self.registered.append((name, path))

    def get_ep_devices(self) -> list[Any]:
        return self._devices if self.registered else self._devices[:1]

    def get_available_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def SessionOptions(self) -> Any:
        return SimpleNamespace(
            add_session_config_entry=lambda *_: None,
            add_provider_for_devices=lambda devices, options: self.given.append((devices, options)),
        )

    def InferenceSession(self, source: Any, options: Any, **named: Any) -> Any:
        assert "providers" not in named
        return SimpleNamespace(get_providers=lambda: [RTX, "CPUExecutionProvider"])


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel is there, and nothing was registered in this process."""
    monkeypatch.setitem(sys.modules, PLUGINS[RTX][0], SimpleNamespace(get_library_path=lambda: "/lib/rtx.so"))
    monkeypatch.setattr(onnx_plugins, "_REGISTERED", set())


def test_it_is_registered_once_and_its_devices_are_given_to_every_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(devices=2)
    monkeypatch.setattr(onnx_session, "import_onnxruntime", lambda: runtime)
    for _ in range(2):
        onnx_session.open_session(tmp_path / "g", providers=[RTX, "CPUExecutionProvider"], threads=1, content=b"g")
    assert runtime.registered == [(RTX, "/lib/rtx.so")]
    assert [[device.ep_name for device in devices] for devices, _ in runtime.given] == [[RTX, RTX]] * 2


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PLUGINS[RTX][0], None)
    with pytest.raises(EngineError, match="pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"):
        plugin_devices(Runtime(), RTX)


def test_an_old_onnxruntime_a_library_that_does_not_load_and_no_device_are_refused() -> None:
    with pytest.raises(EngineError, match=r"onnxruntime>=1\.24"):
        plugin_devices(SimpleNamespace(__version__="1.23.0"), RTX)
    with pytest.raises(EngineError, match=r"libcuda(.|\n)*NVIDIA driver"):
        plugin_devices(Runtime(problem=RuntimeError("libcuda.so.1: cannot open shared object file")), RTX)
    with pytest.raises(EngineError, match="finds no device"):
        plugin_devices(Runtime(devices=0), RTX)


@pytest.mark.parametrize("others", [["CUDAExecutionProvider"], ["CPUExecutionProvider", "TensorrtExecutionProvider"]])
def test_it_goes_with_the_cpu_alone(others: list[str]) -> None:
    available = ["CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"]
    for wanted in ([RTX, *others], [*others, RTX]):
        with pytest.raises(SettingsError, match="a plugin goes with the CPU's alone, and first"):
            onnx_session.check_providers(wanted, available)
    onnx_session.check_providers([RTX], available)
