"""What is measured piece by piece: a cell, the job that fills it, and what every job works with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgemem.runtime.engine import Engine
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.tools.memory_eval.feed import Tokens
from edgemem.tools.memory_eval.frame import TurnFrame

Progress = Callable[[float], None]  # of one cell, 0 to 1
Values = Mapping[str, tuple[float, ...]]  # series by name; a value for each unit, in an order that all policies share


@dataclass(frozen=True)
class Cell:
    """budget: 0 where there is none. setup: all else that the values depend on, as JSON."""

    part: str
    policy: str
    budget: int
    seed: int
    setup: str

    @property
    def name(self) -> str:
        budget = f" at {self.budget}" if self.budget else ""
        return f"{self.part}, {self.policy}{budget}, seed {self.seed}"


@dataclass(frozen=True)
class Bench:
    """engine: with more slots than any budget by `SPARE`. text: tokens of a long text. clock: seconds."""

    engine: Engine
    tokenizer: Tokenizer
    frame: TurnFrame
    text: Tokens
    clock: Callable[[], float]


SPARE = 96  # slots for questions that are asked aside, and forgotten


class Job(NamedTuple):
    cell: Cell
    run: Callable[[Bench, Progress], Values]


def setup_text(retention: RetentionSettings | None, **sizes: Any) -> str:
    """For Cell.setup."""
    return json.dumps({"retention": None if retention is None else retention.to_dict(), **sizes}, sort_keys=True)
