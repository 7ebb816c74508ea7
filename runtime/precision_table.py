"""The precision of every matrix, written compactly: runs of layers that are stored alike share one line.

{embedding: int8-g32, layers: [{first: 0, last: 30, query: int4-g32, ..., down: int4-g64}], head: fp16}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgemem.kernels.formats import Precision
from edgemem.runtime.model import ModelSpec

LAYER_MATRICES = ("query", "key", "value", "output", "gate", "up", "down")


def compact(model: ModelSpec, precision: Mapping[str, Precision]) -> dict[str, Any]:
    """The table of `precision`, which names every matrix of the model; KeyError if one is missing."""
    runs: list[dict[str, Any]] = []
    for layer in range(model.layers):
        kinds = {matrix: str(precision[f"layers.{layer}.{matrix}"]) for matrix in LAYER_MATRICES}
        if runs and all(runs[-1][matrix] == kind for matrix, kind in kinds.items()):
            runs[-1]["last"] = layer + 1
        else:
            runs.append({"first": layer, "last": layer + 1, **kinds})
    table: dict[str, Any] = {"embedding": str(precision["embedding"]), "layers": runs}
    if not model.tied_head:
        table["head"] = str(precision["head"])
    return table


def expand(model: ModelSpec, table: Any) -> dict[str, Precision]:
    """The precision of each matrix by name; compact's inverse. Raises ValueError for anything malformed."""
    ends = ("embedding",) if model.tied_head else ("embedding", "head")
    if not isinstance(table, dict) or set(table) != {*ends, "layers"}:
        raise ValueError(f"wanted a table with the keys {', '.join((*ends, 'layers'))}")
    precision = {name: _parse(table[name], name) for name in ends}
    if not isinstance(table["layers"], list):
        raise ValueError("layers is no list")
    expected = 0
    for run in table["layers"]:
        if not isinstance(run, dict) or set(run) != {"first", "last", *LAYER_MATRICES}:
            raise ValueError(f"wanted in each run of layers: first, last, {', '.join(LAYER_MATRICES)}")
        first, last = run["first"], run["last"]
        if type(first) is not int or type(last) is not int or first != expected or not first < last <= model.layers:
            raise ValueError(f"run of layers {first!r} to {last!r}, wanted one from {expected}, of {model.layers}")
        kinds = {matrix: _parse(run[matrix], matrix) for matrix in LAYER_MATRICES}
        for layer in range(first, last):
            precision.update({f"layers.{layer}.{matrix}": kind for matrix, kind in kinds.items()})
        expected = last
    if expected != model.layers:
        raise ValueError(f"the runs of layers end at {expected}, wanted {model.layers}")
    return precision


def _parse(text: Any, name: str) -> Precision:
    if not isinstance(text, str):
        raise ValueError(f"precision of {name} is no text")
    return Precision.parse(text)
