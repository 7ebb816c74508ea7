"""How commands speak: rich on a terminal, plain when piped, and one JSON object on stdout under --json."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Progress = Callable[[str, float], None]  # (stage, fraction done of it, 0 to 1)


def print_json(value: dict[str, Any]) -> None:
    """One line of strict JSON; numbers that are not finite become null."""
    print(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False))


def print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns of text; those whose every cell begins with a digit or sign are set to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    right = [bool(cells) and all(row[i][:1] in "0123456789+-.–" for row in cells) for i in range(len(headers))]
    if sys.stdout.isatty():
        _print_rich_table(title, headers, cells, right)
        return
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
    if title:
        print(title)
    for row in [list(headers), *cells]:
        line = "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        )
        print(f"  {line.rstrip()}")


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """Aligned `name  value` lines."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        print(f"{name.ljust(width)}  {value}")


def note(text: str) -> None:
    """A line for people, on stderr: never in the way of a program that reads stdout."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Progress]:
    """A bar per stage on a terminal, one line per stage on another stderr, nothing where quiet."""
    if quiet:
        yield lambda stage, fraction: None
        return
    if not sys.stderr.isatty():
        yield _stage_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with RichProgress(*columns, console=Console(stderr=True)) as bars:

        def advance(stage: str, fraction: float) -> None:
            if stage not in tasks:
                for earlier in tasks.values():
                    bars.update(earlier, completed=1.0)
                    bars.stop_task(earlier)
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=min(max(fraction, 0.0), 1.0))

        yield advance


def _stage_lines() -> Progress:
    seen: set[str] = set()

    def advance(stage: str, fraction: float) -> None:
        if stage not in seen:
            seen.add(stage)
            note(f"{stage} ...")

    return advance


def _print_rich_table(title: str, headers: Sequence[str], cells: list[list[str]], right: list[bool]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for header, flush in zip(headers, right, strict=True):
        table.add_column(header, justify="right" if flush else "left")
    for row in cells:
        table.add_row(*row)
    Console(markup=False, emoji=False).print(table)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
