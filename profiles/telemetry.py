"""Power, heat, clocks and throttling while something is measured, sampled on a thread of its own.

Where they are read from is in nvml.py, telemetry_cpu.py and telemetry_jetson.py. What cannot be read is None, not 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Event
from types import TracebackType
from typing import Protocol

from edgemem.profiles.record import Telemetry
from edgemem.runtime.errors import SettingsError

# More often would take time from the processor that is being measured.
_LEAST_INTERVAL_S = 0.2


@dataclass(frozen=True)
class Sample:
    """One reading. `energy_j` and `throttle_counts` count up from any start; `throttle_reasons` are those of now, and
    none where nothing throttles."""

    power_w: float | None = None
    energy_j: float | None = None
    temperature_c: float | None = None
    clocks_mhz: Mapping[str, float] = field(default_factory=dict)
    throttle_reasons: frozenset[str] | None = None
    throttle_counts: Mapping[str, int] = field(default_factory=dict)


class Reader(Protocol):
    """Reads what it can, quickly, and raises nothing for what it cannot. `source` names what it reads."""

    @property
    def source(self) -> str: ...

    def read(self) -> Sample: ...


def summarise(times_s: Sequence[float], samples: Sequence[Sample]) -> Telemetry:
    """times_s: of each sample, rising, two at least. Energy is the counter's where there is one, otherwise power over
    time."""
    temperatures = [sample.temperature_c for sample in samples if sample.temperature_c is not None]
    return Telemetry(
        seconds=times_s[-1] - times_s[0],
        energy_j=_energy_j(times_s, samples),
        temperature_c=max(temperatures, default=None),
        clocks_mhz=_ranges((name, mhz, mhz) for sample in samples for name, mhz in sample.clocks_mhz.items()),
        throttled=_throttle_reasons(samples),
    )


def together(parts: Sequence[Telemetry]) -> Telemetry:
    """Of measurements that followed one another, one at least. Energy is None where that of any part is."""
    energies = [part.energy_j for part in parts if part.energy_j is not None]
    temperatures = [part.temperature_c for part in parts if part.temperature_c is not None]
    return Telemetry(
        seconds=sum(part.seconds for part in parts),
        energy_j=sum(energies) if len(energies) == len(parts) else None,
        temperature_c=max(temperatures, default=None),
        clocks_mhz=_ranges((name, *ends) for part in parts for name, ends in part.clocks_mhz.items()),
        throttled=tuple(sorted({reason for part in parts for reason in part.throttled})),
    )


def _ranges(read: Iterable[tuple[str, float, float]]) -> dict[str, tuple[float, float]]:
    """The lowest and the highest by name."""
    found: dict[str, tuple[float, float]] = {}
    for name, low, high in read:
        before = found.get(name, (low, high))
        found[name] = min(low, before[0]), max(high, before[1])
    return found


def _throttle_reasons(samples: Sequence[Sample]) -> tuple[str, ...]:
    """Those of any sample, and those that were counted between the first and the last."""
    read = [sample.throttle_reasons for sample in samples if sample.throttle_reasons is not None]
    before, after = samples[0].throttle_counts, samples[-1].throttle_counts
    counted = {name for name in before if after.get(name, 0) > before[name]}
    return tuple(sorted(counted.union(*read)))


def _energy_j(times_s: Sequence[float], samples: Sequence[Sample]) -> float | None:
    """Over the whole duration."""
    duration_s = times_s[-1] - times_s[0]
    counted = [(at, one.energy_j) for at, one in zip(times_s, samples, strict=True) if one.energy_j is not None]
    if len(counted) > 1 and counted[-1][0] > counted[0][0] and counted[-1][1] > counted[0][1]:
        return (counted[-1][1] - counted[0][1]) / (counted[-1][0] - counted[0][0]) * duration_s
    powers = [(at, one.power_w) for at, one in zip(times_s, samples, strict=True) if one.power_w is not None]
    if not powers:
        return None
    span_s = powers[-1][0] - powers[0][0]
    if span_s <= 0:
        return powers[0][1] * duration_s
    area_j = sum((after - before) * (first + second) / 2 for (before, first), (after, second) in pairwise(powers))
    return area_j / span_s * duration_s


class Watch:
    """Samples a reader from entering to leaving, first and last included; then `summary` is there.

    Enter it warm: a clock that is still rising from idle counts as having moved.
    """

    def __init__(self, reader: Reader, interval_s: float = 0.5, clock: Callable[[], float] = time.monotonic) -> None:
        if not _LEAST_INTERVAL_S <= interval_s <= 60:
            raise SettingsError(
                "telemetry interval out of range", got=interval_s, wanted=f"{_LEAST_INTERVAL_S} to 60 seconds"
            )
        self._reader, self._interval_s, self._clock = reader, interval_s, clock
        self._times_s: list[float] = []
        self._samples: list[Sample] = []
        self._stop = Event()

    def __enter__(self) -> Watch:
        self._sample()
        self._thread = ThreadPoolExecutor(1, "telemetry")
        self._running: Future[None] = self._thread.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.shutdown()
        if problem is None:
            self._running.result()  # raises what stopped the thread
            self._sample()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        self._times_s.append(self._clock())
        self._samples.append(self._reader.read())

    @property
    def summary(self) -> Telemetry:
        return summarise(self._times_s, self._samples)
