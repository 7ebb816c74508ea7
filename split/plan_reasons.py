"""Why the neighbours of a plan's choice lost: the next splits, and the next widths up and down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from edgemem.split.planner import Choice, Limit, Plan, Point, excesses, point_of

Drawback = Limit | Literal["worse KL", "shorter context", "more bytes", "more time", "a tie"]
_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Neighbour:
    """name: what is different. point: None where its KL is not known. why: for each limit that it breaks the amount
    over it (bytes, ms, nats); for one that breaks none, the first thing in which the choice is better, and by what."""

    name: str
    choice: Choice
    point: Point | None
    why: Mapping[Drawback, float]


def neighbours(plan: Plan) -> tuple[Neighbour, ...]:
    """None where nothing was chosen."""
    if plan.chosen is None:
        return ()
    found = []
    for name, choice in _beside(plan, plan.chosen.choice):
        point = point_of(plan.problem, choice)
        found.append(Neighbour(name, choice, point, {} if point is None else _why(plan, plan.chosen, point)))
    return tuple(found)


def _why(plan: Plan, chosen: Point, lost: Point) -> dict[Drawback, float]:
    over = excesses(lost, plan.constraints)
    if over:
        return dict(over.items())
    costs: list[tuple[Drawback, float]] = [
        ("more bytes", lost.wire_bytes - chosen.wire_bytes),
        ("more time", lost.token_ms - chosen.token_ms),
    ]
    if plan.constraints.prefer == "time":
        costs.reverse()
    drawbacks: list[tuple[Drawback, float]] = [
        ("worse KL", lost.kl_nats - chosen.kl_nats),
        ("shorter context", chosen.choice.context - lost.choice.context),
        *costs,
    ]
    name, amount = next((one for one in drawbacks if one[1] > 0), ("a tie", 0.0))
    return {name: amount}


def _beside(plan: Plan, at: Choice) -> Iterator[tuple[str, Choice]]:
    problem, least = plan.problem, plan.constraints.least_split
    for split in (at.split - 1, at.split + 1):
        if least <= split <= problem.layers:
            yield f"split {split}", _moved(plan, at, split)
    for front in _next_to(problem.widths, at.front):
        yield f"front {front}", replace(at, front=front)
    for back in _next_to(problem.widths, at.back):
        yield f"back {back}", replace(at, back=back)
    for activation in _next_to(problem.activations, at.activation):
        yield f"states {activation}", replace(at, activation=activation)


def _moved(plan: Plan, at: Choice, split: int) -> Choice:
    """At another split, with a width for a side that has layers only now: the other side's, and the best states."""
    layers = plan.problem.layers
    front = (at.front or at.back) if split else None
    back = (at.back or at.front) if split < layers else None
    moved = Choice(split, front, back, None, at.context)
    if not 0 < split < layers:
        return moved
    named = [replace(moved, activation=name) for name in plan.problem.activations]
    known = [(point.kl_nats, one) for one in named if (point := point_of(plan.problem, one)) is not None]
    if at.activation is not None or not known:
        return replace(moved, activation=at.activation or named[0].activation)
    return min(known, key=lambda one: one[0])[1]


def _next_to(names: Mapping[_Key, object], at: _Key | None) -> Iterator[_Key]:
    if at is None:
        return
    ordered = list(names)
    place = ordered.index(at)
    yield from ordered[max(place - 1, 0) : place]
    yield from ordered[place + 1 : place + 2]
