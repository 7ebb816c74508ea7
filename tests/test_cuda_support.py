"""Whether the cuda engine can run: each thing in its way is named with what mends it, and nothing imports torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgemem.kernels.native import native
from edgemem.profiles.arms import missing_reason
from edgemem.runtime import cuda_support as support
from edgemem.runtime import open as opening
from edgemem.runtime.cuda_support import CudaSupport, Driver, Gpu, Libraries, Obstacle, find_obstacle, traces
from edgemem.runtime.errors import EngineError
from edgemem.runtime.open import default_engine, open_engine
from edgemem.runtime.package import Package
from edgemem.tools.cli import main

ORIN = Gpu("Orin", (8, 7))
DRIVER = Driver(0, (13, 0), ORIN)
LIBRARIES = Libraries("2.13.0+cu130", "13.0", "3.9.0", "/usr/bin/gcc", headers=True)


def test_nothing_is_in_the_way_of_what_is_as_it_should_be() -> None:
    assert find_obstacle(ORIN, DRIVER, LIBRARIES) is None
    assert find_obstacle(Gpu("Ampere", (8, 0)), DRIVER, replace(LIBRARIES, torch="2.9.0", triton="3.6.0")) is None


@pytest.mark.parametrize(
    ("changes", "what", "do"),
    [
        ({"torch": None}, "torch is not installed", "edgemem-runtime[gpu]"),
        ({"triton": None}, "triton is not installed", "edgemem-runtime[gpu]"),
        ({"torch": "2.8.1"}, "torch 2.8.1", "torch>=2.9,<3"),
        ({"triton": "4.0.0"}, "triton 4.0.0", "triton>=3.6,<4"),
        ({"torch": "2.10.0a0+git", "torch_cuda": None}, "without CUDA", "whl/cu130"),
        ({"torch_cuda": "14.0"}, "runs CUDA 13.0", "update the NVIDIA driver"),
        ({"compiler": None}, "C compiler", "gcc"),
        ({"headers": False}, "Python.h", "-dev"),
    ],
)
def test_each_library_that_is_wrong_is_named(changes: dict[str, Any], what: str, do: str) -> None:
    found = find_obstacle(ORIN, DRIVER, replace(LIBRARIES, **changes))
    assert found is not None
    assert what in found.what
    assert do in found.do
    assert "\n" not in found.what + found.do


def test_a_gpu_that_is_too_old_is_named_first() -> None:
    found = find_obstacle(Gpu("Tesla T4", (7, 5)), DRIVER, replace(LIBRARIES, torch=None))
    assert found == ("the Tesla T4 has compute capability 7.5, 8.0 is needed", "use --engine native")


def test_traces_of_a_gpu_without_a_driver(tmp_path: Path) -> None:
    assert traces(tmp_path) is None
    for name, vendor, kind in (("0", "0x10de", "0x040300"), ("1", "0x8086", "0x030000")):  # its sound, another's GPU
        device = tmp_path / "sys/bus/pci/devices" / name
        device.mkdir(parents=True)
        (device / "vendor").write_text(vendor + "\n")
        (device / "class").write_text(kind + "\n")
    assert traces(tmp_path) is None
    (device / "vendor").write_text("0x10de\n")
    assert traces(tmp_path) == "an NVIDIA GPU is on the PCI bus"
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version: 580")
    assert traces(tmp_path) == "the kernel's NVIDIA driver is loaded"


@pytest.mark.parametrize(
    ("driver", "trace", "gpu", "what"),
    [
        (None, None, None, None),
        (None, "an NVIDIA GPU is on the PCI bus", None, "is missing"),
        (Driver(804), None, None, "CUDA error 804"),
        (Driver(100), "an NVIDIA GPU is on the PCI bus", None, None),  # hidden by CUDA_VISIBLE_DEVICES
        (DRIVER, None, ORIN, None),
    ],
)
def test_what_the_driver_says(
    monkeypatch: pytest.MonkeyPatch, driver: Driver | None, trace: str | None, gpu: Gpu | None, what: str | None
) -> None:
    monkeypatch.setattr(support, "read_driver", lambda: driver)
    monkeypatch.setattr(support, "traces", lambda: trace)
    monkeypatch.setattr(support, "read_libraries", lambda: LIBRARIES)
    found = support.cuda_support()
    assert found.gpu == gpu
    assert found.usable == (gpu is not None)
    assert (found.obstacle is None) == (what is None)
    assert what is None or what in str(found.obstacle)


def test_the_driver_is_asked_through_its_own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "driver.c"
    source.write_text(
        "#include <string.h>\n"
        "int cuDriverGetVersion(int *v) { *v = 12080; return 0; }\n"
        "int cuInit(unsigned f) { return 0; }\n"
        "int cuDeviceGetCount(int *n) { *n = 2; return 0; }\n"
        "int cuDeviceGet(int *d, int i) { *d = 7 + i; return 0; }\n"
        'int cuDeviceGetName(char *s, int n, int d) { strncpy(s, d == 7 ? "Mock 9" : "no", n); return 0; }\n'
        "int cuDeviceGetAttribute(int *v, int a, int d) { *v = d == 7 ? (a == 75 ? 9 : 1) : 0; return 0; }\n"
    )
    library = tmp_path / "libmock.so"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    monkeypatch.setattr(support, "_DRIVER_LIBRARY", str(library))
    assert support.read_driver() == Driver(0, (12, 8), Gpu("Mock 9", (9, 1)))
    monkeypatch.setattr(support, "_DRIVER_LIBRARY", str(tmp_path / "none.so"))
    assert support.read_driver() is None


@pytest.mark.parametrize(
    ("found", "engine", "warning"),
    [
        (CudaSupport(ORIN, None), "cuda", None),
        (CudaSupport(None, None), "native", None),
        (CudaSupport(ORIN, Obstacle("triton is not installed", "pip install it")), "native", "triton is not installed"),
    ],
)
def test_the_default_engine_is_that_of_a_gpu_that_can_be_used(
    monkeypatch: pytest.MonkeyPatch, found: CudaSupport, engine: str, warning: str | None
) -> None:
    if native() is None:
        pytest.skip("the native kernels were not built")
    monkeypatch.setattr(opening, "cuda_support", lambda: found)
    opening._gpu_is_usable.cache_clear()
    try:
        if warning is None:
            assert default_engine() == engine
        else:
            with pytest.warns(RuntimeWarning, match=warning) as caught:
                assert default_engine() == engine
            assert default_engine() == engine  # and warns no more
            assert len(caught) == 1
            assert "\n" not in str(caught[0].message)
    finally:
        opening._gpu_is_usable.cache_clear()


def test_asked_for_without_a_gpu_it_is_refused(monkeypatch: pytest.MonkeyPatch, tiny_package: Path) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(support, "read_driver", lambda: None)
    monkeypatch.setattr(support, "traces", lambda: None)
    with Package.open(tiny_package) as package, pytest.raises(EngineError, match=r"no NVIDIA GPU(.|\n)*native"):
        open_engine(package, "cuda")
    assert missing_reason("cuda") == "there is no NVIDIA GPU" or support.cuda_support().usable


def test_where_torch_finds_no_gpu_nothing_is_interpreted_unasked(tiny_package: Path) -> None:
    code = (
        "import sys\n"
        "from edgemem.runtime import open as opening\n"
        "from edgemem.runtime.package import Package\n"
        "opening.require_cuda = lambda: None\n"
        "opening.open_engine(Package.open(sys.argv[1]), 'cuda')\n"
    )
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    env.pop("TRITON_INTERPRET", None)
    words = [sys.executable, "-c", code, str(tiny_package)]
    result = subprocess.run(words, capture_output=True, text=True, env=env)
    assert "EngineError: the libraries of the cuda engine cannot be loaded\n  got: torch finds no NVIDIA GPU" in (
        result.stderr
    )


def test_doctor_says_what_is_in_the_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(support, "read_driver", lambda: replace(DRIVER, cuda=(12, 4)))
    monkeypatch.setattr(support, "read_libraries", lambda: LIBRARIES)
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (missing,) = (item for item in report["missing"] if item["needed_for"] == "cuda engine")
    assert missing["what"] == "the driver runs CUDA 12.4, and torch was built for 13.0"
    assert "update the NVIDIA driver" in missing["add"]
    assert report["engines"]["cuda"] is None
    monkeypatch.setattr(support, "read_driver", lambda: DRIVER)
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engines"]["cuda"] == "Orin"


def test_no_other_engine_imports_torch(tiny_package: Path) -> None:
    code = (
        "import sys\n"
        "from edgemem.tools.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "loaded = {name.partition('.')[0] for name in sys.modules} & {'torch', 'triton'}\n"
        "assert not loaded, loaded\n"
    )
    for engine in ("native", "onnx") if native() is not None else ("onnx",):
        words = ["run", str(tiny_package), "-p", "The", "-n", "2", "--engine", engine]
        result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
