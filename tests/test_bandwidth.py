"""The buffer of a sweep: larger than the caches, smaller than the memory, and kept as long as it is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemem.kernels.native import MemorySweep
from edgemem.profiles import bandwidth
from edgemem.profiles.bandwidth import last_level_cache_bytes, measured_bandwidth, open_sweep
from edgemem.runtime.errors import BudgetError


def test_last_level_caches_are_counted_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cache(cpu: int, index: int, level: int, size: str, shared: str) -> None:
        folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, text in (("level", str(level)), ("size", size), ("shared_cpu_list", shared)):
            (folder / name).write_text(text + "\n")

    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2"), (3, "3")):
        cache(cpu, 0, 1, "32K", str(cpu))
        cache(cpu, 3, 3, "4096K", shared)
    (tmp_path / "cpu2" / "cache" / "index3" / "size").write_text("unknown\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert last_level_cache_bytes(tmp_path) == 2 * (4 << 20)
    assert last_level_cache_bytes(tmp_path / "absent") == 0


@pytest.mark.parametrize(
    ("cache", "available", "buffer"),
    [
        (4 << 20, 8 << 30, 64 << 20),  # small caches: at least 64 MiB
        (32 << 20, 8 << 30, 256 << 20),  # 8 times the caches
        (32 << 20, 256 << 20, 64 << 20),  # a quarter of the memory
    ],
)
def test_buffer_outgrows_the_cache_but_not_the_memory(
    monkeypatch: pytest.MonkeyPatch, cache: int, available: int, buffer: int
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(bandwidth, "MemorySweep", lambda size, threads: asked.append((size, threads)))
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: cache)
    monkeypatch.setattr(bandwidth, "available_memory", lambda: available)
    open_sweep(2)
    assert asked == [(buffer, 2)]


@pytest.mark.parametrize("available", [0, 2000])
def test_no_memory_for_the_sweep_is_said(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(bandwidth, "available_memory", lambda: available)
    with pytest.raises(BudgetError, match="cannot be measured"):
        measured_bandwidth(1)


def test_memory_that_others_took_meanwhile_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "available_memory", lambda: 1 << 64)
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: 1 << 58)
    with pytest.raises(BudgetError, match="cannot be measured"):
        open_sweep(1)


def test_bandwidth_is_the_best_pass_of_one_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: 0)
    passes: list[float] = []

    class Watched(MemorySweep):
        def read(self, count: int = 10) -> list[float]:
            passes.extend(super().read(count))
            return passes

    monkeypatch.setattr(bandwidth, "MemorySweep", Watched)
    assert measured_bandwidth(1) == max(passes)
    assert len(passes) == 10
