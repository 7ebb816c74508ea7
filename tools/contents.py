"""What a package or a checkpoint is made of: its tensors by runs of like layers, and the totals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgemem.kernels.formats import Precision
from edgemem.runtime.manifest import Manifest
from edgemem.runtime.model import ModelSpec

PrecisionOf = Callable[[str], Precision | None]  # by matrix name; None where the source has no canonical form


@dataclass(frozen=True)
class TensorRun:
    """One tensor of `count` consecutive layers that store it alike. `bytes` of all of them, None if not known."""

    layers: str
    tensor: str
    shape: tuple[int, ...]
    precision: str
    count: int
    bytes: int | None


@dataclass(frozen=True)
class Totals:
    """weights: numbers in matrices. weight_bytes: of matrices and vectors as stored. file_bytes: of all files."""

    weights: int
    weight_bytes: int
    file_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.weight_bytes / self.weights


def package_totals(manifest: Manifest) -> Totals:
    matrices = dict(manifest.model.matrices(*manifest.layers))
    stored = sum(manifest.precision_of(name).bytes_for(*shape) for name, shape in matrices.items())
    return Totals(
        weights=sum(rows * columns for rows, columns in matrices.values()),
        weight_bytes=stored + 4 * sum(length for _, length in manifest.model.vectors(*manifest.layers)),
        file_bytes=sum(record.bytes for record in manifest.files.values()),
    )


def tensor_runs(model: ModelSpec, precision_of: PrecisionOf, layers: tuple[int, int] | None = None) -> list[TensorRun]:
    """Every tensor of `layers`, or all, once for each run of consecutive layers that are stored alike, in order."""
    here = layers or (0, model.layers)
    precisions = {name: precision_of(name) for name, _ in model.matrices(*here)}
    vectors = ((name, (size,)) for name, size in model.vectors(*here))
    tensors: list[tuple[str, tuple[int, ...]]] = [*model.matrices(*here), *vectors]
    inside: dict[int, list[tuple[str, tuple[int, ...]]]] = {layer: [] for layer in range(*here)}
    before: list[tuple[str, tuple[int, ...]]] = []
    after: list[tuple[str, tuple[int, ...]]] = []
    for name, shape in tensors:
        if name.startswith("layers."):
            _, layer, tensor = name.split(".")
            inside[int(layer)].append((tensor, shape))
        else:
            (before if name == "embedding" else after).append((name, shape))
    rows = [_run("–", name, shape, precisions.get(name), name in precisions, 1) for name, shape in before]
    for first, last in _alike(here, precisions):
        numbers = f"{first}-{last - 1}" if last - first > 1 else str(first)
        for tensor, shape in inside[first]:
            name = f"layers.{first}.{tensor}"
            rows.append(_run(numbers, tensor, shape, precisions.get(name), name in precisions, last - first))
    rows += [_run("–", name, shape, precisions.get(name), name in precisions, 1) for name, shape in after]
    return rows


def _alike(layers: tuple[int, int], precisions: dict[str, Precision | None]) -> Iterator[tuple[int, int]]:
    """Half-open runs of layers whose matrices all have the same precisions."""

    def kinds(layer: int) -> list[Precision | None]:
        return [kind for name, kind in precisions.items() if name.startswith(f"layers.{layer}.")]

    first, last = layers
    for layer in range(first + 1, last + 1):
        if layer == last or kinds(layer) != kinds(first):
            yield first, layer
            first = layer


def _run(
    layers: str, tensor: str, shape: tuple[int, ...], precision: Precision | None, matrix: bool, count: int
) -> TensorRun:
    if not matrix:
        return TensorRun(layers, tensor, shape, "fp32", count, 4 * count * shape[0])
    size = None if precision is None else count * precision.bytes_for(shape[0], shape[1])
    return TensorRun(layers, tensor, shape, "other" if precision is None else str(precision), count, size)
