"""The native module: the features it reports and the read sweep."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from edgemem.kernels import native

SWEEP_BYTES = 1 << 22


def test_module_was_built_where_the_suite_runs() -> None:
    assert native.native() is not None


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the names are those of x86-64")
def test_features_agree_with_the_kernel() -> None:
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].splitlines()[0].split()
    features = native.cpu_features()
    assert features
    assert {name: name in flags for name in features} == features


@pytest.mark.parametrize("threads", [1, 2])
def test_sweep_times_every_pass(threads: int) -> None:
    module = native.native()
    assert module is not None
    seconds = module.read_sweep(SWEEP_BYTES, threads, 5)
    assert len(seconds) == 5
    assert all(0 < s < 60 for s in seconds)


def test_sweep_reads_the_whole_buffer() -> None:
    """Sixteen times the bytes cannot take less than twice the time, however noisy the machine."""
    module = native.native()
    assert module is not None
    small = min(module.read_sweep(1 << 24, 1, 9))
    large = min(module.read_sweep(1 << 28, 1, 3))
    assert large > 2 * small


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((511, 1, 1), "512"), ((SWEEP_BYTES, 0, 1), "threads"), ((SWEEP_BYTES, 1, 0), "repeats")],
)
def test_sweep_refuses(arguments: tuple[int, int, int], word: str) -> None:
    module = native.native()
    assert module is not None
    with pytest.raises(ValueError, match=word):
        module.read_sweep(*arguments)


def test_without_the_module_bandwidth_is_still_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "native", lambda: None)
    assert native.cpu_features() == {}
    assert native.read_bandwidth(SWEEP_BYTES, 2, 3) > 0
