"""What `edgemem split bench` found: for every link the time of each way to answer, as measured and as predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgemem.runtime.errors import SettingsError

FORMAT = 1


@dataclass(frozen=True)
class Arm:
    """One way to answer: `split` layers here, the others on the server. token_ms: median. samples: of each token.
    predicted_ms: by the planner, from the link and the stages as measured by themselves."""

    split: int
    token_ms: float
    predicted_ms: float
    samples: tuple[float, ...]

    @property
    def error(self) -> float:
        """Of the prediction, relative to the measured time."""
        return self.predicted_ms / self.token_ms - 1


@dataclass(frozen=True)
class LinkResult:
    """bits_per_s, round_trip_ms: as the proxy was told; measured_*: as the planner was. arms: by split, rising.
    chosen: the planner's split among all; chosen_inside: among those with layers on both sides."""

    bits_per_s: float
    round_trip_ms: float
    measured_bits_per_s: float
    measured_round_trip_ms: float
    arms: tuple[Arm, ...]
    chosen: int
    chosen_inside: int

    def arm(self, split: int) -> Arm:
        return next(arm for arm in self.arms if arm.split == split)

    def best(self, *, inside: bool) -> Arm:
        """As measured."""
        return min(self.arms[1:-1] if inside else self.arms, key=lambda arm: arm.token_ms)

    def loss(self, *, inside: bool) -> float:
        """By how much the chosen way is slower than the best."""
        chosen = self.arm(self.chosen_inside if inside else self.chosen)
        return chosen.token_ms / self.best(inside=inside).token_ms - 1


@dataclass(frozen=True)
class Record:
    """subject: package. conditions: machine, versions, date. slowdowns: of compute, by sleeping. stage times: a token
    on one side, as slowed: layer, entry and exit in ms."""

    format: int
    subject: Mapping[str, str]
    conditions: Mapping[str, str]
    layers: int
    device_slowdown: float
    server_slowdown: float
    device_times: tuple[float, float, float]
    server_times: tuple[float, float, float]
    overhead_bytes: float
    links: tuple[LinkResult, ...]

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise SettingsError("a record of another format", got=self.format, wanted=FORMAT)
