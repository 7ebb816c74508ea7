"""Moments as people write and read them: `2h` ago, a date, a local time with its zone."""

from __future__ import annotations

import argparse
import re
import time
from datetime import datetime

_AGE = re.compile(r"(\d{1,6})([smhdw])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
MOMENT_HELP = "an age (90s, 30m, 2h, 7d, 4w) or a date and time (2026-03-01, 2026-03-01T14:30, with a zone or local)"


def moment(text: str) -> float:
    """Seconds since 1970, for argparse."""
    try:
        return moment_of(text, time.time())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!a} is neither {MOMENT_HELP.replace(' or', ' nor')}") from None


def moment_of(text: str, now: float) -> float:
    """Seconds since 1970 of an age before `now`, or of an ISO date and time. Raises ValueError for other texts."""
    if age := _AGE.fullmatch(text):
        return now - int(age[1]) * _SECONDS[age[2]]
    iso = f"{text[:-1]}+00:00" if text.endswith(("Z", "z")) else text
    return datetime.fromisoformat(iso).timestamp()


def local_text(at: float) -> str:
    """ISO 8601, to the second, in the local time zone and with it."""
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")
