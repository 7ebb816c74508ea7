"""Speed against its aims, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from edgemem.profiles.units import number_text
from edgemem.tools.memory_eval.record import Result
from edgemem.tools.memory_eval.speed_run import SCORES
from edgemem.tools.memory_eval.statistics import mean
from edgemem.tools.memory_eval.tables import Table

_NOTE = "In one process, with whatever else this machine did meanwhile. 192 tokens were read and 64 decoded a turn."


def speed_table(results: Sequence[Result]) -> Table | None:
    """None where nothing of it was measured."""
    rows = []
    for result in results:
        if result.cell.part == "speed" and result.values:
            rows += _cost_rows(result) if result.cell.policy == SCORES else _stream_rows(result)
    return Table("Speed", ("what", "measured", "aim", "met"), tuple(rows), _NOTE) if rows else None


def _stream_rows(result: Result) -> list[tuple[str, ...]]:
    values, where = result.values, f"budget {result.cell.budget}"
    spread, flat, slope = (values[name][0] for name in ("p99 over median", "last over first", "MiB per 10k tokens"))
    rows = [
        _row("tokens of the stream", f"{values['tokens'][0]:.0f}"),
        _row(f"decode step, {where}, median", f"{number_text(median(values['step ms']))} ms"),
        _row("step, 99th percentile over median", number_text(spread), "under 1.3", spread < 1.3),
        _row("step, last tenth over first", f"{flat - 1:+.1%}", "within 3 %", abs(flat - 1) <= 0.03),
        _row("resident memory, slope", f"{slope:+.2f} MiB per 10,000 tokens", "under 1", slope < 1),
    ]
    for quiet in values["p99 over median without evictions"]:
        rows.insert(3, _row("the same, of turns that evict nothing while decoding", number_text(quiet)))
    if values["eviction ms"]:
        middle, high = np.percentile(values["eviction ms"], (50, 99))
        rows.append(_row(f"eviction, {where}, median", f"{number_text(middle)} ms", "under 3 ms", middle < 3))
        rows.append(_row(f"eviction, {where}, 99th percentile", f"{number_text(high)} ms"))
        rows.append(_row("evictions", f"{values['evictions'][0]:.0f}, of {values['evicted'][0]:.0f} slots"))
    return rows


def _cost_rows(result: Result) -> list[tuple[str, ...]]:
    rows = []
    for name, series, aim in (("decoding", "decode ratio", 0.03), ("reading", "prefill ratio", 0.15)):
        found = mean(result.values[series])
        text = f"{found.value - 1:+.1%} [{found.low - 1:+.1%}, {found.high - 1:+.1%}]"
        rows.append(_row(f"surprisal's cost in {name}", text, f"at most {aim:.0%}", found.value - 1 <= aim))
    return rows


def _row(what: str, measured: str, aim: str = "–", met: bool | None = None) -> tuple[str, ...]:
    return what, measured, aim, "–" if met is None else "yes" if met else "no"
