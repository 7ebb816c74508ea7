"""Backoff: how long to leave a lost device alone before it is tried again."""

from __future__ import annotations

FIRST_S, MOST_S = 0.5, 30.0


class Backoff:
    """Waits that double from FIRST_S to `most_s` with every failure in a row."""

    def __init__(self, most_s: float = MOST_S) -> None:
        self._next_s, self._most_s = FIRST_S, most_s

    def failed(self) -> float:
        """It failed once more: seconds to wait."""
        wait_s, self._next_s = self._next_s, min(2 * self._next_s, self._most_s)
        return wait_s

    def worked(self) -> None:
        self._next_s = FIRST_S
