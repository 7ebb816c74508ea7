"""The table of a record, one row a cell, shaped like llama-bench's: markdown, CSV, JSON lines; and its one-line answer.

"of measured" is against the sweeps right beside the steps, "of best sweep" against the best of the whole session.
A row without figures says why. A column without a source says `not measured`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgemem.profiles.floors import KvFormat, model_step
from edgemem.profiles.plain import to_plain
from edgemem.profiles.record import CellKey, Record, Target
from edgemem.profiles.statistics import Figures, figures
from edgemem.profiles.units import number_text, ratio_text, share_text, size_text
from edgemem.runtime.precision_table import expand

NOT_MEASURED = "not measured"
NO_FIGURE = "–"
_FLAGS = {  # a flag of the figures: in a table, and in a sentence
    "fits_in_cache": ("partly cached", "the last-level cache may serve a part of the step, so that memory does less"),
    "clocks_moved": ("clocks moved", "clocks moved by more than 5 % while steps were timed"),
    "throttled": ("throttled", "the device throttled itself"),
    "machine_busy": ("machine busy", "other processes took processor time"),
    "peak_moved": ("peak moved", "the measured peak moved from session to session"),
    "over_peak": (
        "over the peak",
        "more was read than the peak allows, so that the peak or the count of bytes is wrong",
    ),
    "tokens_differ": ("tokens differ", "the arms of one engine gave different tokens"),
}


@dataclass(frozen=True)
class Row:
    """size_bytes: of all weights held. figures: None where there are none, and `reason` then says why."""

    key: CellKey
    size_bytes: int
    status: str
    figures: Figures | None
    reason: str | None

    @property
    def name(self) -> str:
        return f"{self.key.target} at {self.key.context}, {_contender(self.key.engine, self.key.arm)}"

    @property
    def remarks(self) -> str:
        """Why there are no figures, or what makes them doubtful; empty where nothing does."""
        if self.figures is None:
            return f"{self.status}: {self.reason}"
        return ", ".join(_FLAGS[flag][0] for flag in self.figures.flags)

    def to_dict(self) -> dict[str, Any]:
        """Flat but for lists: the key, the size, the status, and every figure, None where there is none."""
        found = dict.fromkeys(Figures.__dataclass_fields__) if self.figures is None else to_plain(self.figures)
        return {
            **to_plain(self.key),
            "size_bytes": self.size_bytes,
            "status": self.status,
            "reason": self.reason,
            **found,
        }


@dataclass(frozen=True)
class Column:
    """`of_row` is there in any row; `of_figures` needs figures, and gives None for what was not measured."""

    header: str
    of_row: Callable[[Row], str] | None = None
    of_figures: Callable[[Figures], str | None] | None = None
    missing: str = NOT_MEASURED

    def text(self, row: Row) -> str:
        if self.of_row is not None:
            return self.of_row(row)
        if self.of_figures is None or row.figures is None:
            return NO_FIGURE
        text = self.of_figures(row.figures)
        return self.missing if text is None else text


COLUMNS = (
    Column("model", lambda row: row.key.target),
    Column("size", lambda row: size_text(row.size_bytes)),
    Column("engine", lambda row: row.key.engine),
    Column("arm", lambda row: row.key.arm),
    Column("context", lambda row: str(row.key.context)),
    Column("threads", lambda row: str(row.key.threads)),
    Column("ms/step", None, lambda found: number_text(found.step_ms)),
    Column("tok/s", None, lambda found: number_text(found.tokens_per_s)),
    Column("GB/s", None, lambda found: number_text(found.bytes_per_s / 1e9)),
    Column("of datasheet", None, lambda found: _share(found.of_datasheet), "no datasheet"),
    Column("of measured [95 %]", None, lambda found: share_text(found.of_measured, found.of_measured_interval)),
    Column("of best sweep", None, lambda found: share_text(found.of_best_sweep)),
    Column("floor ms (streamed)", None, lambda found: number_text(found.floor_ms)),
    Column("footprint floor", None, lambda found: number_text(found.footprint_floor_ms)),
    Column("launch ms", None, lambda found: _number(found.launch_ms)),
    Column("residual ms", None, lambda found: number_text(found.residual_ms)),
    Column("W", None, lambda found: _number(found.watts)),
    Column("J/token", None, lambda found: _number(found.joules_per_token)),
    Column("°C", None, lambda found: _number(found.celsius)),
    Column("clocks moved", None, lambda found: None if found.clocks_moved is None else _yes(found.clocks_moved)),
    Column("remarks", lambda row: row.remarks),
)


def rows(record: Record) -> list[Row]:
    """One for each cell, in the record's order."""
    sizes = {target.name: weights_bytes(target) for target in record.targets}
    return [
        Row(cell.key, sizes[cell.key.target], cell.status, figures(record, cell), cell.reason) for cell in record.cells
    ]


def weights_bytes(target: Target) -> int:
    """Of every matrix as it is stored, and every vector."""
    precision = expand(target.model, target.precision)
    return model_step(target.model, precision.__getitem__, 0, KvFormat(2)).footprint_bytes


def cells(found: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headers and texts of all columns; remarks only where there are any."""
    columns = [column for column in COLUMNS if column.header != "remarks" or any(row.remarks for row in found)]
    return [column.header for column in columns], [[column.text(row) for column in columns] for row in found]


@dataclass(frozen=True)
class Brief:
    """A table narrow enough to read: what all rows share and what none has are said in words, not in columns."""

    shared: str  # "model smollm2-135m, threads 2"
    headers: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    missing: str  # "no datasheet: of datasheet; not measured: W, J/token"; may be empty


def brief(found: Sequence[Row]) -> Brief:
    """Of rows, of which there is at least one; the engine and the context always have their columns."""
    texts = {column.header: [column.text(row) for row in found] for column in COLUMNS}
    shared = [name for name in ("model", "size", "arm", "threads") if len(set(texts[name])) == 1 and texts[name][0]]
    missing: dict[str, list[str]] = {}  # by what its cells say
    for column in COLUMNS:
        if column.of_row is None and set(texts[column.header]) <= {column.missing, NO_FIGURE}:
            missing.setdefault(column.missing, []).append(column.header)
    left_out = {*shared, *(name for names in missing.values() for name in names)}
    shown = [name for name in texts if name not in left_out and any(texts[name])]
    return Brief(
        shared=", ".join(f"{name} {texts[name][0]}" for name in shared),
        headers=tuple(shown),
        texts=tuple(zip(*(texts[name] for name in shown), strict=True)),
        missing="; ".join(f"{why}: {', '.join(names)}" for why, names in missing.items()),
    )


def markdown(found: Sequence[Row]) -> str:
    headers, texts = cells(found)
    return markdown_table(headers, texts)


def markdown_table(headers: Sequence[str], texts: Sequence[Sequence[str]]) -> str:
    """Names that come from records cannot leave their cell."""
    lines = [headers, ["---"] * len(headers), *texts]
    return "".join(f"| {' | '.join(map(_in_markdown, line))} |\n" for line in lines)


def comma_separated(found: Sequence[Row]) -> str:
    """Plain numbers in full; columns named as in to_dict, intervals as two columns, lists left to the JSON."""
    out = io.StringIO()
    plain = [_flat(row.to_dict()) for row in found]
    writer = csv.DictWriter(out, list(plain[0]) if plain else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    return out.getvalue()


def json_lines(found: Sequence[Row]) -> str:
    return "".join(json.dumps(row.to_dict(), ensure_ascii=False, allow_nan=False) + "\n" for row in found)


def best_row(found: Sequence[Row]) -> Row | None:
    """The fastest of the shortest context that was measured."""
    measured = [
        (row.key.context, row.figures.step_ms, index) for index, row in enumerate(found) if row.figures is not None
    ]
    return found[min(measured)[2]] if measured else None


def answer(record: Record) -> str:
    """What a person wants to know first, in one line: of the best row, with what makes it doubtful."""
    row = best_row(rows(record))
    if row is None or row.figures is None:
        reasons = [cell.reason for cell in record.cells if cell.reason is not None]
        return f"nothing was measured: {reasons[0] if reasons else 'there was no cell to measure'}"
    sentence = speed_sentence(row.key, row.figures)
    return f"{sentence}; doubtful: {row.remarks}" if row.remarks else sentence


def speed_sentence(key: CellKey, found: Figures) -> str:
    share = (
        f"{share_text(found.of_measured, found.of_measured_interval)} of the {found.peak_bytes_per_s / 1e9:.0f} GB/s"
    )
    rate = f"{key.engine} decodes {key.target} at {number_text(found.tokens_per_s)} tok/s"
    datasheet = "" if found.of_datasheet is None else f" ({share_text(found.of_datasheet)} of the datasheet's)"
    times = f"floor {number_text(found.floor_ms)} ms, step {number_text(found.step_ms)} ms"
    return f"{rate} = {share} this machine's memory reads{datasheet}; {times}"


def ratios(found: Sequence[Row]) -> list[str]:
    """A sentence for each two engines or arms whose sessions are paired, the faster one first."""
    sentences = []
    for row in found:
        for other in row.figures.versus if row.figures is not None else ():
            if other.times_as_fast > 1:
                ours, theirs = _contender(row.key.engine, row.key.arm), _contender(other.engine, other.arm)
                ratio = ratio_text(other.times_as_fast, other.interval)
                place = f"{row.key.target} at {row.key.context}"
                sentences.append(f"{place}: {ours} is {ratio} times as fast as {theirs} ({other.sessions} pairs)")
    return sentences


def _contender(engine: str, arm: str) -> str:
    return engine if arm in ("default", "") else f"{engine} {arm}"


def flag_text(flag: str) -> str:
    """What a flag of the figures means, as half a sentence."""
    return _FLAGS[flag][1]


def _flat(plain: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if name.endswith(("_interval", "_interval_ms")):
            low, high = value or (None, None)
            flat |= {name.replace("_interval", "_low"): low, name.replace("_interval", "_high"): high}
        elif name == "flags":
            flat[name] = " ".join(value or ())
        elif name != "versus":
            flat[name] = value
    return flat


def _number(value: float | None) -> str | None:
    return None if value is None else number_text(value)


def _share(value: float | None) -> str | None:
    return None if value is None else share_text(value)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _in_markdown(text: str) -> str:
    """Without what markdown or the HTML that it becomes would take for markup."""
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(escaped.split())
