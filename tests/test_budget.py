"""The bytes computed beforehand are those that are taken, and too many are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from runnable_packages import plain_model, runnable_package, same_precision

from edgemem.runtime.budget import Budget, onnx_budget
from edgemem.runtime.errors import BudgetError
from edgemem.runtime.machine import available_memory, control_groups, usable_cores
from edgemem.runtime.package import Package

_MEASURE = """
import sys
import numpy as np
from edgemem.runtime.onnx_engine import OnnxEngine
from edgemem.runtime.onnx_session import import_onnxruntime
from edgemem.runtime.package import Package

def anonymous():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Anonymous:"))

package = Package.open(sys.argv[1])
import_onnxruntime()
before = anonymous()
engine = OnnxEngine(package, threads=1)
engine.extend(np.arange(engine.capacity) % package.model.vocabulary, surprisal=True)
print(anonymous() - before)
"""

_MEASURE_PEAK = """
import sys
from edgemem.runtime.onnx_engine import OnnxEngine
from edgemem.runtime.onnx_session import import_onnxruntime
from edgemem.runtime.package import Package

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))

package = Package.open(sys.argv[1])
import_onnxruntime()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = status("VmRSS:")
OnnxEngine(package, threads=1, capacity=16)
print(status("VmHWM:") - before)
"""


def test_too_little_memory_is_an_error_with_every_line() -> None:
    budget = Budget((("weights", 1000), ("KV cache", 234)))
    budget.check(1234)
    with pytest.raises(BudgetError) as raised:
        budget.check(1233)
    for part in ("weights", "1,000", "KV cache", "234", "1,234", "1,233"):
        assert part in str(raised.value)


@pytest.mark.parametrize("text", ["int4-g32-min", "int8-g64", "fp16"])
def test_what_is_taken_is_what_was_computed(tmp_path: Path, text: str) -> None:
    model = plain_model(
        layers=4,
        hidden=512,
        intermediate=1536,
        heads=8,
        kv_heads=4,
        head_dim=64,
        vocabulary=8000,
        ropes=plain_model(head_dim=64).ropes,
    )
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, text), max_context=512)
    with Package.open(path) as package:
        budget = onnx_budget(package, 512, (0, 4), 512, 128)
    taken = int(subprocess.check_output([sys.executable, "-c", _MEASURE, str(path)], text=True))
    lines = dict(budget.lines)
    # Scores are held by some kernels only, and packing is over by now.
    sure = lines["weights packed by ONNX Runtime"] + lines["embedding table"] + lines["KV cache"]
    assert sure * 0.95 < taken < budget.total


def test_the_cache_is_counted_by_slots_and_layers(tmp_path: Path) -> None:
    model = plain_model()
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "int4-g32"))
    with Package.open(path) as package:
        whole, half, front = (
            dict(onnx_budget(package, slots, layers, 8, 8).lines)
            for slots, layers in ((96, (0, 3)), (48, (0, 3)), (96, (0, 1)))
        )
    assert whole["KV cache"] == 3 * 2 * 2 * 16 * 4 * 96
    assert half["KV cache"] * 2 == whole["KV cache"]
    assert front["KV cache"] * 3 == whole["KV cache"]
    assert front["logits"] == 0 < whole["logits"]


def test_pages_of_the_mapped_file_are_shown_but_need_no_free_memory(tmp_path: Path) -> None:
    model = plain_model()
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "int4-g32"))
    with Package.open(path) as package:
        whole, front = (onnx_budget(package, 96, layers, 8, 8) for layers in ((0, 3), (0, 1)))
    assert 0 < dict(front.mapped)["weights file, mapped"] < dict(whole.mapped)["weights file, mapped"]
    assert "not counted: weights file, mapped" in whole.table()
    whole.check(sum(size for _, size in whole.lines))


def test_the_peak_of_a_long_context_while_opening_is_counted(tmp_path: Path) -> None:
    model = plain_model(trained_context=1 << 16)
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "fp32"), max_context=1 << 16)
    with Package.open(path) as package:
        budget = onnx_budget(package, 16, (0, 3), 16, 16)
    taken = int(subprocess.check_output([sys.executable, "-c", _MEASURE_PEAK, str(path)], text=True))
    tables = (1 << 16) * 8 * 8  # one float64 array of angles
    assert 5 * tables < taken < budget.total


def test_memory_and_cores_are_what_the_process_may_use() -> None:
    assert 0 < available_memory() <= psutil.virtual_memory().total
    allowed = os.sched_getaffinity(0)
    assert 1 <= usable_cores() <= len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_control_group_that_leaves_less_is_what_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("max", "1000000"), ("current", "700000"), ("stat", "anon 5\ninactive_file 200000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr("edgemem.runtime.machine.control_groups", lambda controller: [] if controller else [tmp_path])
    assert available_memory() == 500_000
    (tmp_path / "memory.max").write_text("max")
    assert available_memory() > 500_000
    (tmp_path / "cpu.max").write_text("100000 100000")
    assert usable_cores() == 1


def test_control_groups_are_those_of_the_process_up_to_the_root(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:cpu,memory:/box/one\n0::/user.slice/app\n")
    mount = tmp_path / "sys/fs/cgroup"
    wanted = [mount / "user.slice/app", mount / "user.slice", mount]
    assert list(control_groups("", root=tmp_path)) == wanted
    wanted = [mount / "memory/box/one", mount / "memory/box", mount / "memory"]
    assert list(control_groups("memory", root=tmp_path)) == wanted
    assert list(control_groups("", root=tmp_path / "nothing")) == []


def test_a_limit_of_address_space_is_what_is_available() -> None:
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
        "from edgemem.runtime.machine import available_memory; print(available_memory())"
    )
    assert 0 < int(subprocess.check_output([sys.executable, "-c", limited], text=True)) < 1 << 30
