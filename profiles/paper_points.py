"""The published cells that our own are drawn beside: their figures are the authors', read from paper_points.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgemem.profiles.plain import from_plain
from edgemem.runtime.strict_yaml import parse_yaml

_FILE = Path(__file__).with_name("paper_points.yaml")


@dataclass(frozen=True)
class PaperPoint:
    """fraction: of the footprint floor at the datasheet's bandwidth over the measured step."""

    device: str
    datasheet_gb_per_s: float
    context: int
    fraction: float


@dataclass(frozen=True)
class PaperPoints:
    source: str
    model: str
    precision: str
    points: tuple[PaperPoint, ...]


def paper_points() -> PaperPoints:
    return from_plain(PaperPoints, parse_yaml(_FILE.read_text(encoding="utf-8")), _FILE.name)
