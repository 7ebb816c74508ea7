"""What a check of a GPU found: the record in the profiler's format, and a page of tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgemem.profiles.devices import DeviceTable
from edgemem.profiles.environment import device_record, engine_counter, engine_reader
from edgemem.profiles.recognition import recognise
from edgemem.profiles.record import FORMAT, Cell, DeviceRecord, Record, Target
from edgemem.profiles.record_file import write_record
from edgemem.profiles.settings import ProfileSettings
from edgemem.profiles.table import answer, markdown, markdown_table, rows
from edgemem.tools.gpu_kernels import KernelRow
from edgemem.tools.gpu_plan import CONTEXT, Timing
from edgemem.tools.versions import run_versions


@dataclass
class Findings:
    """Filled as the check goes on. host_share: of the wall time of a step, by target and arm; unmeasured: why not."""

    sweep: Any = None
    reads: list[float] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    too_large: list[Timing] = field(default_factory=list)
    tests: str = ""
    tests_failed: bool = False
    agreement: str = ""
    targets: dict[str, Target] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    host_share: dict[tuple[str, str], float] = field(default_factory=dict)
    tensorrt: list[str] = field(default_factory=list)
    kernels: list[KernelRow] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)


def write_findings(found: Findings, folder: Path) -> list[Path]:
    """The files written. Raises OSError."""
    with engine_reader("cuda") as reader:
        device = device_record(recognise(DeviceTable.load(), processor="gpu"), reader, counter=engine_counter("cuda"))
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = make_record(found, device, date, run_versions(gpu=True))
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "record.json", folder / "tables.md"]
    write_record(record, paths[0])
    paths[1].write_text(page(found, record), encoding="utf-8")
    return paths


def make_record(found: Findings, device: DeviceRecord, date: str, versions: dict[str, str | None]) -> Record:
    """Of one session, as `edgemem profile` would write it."""
    steps = max((len(cell.sessions[0].step_ms) for cell in found.cells if cell.sessions), default=0)
    return Record(
        format=FORMAT,
        date=date,
        versions=versions,
        device=device,
        settings=ProfileSettings(engines=("cuda",), contexts=(CONTEXT,), sessions=1, steps=max(8, steps)),
        targets=tuple(found.targets.values()),
        cells=tuple(found.cells),
        interrupted=bool(found.unmeasured),
    )


def page(found: Findings, record: Record) -> str:
    """Markdown: the answer, decode steps, the host's share, kernels, tests, and what was not measured."""
    ceiling = max(found.reads)
    texts = [
        f"# {record.device.reported}, {record.date}",
        ", ".join(f"{name} {version}" for name, version in record.versions.items() if version),
        f"Read ceiling: {ceiling / 1e9:.0f} GB/s, the best of {len(found.reads)} sweeps.",
        f"Tests on the GPU: {found.tests}.",
    ]
    if found.agreement:
        texts.append(f"Agreement of {found.agreement}.")
    if found.cells:
        texts += ["## Decode steps", answer(record), markdown(rows(record))]
    if found.host_share:
        shares = [(target, arm, f"{100 * share:.1f} %") for (target, arm), share in found.host_share.items()]
        texts += ["## The host's share of a step's time", markdown_table(("model", "arm", "share"), shares)]
    if found.tensorrt:
        texts += ["## TensorRT", "\n".join(f"- {line}" for line in found.tensorrt)]
    if found.kernels:
        texts += ["## Kernels, on cold weights", kernel_table(found.kernels, ceiling)]
    missing = [*found.unmeasured, *(f"{timing.label}: does not fit into this GPU" for timing in found.too_large)]
    if missing:
        texts += ["## Not measured", "\n".join(f"- {line}" for line in missing)]
    return "\n\n".join(text.strip() for text in texts) + "\n"


def kernel_table(found: Sequence[KernelRow], ceiling: float) -> str:
    """Markdown; the last column is the bandwidth's share of the read ceiling."""
    headers = ("kernel", "weights", "shape", "MB", "us", "GB/s", "of the ceiling")
    texts = [
        (
            row.name,
            row.precision,
            row.shape,
            f"{row.bytes / 1e6:.1f}",
            f"{row.microseconds:.1f}",
            f"{row.bytes_per_s / 1e9:.0f}",
            f"{100 * row.bytes_per_s / ceiling:.0f} %",
        )
        for row in found
    ]
    return markdown_table(headers, texts)
