"""Codec: hidden states as they cross the wire, in one of four modes; both sides have the same settings.

It knows rows and bytes. What the settings should be is found by calibration.py, what carries the bytes is the link's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import NumericError, ProtocolError, SettingsError, shown
from edgemem.split.adaptive_rows import decode_adaptive, encode_adaptive
from edgemem.split.byte_rows import decode_byte_rows, encode_byte_rows
from edgemem.split.half_rows import decode_half_rows, encode_half_rows
from edgemem.split.payload import PayloadReader

Mode = Literal["fp32", "fp16", "int8", "adaptive"]
LEAST_TAU = 2.0**-14  # the smallest normal fp16: an outlier's error is at most 2^-11 of it
LEAST_DELTA = 2.0**-10  # half floats, the last resort, keep it
LARGEST_VALUE = 2.0**126  # leaves room for rounding up within float32
_MOST_HIDDEN = 1 << 16  # an outlier's column has 16 bits


@dataclass(frozen=True)
class CodecSettings:
    """How states are coded. Raises SettingsError for a value out of range.

    mode: "fp32" changes nothing; "fp16" rounds; "int8" has one asymmetric step for each token; "adaptive" splits off
        outliers, takes as few bits for each token as its error allows, and codes them by rANS.

    For "adaptive" alone, both parts of which are our reconstruction of arXiv 2511.04002:
    tau: |x| from which a value is an outlier, from 2^-14; infinity for none.
    delta: the relative error ||x - x'|| / ||x|| of a token that is allowed, from 2^-10 up to below 1; 0 for 8 bits
        whatever the error. With outliers it is that of the rest of the token, so that of the token is at most delta.
    rans: whether codes are packed further by an entropy coder.
    """

    mode: Mode = "fp16"
    tau: float = math.inf
    delta: float = 0.1
    rans: bool = True

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise _bad("mode", self.mode, " or ".join(get_args(Mode)))
        if not _number(self.tau) or not self.tau >= LEAST_TAU:
            raise _bad("tau", self.tau, f"a number from {LEAST_TAU}")
        if not _number(self.delta) or not (self.delta == 0 or LEAST_DELTA <= self.delta < 1):
            raise _bad("delta", self.delta, f"0, or from {LEAST_DELTA} to below 1")
        if type(self.rans) is not bool:
            raise _bad("rans", self.rans, "true or false")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or YAML; an infinite tau, which those lack, is None. from_dict's inverse."""
        return {**asdict(self), "tau": self.tau if math.isfinite(self.tau) else None}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> CodecSettings:
        """Raises SettingsError for unknown or missing keys, and as the constructor does."""
        known = {field.name for field in fields(cls)}
        if set(plain) != known:
            unknown, missing = sorted(map(shown, set(plain) - known)), sorted(known - set(plain))
            raise SettingsError(
                "the codec settings have other keys than this version knows",
                got=f"unknown {unknown}, missing {missing}",
                wanted=", ".join(sorted(known)),
                do="use the same version on both sides",
            )
        return cls(**{**plain, "tau": math.inf if plain["tau"] is None else plain["tau"]})


class Codec:
    """Encodes and decodes states of one hidden size. Keeps nothing: every payload stands alone.

    A row's decoded values do not depend on the rows beside it, so a chunk may be cut anywhere.
    """

    def __init__(self, settings: CodecSettings, hidden: int) -> None:
        """Raises SettingsError for a hidden size that columns of 16 bits cannot name."""
        if type(hidden) is not int or not 1 <= hidden <= _MOST_HIDDEN:
            raise _bad("hidden size", hidden, f"1 to {_MOST_HIDDEN}")
        self.settings, self.hidden = settings, hidden

    def encode(self, states: NDArray[np.float32]) -> bytes:
        """(n, hidden) float32, n from 0 -> bytes, the same for the same states. In no mode but fp32 do they take more
        than three bytes a token beyond its values in fp16.

        Raises SettingsError for another shape or dtype, NumericError for states that are not finite.
        """
        if states.ndim != 2 or states.shape[1] != self.hidden or states.dtype != np.float32:
            got, wanted = f"{states.dtype}{states.shape}", f"float32 (n, {self.hidden})"
            raise SettingsError("hidden states of another shape", got=got, wanted=wanted)
        if not (np.abs(states) < LARGEST_VALUE).all():  # NaN is not below it either
            wanted = f"numbers within {LARGEST_VALUE:.0e}"
            raise NumericError("the hidden states are not finite", wanted=wanted, do="check the package: edgemem eval")
        if self.settings.mode == "fp32":
            return states.astype("<f4").tobytes()
        if self.settings.mode == "fp16":
            return encode_half_rows(states)
        if self.settings.mode == "int8":
            return encode_byte_rows(states)
        return encode_adaptive(states, self.settings.tau, self.settings.delta, self.settings.rans)

    def decode(self, payload: bytes, count: int) -> NDArray[np.float32]:
        """The (count, hidden) finite states in `payload`; the array is the caller's own.

        count: as many as the caller has room for, since that many rows are allocated. Raises ProtocolError for bytes
        that hold no such states.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # what the bytes make of it is looked at below
            states = self._decoded(payload, count)
        if not np.isfinite(states).all():
            raise ProtocolError("hidden states that are not finite")
        return states

    def _decoded(self, payload: bytes, count: int) -> NDArray[np.float32]:
        if self.settings.mode == "adaptive":
            return decode_adaptive(payload, count, self.hidden, self.settings.tau)
        reader = PayloadReader(payload)
        if self.settings.mode == "fp32":
            states = reader.array("<f4", count, self.hidden).astype(np.float32)
        elif self.settings.mode == "fp16":
            states = decode_half_rows(reader, count, self.hidden)
        else:
            states = decode_byte_rows(reader, count, self.hidden)
        reader.end()
        return states


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bad(name: str, got: object, wanted: str) -> SettingsError:
    return SettingsError(f"the codec's {name} is out of range", got=shown(got), wanted=wanted)
