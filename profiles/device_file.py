"""The YAML file of one device, checked field by field. Units are the datasheet's: GB/s, GiB, MiB, W."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from edgemem.runtime.errors import FileError, shown
from edgemem.runtime.strict_yaml import parse_yaml

Value = TypeVar("Value")

_KINDS = ("gpu", "jetson", "cpu")
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_CAPABILITY = re.compile(r"[0-9]{1,2}\.[0-9]")
_REQUIRED = (
    "name",
    "kind",
    "aliases",
    "bandwidth_gb_s",
    "memory_gib",
    "l2_mib",
    "compute_capability",
    "power_w",
    "source",
)
_OPTIONAL = ("note", "replaces_shipped")


@dataclass(frozen=True)
class DeviceFields:
    """A device file's values. `replaces_shipped`: it takes the place of the shipped device of the same name."""

    name: str
    kind: str
    aliases: tuple[str, ...]
    bandwidth_gb_s: float | None
    memory_gib: tuple[int, ...] | None
    l2_mib: int | None
    compute_capability: str | None
    power_w: tuple[int, int] | None
    source: str
    note: str | None
    replaces_shipped: bool


def parse_device(data: bytes, where: object) -> DeviceFields:
    """Raises FileError saying which field of `where` is wrong."""
    try:
        document = parse_yaml(data.decode("utf-8"))
    except ValueError as problem:  # bad UTF-8 is a ValueError too
        raise FileError("a device file is not plain YAML", where=where, got=problem) from problem
    if not isinstance(document, dict):
        raise FileError("a device file holds no mapping", where=where, wanted=f"keys {', '.join(_REQUIRED)}")
    unknown = [key for key in document if key not in _REQUIRED + _OPTIONAL]
    missing = [key for key in _REQUIRED if key not in document]
    if unknown or missing:
        raise FileError(
            "a device file has the wrong keys",
            where=where,
            got=f"unknown {shown(unknown)}, missing {shown(missing)}",
            wanted=f"{', '.join(_REQUIRED)}, each once; {', '.join(_OPTIONAL)} may be there",
        )
    field = _Fields(document, where)
    return DeviceFields(
        name=field.take("name", _name, "lower-case letters, digits, dots and dashes, at most 64"),
        kind=field.take("kind", _kind, f"one of {', '.join(_KINDS)}"),
        aliases=field.take("aliases", _texts, "a list of at most 32 different texts of at most 128 characters"),
        bandwidth_gb_s=field.maybe("bandwidth_gb_s", _bandwidth, "GB/s, more than 0 and at most 100000"),
        memory_gib=field.maybe("memory_gib", _sizes, "a rising list of GiB, from 1 to 65536"),
        l2_mib=field.maybe("l2_mib", _size, "MiB, from 1 to 65536"),
        compute_capability=field.maybe("compute_capability", _capability, 'a text such as "8.9", in quotes'),
        power_w=field.maybe("power_w", _range, "[lowest, highest] in W, from 1 to 65536"),
        source=field.take("source", _text, "where the figures are from, at most 512 characters"),
        note=field.maybe("note", _text, "a text of at most 512 characters"),
        replaces_shipped=field.maybe("replaces_shipped", _flag, "true or false") or False,
    )


class _Fields:
    """A document's fields, each converted by a function that raises ValueError for a bad value."""

    def __init__(self, document: dict[str, Any], where: object) -> None:
        self._document, self._where = document, where

    def take(self, key: str, convert: Callable[[Any], Value], wanted: str) -> Value:
        value = self._document[key]
        try:
            return convert(value)
        except ValueError as problem:
            message = f"a device file's {key} is wrong"
            raise FileError(message, where=self._where, got=shown(value), wanted=wanted) from problem

    def maybe(self, key: str, convert: Callable[[Any], Value], wanted: str) -> Value | None:
        """None for a null, and for an optional key that is not there."""
        return None if self._document.get(key) is None else self.take(key, convert, f"null, or {wanted}")


def _name(value: Any) -> str:
    _require(isinstance(value, str) and _NAME.fullmatch(value))
    return str(value)


def _kind(value: Any) -> str:
    _require(isinstance(value, str) and value in _KINDS)
    return str(value)


def _text(value: Any) -> str:
    _require(isinstance(value, str) and 0 < len(value) <= 512 and value.isprintable())
    return str(value)


def _texts(value: Any) -> tuple[str, ...]:
    _require(isinstance(value, list) and len(value) <= 32)
    texts = tuple(_text(text) for text in value)
    _require(len(set(texts)) == len(texts) and all(len(text) <= 128 for text in texts))
    return texts


def _bandwidth(value: Any) -> float:
    _require(type(value) in (int, float) and 0 < value <= 100_000)
    return float(value)


def _size(value: Any) -> int:
    _require(type(value) is int and 0 < value <= 65_536)
    return int(value)


def _sizes(value: Any) -> tuple[int, ...]:
    _require(isinstance(value, list) and 0 < len(value) <= 16)
    sizes = tuple(_size(size) for size in value)
    _require(sizes == tuple(sorted(set(sizes))))
    return sizes


def _range(value: Any) -> tuple[int, int]:
    _require(isinstance(value, list) and len(value) == 2)
    low, high = _size(value[0]), _size(value[1])
    _require(low <= high)
    return low, high


def _capability(value: Any) -> str:
    _require(isinstance(value, str) and _CAPABILITY.fullmatch(value))
    return str(value)


def _flag(value: Any) -> bool:
    _require(type(value) is bool)
    return bool(value)


def _require(good: object) -> None:
    if not good:
        raise ValueError
