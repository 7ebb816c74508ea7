"""How a plan is shown: its feasible front, the choice, and why the points beside it lost; or what is in the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from edgemem.profiles.units import number_text, size_text
from edgemem.split.plan_reasons import Neighbour, neighbours
from edgemem.split.planner import Choice, Plan, Point, excesses
from edgemem.tools.console import print_facts, print_table

_SHOWN = 16
_HEADERS = ("", "split", "front", "back", "states", "context", "memory", "server", "time", "wire", "KL")
_UNITS = {"device memory": "B", "server memory": "B", "more bytes": "B", "deadline": "ms", "more time": "ms"}


def print_plan(plan: Plan, notes: Sequence[str]) -> None:
    link, problem = plan.problem.link, plan.problem
    facts: list[tuple[str, object]] = [
        ("link", f"{number_text(link.bits_per_s / 1e6)} Mbit/s, round trip {number_text(link.round_trip_ms)} ms")
    ]
    for name, width in problem.widths.items():
        device, server = (
            times.stage_ms(problem.layers, embedding=True, head=True) for times in (width.device, width.server)
        )
        facts.append((name, f"all layers {number_text(device)} ms here, {number_text(server)} ms on the server"))
    print_facts([*facts, *(("note", note) for note in notes)])
    if plan.chosen is None:
        _print_nearest(plan)
        return
    shown = plan.front[:_SHOWN]
    print_table(
        f"\n{plan.feasible} points are feasible; those that none beats:", _HEADERS, [_row(plan, one) for one in shown]
    )
    if len(plan.front) > len(shown):
        print(f"  and {len(plan.front) - len(shown)} more")
    if (needed := mixed_package(plan.chosen.choice)) is not None:
        print(f"\nthe chosen one (*) needs a package that is not measured here: {needed}")
    print_table("\nbeside the chosen one (*):", ("", "lost by"), [(one.name, why(one)) for one in neighbours(plan)])


def plan_object(plan: Plan, notes: Sequence[str]) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "link": asdict(plan.problem.link),
        "widths": {
            name: {"device": asdict(width.device), "server": asdict(width.server)}
            for name, width in plan.problem.widths.items()
        },
        "activations": {name: asdict(one) for name, one in plan.problem.activations.items()},
        "limits": asdict(plan.constraints),
        "notes": list(notes),
        "feasible": plan.feasible,
        "chosen": None if plan.chosen is None else asdict(plan.chosen),
        "needs": None if plan.chosen is None else mixed_package(plan.chosen.choice),
        "front": [asdict(one) for one in plan.front],
        "neighbours": [{**asdict(one), "why": dict(one.why)} for one in neighbours(plan)],
        "nearest": None if plan.nearest is None else _nearest_object(plan, plan.nearest),
    }


def mixed_package(choice: Choice) -> str | None:
    """How to come by the package of a choice with two widths, which no package that was given has; None for others."""
    if choice.front in (None, choice.back) or choice.back is None:
        return None
    at = choice.split
    return (
        f"edgemem compile MODEL --front-layers {at} --front-weights (those of {choice.front}) "
        f"--back-weights (those of {choice.back}), then edgemem split cut PACKAGE --at {at}"
    )


def why(lost: Neighbour) -> str:
    """`over the deadline by 3.2 ms`."""
    if lost.point is None:
        return "its KL is not known"
    return ", ".join(_reason(name, amount) for name, amount in lost.why.items())


def _reason(name: str, amount: float) -> str:
    unit = _UNITS.get(name, "nats")
    text = size_text(amount) if unit == "B" else f"{number_text(amount)} {unit}"
    if name in ("device memory", "server memory", "deadline", "KL"):
        return f"over the {'limit of KL' if name == 'KL' else name} by {text}"
    if name == "a tie":
        return "nothing: a tie"
    return f"{name} by {f'{amount:.0f} slots' if name == 'shorter context' else text}"


def _print_nearest(plan: Plan) -> None:
    if plan.nearest is None:
        return
    over = excesses(plan.nearest, plan.constraints)
    print_table("\nnothing is feasible; the nearest point:", _HEADERS, [_row(plan, plan.nearest)])
    print(f"  it is {', '.join(_reason(name, amount) for name, amount in over.items())}")
    print("  " + "; ".join(f"a {name} of {_needed(plan.nearest, name)} would do" for name in over))


def _needed(point: Point, limit: str) -> str:
    return {
        "device memory": size_text(point.device_bytes),
        "server memory": size_text(point.server_bytes),
        "deadline": f"{number_text(point.token_ms)} ms",
        "KL": f"{number_text(point.kl_nats)} nats",
    }[limit]


def _nearest_object(plan: Plan, nearest: Point) -> dict[str, Any]:
    return {**asdict(nearest), "over": dict(excesses(nearest, plan.constraints))}


def _row(plan: Plan, point: Point) -> tuple[str, ...]:
    choice = point.choice
    return (
        "*" if point == plan.chosen else "",
        f"{choice.split} of {plan.problem.layers}",
        choice.front or "–",
        choice.back or "–",
        _crossing(choice),
        str(choice.context),
        size_text(point.device_bytes),
        size_text(point.server_bytes),
        f"{number_text(point.token_ms)} ms",
        size_text(point.wire_bytes),
        f"{point.kl_nats:.4f}",
    )


def _crossing(choice: Choice) -> str:
    if choice.back is None:
        return "–"
    return choice.activation or "tokens"
