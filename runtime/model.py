"""ModelSpec: one description of every decoder edgemem runs. Dimensions and constants, no tensors.

Family differences are folded into numbers by the checkpoint readers: Gemma's norms arrive as w + 1, RoPE scaling as
finished inverse frequencies, Phi-3's fused projections as separate matrices. Engines branch on no family name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from edgemem.runtime.errors import SettingsError
from edgemem.runtime.limits import LIMITS

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: angle of pair i at position p is p * inverse_frequencies[i]; rotate-half layout.

    Rotates the first 2 * len(inverse_frequencies) of each head; cos and sin are multiplied by `amplitude`
    (1 but for long-context scaling such as LongRoPE and YaRN).
    """

    inverse_frequencies: tuple[float, ...]
    amplitude: float = 1.0

    @property
    def rotary_dim(self) -> int:
        return 2 * len(self.inverse_frequencies)


@dataclass(frozen=True)
class ModelSpec:
    """Dimensions of a decoder. `windows[i]` is layer i's sliding window in slots, 0 for full attention."""

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    trained_context: int
    norm_epsilon: float
    activation: Activation
    tied_head: bool
    ropes: tuple[Rope, ...]
    layer_ropes: tuple[int, ...]
    windows: tuple[int, ...]
    attention_scale: float
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    sandwich_norms: bool = False
    embedding_scale: float = 1.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0

    def __post_init__(self) -> None:
        limits = {
            "layers": LIMITS.layers,
            "hidden": LIMITS.dimension,
            "intermediate": LIMITS.dimension,
            "heads": LIMITS.dimension,
            "kv_heads": LIMITS.dimension,
            "head_dim": LIMITS.dimension,
            "vocabulary": LIMITS.vocabulary,
            "trained_context": LIMITS.context,
        }
        for name, limit in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not 0 < value <= limit:
                raise _bad(name, value, f"a whole number from 1 to {limit}")
        for name in ("norm_epsilon", "attention_scale", "embedding_scale"):
            value = getattr(self, name)
            if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
                raise _bad(name, value, "a positive number")
        for name in ("attention_softcap", "logit_softcap"):
            value = getattr(self, name)
            if not isinstance(value, float) or not math.isfinite(value) or value < 0:
                raise _bad(name, value, "a number, 0 for none")
        for name in ("tied_head", "qkv_bias", "output_bias", "qk_norm", "sandwich_norms"):
            if not isinstance(getattr(self, name), bool):
                raise _bad(name, getattr(self, name), "true or false")
        if self.activation not in ("silu", "gelu_tanh"):
            raise _bad("activation", self.activation, "silu or gelu_tanh")
        if self.heads % self.kv_heads:
            raise _bad("kv_heads", self.kv_heads, f"a divisor of heads, {self.heads}")
        self._check_positions()

    def _check_positions(self) -> None:
        for name in ("layer_ropes", "windows"):
            if len(getattr(self, name)) != self.layers:
                raise _bad(name, f"{len(getattr(self, name))} entries", f"one a layer, {self.layers}")
        if not self.ropes:
            raise _bad("ropes", "none", "at least one")
        for rope in self.ropes:
            if not 0 < rope.rotary_dim <= self.head_dim:
                raise _bad("ropes", f"{rope.rotary_dim} rotated dimensions", f"1 to {self.head_dim}")
            for value in (*rope.inverse_frequencies, rope.amplitude):
                if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
                    raise _bad("ropes", value, "positive numbers")
        for index in self.layer_ropes:
            if type(index) is not int or not 0 <= index < len(self.ropes):
                raise _bad("layer_ropes", index, f"0 to {len(self.ropes) - 1}")
        for window in self.windows:
            if type(window) is not int or not 0 <= window <= LIMITS.context:
                raise _bad("windows", window, "a number of slots, 0 for full attention")

    def matrices(self, first: int = 0, last: int | None = None) -> Iterator[tuple[str, tuple[int, int]]]:
        """(name, (rows, columns)) of every matrix of layers [first, last), with embedding and head at the ends."""
        last = self.layers if last is None else last
        if first == 0:
            yield "embedding", (self.vocabulary, self.hidden)
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for layer in range(first, last):
            yield f"layers.{layer}.query", (queries, self.hidden)
            yield f"layers.{layer}.key", (keys, self.hidden)
            yield f"layers.{layer}.value", (keys, self.hidden)
            yield f"layers.{layer}.output", (self.hidden, queries)
            yield f"layers.{layer}.gate", (self.intermediate, self.hidden)
            yield f"layers.{layer}.up", (self.intermediate, self.hidden)
            yield f"layers.{layer}.down", (self.hidden, self.intermediate)
        if last == self.layers and not (self.tied_head and first == 0):
            yield ("embedding" if self.tied_head else "head"), (self.vocabulary, self.hidden)

    def vectors(self, first: int = 0, last: int | None = None) -> Iterator[tuple[str, int]]:
        """(name, length) of every float32 vector of layers [first, last): norms, biases."""
        last = self.layers if last is None else last
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for layer in range(first, last):
            yield f"layers.{layer}.attention_norm", self.hidden
            yield f"layers.{layer}.mlp_norm", self.hidden
            if self.sandwich_norms:
                yield f"layers.{layer}.attention_post_norm", self.hidden
                yield f"layers.{layer}.mlp_post_norm", self.hidden
            if self.qk_norm:
                yield f"layers.{layer}.query_norm", self.head_dim
                yield f"layers.{layer}.key_norm", self.head_dim
            if self.qkv_bias:
                yield f"layers.{layer}.query_bias", queries
                yield f"layers.{layer}.key_bias", keys
                yield f"layers.{layer}.value_bias", keys
            if self.output_bias:
                yield f"layers.{layer}.output_bias", self.hidden
        if last == self.layers:
            yield "norm", self.hidden

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML or JSON; from_dict's inverse."""
        plain: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            plain[field.name] = list(value) if isinstance(value, tuple) else value
        plain["ropes"] = [
            {"inverse_frequencies": list(r.inverse_frequencies), "amplitude": r.amplitude} for r in self.ropes
        ]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ModelSpec:
        """Raises SettingsError for unknown or missing keys, wrong types and values out of range."""
        known = [field.name for field in fields(cls)]
        unknown = [key for key in plain if key not in known]
        missing = [name for name in known if name not in plain]
        if unknown or missing:
            raise SettingsError(
                "the model description has other keys than this version knows",
                got=f"unknown {unknown}, missing {missing}",
                wanted=", ".join(known),
                do="recompile the package with this version",
            )
        values = dict(plain)
        try:
            values["ropes"] = tuple(_rope(r) for r in plain["ropes"])
            for name in ("layer_ropes", "windows"):
                values[name] = tuple(plain[name])
            if not isinstance(plain["architecture"], str):
                raise TypeError("architecture is no text")
        except (TypeError, KeyError, ValueError) as error:
            raise SettingsError("the model description is malformed", got=error) from error
        return cls(**values)


def _rope(plain: Mapping[str, Any]) -> Rope:
    if set(plain) != {"inverse_frequencies", "amplitude"}:
        raise ValueError(f"rope has keys {sorted(plain)}")
    return Rope(tuple(plain["inverse_frequencies"]), plain["amplitude"])


def _bad(name: str, got: object, wanted: str) -> SettingsError:
    return SettingsError(f"the model's {name} is out of range", got=repr(got), wanted=wanted)
