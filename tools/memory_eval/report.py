"""An evaluation as text, as markdown and as one HTML page that needs nothing else. All texts are escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence

from edgemem.tools.memory_eval.figures import plots
from edgemem.tools.memory_eval.measures import defaults, verdicts
from edgemem.tools.memory_eval.record import Record, Result
from edgemem.tools.memory_eval.settings import POLICIES
from edgemem.tools.memory_eval.speed_table import speed_table
from edgemem.tools.memory_eval.tables import Table, part_tables, verdict_table
from edgemem.tools.report_page import bullets, figure, page, table_html, warning

_TITLE = "What a bounded memory keeps, and what that is worth"


def tables_of(results: Sequence[Result]) -> list[Table]:
    """Every table that the results have something for."""
    judged, speed = verdicts(results), speed_table(results)
    return [
        *part_tables(results),
        *([speed] if speed is not None else []),
        *([verdict_table(judged)] if judged else []),
    ]


def conclusions(results: Sequence[Result]) -> list[str]:
    """Which default the evidence is for, a sentence for each use."""
    return defaults(verdicts(results))


def markdown(record: Record, planned: int) -> str:
    """record: with the results to be shown. planned: how many there are when all is done."""
    parts = [f"# {_TITLE}", *_state(record, planned)]
    parts += [table.markdown().rstrip() for table in tables_of(record.results)]
    parts += ["## Defaults that the evidence supports", *(f"- {line}" for line in conclusions(record.results))]
    parts += ["## Policies", *(f"- {name}: {what}" for name, what in _policies(record))]
    parts += ["## Conditions", *(f"- {name}: {text}" for name, text in _conditions(record))]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def html(record: Record, planned: int) -> str:
    """The page. Raises SettingsError where matplotlib is not installed."""
    parts = [
        *(warning(line) for line in _state(record, planned)),
        bullets(conclusions(record.results)),
        *(figure(svg, text) for svg, text in plots(record.results)),
        *(table_html(table) for table in tables_of(record.results)),
        "<h2>Policies</h2>",
        bullets([f"{name}: {what}" for name, what in _policies(record)]),
        "<h2>Conditions</h2>",
        bullets([f"{name}: {text}" for name, text in _conditions(record)]),
    ]
    return page(_TITLE, f"edgemem eval memory, {_date(record)}", parts)


def _state(record: Record, planned: int) -> list[str]:
    """Nothing where all is done."""
    done = len(record.results)
    return [] if done == planned else [f"Not finished: {done} of {planned} cells. The same command goes on."]


def _policies(record: Record) -> list[tuple[str, str]]:
    used = {result.cell.policy for result in record.results}
    return [(name, what) for name, what in POLICIES.items() if name in used]


def _conditions(record: Record) -> list[tuple[str, str]]:
    """Of all results: what they are of, how much was asked, where, when, and how long that took."""
    seconds = sum(result.seconds for result in record.results)
    measured = f"{_date(record)}, {seconds / 60:.1f} minutes in all"
    return [*record.subject.items(), *_sizes(record), *record.conditions.items(), ("measured", measured)]


def _sizes(record: Record) -> list[tuple[str, str]]:
    """How much each part asks, as its cells have it, and with which seeds."""
    found: dict[str, dict[str, str]] = {}
    for result in record.results:
        sizes = {name: str(value) for name, value in json.loads(result.cell.setup).items() if name != "retention"}
        found.setdefault(result.cell.part, {}).update(sizes)
    seeds = {part: {one.cell.seed for one in record.results if one.cell.part == part} for part in found}
    return [
        (part, ", ".join(f"{name} {value}" for name, value in {**sizes, "seeds": len(seeds[part])}.items()))
        for part, sizes in found.items()
    ]


def _date(record: Record) -> str:
    dates = sorted(result.date for result in record.results)
    return "–" if not dates else dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
