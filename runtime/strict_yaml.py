"""YAML from a stranger, reduced to plain values: dict, list, str, int, float, bool, None.

Built from the parser's events, so that nothing is constructed before it is checked: one document, text keys, each
once; no anchors, aliases or tags; bounded depth and count. Numbers are decimal (`1.0e-05`), and `no` is a text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NODES = 50_000
_DEPTH = 16
# Narrower than YAML's own rules: a text that PyYAML writes without quotes must not read back as a number.
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,19})")
_FLOAT = re.compile(r"[-+]?[0-9]+\.[0-9]*([eE][-+][0-9]{1,3})?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORDS = {"null": None, "~": None, "": None, "true": True, "false": False}
_NOTHING = object()


def parse_yaml(text: str) -> Any:
    """The one document in `text`. Raises ValueError saying what is wrong and on which line."""
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.YAMLError as problem:
        raise ValueError(" ".join(str(problem).split())) from problem
    if builder.document is _NOTHING:
        raise ValueError("no document")
    return builder.document


class _Builder:
    """Puts values together as the events come. `_open` is the stack of unfinished containers with their next key."""

    def __init__(self) -> None:
        self.document: Any = _NOTHING
        self._open: list[tuple[dict[str, Any] | list[Any], Any]] = []
        self._nodes = 0

    def take(self, event: Any) -> None:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError(f"line {line}: anchors and aliases are not allowed")
        if isinstance(event, yaml.NodeEvent):
            self._nodes += 1
            if self._nodes > _NODES:
                raise ValueError(f"line {line}: more than {_NODES} values")
        if isinstance(event, yaml.ScalarEvent):
            self._place(_scalar(event, line), line)
        elif isinstance(event, yaml.CollectionStartEvent):
            if event.tag is not None:
                raise ValueError(f"line {line}: tags are not allowed")
            if len(self._open) == _DEPTH:
                raise ValueError(f"line {line}: nested deeper than {_DEPTH}")
            self._open.append(({} if isinstance(event, yaml.MappingStartEvent) else [], _NOTHING))
        elif isinstance(event, yaml.CollectionEndEvent):
            self._place(self._open.pop()[0], line)

    def _place(self, value: Any, line: int) -> None:
        if not self._open:
            if self.document is not _NOTHING:
                raise ValueError(f"line {line}: a second document")
            self.document = value
            return
        container, key = self._open[-1]
        if isinstance(container, list):
            container.append(value)
        elif key is _NOTHING:
            if not isinstance(value, str):
                raise ValueError(f"line {line}: a key that is no text")
            if value in container:
                raise ValueError(f"line {line}: key {value[:80]!a} twice")
            self._open[-1] = (container, value)
        else:
            container[key] = value
            self._open[-1] = (container, _NOTHING)


def _scalar(event: Any, line: int) -> Any:
    if event.tag is not None:
        raise ValueError(f"line {line}: tags are not allowed")
    text: str = event.value
    if _SURROGATE.search(text):
        raise ValueError(f"line {line}: half of a surrogate pair")
    if not event.implicit[0]:  # quoted
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
