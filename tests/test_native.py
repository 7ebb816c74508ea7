"""The native module: the features it reports, and the sweeps over memory with their stand-in."""

from __future__ import annotations

import platform
from pathlib import Path
from threading import Thread

import pytest
from leftovers import comes_to_nothing, tasks

from edgemem.kernels import native
from edgemem.kernels.native import MemorySweep

SWEEP_BYTES = 1 << 22
KINDS = ("read", "copy")


@pytest.fixture(params=["native", "numpy"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the native module and without."""
    if request.param == "numpy":
        monkeypatch.setattr(native, "native", lambda: None)
    return str(request.param)


def test_module_was_built_where_the_suite_runs() -> None:
    assert native.native() is not None


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the names are those of x86-64")
def test_features_agree_with_the_kernel() -> None:
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].splitlines()[0].split()
    features = native.cpu_features()
    assert features
    assert {name: name in flags for name in features} == features


def test_without_the_module_there_are_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "native", lambda: None)
    assert native.cpu_features() == {}


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_sweep_times_every_pass(kernels: str, threads: int) -> None:
    sweep = MemorySweep(SWEEP_BYTES, threads)
    assert SWEEP_BYTES - 512 * threads < sweep.bytes <= SWEEP_BYTES
    for _ in range(3):  # one buffer serves every call
        for rates, passes in ((sweep.read(5), 5), (sweep.copy(4), 4)):
            assert len(rates) == passes
            assert all(SWEEP_BYTES / 60 < rate < 1e14 for rate in rates)


@pytest.mark.parametrize("kind", KINDS)
def test_sweep_passes_over_the_whole_buffer(kernels: str, kind: str) -> None:
    """Sixteen times the bytes cannot take less than twice the time, however noisy the machine."""
    seconds = []
    for size, passes in ((1 << 24, 9), (1 << 28, 3)):
        sweep = MemorySweep(size)
        seconds.append(size / max(getattr(sweep, kind)(passes)))
    assert seconds[1] > 2 * seconds[0]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_sweep_leaves_no_thread_behind() -> None:
    before = tasks()
    sweep = MemorySweep(SWEEP_BYTES, 4)
    sweep.read(2)
    sweep.copy(2)
    assert comes_to_nothing(lambda: tasks() - before)


def test_two_callers_of_one_sweep_take_turns() -> None:
    sweep = MemorySweep(SWEEP_BYTES, 2)
    counts: list[int] = []
    callers = [Thread(target=lambda kind=kind: counts.append(len(getattr(sweep, kind)(20)))) for kind in KINDS]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert counts == [20, 20]


def test_too_small_a_buffer_is_refused(kernels: str) -> None:
    with pytest.raises(ValueError, match="512"):
        MemorySweep(511, 1)


@pytest.mark.parametrize(
    ("arguments", "word"), [((1023, 2), "512"), ((SWEEP_BYTES, 0), "threads"), ((SWEEP_BYTES, 1025), "threads")]
)
def test_wrong_settings_are_refused(arguments: tuple[int, int], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        MemorySweep(*arguments)
    with pytest.raises(ValueError, match="passes"):
        MemorySweep(SWEEP_BYTES, 1).read(0)


def test_memory_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(MemoryError):
        MemorySweep(1 << 62, 1)
