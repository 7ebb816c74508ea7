"""What every engine asks of its arguments: settings in range, tokens of the vocabulary, finite states, free slots."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import ContextError, NumericError, SettingsError, shown
from edgemem.runtime.package import Package


def setting(name: str, value: int | None, *, default: int, highest: int) -> int:
    """`value`, or `default` where it is None. Raises SettingsError for anything but a whole number from 1."""
    if value is None:
        return default
    if type(value) is not int or not 1 <= value <= highest:
        raise SettingsError(f"{name} is out of range", got=repr(value), wanted=f"1 to {highest}")
    return value


def context_slots(capacity: int | None, package: Package) -> int:
    """KV slots to open the package with, by default all that it was compiled for. Raises SettingsError for more."""
    limit, trained = package.manifest.max_context, package.model.trained_context
    if capacity is None:
        return limit
    if type(capacity) is not int or not 1 <= capacity <= limit:
        raise SettingsError(
            "the context is out of range",
            where=package.path,
            got=repr(capacity),
            wanted=f"1 to {limit}, for which the package was compiled",
            do=f"choose a smaller context, or recompile with a larger --max-context, up to {trained}"
            if limit < trained
            else "choose a smaller context: the model was trained for no more",
        )
    return capacity


def layer_range(layers: tuple[int, int] | None, package: Package) -> tuple[int, int]:
    """[first, last), or all layers of the model where it is None.

    Raises SettingsError for an empty or impossible range, PackageError for layers that are not in the package.
    """
    count = package.model.layers
    first, last = (0, count) if layers is None else layers
    if type(first) is not int or type(last) is not int or not 0 <= first < last <= count:
        raise SettingsError("there are no such layers", got=repr(layers), wanted=f"0 <= first < last <= {count}")
    package.require(first, last)
    return first, last


def check_tokens(tokens: NDArray[Any], vocabulary: int) -> None:
    """Raises SettingsError unless they are (n,) whole numbers of the vocabulary, n > 0."""
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not tokens.size:
        raise SettingsError(
            "tokens are no list of ids", got=f"{tokens.dtype}{tokens.shape}", wanted="int32 (n,), n > 0"
        )
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        bad = int(np.argmax((tokens < 0) | (tokens >= vocabulary)))
        raise SettingsError(
            "a token id outside the vocabulary",
            where=f"position {bad}",
            got=int(tokens[bad]),
            wanted=f"0 to {vocabulary - 1}",
        )


def check_states(states: NDArray[Any], hidden: int) -> None:
    """Raises SettingsError unless they are (n, hidden) float32, n > 0; NumericError unless they are finite."""
    if states.ndim != 2 or states.shape[1] != hidden or states.dtype != np.float32 or not states.size:
        raise SettingsError(
            "hidden states of another shape",
            got=f"{states.dtype}{states.shape}",
            wanted=f"float32 (n, {hidden}), n > 0",
        )
    if not np.isfinite(states).all():
        raise NumericError("the hidden states given are not finite", do="check the stage that they come from")


def check_room(count: int, length: int, capacity: int) -> None:
    """Raises ContextError if `count` more slots are not there."""
    if count > capacity - length:
        raise ContextError(
            "the context is full",
            got=f"{length} slots in use and {count} more asked for",
            wanted=f"at most {capacity}",
            do="keep fewer slots, shorten the input, or open with a larger context",
        )


def checked_slots(slots: NDArray[Any], length: int) -> NDArray[np.int64]:
    """Slots to keep, as int64. Raises SettingsError unless they are strictly rising slots in use."""
    if slots.ndim != 1 or slots.dtype.kind not in "iu":
        raise SettingsError(
            "slots are no list of whole numbers", got=f"{slots.dtype}{slots.shape}", wanted="int64 (m,)"
        )
    slots = slots.astype(np.int64)
    if slots.size and (slots[0] < 0 or slots[-1] >= length or (np.diff(slots) <= 0).any()):
        raise SettingsError(
            "the slots to keep are not strictly rising slots in use",
            got=shown(slots.tolist()),
            wanted=f"each of 0 to {length - 1} at most once, in order",
        )
    return slots


def not_finite(what: str, slot: int) -> NumericError:
    """The error for a result that is no number, from slot `slot` on."""
    return NumericError(
        f"the {what} are not finite",
        where=f"slot {slot} or after",
        do="check the package: edgemem eval shows whether its weights are sound",
    )
