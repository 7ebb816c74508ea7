"""Backoff: how long to leave a lost device alone before it is tried again."""

from __future__ import annotations

FIRST_S, MOST_S = 0.5, 30.0


class Backoff:
    """Waits that double from FIRST_S to MOST_S with every failure in a row."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def failed(self) -> float:
        """It failed once more: seconds to wait."""
        wait_s, self._next_s = self._next_s, min(2 * self._next_s, MOST_S)
        return wait_s

    def worked(self) -> None:
        self._next_s = FIRST_S
