"""Cuts a package in two at a layer: a front that takes tokens, and a back that gives logits.

Each holds the whole's tensors of its own layers, byte for byte, and says whose part it is. Neither has a graph: the
native engine runs without, and the whole's graphs name offsets in the whole's weights file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from edgemem.compiler.quantize import matrix_blocks
from edgemem.compiler.weights_writer import Block
from edgemem.compiler.writer import PackageWriter
from edgemem.runtime.errors import SettingsError
from edgemem.runtime.manifest import Manifest, Part
from edgemem.runtime.package import Package
from edgemem.runtime.tokenizer import TOKENIZER_FILES


class Half(NamedTuple):
    """A package of some layers, as it was written."""

    path: Path
    manifest: Manifest


def cut(package: Package, at: int, folder: Path) -> tuple[Half, Half]:
    """Write NAME-front.edgemem, of layers [0, at), and NAME-back.edgemem, of the others, into `folder`; both.

    NAME is the package's own; what stood there is replaced when the new one is complete. Raises SettingsError for a
    layer at which nothing can be cut, PackageError where the package is not whole or a half cannot be written.
    """
    package.require()
    layers = package.model.layers
    if type(at) is not int or not 0 < at < layers:
        raise SettingsError("the package cannot be cut at this layer", got=at, wanted=f"1 to {layers - 1}")
    name = package.path.name.removesuffix(".edgemem")
    front = _write(package, folder / f"{name}-front.edgemem", (0, at))
    return front, _write(package, folder / f"{name}-back.edgemem", (at, layers))


def shared_bytes(front: Manifest, back: Manifest) -> int:
    """Bytes of the matrices that both halves hold: the embedding where it is the head too, else none."""
    shapes = dict(front.model.matrices())
    return sum(front.precision_of(name).bytes_for(*shapes[name]) for name in front.precision if name in back.precision)


def _write(package: Package, out: Path, layers: tuple[int, int]) -> Half:
    """Layers [0, at) get the tokenizer's files: a front is what text enters by."""
    whole = package.manifest
    precision = {name: package.precision(name) for name, _ in package.model.matrices(*layers)}
    with PackageWriter(out) as writer:
        writer.write_weights(package.model, precision, _blocks(package, layers), layers)
        for name in TOKENIZER_FILES:
            if layers[0] == 0 and name in whole.files:
                writer.add_file(name, package.file(name).read_bytes())
        half = replace(
            whole,
            name=out.name.removesuffix(".edgemem"),
            precision=precision,
            graphs=(),
            part=Part(*layers, whole.model_hash),
        )
        return Half(out, writer.finish(half))


def _blocks(package: Package, layers: tuple[int, int]) -> Iterator[tuple[str, Block]]:
    for name, _ in package.model.vectors(*layers):
        yield name, package.vector(name)
    for name, _ in package.model.matrices(*layers):
        for block in matrix_blocks(name, package.matrix(name), package.precision(name)):
            yield name, block
