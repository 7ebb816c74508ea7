"""What the planner knows of a device, a server, and the link between them: bytes held, and time for one token.

Times are a line in the number of layers, as measuring.py fits it. Nothing here measures or chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

from edgemem.kernels.cost import Stored, step_cost
from edgemem.runtime.errors import SettingsError, shown
from edgemem.runtime.model import ModelSpec


@dataclass(frozen=True)
class Weights:
    """Bytes of one model at one precision. front_bytes, back_bytes: of layers [0, split) with the embedding, and of
    [split, L) with the head, for every split from 0 to L; a side without layers holds nothing."""

    front_bytes: tuple[int, ...]
    back_bytes: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises SettingsError for sizes that are none, or not of the same splits."""
        if len(self.front_bytes) != len(self.back_bytes) or len(self.front_bytes) < 2:
            got = f"{len(self.front_bytes)} and {len(self.back_bytes)}"
            raise SettingsError("weights need a size on either side of every split", got=got)
        for size in (*self.front_bytes, *self.back_bytes):
            if type(size) is not int or size < 0:
                raise SettingsError("weights of no size", got=shown(size), wanted="a whole number of bytes from 0")

    @property
    def layers(self) -> int:
        return len(self.front_bytes) - 1


def weights_of(model: ModelSpec, precision: Callable[[str], Stored]) -> Weights:
    """precision: of each matrix, by name. A tied head is held on both sides, once as each."""
    last = model.layers

    def held(first: int, end: int) -> int:
        if first == end:
            return 0
        return step_cost(model, precision, 0, kv_element_bytes=1, layers=(first, end)).footprint_bytes

    splits = range(last + 1)
    return Weights(tuple(held(0, split) for split in splits), tuple(held(split, last) for split in splits))


@dataclass(frozen=True)
class StageTimes:
    """One token on one side. layer_ms: of each layer. entry_ms: what a stage with the embedding takes beside its
    layers; exit_ms: one with the head. Raises SettingsError for a time below 0."""

    layer_ms: float
    entry_ms: float = 0.0
    exit_ms: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            check_number(f"{field.name} of a stage", getattr(self, field.name), least=0.0)

    def stage_ms(self, layers: int, *, embedding: bool, head: bool) -> float:
        """0 of no layers."""
        if not layers:
            return 0.0
        return layers * self.layer_ms + embedding * self.entry_ms + head * self.exit_ms

    def slowed(self, ratio: float) -> StageTimes:
        return StageTimes(ratio * self.layer_ms, ratio * self.entry_ms, ratio * self.exit_ms)


@dataclass(frozen=True)
class LinkSpeed:
    """round_trip_ms: of a message that is nearly empty, and its answer. overhead_bytes: around a payload, both ways
    together, where the round trip is that of a link without it. Raises SettingsError for a bad value."""

    bits_per_s: float
    round_trip_ms: float
    overhead_bytes: int = 0

    def __post_init__(self) -> None:
        check_number("the link's bits a second", self.bits_per_s, least=1.0)
        check_number("the link's round trip", self.round_trip_ms, least=0.0)
        if type(self.overhead_bytes) is not int or self.overhead_bytes < 0:
            raise SettingsError("the link's overhead is out of range", got=shown(self.overhead_bytes), wanted="from 0")

    def exchange_ms(self, payload_bytes: float) -> float:
        """A payload there, and the few bytes of an answer back."""
        return self.round_trip_ms + 8e3 * (payload_bytes + self.overhead_bytes) / self.bits_per_s


def check_number(name: str, value: object, *, least: float) -> None:
    """Raises SettingsError for anything but a finite number from `least`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value < math.inf:  # type: ignore[operator]
        raise SettingsError(f"{name} is out of range", got=shown(value), wanted=f"a number from {least:g}")
