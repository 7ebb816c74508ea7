"""Where names go beside the points of a plot so that they cover neither each other nor the points. Pure geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_GAP = 6.0


@dataclass(frozen=True)
class Box:
    """A rectangle, in any unit of length."""

    left: float
    bottom: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        across = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        up = min(self.bottom + self.height, other.bottom + other.height) - max(self.bottom, other.bottom)
        return max(across, 0.0) * max(up, 0.0)

    def outside(self, frame: Box) -> float:
        """The area of this box that lies outside the frame; rounded: a last bit makes no place better."""
        return round(self.width * self.height - self.overlap(frame), 6)


def label_places(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], obstacles: Sequence[Box], frame: Box
) -> list[tuple[float, float]]:
    """The lower left corner of each point's label, of the (width, height) in `sizes`, taken in turn.

    Each goes to whichever place around its point covers least of the obstacles and earlier labels, the first of equals:
    right, left, above, below, then the corners, then the same farther away.
    """
    taken = list(obstacles)
    places = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        boxes = [Box(left, bottom, width, height) for left, bottom in _around(x, y, width, height)]
        best = min(boxes, key=lambda box: sum(box.overlap(other) for other in taken) + 4 * box.outside(frame))
        taken.append(best)
        places.append((best.left, best.bottom))
    return places


def _around(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    places = []
    for away in (_GAP, _GAP + height, _GAP + 2 * height):
        right, left, middle = x + away, x - away - width, x - width / 2
        above, below, level = y + away, y - away - height, y - height / 2
        places += [(right, level), (left, level), (middle, above), (middle, below)]
        places += [(right, above), (right, below), (left, above), (left, below)]
    return places
