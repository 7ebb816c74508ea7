"""Which cells a run has, and which of them share a process. Pure: it opens nothing and times nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgemem.profiles.arms import ENGINES
from edgemem.profiles.record import Cell, CellKey, Target
from edgemem.profiles.settings import ProfileSettings

WARM_STEPS = 10  # before anything is timed
SETTLE_STEPS = 2  # before each block: the block before it was another arm's
_BLOCK_STEPS, _MOST_BLOCKS = 8, 16  # short, so that the sweeps beside a block met the same memory


@dataclass(frozen=True)
class Group:
    """Cells of one target, context, number of threads and engine: arms that take turns within one process.

    Engines have a process each, as where they are used: one's threads still spin while the other's steps are timed.
    """

    target: str
    engine: str
    context: int
    keys: tuple[CellKey, ...]


def block_sizes(steps: int) -> list[int]:
    """`steps` cut evenly into blocks of 8 or more, at most 16 of them."""
    count = max(1, min(_MOST_BLOCKS, steps // _BLOCK_STEPS))
    return [steps * (index + 1) // count - steps * index // count for index in range(count)]


def slots_needed(context: int, steps: int) -> int:
    """KV slots of a session: the context and all steps after it, timed or not."""
    return context + WARM_STEPS + steps + SETTLE_STEPS * len(block_sizes(steps))


def enumerate_cells(
    settings: ProfileSettings, targets: Sequence[Target], threads: int, missing: Callable[[str], str | None]
) -> tuple[list[Group], list[Cell]]:
    """The groups to measure, and the cells that are skipped, each saying why.

    missing: why an engine cannot run here, None if it can.
    """
    groups, skipped = [], []
    for target in targets:
        for context in settings.contexts:
            for engine in settings.engines:
                absent = missing(engine)
                reason = absent or _too_long(target, context, settings.steps)
                keys = tuple(_keys(settings, target, engine, context, threads, is_there=absent is None))
                if reason is None:
                    groups.append(Group(target.name, engine, context, keys))
                else:
                    skipped += [Cell(key, "skipped", reason, None, (), ()) for key in keys]
    return groups, skipped


def _keys(
    settings: ProfileSettings, target: Target, engine: str, context: int, threads: int, *, is_there: bool
) -> list[CellKey]:
    """One for each arm; one alone for an engine that is not there."""
    if not is_there:
        return [CellKey(target.name, engine, "", context, threads, settings.kv or "")]
    profiled = ENGINES[engine]
    kv = profiled.kv(settings.kv)
    return [CellKey(target.name, engine, arm.name, context, threads, kv) for arm in profiled.arms_for(settings.graphs)]


def _too_long(target: Target, context: int, steps: int) -> str | None:
    needed = slots_needed(context, steps)
    if needed <= target.max_context:
        return None
    return f"the package's context is {target.max_context} slots, and this cell needs {needed}"
