"""One profile run: its cells, measured in fresh processes in a drawn order, and what was found as a Record.

It can be stopped at any moment and goes on where it was. What a process does is in worker.py.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemem.profiles.arms import missing_reason
from edgemem.profiles.cells import Group, enumerate_cells
from edgemem.profiles.environment import Environment
from edgemem.profiles.job import ArmResult, Job
from edgemem.profiles.plain import from_plain, parse_json, printable, to_plain
from edgemem.profiles.process import run_process
from edgemem.profiles.record import FORMAT, Cell, CellKey, FailedSession, Record, Target
from edgemem.profiles.samples import ProcessResults, SampleFile
from edgemem.profiles.settings import ProfileSettings
from edgemem.profiles.targets import ProfiledPackage, describe
from edgemem.runtime.errors import EdgememError, EngineError

_PROCESS_LIMIT_S = 4 * 3600.0
_TRIES = 2  # an arm that failed so often, and never came through, is not tried again


@dataclass(frozen=True)
class Progress:
    """done: of `total` processes; doing: what the next one measures, empty at the end."""

    done: int
    total: int
    doing: str


@dataclass(frozen=True)
class Outcome:
    """problem: what ended the run early, Ctrl-C or a folder that cannot be written; to be raised once the record, which
    holds what was measured until then, has been shown."""

    record: Record
    problem: BaseException | None


def run_profile(
    settings: ProfileSettings,
    packages: Sequence[ProfiledPackage],
    environment: Environment,
    folder: Path | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Measure every cell that can be. folder: keeps the samples, and those that are there already count.

    Raises what opening a package raises, and SettingsError or FileError for a folder that cannot be used.
    """
    targets = [describe(package) for package in packages]
    threads = settings.threads or environment.device.cores
    groups, skipped = enumerate_cells(settings, targets, threads, missing_reason)
    paths = {target.name: str(package.path) for target, package in zip(targets, packages, strict=True)}
    run = _Run(settings, {target.name: target for target in targets}, paths, groups)
    problem: BaseException | None = None
    with ExitStack() as stack:
        if folder is not None:
            run.samples = stack.enter_context(SampleFile(folder, _identity(settings, targets, environment)))
            run.take(result for process in run.samples.found for result in process.results if result.session)
        try:
            run.measure(progress)
        except (KeyboardInterrupt, EdgememError) as stop:
            problem = stop
    cells = sorted([*run.cells(), *skipped], key=_cell_order(settings, targets))
    record = Record(
        format=FORMAT,
        date=environment.date,
        versions=environment.versions,
        device=environment.device,
        settings=settings,
        targets=tuple(targets),
        cells=tuple(cells),
        interrupted=problem is not None,
    )
    return Outcome(record, problem)


@dataclass
class _Run:
    settings: ProfileSettings
    targets: Mapping[str, Target]
    paths: Mapping[str, str]
    groups: Sequence[Group]
    samples: SampleFile | None = None
    results: dict[CellKey, dict[int, ArmResult]] = field(default_factory=dict)  # by the session's number

    def take(self, results: Iterable[ArmResult]) -> None:
        for result in results:
            self.results.setdefault(result.key, {})[result.number] = result

    def measure(self, progress: Callable[[Progress], None]) -> None:
        """All sessions that are not there yet: number by number, each in an order of its own."""
        order = [(number, group) for number in range(self.settings.sessions) for group in self._drawn(number)]
        for done, (number, group) in enumerate(order):
            keys = tuple(key for key in group.keys if not self._given_up(key))
            if all(self._measured(key, number) for key in keys):
                continue
            which = f"session {number + 1} of {self.settings.sessions}"
            progress(Progress(done, len(order), f"{group.target}, {group.engine}, context {group.context}, {which}"))
            results = self._run_session(group, keys, number)
            self.take(results)
            if self.samples is not None:
                self.samples.append(ProcessResults(results))
        progress(Progress(len(order), len(order), ""))

    def cells(self) -> list[Cell]:
        return [_cell(key, self.results.get(key, {})) for group in self.groups for key in group.keys]

    def _drawn(self, number: int) -> list[Group]:
        """Engines that are compared follow one another, whichever is first, so that they meet the same machine."""
        draw = random.Random(f"{self.settings.seed}/{number}")
        compared: dict[tuple[str, int], list[Group]] = {}
        for group in self.groups:
            compared.setdefault((group.target, group.context), []).append(group)
        cells = draw.sample(list(compared.values()), len(compared))
        return [group for groups in cells for group in draw.sample(groups, len(groups))]

    def _measured(self, key: CellKey, number: int) -> bool:
        result = self.results.get(key, {}).get(number)
        return result is not None and result.session is not None

    def _given_up(self, key: CellKey) -> bool:
        results = self.results.get(key, {}).values()
        return len(results) >= _TRIES and all(result.session is None for result in results)

    def _run_session(self, group: Group, keys: tuple[CellKey, ...], number: int) -> tuple[ArmResult, ...]:
        target, settings = group.target, self.settings
        job = Job(self.paths[target], self.targets[target].sha256, keys, settings.steps, number, settings.seed)
        try:
            out = run_process([sys.executable, "-m", "edgemem.profiles.worker"], to_plain(job), _PROCESS_LIMIT_S)
            results = tuple(from_plain(ArmResult, parse_json(line)) for line in out.splitlines())
            if [result.key for result in results] != list(keys):
                raise EngineError("the process gave other results than were asked for", got=len(results))
        except (EdgememError, ValueError) as problem:
            return tuple(ArmResult(key, number, None, None, printable(str(problem))) for key in keys)
        return results


def _cell(key: CellKey, results: Mapping[int, ArmResult]) -> Cell:
    ordered = [results[number] for number in sorted(results)]
    sessions = tuple(result.session for result in ordered if result.session is not None)
    failed = tuple(FailedSession(result.number, result.failure) for result in ordered if result.failure is not None)
    if sessions:
        bytes_ = next(result.bytes for result in ordered if result.bytes is not None)
        return Cell(key, "measured", None, bytes_, sessions, failed)
    if failed:
        return Cell(key, "failed", failed[-1].reason, None, (), failed)
    return Cell(key, "skipped", "the run ended before it", None, (), ())


def _cell_order(settings: ProfileSettings, targets: Sequence[Target]) -> Callable[[Cell], tuple[int, int, int]]:
    """Target by target, context by context, engine by engine, as they were asked for."""
    names = [target.name for target in targets]

    def order(cell: Cell) -> tuple[int, int, int]:
        key = cell.key
        return names.index(key.target), settings.contexts.index(key.context), settings.engines.index(key.engine)

    return order


def _identity(settings: ProfileSettings, targets: Sequence[Target], environment: Environment) -> dict[str, Any]:
    """What two runs must share for the samples of one to count for the other."""
    device = environment.device
    return {
        "format": FORMAT,
        "settings": to_plain(settings),
        "packages": [{"name": target.name, "kind": target.kind, "sha256": target.sha256} for target in targets],
        "versions": dict(environment.versions),
        "machine": [device.reported, device.cpu_model, device.cores, device.kernel],
    }
