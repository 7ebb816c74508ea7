"""Back: what runs the layers behind the split, here or on the paired server; and what it answers.

Hidden states come encoded, so that a back stage sees the same values wherever it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import KVState, Route


@dataclass(frozen=True, eq=False)
class Ask:
    """What is wanted after some hidden states. logits: how many of the highest, 0 to the vocabulary.

    tokens: (n,) int32 whose states they are, where the surprisal of each is wanted; else None, and the server is not
    told. ids: the same always, for a stage on this device that is of another model; None where nobody knows them.
    """

    logits: int = 1
    tokens: NDArray[np.int32] | None = None
    ids: NDArray[np.int32] | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """ids (k,) int32, rising, and values (k,) float32: the highest logits after the last state. log_sum: of all of
    them, log sum exp, nats. surprisal: (n,) float32 where asked for; of the first token nan if it followed nothing.
    compute_ms: what the back stage took, without the wire."""

    ids: NDArray[np.int32]
    values: NDArray[np.float32]
    log_sum: float
    surprisal: NDArray[np.float32] | None = None
    compute_ms: float = 0.0


class Back(Protocol):
    """The layers [split, L) over a KV cache of their own. One call at a time.

    Every call changes the cache at most once, however often it is sent: a remote back stage numbers its operations.
    Raises LinkError where a server cannot be reached or does not answer in time: then the call counts as not done, and
    what a server did all the same is undone before the next.
    """

    capacity: int  # KV slots

    @property
    def length(self) -> int:
        """Slots in use, as far as is known."""
        ...

    @property
    def route(self) -> Route:
        """Where the last answer came from: see route_of."""
        ...

    def extend(self, payload: bytes, count: int, ask: Ask) -> Answer:
        """Consume `count` states, as a Codec encoded them, into the next slots."""
        ...

    def logits(self, count: int) -> Answer:
        """More of the highest logits after the last state; changes nothing."""
        ...

    def keep(self, slots: NDArray[np.int64]) -> None: ...

    def truncate(self, length: int) -> None: ...

    def state(self) -> KVState:
        """Of its layers. Raises EngineError where the cache is a server's."""
        ...

    def restore(self, state: KVState) -> None:
        """Raises EngineError where the cache is a server's, PackageError for a state that does not fit."""
        ...

    def close(self) -> None: ...
