"""When to plan anew: once the link has stayed away from the one that was planned for. A pure state machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from edgemem.runtime.errors import SettingsError, shown
from edgemem.split.sides import LinkSpeed, check_number


@dataclass(frozen=True)
class Hysteresis:
    """factor: how many times faster or slower a link must have become, in rate or round trip. least_ms: by which the
    round trip must differ, too. in_a_row: so many measurements. Raises SettingsError for a value out of range."""

    factor: float = 1.5
    least_ms: float = 2.0
    in_a_row: int = 3

    def __post_init__(self) -> None:
        check_number("the hysteresis' factor", self.factor, least=1.0)
        check_number("the hysteresis' least difference", self.least_ms, least=0.0)
        if type(self.in_a_row) is not int or self.in_a_row < 1:
            raise SettingsError("the hysteresis' count is out of range", got=shown(self.in_a_row), wanted="from 1")

    def apart(self, one: LinkSpeed, other: LinkSpeed) -> bool:
        """Whether two links differ that much."""
        rates = sorted((one.bits_per_s, other.bits_per_s))
        trips = sorted((one.round_trip_ms, other.round_trip_ms))
        slower = trips[1] > self.factor * trips[0] and trips[1] - trips[0] > self.least_ms
        return rates[1] > self.factor * rates[0] or slower


@dataclass(frozen=True)
class Replanning:
    """planned: the link of the plan in use. away: measurements in a row that were apart from it.
    due: whether the last one made a new plan due; `planned` is its link then."""

    planned: LinkSpeed
    hysteresis: Hysteresis = field(default_factory=Hysteresis)
    away: int = 0
    due: bool = False

    def after(self, measured: LinkSpeed) -> Replanning:
        if not self.hysteresis.apart(self.planned, measured):
            return replace(self, away=0, due=False)
        if self.away + 1 < self.hysteresis.in_a_row:
            return replace(self, away=self.away + 1, due=False)
        return Replanning(measured, self.hysteresis, due=True)


def links_to_plan_for(planned: LinkSpeed, measured: Iterable[LinkSpeed]) -> Iterator[LinkSpeed]:
    """Of links measured one after another, each that makes a new plan due."""
    state = Replanning(planned)
    for link in measured:
        state = state.after(link)
        if state.due:
            yield link
