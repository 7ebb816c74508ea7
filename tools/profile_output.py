"""How a profile record is shown on stdout, and written into a folder: record, tables, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgemem.profiles.html_report import html_report
from edgemem.profiles.record import Record
from edgemem.profiles.record_file import record_to_dict, write_record
from edgemem.profiles.table import Row, answer, brief, comma_separated, json_lines, markdown, ratios, rows
from edgemem.runtime.errors import SettingsError
from edgemem.tools.console import print_json, print_table
from edgemem.tools.whole_file import whole_file

RECORD_FILE, REPORT_FILE = "record.json", "report.html"


def print_record(record: Record, form: str | None) -> None:
    """form: json, jsonl, csv or md for that alone; None for the answer and a table that fits a terminal."""
    found = rows(record)
    if form == "json":
        print_json(record_to_dict(record))
    elif form is not None:
        print({"jsonl": json_lines, "csv": comma_separated, "md": markdown}[form](found), end="")
    else:
        print(answer(record))
        _print_brief(found)


def _print_brief(found: Sequence[Row]) -> None:
    """A table that fits a terminal; what a column of words would widen follows it in lines."""
    table = brief(found)
    shown = [index for index, header in enumerate(table.headers) if header != "remarks"]
    headers = [table.headers[index] for index in shown]
    print_table(f"\n{table.shared}", headers, [[texts[index] for index in shown] for texts in table.texts])
    remarks = [f"{row.name}: {row.remarks}" for row in found if row.remarks]
    for line in (*remarks, *ratios(found), table.missing):
        if line:
            print(f"  {line}")


def write_files(record: Record, folder: Path) -> str | None:
    """Write the record, its tables and its report; each file is there whole or not at all.

    Gives the reason where the report could not be made. Raises FileError where a file cannot be written.
    """
    found = rows(record)
    _write(folder / RECORD_FILE, lambda path: write_record(record, path))
    write_text(folder / "table.md", f"{answer(record)}\n\n{markdown(found)}")
    write_text(folder / "table.csv", comma_separated(found))
    try:
        report = html_report(record)
    except SettingsError as missing:
        return str(missing)
    write_text(folder / REPORT_FILE, report)
    return None


def write_text(path: Path, text: str) -> None:
    """Raises FileError where it cannot be written."""
    _write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _write(path: Path, fill: Callable[[Path], object]) -> None:
    do = "make room or choose another folder, then run the same command"
    with whole_file(path, "the report cannot be written", do=do) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(partial)
