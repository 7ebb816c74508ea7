"""Typed look-ups in the key/value tables of model files (config.json, GGUF metadata).

A missing key and a JSON null are the same; a bool is no number. Complaints are CheckpointErrors naming file and key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgemem.runtime.errors import CheckpointError
from edgemem.runtime.limits import LIMITS


class Fields:
    """Values of one table. `where` names the file in messages, `prefix` is put before every key."""

    def __init__(self, values: Mapping[str, Any], where: object, prefix: str = "") -> None:
        self.values, self.where, self.prefix = values, where, prefix

    def get(self, key: str) -> Any:
        return self.values.get(self.prefix + key)

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def wrong(self, key: str, wanted: str) -> CheckpointError:
        """The error for a value that is missing or of the wrong kind, to be raised by the caller."""
        value = self.get(key)
        got = "nothing" if value is None else ascii(value)[:80]
        return CheckpointError(f"bad value of {self.prefix}{key}", where=self.where, got=got, wanted=wanted)

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = LIMITS.dimension) -> int:
        """A whole number of [least, most]; `default` if absent, an error if there is none."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None, *, zero: bool = False) -> float:
        """A finite number above 0 (from 0 if `zero`); `default` if absent, an error if there is none."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(key, "a number")
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise self.wrong(key, f"a finite number {'from' if zero else 'above'} 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def numbers(self, key: str, count: int) -> list[float]:
        """A list of exactly `count` finite numbers above 0."""
        value = self.get(key)
        if not isinstance(value, list) or len(value) != count:
            raise self.wrong(key, f"a list of {count} numbers")
        for item in value:
            if isinstance(item, bool) or not isinstance(item, (int, float)) or not math.isfinite(item) or item <= 0:
                raise self.wrong(key, f"{count} finite numbers above 0")
        return [float(item) for item in value]

    def table(self, key: str) -> Fields | None:
        """The table nested under `key`, None if absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Fields(value, self.where)
