"""Frozen dataclasses to plain JSON values and back, strictly: the fields' own types say what is taken.

A float must be finite, a bool is no number, an unknown or missing key is refused, a text must be short and printable.
Ranges are the dataclasses' own business.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from edgemem.runtime.errors import shown

Value = TypeVar("Value")
_TEXT_LENGTH = 4096
_SEQUENCE_LENGTH = 1_000_000


def to_plain(value: Any) -> Any:
    """Dicts, lists, texts, numbers, bools and None; a class with a to_dict of its own is asked."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(part) for part in value]
    return value


def from_plain(kind: type[Value], plain: Any, where: str = "") -> Value:
    """to_plain's inverse. Raises ValueError saying where in the document, or what the class itself raises."""
    result: Value = _read(kind, plain, where)
    return result


def parse_json(text: str) -> Any:
    """The document, without NaN, infinities, and keys given twice. Raises ValueError."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def printable(text: str) -> str:
    """`text` on one line, as from_plain takes it."""
    return " ".join("".join(part if part.isprintable() else " " for part in text).split())[:_TEXT_LENGTH]


def _read(kind: Any, plain: Any, where: str) -> Any:
    if kind is Any:
        return plain
    if get_origin(kind) is not None:
        return _read_generic(get_origin(kind), get_args(kind), plain, where)
    if hasattr(kind, "from_dict"):
        return kind.from_dict(_object(plain, where))
    if is_dataclass(kind):
        return _read_dataclass(kind, _object(plain, where), where)
    return _read_scalar(kind, plain, where)


def _read_generic(origin: Any, arguments: tuple[Any, ...], plain: Any, where: str) -> Any:
    if origin is types.UnionType:
        return _read_optional(arguments, plain, where)
    if origin is tuple:
        return _read_tuple(arguments, plain, where)
    if origin is Literal:
        if not isinstance(plain, str) or plain not in arguments:
            raise _bad(where, plain, f"one of {', '.join(arguments)}")
        return plain
    return {
        _text(name, where): _read(arguments[1], part, f"{where}.{name}") for name, part in _object(plain, where).items()
    }


def _read_optional(kinds: tuple[Any, ...], plain: Any, where: str) -> Any:
    """Only `X | None` is used."""
    if plain is None:
        return None
    (kind,) = (kind for kind in kinds if kind is not type(None))
    return _read(kind, plain, where)


def _read_tuple(kinds: tuple[Any, ...], plain: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(plain, list) or len(plain) > _SEQUENCE_LENGTH:
        raise _bad(where, plain, f"a list of at most {_SEQUENCE_LENGTH}")
    if kinds[-1] is Ellipsis:
        return tuple(_read(kinds[0], part, f"{where}[{index}]") for index, part in enumerate(plain))
    if len(plain) != len(kinds):
        raise _bad(where, plain, f"a list of {len(kinds)}")
    return tuple(_read(kind, part, where) for kind, part in zip(kinds, plain, strict=True))


def _read_dataclass(kind: Any, plain: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    unknown, missing = sorted(plain.keys() - hints.keys()), sorted(hints.keys() - plain.keys())
    if unknown or missing:
        raise ValueError(f"{where or 'the document'}: unknown keys {unknown[:8]!a}, missing keys {missing[:8]}")
    values = {name: _read(hints[name], plain[name], f"{where}.{name}" if where else name) for name in hints}
    try:
        return kind(**values)
    except ValueError as problem:
        raise ValueError(f"{where or 'the document'}: {problem}") from problem


def _read_scalar(kind: Any, plain: Any, where: str) -> Any:
    if kind is float and type(plain) in (int, float):
        try:
            number = float(plain)
        except OverflowError:
            raise _bad(where, plain, "a number") from None
        if math.isfinite(number):
            return number
    elif kind is str:
        return _text(plain, where)
    elif kind in (int, bool) and type(plain) is kind and abs(plain) < 1 << 63:
        return plain
    raise _bad(where, plain, {float: "a finite number", int: "a whole number", bool: "true or false"}[kind])


def _text(plain: Any, where: str) -> str:
    if not isinstance(plain, str) or len(plain) > _TEXT_LENGTH or not plain.isprintable():
        raise _bad(where, plain, f"a printable text of at most {_TEXT_LENGTH} characters")
    return plain


def _object(plain: Any, where: str) -> dict[str, Any]:
    if not isinstance(plain, dict):
        raise _bad(where, plain, "an object")
    return plain


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key[:80]!a} twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _bad(where: str, plain: Any, wanted: str) -> ValueError:
    return ValueError(f"{where or 'the document'}: got {shown(plain)}, wanted {wanted}")
