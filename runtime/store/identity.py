"""Whose conversation it is: what a journal and a snapshot are bound to, and how both are told apart from others'."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from edgemem.runtime.errors import SettingsError, shown
from edgemem.runtime.limits import LIMITS

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9_.-]{1,64}")
_POLICY_BYTES = 1 << 16


@dataclass(frozen=True)
class Identity:
    """weights, tokenizer: SHA-256 of the package's files, 64 hex digits. engine, kv: names, such as native and fp16.

    A journal belongs to weights, tokenizer and vocabulary. A snapshot belongs to all of it, as its numbers depend on
    who computed them and in which form. Raises SettingsError for bad values.
    """

    weights: str
    tokenizer: str
    vocabulary: int
    layers: int
    kv_heads: int
    head_dim: int
    engine: str
    kv: str

    def __post_init__(self) -> None:
        limits = {
            "vocabulary": LIMITS.vocabulary,
            "layers": LIMITS.layers,
            "kv_heads": LIMITS.dimension,
            "head_dim": LIMITS.dimension,
        }
        for name, limit in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not 0 < value <= limit:
                raise _bad(name, value, f"a whole number from 1 to {limit}")
        for names, pattern in ((("weights", "tokenizer"), _SHA256), (("engine", "kv"), _NAME)):
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, str) or not pattern.fullmatch(value):
                    raise _bad(name, value, pattern.pattern)

    @property
    def model(self) -> tuple[str, str, int]:
        """What a journal is bound to."""
        return self.weights, self.tokenizer, self.vocabulary

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: object) -> Identity:
        """to_dict's inverse. Raises SettingsError for anything else."""
        if not isinstance(plain, Mapping) or set(plain) != {field.name for field in fields(cls)}:
            raise _bad("keys", plain, "the keys of to_dict")
        return cls(**plain)


def plain_policy(policy: Mapping[str, Any]) -> dict[str, Any]:
    """The policy as JSON gives it back, so that it can be compared; SettingsError if JSON cannot hold it."""
    try:
        text = json.dumps(dict(policy), allow_nan=False)
        plain: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as problem:
        raise SettingsError("the policy cannot be stored", got=problem, wanted="plain JSON values") from problem
    if len(text) > _POLICY_BYTES:
        raise SettingsError("the policy is too large to be stored", got=f"{len(text)} bytes", wanted=_POLICY_BYTES)
    return plain


def _bad(name: str, value: object, wanted: str) -> SettingsError:
    return SettingsError(f"the store's identity has bad {name}", got=shown(value), wanted=wanted)
