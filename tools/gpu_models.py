"""Random weights of a known model's exact shape, in memory alone: what the cuda engine is timed on without a package.

Matrices of one shape and precision share their numbers, not their place on the GPU. It says nothing of quality.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.random_model import random_block, random_plan
from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.profiles.record import Target
from edgemem.profiles.shapes import shape
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.package import Package
from edgemem.runtime.precision_table import compact


@dataclass(frozen=True)
class RandomMatrix:
    """Of a package's matrix what an engine asks for."""

    shape: tuple[int, int]
    stored: Precision
    block: QuantizedMatrix | NDArray[Any]

    @property
    def parts(self) -> Sequence[Any]:
        return [self.block]

    def quantized(self) -> QuantizedMatrix | None:
        return self.block if isinstance(self.block, QuantizedMatrix) else None


@dataclass
class RandomModel:
    """name: one of profiles/shapes.py. weights: "bf16", or as "int4-g128", beside which the head is int8.

    layers: so many of them, by default all.
    """

    name: str
    weights: str
    context: int
    layers: int | None = None
    model: ModelSpec = field(init=False)
    plan: dict[str, Precision] = field(init=False)

    def __post_init__(self) -> None:
        self.model = _with_layers(shape(self.name), self.layers)
        self.plan = random_plan(self.model, Precision.parse(self.weights))
        self.path = self.label
        self.manifest = SimpleNamespace(max_context=self.context)
        self._random = np.random.Generator(np.random.SFC64(0))
        self._blocks: dict[tuple[tuple[int, int], Precision], RandomMatrix] = {}

    @property
    def label(self) -> str:
        return f"{self.name}-{self.weights}"

    def as_package(self) -> Package:
        """Itself, as the engine takes it: it has all that is asked of a package."""
        return cast(Package, self)

    def require(self, first: int, last: int) -> None:
        """All layers are there."""

    def forget_pages(self) -> None:
        """Nothing is mapped."""

    def precision(self, name: str) -> Precision:
        return self.plan[name]

    def matrix(self, name: str) -> RandomMatrix:
        """Drawn once for each shape and precision: a 7B model would take a minute to draw, and no less to hold."""
        size, precision = dict(self.model.matrices())[name], self.plan[name]
        if (size, precision) not in self._blocks:
            self._blocks[size, precision] = RandomMatrix(size, precision, self._block(*size, precision))
        return self._blocks[size, precision]

    def vector(self, name: str) -> NDArray[np.float32]:
        length = dict(self.model.vectors())[name]
        values = 0.1 * self._random.standard_normal(length, dtype=np.float32)
        return values if name.endswith("bias") else values + np.float32(1)

    def target(self) -> Target:
        """As a record has it."""
        recipe = f"{self.label}, one block of random numbers for each shape, seed 0"
        return Target(
            name=self.label,
            kind="shape",
            source="random weights, seed 0",
            sha256=hashlib.sha256(recipe.encode()).hexdigest(),
            model=self.model,
            precision=compact(self.model, self.plan),
            max_context=self.context,
            quality=None,
            quality_note="random weights",
        )

    def _block(self, rows: int, columns: int, precision: Precision) -> QuantizedMatrix | NDArray[Any]:
        if precision.quantized:
            return random_block(self._random, rows, columns, precision)
        return random_bfloat16(self._random, rows, columns)


def _with_layers(model: ModelSpec, layers: int | None) -> ModelSpec:
    if layers is None:
        return model
    return replace(model, layers=layers, layer_ropes=model.layer_ropes[:layers], windows=model.windows[:layers])


def random_bfloat16(random: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint16]:
    """The bits of bfloat16 of either sign, of about columns ** -0.5 or somewhat less, drawn at the speed of memory."""
    exponent = 126 + round(float(np.log2(columns**-0.5)))
    words: NDArray[np.uint64] = random.bit_generator.random_raw(-(-rows * columns // 4))
    bits = words.view(np.uint16)[: rows * columns].reshape(rows, columns)
    return (bits & np.uint16(0x807F)) | np.uint16(exponent << 7)
