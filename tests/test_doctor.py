"""doctor: what it finds is there, what it misses is named with the command that adds it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest

from edgemem.kernels import native
from edgemem.tools import machine_report
from edgemem.tools.cli import main
from edgemem.tools.machine_report import Library, cpu_model, nvidia_gpus


def test_report_agrees_with_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ready"] is True
    assert report["libraries"]["numpy"] == numpy.__version__
    assert "CPUExecutionProvider" in report["providers"]
    assert report["cpu"]["usable_cores"] >= 1
    kernels = native.native()
    assert report["engines"]["native"] == (None if kernels is None else kernels.paths()[0])
    assert report["engines"]["onnx"] == report["libraries"]["onnxruntime"]
    assert report["native_kernels"] == (native.native() is not None)
    assert set(report["cpu"]["features"]) <= set(native.cpu_features())
    assert report["cache"]["free_bytes"] > 0


def test_report_for_people_with_bandwidth(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--bandwidth"]) == 0
    out = capsys.readouterr().out
    for part in (
        "cpu",
        "memory",
        "engines",
        "native (",
        "onnx (",
        "providers",
        "cache",
        "onnxruntime",
        "read bandwidth",
        "GB/s",
    ):
        assert part in out


def test_missing_need_of_run_fails_and_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = Library("absent_module", ("absent-distribution",), "run", "pip install absent-distribution")
    monkeypatch.setattr(machine_report, "LIBRARIES", (*machine_report.LIBRARIES, absent))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "missing: absent_module (for run)" in out
    assert "add: pip install absent-distribution" in out


def test_missing_option_is_named_and_does_not_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = Library("absent_module", ("absent-distribution",), "compile", "pip install it")
    monkeypatch.setattr(machine_report, "LIBRARIES", (*machine_report.LIBRARIES, absent))
    assert main(["doctor", "--json"]) == 0
    missing = json.loads(capsys.readouterr().out)["missing"]
    assert {"what": "absent_module", "needed_for": "compile", "add": "pip install it"} in missing


@pytest.mark.parametrize("working", [True, False])
def test_gpus_come_from_nvidia_smi(working: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    body = "echo 'Test GPU, 8192 MiB, 555.1, 8.7'" if working else "echo no driver; exit 9"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    expected = [{"name": "Test GPU", "memory.total": "8192 MiB", "driver_version": "555.1", "compute_cap": "8.7"}]
    assert nvidia_gpus() == (expected if working else [])
    missing = [item["what"] for item in machine_report.machine_report()["missing"]]
    assert ("onnxruntime's CUDA provider" in missing) == working


def test_no_nvidia_smi_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_gpus() == []


def test_processor_names(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast CPU 9000\n")
    assert cpu_model(cpuinfo) == "Fast CPU 9000"
    cpuinfo.write_text("processor\t: 0\nModel\t\t: Raspberry Pi 5\n")
    assert cpu_model(cpuinfo) == "Raspberry Pi 5"
    cpuinfo.write_text("processor\t: 0\nHardware\t: BCM2835\n")
    assert cpu_model(cpuinfo) == "BCM2835"
