"""LogSettings: how long events and their frames are kept, and how much of the disk they may take."""

from __future__ import annotations

from dataclasses import dataclass

from edgemem.runtime.errors import SettingsError, shown

_LEAST_BYTES, _MOST_BYTES = 1_000_000, 1 << 50
_MOST_DAYS = 36_500


@dataclass(frozen=True)
class LogSettings:
    """Raises SettingsError for a value out of range.

    retention_days: events older than this go, with their frames; 0: they stay.
    size_cap_bytes: of frames and database together. Beyond it the oldest frames go, their events stay and say so; where
        the events alone are too many, the oldest of those. From 1 MB; 0: no cap.
    """

    retention_days: int = 30
    size_cap_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        days, cap = self.retention_days, self.size_cap_bytes
        if type(days) is not int or not 0 <= days <= _MOST_DAYS:
            raise SettingsError("retention_days is out of range", got=shown(days), wanted=f"0 to {_MOST_DAYS}")
        if type(cap) is not int or not (cap == 0 or _LEAST_BYTES <= cap <= _MOST_BYTES):
            wanted = f"0, or {_LEAST_BYTES} to {_MOST_BYTES}"
            raise SettingsError("size_cap_bytes is out of range", got=shown(cap), wanted=wanted)
