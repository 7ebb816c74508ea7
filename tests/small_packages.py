"""A small valid package of random weights in every kind of precision, and ways to spoil it that stay self-consistent.

Made by the writer alone: `model.onnx` and `tokenizer.json` are stand-ins, so no engine can run it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from edgemem.compiler.weights_writer import Block
from edgemem.compiler.writer import PackageWriter
from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.runtime.manifest import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    FileRecord,
    GraphRecord,
    Manifest,
    Origin,
    Part,
    Probe,
    Quality,
    TokenizerRecord,
)
from edgemem.runtime.manifest_yaml import seal
from edgemem.runtime.model import ModelSpec, Rope

FILES = {"model.onnx": b"no graph", "tokenizer.json": b"{}"}


def small_model(**changes: Any) -> ModelSpec:
    values: dict[str, Any] = {
        "architecture": "llama",
        "layers": 3,
        "hidden": 64,
        "intermediate": 128,
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 32,
        "vocabulary": 40,
        "trained_context": 512,
        "norm_epsilon": 1e-5,
        "activation": "silu",
        "tied_head": False,
        "ropes": (Rope(tuple(float(100.0 ** (-i / 16)) for i in range(16))),),
        "layer_ropes": (0, 0, 0),
        "windows": (0, 0, 0),
        "attention_scale": 0.125,
        "qkv_bias": True,
    }
    return ModelSpec(**{**values, **changes})


def small_precision(model: ModelSpec) -> dict[str, Precision]:
    """Fused and unfused blocks, with and without minima, and each float kind."""
    precision = {name: Precision.parse("int4-g32-min") for name, _ in model.matrices()}
    differences = {
        "embedding": "int8-g32",
        "head": "bf16",
        "layers.1.key": "int4-g64",
        "layers.1.up": "fp16",
        "layers.1.down": "int8-g128-min",
        "layers.1.output": "fp32",
    }
    precision.update({name: Precision.parse(text) for name, text in differences.items() if name in precision})
    return precision


def random_blocks(
    model: ModelSpec, precision: Mapping[str, Precision], seed: int = 0, rows: int = 1 << 30
) -> Iterator[tuple[str, Block]]:
    """Every tensor of the model as the writer wants it, matrices in blocks of at most `rows` rows."""
    random = np.random.default_rng(seed)
    for name, length in model.vectors():
        yield name, random.standard_normal(length).astype(np.float32)
    for name, (height, columns) in model.matrices():
        for start in range(0, height, rows):
            yield name, random_block(random, min(rows, height - start), columns, precision[name])


def random_block(random: np.random.Generator, rows: int, columns: int, precision: Precision) -> Block:
    if not precision.quantized:
        return random.standard_normal((rows, columns)).astype(np.float32)
    groups = columns // precision.group
    shape = (rows, groups, precision.group * precision.bits // 8)
    return QuantizedMatrix(
        random.integers(0, 256, shape, dtype=np.uint8),
        random.random((rows, groups)).astype(np.float16),
        random.standard_normal((rows, groups)).astype(np.float16) if precision.minimum else None,
        4 if precision.bits == 4 else 8,
    )


def small_manifest(model: ModelSpec | None = None, files: Mapping[str, FileRecord] | None = None) -> Manifest:
    model = model or small_model()
    return Manifest(
        name="small",
        model=model,
        max_context=256,
        precision=small_precision(model),
        files=files or {WEIGHTS_FILE: FileRecord(8, "0" * 64), "model.onnx": FileRecord(1, "1" * 64)},
        graphs=(GraphRecord("model.onnx", 0, model.layers),),
        tokenizer=TokenizerRecord(40, (Probe("Hé, 1e5:\n no\t# 😀", (1, 2, 39)), Probe("yes", ()))),
        origin=Origin("org/small", "huggingface", "a" * 64, "apache-2.0"),
        quality=Quality("a text", 64, 23.5, 23.25, 0.0025, 0.96875),
    )


def part_manifest(whole: Manifest, first: int, last: int) -> Manifest:
    """What a part that holds layers [first, last) of it says."""
    names = [name for name, _ in whole.model.matrices(first, last)]
    part = Part(first, last, whole.model_hash)
    return replace(whole, precision={name: whole.precision[name] for name in names}, graphs=(), part=part)


def small_package(out: Path, *, seed: int = 0, model: ModelSpec | None = None) -> Path:
    """Write the package at `out`; its path."""
    manifest = small_manifest(model)
    with PackageWriter(out) as writer:
        writer.write_weights(
            manifest.model, manifest.precision, random_blocks(manifest.model, manifest.precision, seed)
        )
        for name, data in FILES.items():
            writer.add_file(name, data)
        writer.finish(manifest)
    return out


def edit_manifest(package: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's plain values in place, and seal it again."""
    plain = yaml.safe_load((package / MANIFEST_FILE).read_text())
    change(plain)
    (package / MANIFEST_FILE).write_bytes(seal(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode()))


def replace_file(package: Path, name: str, data: bytes) -> None:
    """Give `name` another content, and the manifest the size and hash of it."""
    (package / name).write_bytes(data)
    record = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(package, lambda plain: plain["files"].update({name: record}))


def split_weights(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, tensors) of a safetensors file."""
    stop = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:stop]), data[stop:]


def join_weights(header: Mapping[str, Any] | str, body: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + body
