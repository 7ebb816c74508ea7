"""Records with samples made up, for what computes figures, writes or shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from runnable_packages import plain_model, same_precision

from edgemem.profiles.record import (
    FORMAT,
    Block,
    Cell,
    CellKey,
    DeviceRecord,
    FailedSession,
    Record,
    Session,
    StepBytes,
    Sweep,
    Target,
    Telemetry,
)
from edgemem.profiles.settings import ProfileSettings
from edgemem.runtime.manifest import Quality
from edgemem.runtime.precision_table import compact

GB = 1_000_000_000
KEY = CellKey("tiny", "native", "default", 16, 2, "fp16")
DEVICE = DeviceRecord(
    name=None,
    reported="some board",
    datasheet_bytes_per_s=None,
    datasheet_note="not in the device table: measured peak only",
    cpu_model="some CPU",
    cores=2,
    governor=None,
    kernel="6.1.0",
    memory_bytes=8 * GB,
    l2_bytes=None,
    llc_bytes=1 << 20,
    telemetry={"power": "RAPL package-0"},
    telemetry_missing={"clocks": "no cpufreq"},
)
BYTES = StepBytes(
    useful=10_000_000, moved=10_500_000, weights=9_000_000, kv_read=990_000, kv_write=10_000, footprint=12_000_000
)


def target(**changes: Any) -> Target:
    model = plain_model()
    values: dict[str, Any] = {
        "name": "tiny",
        "kind": "package",
        "source": "tiny.gguf",
        "sha256": "ab" * 32,
        "model": model,
        "precision": compact(model, same_precision(model, "int4-g32-min", embedding="int8-g32")),
        "max_context": 96,
        "quality": Quality("a text", 100, 20.5, 20.25, 0.01, 0.97),
        "quality_note": None,
    }
    return Target(**{**values, **changes})


def session(
    number: int,
    step_ms: Sequence[float],
    peak: float = 20.0 * GB,
    tokens: Sequence[int] = (5, 6, 7),
    telemetry: Telemetry | None = None,
) -> Session:
    """One block of these steps; of its three sweeps the middle one reaches `peak` bytes a second."""
    return Session(
        number=number,
        prefill_ms=3.0,
        blocks=(Block(4, sum(step_ms), tuple(step_ms)),),
        steps_together=1,
        sweeps=tuple(Sweep(order, rate * peak) for order, rate in enumerate((0.7, 1.0, 0.9))),
        copies=(Sweep(3, 0.5 * peak),),
        tokens=tuple(tokens),
        telemetry=telemetry,
    )


def cell(key: CellKey = KEY, sessions: Sequence[Session] | None = None, **changes: Any) -> Cell:
    """A measured cell: by default of three sessions whose steps take about 1 ms."""
    if sessions is None:
        sessions = [session(number, (1.0 + 0.01 * number, 1.1, 0.9)) for number in range(3)]
    return replace(Cell(key, "measured", None, BYTES, tuple(sessions), ()), **changes)


def unmeasured(key: CellKey, status: Any, reason: str) -> Cell:
    failures = (FailedSession(0, reason),) if status == "failed" else ()
    return Cell(key, status, reason, None, (), failures)


def record(*cells: Cell, **changes: Any) -> Record:
    """By default one measured, one failed and one skipped cell."""
    if not cells:
        failed = unmeasured(replace(KEY, engine="onnx", kv="fp32"), "failed", "ended by SIGKILL")
        skipped = unmeasured(replace(KEY, engine="cuda", arm="", kv=""), "skipped", "this version has no cuda engine")
        cells = (cell(), failed, skipped)
    values: dict[str, Any] = {
        "format": FORMAT,
        "date": "2026-01-02T03:04:05+00:00",
        "versions": {"edgemem": "0.1.0", "onnxruntime": None},
        "device": DEVICE,
        "settings": ProfileSettings(engines=("native", "onnx", "cuda"), contexts=(16,), sessions=3, steps=8),
        "targets": (target(),),
        "cells": cells,
        "interrupted": False,
    }
    return Record(**{**values, **changes})
