"""Writes a package of random weights in any shape and precision, to time a device before a model is chosen.

Codes, scales and floats are drawn block by block as they are stored: no zeros that a processor could make light of,
and never a float copy of the model. It says nothing of quality.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.emit_onnx import emit_graph
from edgemem.compiler.filler_tokenizer import filler_tokenizer_files
from edgemem.compiler.genai_config import GENAI_FILE, genai_config
from edgemem.compiler.plan import PrecisionPlan
from edgemem.compiler.weights_writer import Block
from edgemem.compiler.writer import PackageWriter
from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.runtime.errors import SettingsError
from edgemem.runtime.manifest import GraphRecord, Manifest, Origin, TokenizerRecord
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.tokenizer import Tokenizer

Progress = Callable[[str, float], None]

_BLOCK_VALUES = 1 << 23  # drawn at once: 32 MiB of float32
_GRAPH = "model.onnx"
_LEAST_VOCABULARY = 257  # the bytes, and the end of a text


def write_random_package(
    out: Path,
    spec: ModelSpec,
    *,
    weights: Precision,
    head: Precision | None = None,
    seed: int = 0,
    max_context: int | None = None,
    progress: Progress = lambda stage, share: None,
) -> Manifest:
    """Write the package `out`, replacing one that is there; gives its manifest. The same seed gives the same bytes.

    weights: of all layers. head: of embedding and head, by default int8 beside int4 and else as `weights`. Where a
    group does not divide a matrix's rows it becomes the widest that does. max_context: KV slots, by default all that
    the model was trained for. Weights have a standard deviation of about columns ** -0.5.
    Raises SettingsError for a context or vocabulary out of range, PackageError, before anything is written, where the
    disk has no room for it.
    """
    context = spec.trained_context if max_context is None else max_context
    if not 1 < context <= spec.trained_context:
        raise SettingsError("the context is out of range", got=context, wanted=f"2 to {spec.trained_context}")
    if spec.vocabulary < _LEAST_VOCABULARY:
        raise SettingsError(
            "the vocabulary has no room for the bytes", got=spec.vocabulary, wanted=f"at least {_LEAST_VOCABULARY}"
        )
    precision = random_plan(spec, weights, head)
    files = filler_tokenizer_files(spec.vocabulary)
    tokenizer = Tokenizer(files, spec.vocabulary, where=out)
    with PackageWriter(out) as writer:
        entries = writer.write_weights(spec, precision, _tensors(spec, precision, seed, progress))
        with writer.disk_errors():
            emit_graph(writer.path(_GRAPH), spec, precision.__getitem__, entries, context)
        writer.adopt(_GRAPH)
        for name, data in files.items():
            writer.add_file(name, data)
        writer.add_file(GENAI_FILE, genai_config(spec, context, json.loads(files["generation_config.json"])))
        return writer.finish(
            Manifest(
                name=out.name.removesuffix(".edgemem"),
                model=spec,
                max_context=context,
                precision=precision,
                files={},
                graphs=(GraphRecord(_GRAPH, 0, spec.layers),),
                tokenizer=TokenizerRecord(tokenizer.vocabulary, tokenizer.make_probes()),
                origin=_origin(spec, precision, seed),
            )
        )


def random_plan(spec: ModelSpec, weights: Precision, head: Precision | None = None) -> dict[str, Precision]:
    """The precision of every matrix, as write_random_package chooses it."""
    if head is None:
        head = Precision("int8", weights.group) if weights.kind == "int4" else weights
    return {
        name: _fitting(head if name in ("embedding", "head") else weights, columns)
        for name, (_, columns) in spec.matrices()
    }


def _fitting(asked: Precision, columns: int) -> Precision:
    if not asked.quantized:
        return asked
    fitting = PrecisionPlan(weights=asked.kind, group=asked.group).precision("layers.0.query", columns, None)
    return replace(fitting, minimum=asked.minimum) if fitting.quantized else fitting


def _tensors(
    spec: ModelSpec, precision: Mapping[str, Precision], seed: int, progress: Progress
) -> Iterator[tuple[str, Block]]:
    """Every tensor, a block of rows at a time."""
    random = np.random.Generator(np.random.SFC64(seed))
    for name, length in spec.vectors():
        values = 0.1 * random.standard_normal(length, dtype=np.float32)
        yield name, values if name.endswith("bias") else values + np.float32(1)
    matrices = dict(spec.matrices())
    for index, (name, (rows, columns)) in enumerate(matrices.items()):
        progress("draw", index / len(matrices))
        step = max(1, _BLOCK_VALUES // columns)
        for first in range(0, rows, step):
            yield name, random_block(random, min(step, rows - first), columns, precision[name])


def random_block(random: np.random.Generator, rows: int, columns: int, precision: Precision) -> Block:
    """(rows, columns) weights with a mean of about 0 and a standard deviation of about columns ** -0.5."""
    deviation = columns**-0.5
    if not precision.quantized:
        values = random.random((rows, columns), dtype=np.float32)
        values -= np.float32(0.5)
        values *= np.float32(12**0.5 * deviation)
        return values
    levels = 1 << precision.bits
    groups = columns // precision.group
    scales = random.uniform(0.7, 1.3, (rows, groups)) * (deviation * 12**0.5 / levels)
    minima = (scales * (-(levels - 1) / 2)).astype(np.float16) if precision.minimum else None
    codes = _random_bytes(random, rows * columns * precision.bits // 8).reshape(rows, groups, -1)
    return QuantizedMatrix(codes, scales.astype(np.float16), minima, 4 if precision.bits == 4 else 8)


def _random_bytes(random: np.random.Generator, count: int) -> NDArray[np.uint8]:
    words: NDArray[np.uint64] = random.bit_generator.random_raw(-(-count // 8))
    return words.view(np.uint8)[:count]


def _origin(spec: ModelSpec, precision: Mapping[str, Precision], seed: int) -> Origin:
    """Without a source file the checksum is of all that the weights follow from."""
    recipe = {"model": spec.to_dict(), "precision": {name: str(kind) for name, kind in precision.items()}, "seed": seed}
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    return Origin(f"random weights, seed {seed}", "random", digest)
