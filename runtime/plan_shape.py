"""PlanShape: the sizes that a plan is built for, and which of its buckets and profiles a run takes."""

from __future__ import annotations

from dataclasses import dataclass

from edgemem.runtime.errors import SettingsError
from edgemem.runtime.model import ModelSpec

_FIRST_BUCKET = 256
_CHUNK = 512
_LOGITS_BYTES = 64 << 20  # of all rows at once, when surprisal is asked for


@dataclass(frozen=True, kw_only=True)
class PlanShape:
    """layers: [first, last). capacity: KV slots. buckets: how many slots a run may look at, rising, the last
    `capacity`. chunk: the most tokens of a run. rows: the most rows of it that have logits.

    A plan has one profile for a decode step in each bucket, in their order, and last one for all other runs.
    """

    layers: tuple[int, int]
    capacity: int
    buckets: tuple[int, ...]
    chunk: int
    rows: int

    def bucket(self, slots: int) -> int:
        """The smallest that holds `slots`, which are at most the capacity."""
        return next(bucket for bucket in self.buckets if bucket >= slots)

    def profile(self, tokens: int, rows: int, bucket: int) -> int:
        """The index of the profile that a run takes."""
        return self.buckets.index(bucket) if tokens == rows == 1 else len(self.buckets)


def plan_shape(model: ModelSpec, layers: tuple[int, int], capacity: int, buckets: tuple[int, ...] = ()) -> PlanShape:
    """The shape for `capacity` slots, by default in buckets that double from 256 on.

    Raises SettingsError for buckets that do not rise or pass the capacity.
    """
    if not buckets:
        doubling = (_FIRST_BUCKET << power for power in range(capacity.bit_length()))
        buckets = tuple(bucket for bucket in doubling if bucket < capacity)
    if list(buckets) != sorted(set(buckets)) or not all(0 < bucket <= capacity for bucket in buckets):
        raise SettingsError("the buckets do not rise", got=buckets, wanted=f"1 to {capacity} slots, each once")
    chunk = min(_CHUNK, capacity)
    rows = max(1, min(chunk, _LOGITS_BYTES // (4 * model.vocabulary)))
    whole = buckets if buckets and buckets[-1] == capacity else (*buckets, capacity)
    return PlanShape(layers=layers, capacity=capacity, buckets=whole, chunk=chunk, rows=rows)
