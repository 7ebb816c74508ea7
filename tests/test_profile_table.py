"""The table of a record: every column, rows without figures, three formats, and the answer in one line."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
from profile_records import DEVICE, GB, KEY, cell, record, session, target, unmeasured

from edgemem.profiles.record import Cell, CellKey, Record, Telemetry
from edgemem.profiles.statistics import figures
from edgemem.profiles.table import (
    COLUMNS,
    answer,
    best_row,
    brief,
    cells,
    comma_separated,
    flag_text,
    json_lines,
    markdown,
    ratios,
    rows,
    weights_bytes,
)
from edgemem.profiles.units import number_text, ratio_text, share_text, size_text

TELEMETRY = Telemetry(2.0, 30.0, 61.5, {"cpu": (2000.0, 2050.0)}, ())
HOSTILE = "a|b</td><script>alert(1)</script>"


def measured(key: CellKey = KEY, step_ms: float = 1.0, telemetry: Telemetry | None = None) -> Cell:
    """Three sessions, all of them of the same steps."""
    steps = (step_ms, step_ms * 1.02, step_ms * 0.98)
    return cell(key, [session(number, steps, telemetry=telemetry) for number in range(3)])


def parsed(found: Record) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(comma_separated(rows(found)))))


def test_the_columns_are_those_of_the_protocol() -> None:
    head = markdown(rows(record(measured()))).splitlines()[0]
    assert head == (
        "| model | size | engine | arm | context | threads | ms/step | tok/s | GB/s | of datasheet | of measured "
        "[95 %] | of best sweep | floor ms (streamed) | footprint floor | launch ms | residual ms | W | J/token | °C "
        "| clocks moved |"
    )


def test_a_measured_row_has_every_figure() -> None:
    board = replace(DEVICE, datasheet_bytes_per_s=25.0 * GB)
    (row,) = rows(record(measured(telemetry=TELEMETRY), device=board))
    texts = {column.header: column.text(row) for column in COLUMNS}
    # 10 MB in 1 ms are 10 GB/s: half of the measured 20, two fifths of the datasheet's 25.
    assert (texts["ms/step"], texts["tok/s"], texts["GB/s"]) == ("1.00", "1000", "10.0")
    assert texts["of datasheet"] == "40 %"
    assert texts["of measured [95 %]"].startswith("50")
    assert texts["of best sweep"] == "50 %"
    assert (texts["floor ms (streamed)"], texts["residual ms"]) == ("0.500", "0.500")
    assert texts["footprint floor"] == "0.480"  # 12 MB at the datasheet's rate
    assert (texts["W"], texts["J/token"], texts["°C"], texts["clocks moved"]) == ("15.0", "10.0", "61.5", "no")


def test_a_column_without_a_source_says_so() -> None:
    (row,) = rows(record(measured()))
    texts = {column.header: column.text(row) for column in COLUMNS}
    assert texts["of datasheet"] == "no datasheet"
    assert {texts[name] for name in ("launch ms", "W", "J/token", "°C", "clocks moved")} == {"not measured"}


def test_a_failed_row_says_why_and_has_no_figures() -> None:
    found = rows(record())
    assert [row.status for row in found] == ["measured", "failed", "skipped"]
    lines = markdown(found).splitlines()
    assert len(lines) == 5
    assert "failed: ended by SIGKILL" in lines[3]
    assert "skipped: this version has no cuda engine" in lines[4]
    assert [line["step_ms"] for line in parsed(record())][1:] == ["", ""]
    assert [json.loads(line)["step_ms"] for line in json_lines(found).splitlines()][1:] == [None, None]


def test_remarks_are_a_column_only_where_there_are_some() -> None:
    assert "remarks" not in cells(rows(record(measured())))[0]
    cached = replace(DEVICE, llc_bytes=1 << 30)
    headers, texts = cells(rows(record(measured(), device=cached)))
    assert headers[-1] == "remarks"
    assert texts[0][-1] == "partly cached"


def test_every_flag_has_its_words() -> None:
    """Whatever makes figures doubtful at once: each flag that there is must come out as text."""
    throttled = replace(TELEMETRY, throttled=("heat",), clocks_mhz={"cpu": (1000.0, 2000.0)})
    sessions = [
        replace(session(number, (0.1, 0.1), peak * GB, tokens=(number,), telemetry=throttled), busy_elsewhere=0.9)
        for number, peak in enumerate((20.0, 10.0))
    ]
    (row,) = rows(record(cell(KEY, sessions), device=replace(DEVICE, llc_bytes=1 << 30)))
    assert row.figures is not None
    words = "partly cached, clocks moved, throttled, machine busy, peak moved, over the peak, tokens differ"
    assert sorted(row.remarks.split(", ")) == sorted(words.split(", "))
    assert len({flag_text(flag) for flag in row.figures.flags}) == 7


def test_size_counts_every_tensor() -> None:
    small = target()
    model = small.model
    int4 = sum(rows_ * columns for name, (rows_, columns) in model.matrices() if name not in ("embedding", "head"))
    int8 = model.vocabulary * model.hidden
    head = model.vocabulary * model.hidden
    vectors = 4 * sum(length for _, length in model.vectors())
    # per group of 32: two bytes of scale, and with a minimum two more
    expected = int4 * (0.5 + 4 / 32) + int8 * (1 + 2 / 32) + head * (0.5 + 4 / 32) + vectors
    assert weights_bytes(small) == expected


def test_csv_has_plain_numbers_and_intervals_as_two_columns() -> None:
    found = record(measured())
    (line,) = parsed(found)
    expected = figures(found, found.cells[0])
    assert expected is not None
    assert float(line["step_ms"]) == expected.step_ms
    assert (float(line["of_measured_low"]), float(line["of_measured_high"])) == expected.of_measured_interval
    assert (float(line["step_low_ms"]), float(line["step_high_ms"])) == expected.step_interval_ms


def test_json_lines_hold_the_figures() -> None:
    found = record(measured(), measured(replace(KEY, context=32), 2.0))
    first, second = (json.loads(line) for line in json_lines(rows(found)).splitlines())
    assert (first["context"], second["context"]) == (16, 32)
    assert second["step_ms"] == pytest.approx(2.0)
    assert first["flags"] == []


def test_names_cannot_leave_their_cell() -> None:
    key = replace(KEY, target=HOSTILE)
    text = markdown(rows(record(measured(key), targets=(target(name=HOSTILE),))))
    assert "<script" not in text
    assert {line.replace("\\|", "").count("|") for line in text.splitlines()} == {21}


def test_brief_says_in_words_what_columns_would_repeat() -> None:
    table = brief(rows(record(measured(), measured(replace(KEY, engine="onnx"), 2.0))))
    assert table.shared == f"model tiny, size {size_text(weights_bytes(target()))}, arm default, threads 2"
    assert table.headers[:3] == ("engine", "context", "ms/step")
    assert [line[:3] for line in table.texts] == [("native", "16", "1.00"), ("onnx", "16", "2.00")]
    assert table.missing == "no datasheet: of datasheet; not measured: launch ms, W, J/token, °C, clocks moved"


def test_brief_does_not_name_what_is_empty_in_all_rows() -> None:
    table = brief(rows(record(unmeasured(replace(KEY, engine="cuda", arm=""), "skipped", "no engine"))))
    assert "arm" not in table.shared
    assert "arm" not in table.headers


def test_brief_keeps_a_column_that_one_row_has() -> None:
    table = brief(rows(record(measured(telemetry=TELEMETRY), measured(replace(KEY, engine="onnx"), 2.0))))
    assert [line[table.headers.index("W")] for line in table.texts] == ["15.0", "not measured"]


def test_the_answer_is_the_fastest_of_the_shortest_context() -> None:
    slow, fast = measured(replace(KEY, engine="onnx"), 2.0), measured(step_ms=1.0)
    longer = measured(replace(KEY, context=32), 0.9)
    found = record(longer, slow, fast)
    assert best_row(rows(found)) == rows(found)[2]
    assert answer(found) == (
        "native decodes tiny at 1000 tok/s = 50 % [49, 51] of the 20 GB/s this machine's memory reads; "
        "floor 0.500 ms, step 1.00 ms"
    )


def test_the_answer_names_the_datasheet_and_what_is_doubtful() -> None:
    board = replace(DEVICE, datasheet_bytes_per_s=25.0 * GB, llc_bytes=1 << 30)
    text = answer(record(measured(), device=board))
    assert "(40 % of the datasheet's)" in text
    assert text.endswith("doubtful: partly cached")


def test_the_answer_where_nothing_was_measured_is_why() -> None:
    found = record(unmeasured(KEY, "failed", "no memory is left"))
    assert best_row(rows(found)) is None
    assert answer(found) == "nothing was measured: no memory is left"


def test_paired_engines_have_a_ratio_the_faster_first() -> None:
    sentences = ratios(rows(record(measured(replace(KEY, engine="onnx"), 2.0), measured(step_ms=1.0))))
    (sentence,) = sentences
    assert sentence == "tiny at 16: native is 2.00 [2.00, 2.00] times as fast as onnx (3 pairs)"
    assert ratios(rows(record(measured()))) == []


def test_numbers_have_three_figures() -> None:
    numbers = [number_text(value) for value in (1350.4, 357.1, 61.2, 2.8, 0.00512)]
    assert numbers == ["1350", "357", "61.2", "2.80", "0.00512"]
    sizes = [size_text(count) for count in (0, 999, 98_400_000, 15.231e9, 2e13)]
    assert sizes == ["0 B", "999 B", "98.4 MB", "15.2 GB", "20 TB"]
    assert share_text(0.581) == "58 %"
    assert share_text(0.581, (0.559, 0.601)) == "58 % [56, 60]"
    assert share_text(0.5812, (0.5798, 0.5831)) == "58.1 % [58.0, 58.3]"
    assert ratio_text(1.259, (1.253, 1.267)) == "1.26 [1.25, 1.27]"
