"""Sizes, times and links as people write them on a command line: 1GiB, 80ms, 20Mbit,30ms."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")
_SIZES = {
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
_TIMES_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_RATES = {"kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9}


def size_bytes(text: str) -> int:
    """Bytes, for argparse: a number and B, kB, MB, GB, TB or KiB, MiB, GiB, TiB."""
    return round(_quantity(text, _SIZES, "a size", "1GiB"))


def milliseconds(text: str) -> float:
    """A time over 0, for argparse: a number and us, ms or s."""
    return _quantity(text, _TIMES_MS, "a time", "80ms")


def bits_per_second(text: str) -> float:
    """For argparse: a number and kbit, Mbit or Gbit."""
    return _quantity(text, _RATES, "a rate", "20Mbit")


def link_of(text: str) -> tuple[float, float]:
    """Bits a second, and the round trip in milliseconds, for argparse: `20Mbit,30ms`."""
    rate, comma, trip = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"{text!r} is no link; write a rate and a round trip: 20Mbit,30ms")
    return bits_per_second(rate), milliseconds(trip)


def number_within(least: float, most: float) -> Callable[[str], float]:
    """For argparse: what reads a number from `least` to `most`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least:g} to {most:,g}")
        return value

    return read


def _quantity(text: str, units: dict[str, float] | dict[str, int], kind: str, example: str) -> float:
    found = _NUMBER.fullmatch(text.strip())
    value = float(found[1]) * units.get(found[2], math.nan) if found else math.nan
    if not 0 < value < 1e18:
        raise argparse.ArgumentTypeError(f"{text!r} is no {kind[2:]}; units: {', '.join(units)}, as in {example}")
    return value
