"""GGUF files of random weights in the shape of a known model: speed depends on the shape, not on what was learnt.

Matrices are Q4_0 and the tied embedding, which is also the head, Q8_0, drawn as stored blocks: no zeros that a
processor could make light of. The vocabulary has the right size and no meaning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.filler_tokenizer import filler_tokens
from edgemem.profiles.shapes import shape as known_shape
from edgemem.runtime.model import ModelSpec

if TYPE_CHECKING:
    from gguf import GGUFWriter

BLOCK = 32  # weights that share a scale, in Q4_0 and Q8_0 alike
_SIZES = {"Q4_0": 2 + 16, "Q8_0": 2 + 32}  # bytes of a block: an fp16 scale, then the codes
_DEVIATIONS = {"Q4_0": 4.63, "Q8_0": 73.9}  # of uniform codes, in units of the scale
_CONTROL, _NORMAL = 3, 1


@dataclass(frozen=True)
class Shape:
    """A decoder with a tied head, of the architecture "llama" or "qwen2". Its rope turns by the base alone."""

    name: str
    model: ModelSpec
    rope_base: float
    context: int = 8192


SHAPES = {
    name: Shape(name, known_shape(name), rope_base)
    for name, rope_base in (("llama-3.2-1b", 500_000.0), ("qwen2.5-0.5b", 1_000_000.0))
}


def write_shape(path: Path, shape: Shape, seed: int = 0) -> Path:
    """Write the file at `path`, whole or not at all; the same seed gives the same bytes."""
    from gguf import GGMLQuantizationType, GGUFWriter

    part = path.with_name(f"{path.name}.part")
    writer = GGUFWriter(part, shape.model.architecture)
    _write_dimensions(writer, shape)
    _write_vocabulary(writer, shape.model.vocabulary)
    for name, data, kind in _tensors(shape.model, np.random.default_rng(seed)):
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, path)
    return path


def _write_dimensions(writer: GGUFWriter, shape: Shape) -> None:
    model = shape.model
    writer.add_name(f"{shape.name}, random weights")
    writer.add_file_type(2)  # mostly Q4_0
    writer.add_quantization_version(2)
    writer.add_block_count(model.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(model.hidden)
    writer.add_feed_forward_length(model.intermediate)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(model.norm_epsilon)
    writer.add_vocab_size(model.vocabulary)


def _write_vocabulary(writer: GGUFWriter, size: int) -> None:
    """A byte-level vocabulary: one end-of-text token, the 256 bytes, one merge, and fillers that no text holds."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(filler_tokens(size, ["th"]))
    writer.add_token_types([_CONTROL] + [_NORMAL] * (size - 1))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def _tensors(model: ModelSpec, random: np.random.Generator) -> Iterator[tuple[str, NDArray[Any], str]]:
    """(name, data, type) of every tensor, in the order of the model."""
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    matrices = {
        "attn_q": (query, model.hidden),
        "attn_k": (key, model.hidden),
        "attn_v": (key, model.hidden),
        "attn_output": (model.hidden, query),
        "ffn_gate": (model.intermediate, model.hidden),
        "ffn_up": (model.intermediate, model.hidden),
        "ffn_down": (model.hidden, model.intermediate),
    }
    yield "token_embd.weight", random_blocks(random, model.vocabulary, model.hidden, "Q8_0"), "Q8_0"
    for layer in range(model.layers):
        for name, (rows, columns) in matrices.items():
            yield f"blk.{layer}.{name}.weight", random_blocks(random, rows, columns, "Q4_0"), "Q4_0"
            if model.qkv_bias and name in ("attn_q", "attn_k", "attn_v"):
                yield f"blk.{layer}.{name}.bias", _vector(random, rows, 0.0), "F32"
        for norm in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{norm}.weight", _vector(random, model.hidden, 1.0), "F32"
    yield "output_norm.weight", _vector(random, model.hidden, 1.0), "F32"


def random_blocks(random: np.random.Generator, rows: int, columns: int, kind: str) -> NDArray[np.uint8]:
    """(rows, bytes) of stored blocks whose weights have a standard deviation of about columns ** -0.5."""
    blocks = random.integers(0, 256, (rows, columns // BLOCK, _SIZES[kind]), dtype=np.uint8)
    scale = columns**-0.5 / _DEVIATIONS[kind]
    scales = (scale * random.uniform(0.7, 1.3, (rows, columns // BLOCK, 1))).astype(np.float16)
    blocks[:, :, :2] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)


def _vector(random: np.random.Generator, size: int, mean: float) -> NDArray[np.float32]:
    return (mean + 0.1 * random.standard_normal(size)).astype(np.float32)
