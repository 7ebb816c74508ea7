"""The bench of a split as a table, as markdown and as one HTML page with a plot for each round trip."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from edgemem.profiles.chart import Axis, Frame, Line, Points
from edgemem.profiles.plots import draw
from edgemem.profiles.units import number_text
from edgemem.tools.memory_eval.tables import Table
from edgemem.tools.report_page import bullets, figure, page, table_html
from edgemem.tools.split_bench_record import Arm, LinkResult, Record

_TITLE = "Time per token against the link"


def tables_of(record: Record) -> list[Table]:
    headers = ("Mbit/s", "round trip", *(_name(record, arm) for arm in record.links[0].arms))
    rows = tuple((*_link(result), *map(_cell, result.arms)) for result in record.links)
    note = "Medians in ms; in brackets by how much the planner's prediction differs."
    choices = ("Mbit/s", "round trip", "chosen", "best", "slower", "chosen inside", "best inside", "slower inside")
    picked = tuple(
        (*_link(one), *_picked(record, one, inside=False), *_picked(record, one, inside=True)) for one in record.links
    )
    inside = "Inside: with layers on both sides, as where neither holds them all. Slower: than the best, as measured."
    return [Table(_TITLE, headers, rows, note), Table("The planner's choice", choices, picked, inside)]


def summary(record: Record) -> list[str]:
    """How well the planner did, in sentences."""
    errors = [abs(arm.error) for result in record.links for arm in result.arms]
    losses = [result.loss(inside=inside) for result in record.links for inside in (False, True)]
    within = sum(error <= 0.2 for error in errors)
    near = sum(loss <= 0.05 for loss in losses)
    return [
        f"predictions: {within} of {len(errors)} within 20 % of the measured time, median {median(errors):.1%}, "
        f"at worst {max(errors):.1%}",
        f"choices: {near} of {len(losses)} the best or within 5 % of it, at worst {max(losses):.1%} slower",
    ]


def markdown(record: Record) -> str:
    parts = [f"# {_TITLE}", *(table.markdown().rstrip() for table in tables_of(record))]
    parts += ["## Result", *(f"- {line}" for line in summary(record))]
    parts += ["## Method", *(f"- {line}" for line in _method(record))]
    parts += ["## Conditions", *(f"- {line}" for line in _conditions(record))]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def html(record: Record) -> str:
    """Raises SettingsError where matplotlib is not installed."""
    trips = sorted({result.round_trip_ms for result in record.links})
    plots = [figure(_plot(record, trip), f"A round trip of {trip:g} ms.") for trip in trips]
    notes = ["<h2>Method</h2>", bullets(_method(record)), "<h2>Conditions</h2>", bullets(_conditions(record))]
    parts = [bullets(summary(record)), *plots, *map(table_html, tables_of(record)), *notes]
    return page(_TITLE, f"edgemem split bench, {record.conditions['measured']}", parts)


def _plot(record: Record, round_trip_ms: float) -> str:
    results = sorted(
        (one for one in record.links if one.round_trip_ms == round_trip_ms), key=lambda one: one.bits_per_s
    )
    rates = [one.bits_per_s / 1e6 for one in results]
    marks: list[Line | Points] = []
    for arm in results[0].arms:
        times = [one.arm(arm.split).token_ms for one in results]
        marks.append(Line(_name(record, arm), rates, times, markers=True))
    at = [one.bits_per_s / 1e6 for one in results for _ in one.arms]
    marks.append(Points("predicted", at, [arm.predicted_ms for one in results for arm in one.arms], muted=True))
    frame = Frame(
        f"Round trip {round_trip_ms:g} ms", Axis("Mbit/s", log=True), Axis("ms a token", log=True), height=4.4
    )
    return draw(frame, marks)


def _name(record: Record, arm: Arm) -> str:
    if arm.split == 0:
        return "server only"
    return "device only" if arm.split == record.layers else f"split {arm.split}"


def _link(result: LinkResult) -> tuple[str, str]:
    return f"{result.bits_per_s / 1e6:g}", f"{result.round_trip_ms:g} ms"


def _cell(arm: Arm) -> str:
    return f"{number_text(arm.token_ms)} ({arm.error:+.0%})"


def _picked(record: Record, result: LinkResult, *, inside: bool) -> tuple[str, str, str]:
    chosen = result.arm(result.chosen_inside if inside else result.chosen)
    return _name(record, chosen), _name(record, result.best(inside=inside)), f"{result.loss(inside=inside):.1%}"


def _method(record: Record) -> Sequence[str]:
    return (
        "Both sides run on one machine, over loopback and a proxy in between that sends at the link's rate, each way, "
        "and delivers half a round trip later. Nothing is lost. The connection is in plain text.",
        "The ways take turns, token by token, so that what disturbs the machine disturbs all alike.",
        "Compute is slowed by sleeping in proportion to it after every step: the device "
        f"{record.device_slowdown:g} times, the server {record.server_slowdown:g} times.",
        "The planner is given the link as it was measured through the proxy, by timed chunks of states, and a line in "
        "the number of layers fitted to stages that were timed alone. It minimises time here; context and quality are "
        "the same for all.",
        f"Device, a token: {_stage(record.device_times)}. Server: {_stage(record.server_times)}.",
        f"Around the payload of a token {record.overhead_bytes:.0f} bytes cross, both ways together.",
        "Time is linear in the split, so that with everything on offer one of the ends is fastest; a split inside is "
        "for a device, and a server, that cannot hold all layers.",
    )


def _stage(times: tuple[float, float, float]) -> str:
    layer, entry, leaving = map(number_text, times)
    return f"{layer} ms a layer, {entry} ms with the embedding, {leaving} ms with the head"


def _conditions(record: Record) -> Sequence[str]:
    return [f"{name}: {text}" for name, text in {**record.subject, **record.conditions}.items()]
