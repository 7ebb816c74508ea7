"""What a benchmark must reach, beside what it reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgemem.tools.console import print_table


@dataclass(frozen=True)
class Target:
    """value and limit in `unit`; `least` says that the value must be at least the limit, else at most."""

    what: str
    value: float
    limit: float
    unit: str
    least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.least else self.value <= self.limit

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def print_targets(targets: Sequence[Target]) -> None:
    """A table, one line a target."""
    rows = [
        (
            target.what,
            f"{target.value:.3g} {target.unit}",
            f"{'at least' if target.least else 'at most'} {target.limit:g} {target.unit}",
            "met" if target.met else "NOT met",
        )
        for target in targets
    ]
    print_table("", ("", "measured", "target", ""), rows)
