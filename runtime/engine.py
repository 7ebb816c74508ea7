"""The Engine protocol: what every executor of a package can do, and the values that cross it.

An engine knows token ids, KV slots and logits. It knows no text, no chat, no policy.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.model import ModelSpec
from edgemem.runtime.sampling import Sampler


@dataclass(frozen=True)
class Step:
    """What one extend gave.

    logits: (vocabulary,) float32 for the token after the last one; None from an engine without the head.
    hidden: (n, hidden) float32 leaving the last layer held; None from an engine with the head.
    surprisal: (n,) float32, -log p(token | all before), nan where nothing came before; None unless asked for.
    Arrays are the engine's own buffers, valid until its next call: copy what must last.
    """

    logits: NDArray[np.float32] | None = None
    hidden: NDArray[np.float32] | None = None
    surprisal: NDArray[np.float32] | None = None


class Token(NamedTuple):
    """One decoded token. surprisal is nan unless it was asked for."""

    id: int
    surprisal: float


@dataclass(frozen=True)
class KVState:
    """A copy of an engine's memory: enough to go on as if it had never stopped.

    keys, values: (layers, kv_heads, length, head_dim), keys rotated to slots 0..length-1.
    logits: (vocabulary,) float32 after the last token, or None before the first or without the head.
    """

    keys: NDArray[np.generic]
    values: NDArray[np.generic]
    logits: NDArray[np.float32] | None

    @property
    def length(self) -> int:
        return int(self.keys.shape[2])


@dataclass(frozen=True)
class Traffic:
    """Bytes that the next decode step must stream from memory."""

    weights: int
    kv_read: int
    kv_write: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_read + self.kv_write


Route = Literal["remote", "local", "fallback", "degraded"]


class Engine(Protocol):
    """Runs layers [first, last) of a package over one KV cache of `capacity` slots.

    With layer 0 it takes tokens, else hidden states; with the last layer it gives logits, else hidden states. One that
    may compute elsewhere has a `route` too: see route_of.
    """

    name: str  # "onnx", "native", ...
    model: ModelSpec
    layers: tuple[int, int]  # [first, last)
    capacity: int  # KV slots
    length: int  # slots in use

    def extend(
        self, inputs: NDArray[np.generic], *, surprisal: bool = False, tokens: NDArray[np.int32] | None = None
    ) -> Step:
        """Consume (n,) int32 tokens, or (n, hidden) float32 states, into slots length..length+n-1.

        tokens: (n,), of states, whose surprisal is wanted; an engine may have none to give, and raises SettingsError.

        Raises ContextError when they do not fit, SettingsError for a bad shape, dtype or token id, NumericError for
        non-finite logits. After an error `length` is what it was before the call.
        """
        ...

    def decode(self, sampler: Sampler, limit: int, *, surprisal: bool = False) -> Generator[Token, None, None]:
        """Sample up to `limit` tokens; stops early only when the slots run out.

        Every token but the last one yielded has been consumed when the iterator ends or is closed.
        """
        ...

    def keep(self, slots: NDArray[np.int64]) -> None:
        """Retain these slots, strictly rising, as slots 0..m-1; keys are re-rotated to their new positions."""
        ...

    def truncate(self, length: int) -> None:
        """Forget all slots from `length` on; the logits are those of the last extend no more."""
        ...

    def state(self) -> KVState:
        """A copy of the slots in use and of the logits."""
        ...

    def restore(self, state: KVState) -> None:
        """Take over a state of this model's dimensions; PackageError if it does not fit."""
        ...

    def traffic(self) -> Traffic:
        """What the next decode step must stream, with as many slots as are in use now."""
        ...

    def close(self) -> None:
        """Free the engine's memory, not the package. Again, it does nothing; all else then raises EngineError."""
        ...


def route_of(engine: Engine) -> Route | None:
    """Where the last tokens came from: a paired server ("remote"), this device in its place ("local"), a smaller model
    here in its place ("fallback"), or the server over a link that fails ("degraded"). None of an engine that is all
    here."""
    route: Route | None = getattr(engine, "route", None)
    return route
