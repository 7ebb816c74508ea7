"""How far two sequences of tokens are the same."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for place, (left, right) in enumerate(zip(ours, theirs)):  # noqa: B905  # the shorter one ends it
        if left != right:
            return place
    return min(len(ours), len(theirs))
