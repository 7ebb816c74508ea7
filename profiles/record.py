"""What one profile run found: conditions, raw samples, and why what is missing is missing. Frozen records.

Figures are no part of it: statistics.py computes them from the samples. How it is written and read: record_file.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgemem.profiles.settings import ProfileSettings
from edgemem.runtime.manifest import Quality
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.precision_table import expand

FORMAT = 1
_RATES = (1.0, 1e18)  # bytes a second
_LONGEST_MS = 1e12


@dataclass(frozen=True)
class DeviceRecord:
    """Where it ran. name: as recognised, None for a device that is in no table; reported: what it calls itself.

    datasheet_bytes_per_s: None where no datasheet applies, and `datasheet_note` says why (else where it is from).
    telemetry: source of each quantity that was read ("power": "rapl"); telemetry_missing: why of each that was not.
    """

    name: str | None
    reported: str
    datasheet_bytes_per_s: float | None
    datasheet_note: str
    cpu_model: str
    cores: int
    governor: str | None
    kernel: str
    memory_bytes: int
    l2_bytes: int | None
    llc_bytes: int | None
    telemetry: Mapping[str, str]
    telemetry_missing: Mapping[str, str]

    def __post_init__(self) -> None:
        for name in ("cores", "memory_bytes"):
            _positive(name, getattr(self, name))
        for name in ("l2_bytes", "llc_bytes"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        if self.datasheet_bytes_per_s is not None:
            _within("datasheet_bytes_per_s", self.datasheet_bytes_per_s, *_RATES)


@dataclass(frozen=True)
class Target:
    """What was decoded. sha256: of the package's files. precision: the compact table of runtime/precision_table.py.

    quality: as the package's manifest has it; None with `quality_note` saying why ("random weights").
    """

    name: str
    kind: Literal["package", "shape"]
    source: str
    sha256: str
    model: ModelSpec
    precision: Mapping[str, Any]
    max_context: int
    quality: Quality | None
    quality_note: str | None

    def __post_init__(self) -> None:
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ValueError("sha256 is not 64 hex digits")
        _positive("max_context", self.max_context)
        if (self.quality is None) == (self.quality_note is None):
            raise ValueError("wanted either quality or quality_note")
        expand(self.model, self.precision)


@dataclass(frozen=True)
class CellKey:
    """One combination that is measured. context: KV slots that were filled before the first timed step or warm-up."""

    target: str
    engine: str
    arm: str
    context: int
    threads: int
    kv: str

    def __post_init__(self) -> None:
        _positive("context", self.context)
        _positive("threads", self.threads)


@dataclass(frozen=True)
class StepBytes:
    """Bytes of the middle timed step. useful: weights as stored, and keys and values at the length in use; weights,
    kv_read and kv_write are its parts. moved: what the engine's own layout makes of it (wider scales, padding).
    footprint: the whole weights file and the keys and values held, as arXiv 2605.30571 counts."""

    useful: int
    moved: int
    weights: int
    kv_read: int
    kv_write: int
    footprint: int

    def __post_init__(self) -> None:
        for name in ("useful", "moved", "footprint"):
            _positive(name, getattr(self, name))
        if min(self.weights, self.kv_read, self.kv_write) < 0:
            raise ValueError("bytes are less than 0")
        if self.useful != self.weights + self.kv_read + self.kv_write:
            raise ValueError("useful is not weights + kv_read + kv_write")


@dataclass(frozen=True)
class Telemetry:
    """What was read while the blocks of one arm ran in one session; None is a quantity without a reading.

    seconds and energy_j: over the blocks together. temperature_c: the highest. clocks: by name ("sm", "memory", "cpu"),
    the lowest and highest MHz. throttled: reasons the device gave, none being good.
    """

    seconds: float
    energy_j: float | None
    temperature_c: float | None
    clocks_mhz: Mapping[str, tuple[float, float]]
    throttled: tuple[str, ...]

    def __post_init__(self) -> None:
        _within("seconds", self.seconds, 1e-6, _LONGEST_MS)
        _within("energy_j", self.energy_j or 0.0, 0, 1e15)
        for low, high in self.clocks_mhz.values():
            if not 0 <= low <= high:
                raise ValueError(f"a clock goes from {low} to {high}")


@dataclass(frozen=True)
class Block:
    """Timed steps made in one go. order: its place among all blocks, sweeps and copies of its process, from 0.

    step_ms: of each step; steps that the engine handed out together share their time evenly.
    """

    order: int
    wall_ms: float
    step_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.step_ms:
            raise ValueError("wanted at least one step")
        for value in (self.wall_ms, *self.step_ms):
            _within("milliseconds", value, 1e-6, _LONGEST_MS)


@dataclass(frozen=True)
class Sweep:
    """One pass over a large buffer, in the same process as the blocks. order: as in Block."""

    order: int
    bytes_per_s: float

    def __post_init__(self) -> None:
        _within("bytes_per_s", self.bytes_per_s, *_RATES)


@dataclass(frozen=True)
class Session:
    """One fresh process's samples of one cell. number: the repetition, from 0; sessions of one number and of cells that
    share target, context and threads are paired: they ran one after another, the arms of one engine in one process.

    steps_together: the most steps that the engine handed out at once. tokens: greedy ids, those of warm-up steps first.
    counted_bytes: that all memory controllers read in a step, by their own count; None where they do not tell.
    busy_elsewhere: share of the machine's processor time that others took between the first sweep and the last.
    """

    number: int
    prefill_ms: float
    blocks: tuple[Block, ...]
    steps_together: int
    sweeps: tuple[Sweep, ...]
    copies: tuple[Sweep, ...]
    tokens: tuple[int, ...]
    telemetry: Telemetry | None
    counted_bytes: float | None = None
    busy_elsewhere: float | None = None

    def __post_init__(self) -> None:
        if self.number < 0 or not self.blocks or not self.sweeps:
            raise ValueError("wanted a session's number from 0, its blocks, and its sweeps")
        _within("counted_bytes", self.counted_bytes or 0.0, 0, 1e18)
        _within("busy_elsewhere", self.busy_elsewhere or 0.0, 0, 1)

    @property
    def step_ms(self) -> tuple[float, ...]:
        """Of all blocks."""
        return tuple(step for block in self.blocks for step in block.step_ms)


@dataclass(frozen=True)
class FailedSession:
    number: int
    reason: str


@dataclass(frozen=True)
class Cell:
    """measured: at least one session. failed: none came through. skipped: not tried. reason: why, of the last two."""

    key: CellKey
    status: Literal["measured", "failed", "skipped"]
    reason: str | None
    bytes: StepBytes | None
    sessions: tuple[Session, ...]
    failed_sessions: tuple[FailedSession, ...]

    def __post_init__(self) -> None:
        measured = self.status == "measured"
        if measured != (self.reason is None) or measured != bool(self.sessions) or (measured and self.bytes is None):
            raise ValueError("a measured cell has bytes and sessions, any other a reason")


@dataclass(frozen=True)
class Record:
    """A whole run. date: ISO 8601, UTC. interrupted: it was stopped before all sessions had run."""

    format: int
    date: str
    versions: Mapping[str, str | None]
    device: DeviceRecord
    settings: ProfileSettings
    targets: tuple[Target, ...]
    cells: tuple[Cell, ...]
    interrupted: bool

    def __post_init__(self) -> None:
        names = [target.name for target in self.targets]
        keys = [cell.key for cell in self.cells]
        if len(set(names)) != len(names) or len(set(keys)) != len(keys):
            raise ValueError("a target or cell is there twice")
        if unknown := {key.target for key in keys} - set(names):
            raise ValueError(f"cells of unknown targets {sorted(unknown)[:8]!a}")

    def target(self, name: str) -> Target:
        """KeyError for a name that is not there."""
        return {target.name: target for target in self.targets}[name]


def _positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"{name} is {value}, wanted more than 0")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, wanted {low:g} to {high:g}")
