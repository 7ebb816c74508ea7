"""The planner: where to split a model, at which widths, for how long a context. Every point of the grid is looked at.

The objective is our reconstruction of arXiv 2511.04002, whose own is not public: among the points within memory,
deadline and KL, the best quality, then the longest context, then the fewest bytes on the wire. It measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

from edgemem.runtime.errors import SettingsError, shown
from edgemem.split.sides import LinkSpeed, StageTimes, Weights, check_number

Prefer = Literal["bytes", "time"]
Limit = Literal["device memory", "server memory", "deadline", "KL"]
# (split, front width, back width, activation) -> KL in nats a token, or None where it is not known.
Quality = Callable[[int, "str | None", "str | None", "str | None"], "float | None"]
_TOKEN_BYTES = 4  # at split 0 the tokens themselves cross


@dataclass(frozen=True)
class Constraints:
    """device_bytes, server_bytes: of memory; None for a server without a bound. deadline_ms: for one token.
    kl_nats: at most. least_split: layers that must run on the device. prefer: fewest bytes or least time, once
    quality and context are the same. Raises SettingsError for a value out of range."""

    device_bytes: int
    deadline_ms: float
    kl_nats: float
    server_bytes: int | None = None
    least_split: int = 0
    prefer: Prefer = "bytes"

    def __post_init__(self) -> None:
        check_number("the deadline", self.deadline_ms, least=1e-6)
        check_number("the limit of KL", self.kl_nats, least=0.0)
        for name, value in (("device's memory", self.device_bytes), ("server's memory", self.server_bytes)):
            if value is not None and (type(value) is not int or value < 0):
                raise SettingsError(f"the {name} is out of range", got=shown(value), wanted="a whole number of bytes")
        if type(self.least_split) is not int or self.least_split < 0:
            raise SettingsError("the least split is out of range", got=shown(self.least_split), wanted="from 0")
        if self.prefer not in get_args(Prefer):
            raise SettingsError("unknown preference", got=shown(self.prefer), wanted=" or ".join(get_args(Prefer)))


@dataclass(frozen=True)
class Activation:
    """How hidden states cross. token_bytes: of a payload, on average. codec_ms: to encode and decode one token."""

    token_bytes: float
    codec_ms: float = 0.0

    def __post_init__(self) -> None:
        check_number("the bytes of a token", self.token_bytes, least=0.0)
        check_number("the codec's time", self.codec_ms, least=0.0)


@dataclass(frozen=True)
class Width:
    """A precision of the weights: its bytes, and the time of a stage on each side."""

    weights: Weights
    device: StageTimes
    server: StageTimes


@dataclass(frozen=True)
class Problem:
    """All that a plan follows from. widths, activations: by name, from the narrowest to the widest. contexts: slots.
    layer_slot_bytes: keys and values of one slot in one layer. workspace_bytes: what a side takes beside weights and
    slots, if it has layers. quality: a point whose KL it does not know is not offered."""

    widths: Mapping[str, Width]
    activations: Mapping[str, Activation]
    contexts: tuple[int, ...]
    layer_slot_bytes: int
    workspace_bytes: int
    link: LinkSpeed
    quality: Quality

    def __post_init__(self) -> None:
        if not self.widths or not self.activations or not self.contexts:
            raise SettingsError("a plan needs widths, activations and contexts to choose from")
        if len({width.weights.layers for width in self.widths.values()}) != 1:
            raise SettingsError("the widths are of models with different numbers of layers")
        for name, value in (("a slot's bytes", self.layer_slot_bytes), ("the workspace", self.workspace_bytes)):
            if type(value) is not int or value < 0:
                raise SettingsError(f"{name} is out of range", got=shown(value), wanted="a whole number from 0")
        if any(type(context) is not int or context < 1 for context in self.contexts):
            raise SettingsError("a context is out of range", got=shown(self.contexts), wanted="whole numbers from 1")

    @property
    def layers(self) -> int:
        return next(iter(self.widths.values())).weights.layers


@dataclass(frozen=True)
class Choice:
    """split: layers on the device, 0 to L. front, back: widths, None of a side without layers. activation: None where
    no hidden states cross. context: slots."""

    split: int
    front: str | None
    back: str | None
    activation: str | None
    context: int


@dataclass(frozen=True)
class Point:
    """A choice and what it costs. wire_bytes: payload of a token."""

    choice: Choice
    device_bytes: int
    server_bytes: int
    token_ms: float
    wire_bytes: float
    kl_nats: float


@dataclass(frozen=True)
class Plan:
    """front: the feasible points that no other beats in KL, context, bytes and time at once, best first.
    chosen: the first of them; None where nothing is feasible. nearest: then the point whose limits are the nearest to
    give: the fewest are broken, by the least factor."""

    problem: Problem
    constraints: Constraints
    front: tuple[Point, ...]
    feasible: int
    chosen: Point | None
    nearest: Point | None


def plan(problem: Problem, constraints: Constraints) -> Plan:
    """The exact best of the grid. Raises SettingsError where no point's KL is known."""
    points = [
        found
        for choice in choices(problem)
        if choice.split >= constraints.least_split and (found := point_of(problem, choice)) is not None
    ]
    if not points:
        raise SettingsError("no point has a quality that is known", do="calibrate a codec, or allow more splits")
    feasible = sorted((one for one in points if not excesses(one, constraints)), key=ranking(constraints))
    front = _undominated(feasible)
    nearest = None if feasible else min(points, key=lambda one: _strain(one, constraints))
    return Plan(problem, constraints, front, len(feasible), front[0] if front else None, nearest)


def choices(problem: Problem) -> Iterator[Choice]:
    """The grid, every choice once."""
    widths, activations = tuple(problem.widths), tuple(problem.activations)
    nothing: tuple[None] = (None,)
    for split in range(problem.layers + 1):
        fronts = widths if split else nothing
        backs = widths if split < problem.layers else nothing
        crossing = activations if 0 < split < problem.layers else nothing
        for front, back, activation, context in product(fronts, backs, crossing, problem.contexts):
            yield Choice(split, front, back, activation, context)


def point_of(problem: Problem, choice: Choice) -> Point | None:
    """None where its KL is not known."""
    kl_nats = problem.quality(choice.split, choice.front, choice.back, choice.activation)
    return None if kl_nats is None else cost_of(problem, choice, kl_nats)


def cost_of(problem: Problem, choice: Choice, kl_nats: float) -> Point:
    """The point of a choice whose KL this is."""
    check_number("a KL", kl_nats, least=0.0)
    activation = Activation(_TOKEN_BYTES) if choice.activation is None else problem.activations[choice.activation]
    wire_bytes = activation.token_bytes if choice.back is not None else 0.0
    split, behind = choice.split, problem.layers - choice.split
    token_ms = _stage_ms(problem, choice) + activation.codec_ms
    if choice.back is not None:
        token_ms += problem.link.exchange_ms(wire_bytes)
    device_bytes = server_bytes = 0
    if choice.front is not None:
        device_bytes = problem.widths[choice.front].weights.front_bytes[split] + _beside(problem, choice, split)
    if choice.back is not None:
        server_bytes = problem.widths[choice.back].weights.back_bytes[split] + _beside(problem, choice, behind)
    return Point(choice, device_bytes, server_bytes, token_ms, wire_bytes, kl_nats)


def excesses(point: Point, constraints: Constraints) -> dict[Limit, float]:
    """By which amount it breaks each limit that it breaks: bytes, milliseconds, nats."""
    over: dict[Limit, float] = {
        "device memory": point.device_bytes - constraints.device_bytes,
        "deadline": point.token_ms - constraints.deadline_ms,
        "KL": point.kl_nats - constraints.kl_nats,
    }
    if constraints.server_bytes is not None:
        over["server memory"] = point.server_bytes - constraints.server_bytes
    return {limit: amount for limit, amount in over.items() if amount > 0}


def ranking(constraints: Constraints) -> Callable[[Point], tuple[float, ...]]:
    """Lower is better, for sorting."""

    def rank(point: Point) -> tuple[float, ...]:
        cost = (point.wire_bytes, point.token_ms)
        ends = cost if constraints.prefer == "bytes" else cost[::-1]
        return (point.kl_nats, -point.choice.context, *ends, point.device_bytes, point.choice.split)

    return rank


def _stage_ms(problem: Problem, choice: Choice) -> float:
    split, layers, total = choice.split, problem.layers, 0.0
    if choice.front is not None:
        device = problem.widths[choice.front].device
        total += device.stage_ms(split, embedding=True, head=split == layers)
    if choice.back is not None:
        server = problem.widths[choice.back].server
        total += server.stage_ms(layers - split, embedding=split == 0, head=True)
    return total


def _beside(problem: Problem, choice: Choice, layers: int) -> int:
    return layers * choice.context * problem.layer_slot_bytes + problem.workspace_bytes


def _undominated(ranked: list[Point]) -> tuple[Point, ...]:
    """Of points, best first: one can only be beaten by an earlier one, or by one that an earlier one beats."""
    front: list[tuple[tuple[float, ...], Point]] = []
    for point in ranked:
        ours = _objectives(point)
        if not any(_beats(theirs, ours) for theirs, _ in front):
            front.append((ours, point))
    return tuple(point for _, point in front)


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """At least as good in all that counts, and better in one."""
    return one != other and all(mine <= its for mine, its in zip(one, other, strict=True))


def _objectives(point: Point) -> tuple[float, ...]:
    return (point.kl_nats, -point.choice.context, point.wire_bytes, point.token_ms)


def _strain(point: Point, constraints: Constraints) -> tuple[float, ...]:
    """How many limits it breaks, and the largest factor by which it does."""
    limits: dict[Limit, float] = {
        "device memory": constraints.device_bytes,
        "deadline": constraints.deadline_ms,
        "KL": constraints.kl_nats,
        "server memory": constraints.server_bytes or 0,
    }
    over = excesses(point, constraints)
    return (len(over), max(amount / max(limits[name], 1e-9) for name, amount in over.items()))
