"""Numbers as people read them: three figures that count, decimal units, shares in per cent."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemem.profiles.bootstrap import Interval


def number_text(value: float) -> str:
    """`61.2`, `2.80`, `0.00512`, `1350`: three figures, and never an exponent for what people meet."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def size_text(count: float) -> str:
    """Bytes in decimal units, as disks and memory bandwidths are quoted: `98.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def share_text(share: float, interval: Interval | None = None) -> str:
    """`58 %`, or with an interval `58 % [56, 60]`; a decimal is added where whole numbers would hide the interval."""
    if interval is None:
        return f"{100 * share:.0f} %"
    digits = 0 if interval[1] - interval[0] >= 0.02 else 1
    low, high = (f"{100 * end:.{digits}f}" for end in interval)
    return f"{100 * share:.{digits}f} % [{low}, {high}]"


def ratio_text(ratio: float, interval: Interval) -> str:
    """`1.26 [1.25, 1.27]`."""
    return f"{ratio:#.3g} [{interval[0]:#.3g}, {interval[1]:#.3g}]"
