"""A thing this machine does not offer, and why: a value to report, where an exception would end the run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unavailable:
    reason: str
