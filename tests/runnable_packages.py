"""Packages of random weights that engines can run: any model, any precisions, whole and staged graphs, no tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemem.compiler.emit_onnx import emit_graph
from edgemem.compiler.weights_writer import Block
from edgemem.compiler.writer import PackageWriter
from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.runtime.manifest import GraphRecord, Manifest, Origin, TokenizerRecord
from edgemem.runtime.model import ModelSpec, Rope


def plain_model(**changes: Any) -> ModelSpec:
    """A small Llama."""
    values: dict[str, Any] = {
        "architecture": "llama",
        "layers": 3,
        "hidden": 64,
        "intermediate": 128,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "vocabulary": 97,
        "trained_context": 512,
        "norm_epsilon": 1e-5,
        "activation": "silu",
        "tied_head": False,
        "ropes": (rope(8),),
        "attention_scale": 0.25,
    }
    values.update(changes)
    values.setdefault("layer_ropes", (0,) * values["layers"])
    values.setdefault("windows", (0,) * values["layers"])
    return ModelSpec(**values)


def rich_model(**changes: Any) -> ModelSpec:
    """Every feature that any family has, at once."""
    values: dict[str, Any] = {
        "layers": 4,
        "head_dim": 32,
        "kv_heads": 1,
        "activation": "gelu_tanh",
        "tied_head": True,
        "ropes": (rope(16, 100.0), rope(8, 1000.0, amplitude=1.25)),
        "layer_ropes": (0, 1, 0, 1),
        "windows": (0, 6, 9, 0),
        "qkv_bias": True,
        "output_bias": True,
        "qk_norm": True,
        "sandwich_norms": True,
        "embedding_scale": 3.5,
        "attention_softcap": 5.0,
        "logit_softcap": 7.0,
    }
    return plain_model(**{**values, **changes})


def rope(pairs: int, base: float = 100.0, amplitude: float = 1.0) -> Rope:
    return Rope(tuple(float(base ** (-i / pairs)) for i in range(pairs)), amplitude)


def same_precision(model: ModelSpec, text: str, **others: str) -> dict[str, Precision]:
    """`text` for every matrix but those named by their last word, e.g. embedding="int8-g32", key="fp16"."""
    return {name: Precision.parse(others.get(name.split(".")[-1], text)) for name, _ in model.matrices()}


def runnable_package(
    out: Path,
    model: ModelSpec,
    precision: Mapping[str, Precision],
    *,
    max_context: int = 96,
    stages: Sequence[tuple[int, int]] = (),
    seed: int = 0,
) -> Path:
    """Write the package at `out`, with the whole graph and one for each of `stages`; its path."""
    graphs = {"model.onnx": (0, model.layers), **{f"layers-{a}-{b}.onnx": (a, b) for a, b in stages}}
    with PackageWriter(out) as writer:
        entries = writer.write_weights(model, precision, random_weights(model, precision, seed))
        for file, layers in graphs.items():
            emit_graph(writer.path(file), model, precision.__getitem__, entries, max_context, layers)
            writer.adopt(file)
        writer.finish(
            Manifest(
                name="random",
                model=model,
                max_context=max_context,
                precision=dict(precision),
                files={},
                graphs=tuple(GraphRecord(file, *layers) for file, layers in graphs.items()),
                tokenizer=TokenizerRecord(model.vocabulary, ()),
                origin=Origin("random", "huggingface", "0" * 64, None),
            )
        )
    return out


def random_weights(model: ModelSpec, precision: Mapping[str, Precision], seed: int = 0) -> Iterator[tuple[str, Block]]:
    """Every tensor, scaled so that activations neither vanish nor grow."""
    random = np.random.default_rng(seed)
    for name, length in model.vectors():
        values = 0.2 * random.standard_normal(length)
        yield name, (values + (0.0 if name.endswith("bias") else 1.0)).astype(np.float32)
    for name, (rows, columns) in model.matrices():
        gain = 2.5 if name in ("embedding", "head") else 1.2
        yield name, random_matrix(random, rows, columns, precision[name], gain / columns**0.5)


def random_matrix(
    random: np.random.Generator, rows: int, columns: int, precision: Precision, deviation: float
) -> Block:
    """Weights of about this standard deviation."""
    if not precision.quantized:
        return (random.standard_normal((rows, columns)) * deviation).astype(np.float32)
    groups = columns // precision.group
    levels = 1 << precision.bits
    codes = random.integers(0, 256, (rows, groups, precision.group * precision.bits // 8), dtype=np.uint8)
    scales = (deviation * 12**0.5 / levels * random.uniform(0.7, 1.3, (rows, groups))).astype(np.float16)
    minima = None
    if precision.minimum:
        minima = (-scales.astype(np.float64) * levels * random.uniform(0.4, 0.6, (rows, groups))).astype(np.float16)
    return QuantizedMatrix(codes, scales, minima, 4 if precision.bits == 4 else 8)
