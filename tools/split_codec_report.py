"""The codec's measurements as tables, as markdown and as one HTML page with a plot for each split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgemem.profiles.chart import Axis, Frame, Line, Points
from edgemem.profiles.plots import draw
from edgemem.profiles.units import number_text
from edgemem.tools.memory_eval.tables import Table
from edgemem.tools.report_page import bullets, figure, page, table_html
from edgemem.tools.split_codec_record import BYTES, FLOATS, PARTS, Point, Record, SplitCurve

_TITLE = "Hidden states on the wire: bytes against KL"
_METHOD = (
    "The codec is our reconstruction of threshold splitting and token-wise adaptive bits (arXiv 2511.04002), whose "
    "exact rules are not public, with an entropy coder (rANS) of our own behind them.",
    "KL is the mean over tokens of KL(fp16 || coded), in nats: the layers behind the split take the coded states one "
    "by one, as in decoding, and are compared with themselves on fp16 states. Calibrated and measured is on "
    "different windows, by turns, from all over the text.",
    "A wide interval says that the mean hangs on single tokens: some stand on an edge between two answers, and any "
    "rounding may tip them, int8's too.",
    "Bytes are whole payloads, heads and all. Payloads add up: a token takes the same in a prompt as in decoding.",
    "fp32 states differ from fp16 states too, as far as the engine's own rounding carries: below that line KL says "
    "nothing about the codec.",
    "Threshold splitting alone has 8 bits for what is left; adaptive bits alone have no outliers. The entropy coder "
    "changes bytes only.",
)


def tables_of(record: Record) -> list[Table]:
    return [_calibrated_table(record), _parts_table(record)]


def markdown(record: Record) -> str:
    parts = [f"# {_TITLE}", *(table.markdown().rstrip() for table in tables_of(record))]
    parts += ["## Method", *(f"- {line}" for line in _METHOD), "## Conditions"]
    parts += [f"- {line}" for line in _conditions(record)]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def html(record: Record) -> str:
    """Raises SettingsError where matplotlib is not installed."""
    plots = [figure(_plot(curve, record.limit), _caption(curve)) for curve in record.curves]
    tables = [table_html(table) for table in tables_of(record)]
    notes = ["<h2>Method</h2>", bullets(_METHOD), "<h2>Conditions</h2>", bullets(_conditions(record))]
    return page(_TITLE, f"edgemem split codec, {record.conditions['measured']}", [*tables, *plots, *notes])


def _calibrated_table(record: Record) -> Table:
    headers = (
        "split",
        "tau",
        "delta",
        "KL",
        "bytes a token",
        "fewer than fp16",
        "error",
        "outliers",
        "encode",
        "decode",
    )
    rows = []
    for curve in record.curves:
        point = curve.calibrated
        size = _least_bytes(point)
        rows.append(
            (
                str(curve.split),
                _number(point.tau),
                _number(point.delta),
                f"{point.kl:.4f} ± {1.96 * point.kl_error:.4f}",
                f"{size:.0f}",
                f"{curve.fp16_bytes / size:.2f} x fewer",
                f"{point.error:.1%}",
                f"{point.outliers:.2%}",
                f"{curve.encode_ms:.2f} ms",
                f"{curve.decode_ms:.2f} ms",
            )
        )
    note = f"Calibrated for a KL of at most {record.limit:g} on other windows. Times are medians for one token."
    return Table("As calibrated", headers, tuple(rows), note)


def _parts_table(record: Record) -> Table:
    headers = ("split", "fp16", BYTES, *(f"{part}{coder}" for part in PARTS for coder in ("", ", rANS")))
    rows = []
    for curve in record.curves:
        cells = [str(curve.split), str(curve.fp16_bytes), _fewest(curve, BYTES, _packed, record.limit)]
        for part in PARTS:
            cells += [_fewest(curve, part, size, record.limit) for size in (_packed, _least_bytes)]
        rows.append(tuple(cells))
    note = "Of the settings measured. In brackets: times fewer than fp16. –: none keeps to the limit."
    return Table(f"Fewest bytes a token at a KL of at most {record.limit:g}", headers, tuple(rows), note)


def _fewest(curve: SplitCurve, part: str, size: Callable[[Point], float], limit: float) -> str:
    sizes = [size(point) for point in curve.points if point.part == part and point.kl <= limit]
    return f"{min(sizes):.0f} ({curve.fp16_bytes / min(sizes):.1f})" if sizes else "–"


def _plot(curve: SplitCurve, limit: float) -> str:
    marks: list[Line | Points] = []
    for part in PARTS:
        for coder, size in (("packed", _packed), ("rANS", _least_bytes)):
            points = sorted((p for p in curve.points if p.part == part and p.kl > 0), key=size)
            marks.append(Line(f"{part}, {coder}", [size(p) for p in points], [p.kl for p in points], markers=True))
    marks += [_single(curve, BYTES), Points("calibrated", [_least_bytes(curve.calibrated)], [curve.calibrated.kl])]
    ends = [0.0, float(curve.fp16_bytes)]
    marks.append(Line(f"limit, {limit:g}", ends, [limit, limit], muted=True))
    floor = next(point.kl for point in curve.points if point.part == FLOATS)
    if floor > 0:
        marks.append(Line("fp32 states: the engine's own rounding", ends, [floor, floor], muted=True))
    sizes = Axis(f"bytes a token (fp16: {curve.fp16_bytes})", low=0.0, high=ends[1])
    frame = Frame(f"Split at layer {curve.split}", sizes, Axis("KL, nats a token", log=True), height=4.4)
    return draw(frame, marks)


def _single(curve: SplitCurve, part: str) -> Points:
    points = [point for point in curve.points if point.part == part and point.kl > 0]
    return Points(part, [point.packed_bytes for point in points], [point.kl for point in points])


def _caption(curve: SplitCurve) -> str:
    times = curve.fp16_bytes / _least_bytes(curve.calibrated)
    return f"As calibrated: {times:.1f} times fewer bytes than fp16 at a KL of {curve.calibrated.kl:.4f}."


def _packed(point: Point) -> float:
    return point.packed_bytes


def _least_bytes(point: Point) -> float:
    return point.packed_bytes if point.rans_bytes is None else point.rans_bytes


def _number(value: float | None) -> str:
    return "–" if value is None else number_text(value)


def _conditions(record: Record) -> Sequence[str]:
    return [f"{name}: {text}" for name, text in {**record.subject, **record.conditions}.items()]
