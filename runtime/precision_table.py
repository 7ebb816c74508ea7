"""The precision of every matrix, written compactly: runs of layers that are stored alike share one line.

{embedding: int8-g32, layers: [{first: 0, last: 30, query: int4-g32, ..., down: int4-g64}], head: fp16}
The table of layers [first, last) alone has only what ModelSpec.matrices(first, last) names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgemem.kernels.formats import Precision
from edgemem.runtime.model import ModelSpec

LAYER_MATRICES = ("query", "key", "value", "output", "gate", "up", "down")


def compact(
    model: ModelSpec, precision: Mapping[str, Precision], first: int = 0, last: int | None = None
) -> dict[str, Any]:
    """The table of `precision`, which names every matrix of layers [first, last); KeyError if one is missing."""
    runs: list[dict[str, Any]] = []
    for layer in range(first, model.layers if last is None else last):
        kinds = {matrix: str(precision[f"layers.{layer}.{matrix}"]) for matrix in LAYER_MATRICES}
        if runs and all(runs[-1][matrix] == kind for matrix, kind in kinds.items()):
            runs[-1]["last"] = layer + 1
        else:
            runs.append({"first": layer, "last": layer + 1, **kinds})
    table: dict[str, Any] = {name: str(precision[name]) for name in _ends(model, first, last)}
    table["layers"] = runs
    if "head" in table:
        table["head"] = table.pop("head")  # to the end, where it is in the model
    return table


def expand(model: ModelSpec, table: Any, first: int = 0, last: int | None = None) -> dict[str, Precision]:
    """The precision of each matrix by name; compact's inverse. Raises ValueError for anything malformed."""
    ends, end = _ends(model, first, last), model.layers if last is None else last
    if not isinstance(table, dict) or set(table) != {*ends, "layers"}:
        raise ValueError(f"wanted a table with the keys {', '.join((*ends, 'layers'))}")
    precision = {name: _parse(table[name], name) for name in ends}
    if not isinstance(table["layers"], list):
        raise ValueError("layers is no list")
    expected = first
    for run in table["layers"]:
        if not isinstance(run, dict) or set(run) != {"first", "last", *LAYER_MATRICES}:
            raise ValueError(f"wanted in each run of layers: first, last, {', '.join(LAYER_MATRICES)}")
        start, stop = run["first"], run["last"]
        if type(start) is not int or type(stop) is not int or start != expected or not start < stop <= end:
            raise ValueError(f"run of layers {start!r} to {stop!r}, wanted one from {expected}, to {end} at most")
        kinds = {matrix: _parse(run[matrix], matrix) for matrix in LAYER_MATRICES}
        for layer in range(start, stop):
            precision.update({f"layers.{layer}.{matrix}": kind for matrix, kind in kinds.items()})
        expected = stop
    if expected != end:
        raise ValueError(f"the runs of layers end at {expected}, wanted {end}")
    return precision


def _ends(model: ModelSpec, first: int, last: int | None) -> list[str]:
    """The matrices beside those of the layers: the embedding, the head, or both."""
    return [name for name, _ in model.matrices(first, last) if "." not in name]


def _parse(text: Any, name: str) -> Precision:
    if not isinstance(text, str):
        raise ValueError(f"precision of {name} is no text")
    return Precision.parse(text)
