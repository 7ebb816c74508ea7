"""PrecisionPlan: how each matrix of a package is stored, from a few options and an optional plan file.

A plan file is YAML, one `pattern: precision` a line, where the last match wins:
`layers.0-3.down: int8-g32`, `layers.*.*: int4-g64-min`, `head: fp16`. This file decides; it quantises nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from edgemem.kernels.formats import GROUPS, Kind, Precision
from edgemem.runtime.errors import SettingsError
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.precision_table import LAYER_MATRICES
from edgemem.runtime.strict_yaml import parse_yaml
from edgemem.runtime.weights import WeightSource

INT4_HAS_MINIMUM = True  # of the two int4 forms the better one for float weights, by tools/quantizer_table.py

_ENDS = ("embedding", "head")
_PLAN_FILE_BYTES = 1 << 20
_PATTERN = re.compile(rf"layers\.(?:(\d{{1,6}})(?:-(\d{{1,6}}))?|\*)\.({'|'.join(LAYER_MATRICES)}|\*)")


@dataclass(frozen=True)
class PrecisionPlan:
    """What was asked for. Where nothing was, a matrix stays as stored, and floats become int4 (embedding, head: int8).

    weights: of all layers. head: of embedding and head, which are one matrix where tied. front_layers: the layers below
    it take front_weights, the others back_weights, each `weights` where None. exact: by name, over everything else.
    """

    weights: Kind | None = None
    group: int = 32
    head: Kind | None = None
    front_layers: int | None = None
    front_weights: Kind | None = None
    back_weights: Kind | None = None
    exact: Mapping[str, Precision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.group not in GROUPS or isinstance(self.group, bool):
            raise SettingsError("the group is out of range", got=self.group, wanted=f"one of {GROUPS}")
        for name in ("weights", "head", "front_weights", "back_weights"):
            if getattr(self, name) not in (None, *get_args(Kind)):
                raise SettingsError(
                    f"unknown precision for {name}", got=repr(getattr(self, name)), wanted=", ".join(get_args(Kind))
                )
        if self.front_layers is None and (self.front_weights or self.back_weights):
            raise SettingsError("front and back weights need the layer where they part", do="give --front-layers too")
        if self.front_layers is not None and not (self.front_weights or self.back_weights):
            raise SettingsError("front layers change nothing alone", do="give --front-weights or --back-weights too")
        if self.front_layers is not None and (type(self.front_layers) is not int or self.front_layers < 1):
            raise SettingsError("front_layers is out of range", got=repr(self.front_layers), wanted="at least 1")

    def table(self, source: WeightSource) -> dict[str, Precision]:
        """The precision of every matrix of the source. SettingsError where front_layers or `exact` do not fit it."""
        model = source.model
        if self.front_layers is not None and self.front_layers >= model.layers:
            raise SettingsError(
                "front_layers leaves no layer behind it", got=self.front_layers, wanted=f"1 to {model.layers - 1}"
            )
        shapes = dict(model.matrices())
        for name in self.exact:
            if name not in shapes:
                raise SettingsError(f"the plan names {name!a}, which the model does not have")
        return {
            name: self.precision(name, columns, source.matrix(name).stored) for name, (_, columns) in shapes.items()
        }

    def precision(self, name: str, columns: int, stored: Precision | None) -> Precision:
        """The precision of matrix `name` with rows of `columns`, whose source holds `stored` (None: no canonical form).

        A group that does not divide the columns becomes the widest that does, and fp16 if none does.
        """
        if name in self.exact:
            return self.exact[name]
        kind = self._asked(name)
        if kind is None:
            if stored is not None and stored.quantized:
                return stored
            kind = "int8" if stored is None or name in _ENDS else "int4"
        if kind not in ("int4", "int8"):
            return Precision(kind)
        fitting = [group for group in GROUPS if columns % group == 0]
        if not fitting:
            return Precision("fp16")
        group = self.group if self.group in fitting else max(fitting)
        if stored is not None and (stored.kind, stored.group) == (kind, group):
            return stored  # asked for or not, a second rounding gains nothing
        return Precision(kind, group, minimum=kind == "int4" and INT4_HAS_MINIMUM)

    def _asked(self, name: str) -> Kind | None:
        """The kind asked for matrix `name`; None where the default rules."""
        if name in _ENDS:
            return self.head or (None if self.weights == "int4" else self.weights)
        if self.front_layers is None:
            return self.weights
        front = int(name.split(".")[1]) < self.front_layers
        return (self.front_weights if front else self.back_weights) or self.weights


def read_plan_file(path: Path, model: ModelSpec) -> dict[str, Precision]:
    """The precisions that a plan file fixes for this model, by matrix name: for PrecisionPlan.exact.

    Raises SettingsError, naming the line's pattern, for anything unknown, malformed, or that the model does not have.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_PLAN_FILE_BYTES + 1)
        if len(data) > _PLAN_FILE_BYTES:
            raise ValueError(f"more than {_PLAN_FILE_BYTES} bytes")
        lines = parse_yaml(data.decode("utf-8"))
        if not isinstance(lines, dict):
            raise ValueError("wanted one table of pattern: precision")
    except (OSError, ValueError) as problem:
        raise SettingsError("the plan file cannot be used", where=path, got=problem) from problem
    shapes = dict(model.matrices())
    exact: dict[str, Precision] = {}
    for pattern, text in lines.items():
        try:
            precision = Precision.parse(text if isinstance(text, str) else repr(text))
            names = _matching(pattern, model)
            for name in names:
                if precision.quantized and shapes[name][1] % precision.group:
                    raise ValueError(f"rows of {shapes[name][1]} of {name} cannot be cut into {precision}")
        except ValueError as problem:
            raise SettingsError(f"the plan's line {pattern[:80]!a} is wrong", where=path, got=problem) from problem
        exact.update(dict.fromkeys(names, precision))
    return exact


def _matching(pattern: str, model: ModelSpec) -> list[str]:
    """The names of the matrices a pattern stands for; ValueError if none. `head` of a tied model is its embedding."""
    if pattern in _ENDS:
        return ["embedding" if model.tied_head else pattern]
    match = _PATTERN.fullmatch(pattern)
    if match is None:
        known = ", ".join(LAYER_MATRICES)
        raise ValueError(f"wanted embedding, head or layers.LAYERS.MATRIX: LAYERS as 3, 0-3 or *; MATRIX {known} or *")
    first, last, matrix = match.groups()
    layers = range(model.layers) if first is None else range(int(first), int(last or first) + 1)
    if not layers or layers.stop > model.layers:
        raise ValueError(f"the model has layers 0 to {model.layers - 1}")
    return [f"layers.{layer}.{kind}" for layer in layers for kind in (LAYER_MATRICES if matrix == "*" else (matrix,))]
