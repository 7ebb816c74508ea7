"""The GGUF reader: metadata to ModelSpec, ggml's tensor names to canonical ones, lazy matrices.

The container is checked by gguf_file.py and blocks are decoded by gguf_blocks.py. Norms of Gemma already hold the +1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.architectures import checked_model, float32_root
from edgemem.compiler.checkpoint import Checkpoint
from edgemem.compiler.fields import Fields
from edgemem.compiler.gguf_blocks import BLOCK_TYPES, GgufMatrix, dequantize, unrotated_rows
from edgemem.compiler.gguf_file import GgufFile
from edgemem.compiler.gguf_tokenizer import build_tokenizer_files
from edgemem.compiler.rope_frequencies import build_rope
from edgemem.compiler.source_folder import sha256_of_file
from edgemem.runtime.errors import CheckpointError, UnsupportedModel
from edgemem.runtime.limits import LIMITS
from edgemem.runtime.manifest import Origin
from edgemem.runtime.model import ModelSpec, Rope

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
_ENDS = {"embedding": "token_embd.weight", "head": "output.weight", "norm": "output_norm.weight"}
_IN_LAYER = {
    "query": "attn_q.weight",
    "key": "attn_k.weight",
    "value": "attn_v.weight",
    "output": "attn_output.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "attention_norm": "attn_norm.weight",
    "attention_post_norm": "post_attention_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "mlp_post_norm": "post_ffw_norm.weight",
    "query_norm": "attn_q_norm.weight",
    "key_norm": "attn_k_norm.weight",
    "query_bias": "attn_q.bias",
    "key_bias": "attn_k.bias",
    "value_bias": "attn_v.bias",
    "output_bias": "attn_output.bias",
}
_ROPE_FACTORS = "rope_freqs.weight"
_FLOATS = ("F32", "F16", "BF16")


def open_gguf(path: Path) -> Checkpoint:
    """Open the GGUF file at `path`; see checkpoint.open_checkpoint for what is raised."""
    file = GgufFile(path)
    try:
        architecture = _architecture(file)
        model = _model(file, architecture)
        _check_tensors(file, model)
        tokenizer_files = build_tokenizer_files(file, model.vocabulary)
        paired = model.head_dim if architecture == "llama" else 0
        matrices = {name: _matrix(file, name, paired) for name, _ in model.matrices()}
    except BaseException:
        file.close()
        raise
    return Checkpoint(
        model=model,
        matrices=matrices,
        vectors={name: _vector(file, name, paired) for name, _ in model.vectors()},
        tokenizer_files=tokenizer_files,
        find_origin=lambda: Origin(path.name, "gguf", sha256_of_file(path), _licence(file)),
        close=file.close,
    )


def _architecture(file: GgufFile) -> str:
    name = Fields(file.metadata, file.path).text("general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"architecture {ascii(name)[:60]} is not supported in GGUF files",
            where=file.path,
            wanted=f"one of {', '.join(ARCHITECTURES)}",
        )
    fields = Fields(file.metadata, file.path, f"{name}.")
    for key in ("expert_count", "attention.clamp_kqv", "attention.shared_kv_layers", "logit_scale", "residual_scale"):
        if fields.get(key) not in (None, 0, 0.0):
            raise UnsupportedModel(
                "this variant of the architecture is not supported",
                where=file.path,
                got=f"{name}.{key}",
                wanted="no such key, or 0",
            )
    if Fields(file.metadata, file.path).integer("split.count", 1, least=0) > 1:
        raise UnsupportedModel(
            "GGUF files in several parts are not supported", where=file.path, do="join them: llama-gguf-split --merge"
        )
    return name


def _model(file: GgufFile, architecture: str) -> ModelSpec:
    fields = Fields(file.metadata, file.path, f"{architecture}.")
    gemma = architecture == "gemma3"
    layers = fields.integer("block_count", most=LIMITS.layers)
    hidden = fields.integer("embedding_length")
    heads = fields.integer("attention.head_count")
    head_dim = _head_dim(fields, hidden, heads)
    context = fields.integer("context_length", most=LIMITS.context)
    windows = _windows(fields, layers) if gemma else (0,) * layers
    ropes = [_rope(file, fields, head_dim, context, 1_000_000.0 if gemma else 10_000.0)]
    if gemma:
        local = {"rope_theta": fields.number("rope.freq_base_swa", 10_000.0)}
        ropes.append(build_rope(Fields(local, file.path), head_dim, context))
    return checked_model(
        file.path,
        architecture="gemma3_text" if gemma else architecture,
        layers=layers,
        hidden=hidden,
        intermediate=fields.integer("feed_forward_length"),
        heads=heads,
        kv_heads=fields.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocabulary=_rows(file, _ENDS["embedding"]),
        trained_context=context,
        norm_epsilon=fields.number("attention.layer_norm_rms_epsilon"),
        activation="gelu_tanh" if gemma else "silu",
        tied_head=_ENDS["head"] not in file.tensors,
        ropes=tuple(ropes),
        layer_ropes=tuple(1 if window else 0 for window in windows),
        windows=windows,
        attention_scale=_attention_scale(fields, gemma, layers, hidden / heads, head_dim),
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        output_bias="blk.0.attn_output.bias" in file.tensors,
        qk_norm=architecture in ("qwen3", "gemma3"),
        sandwich_norms=gemma,
        embedding_scale=float32_root(hidden) if gemma else 1.0,
        logit_softcap=fields.number("final_logit_softcapping", 0.0, zero=True),
    )


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    if not fields.has("attention.key_length") and hidden % heads:
        raise fields.wrong("attention.head_count", f"a divisor of embedding_length, {hidden}")
    head_dim = fields.integer("attention.key_length", hidden // heads or None)
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.integer(key, head_dim) != head_dim:
            raise UnsupportedModel(
                f"{fields.prefix}{key} differs from the head size",
                where=fields.where,
                got=fields.get(key),
                wanted=head_dim,
            )
    return head_dim


def _attention_scale(fields: Fields, gemma: bool, layers: int, share: float, head_dim: int) -> float:
    # The format has no key for Gemma 3 27B's own scale: every reader knows that model by its 62 layers.
    usual = share if gemma and layers == 62 else float(head_dim)
    return fields.number("attention.scale", usual**-0.5)


def _windows(fields: Fields, layers: int) -> tuple[int, ...]:
    """Gemma 3: local layers with a sliding window, every sixth one global unless the file says otherwise."""
    window = fields.integer("attention.sliding_window", most=LIMITS.context)
    pattern = fields.get("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray):
        if pattern.dtype.kind not in "iu" or len(pattern) != layers:
            raise fields.wrong("attention.sliding_window_pattern", f"{layers} entries, one a layer")
        return tuple(window if local else 0 for local in pattern.tolist())
    period = fields.integer("attention.sliding_window_pattern", 6)
    return tuple(window if (layer + 1) % period else 0 for layer in range(layers))


def _rope(file: GgufFile, fields: Fields, head_dim: int, context: int, base: float) -> Rope:
    parameters: dict[str, Any] = {"rope_theta": fields.number("rope.freq_base", base)}
    kind = fields.text("rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        parameters["rope_type"] = kind
        parameters["factor"] = fields.number("rope.scaling.factor")
        if kind == "yarn":
            parameters["original_max_position_embeddings"] = fields.integer("rope.scaling.original_context_length")
            parameters["beta_fast"] = fields.number("rope.scaling.yarn_beta_fast", 32.0)
            parameters["beta_slow"] = fields.number("rope.scaling.yarn_beta_slow", 1.0)
    elif kind != "none":
        raise UnsupportedModel(
            f"rope scaling {ascii(kind)[:60]} is not supported", where=file.path, wanted="none, linear or yarn"
        )
    rope = build_rope(Fields(parameters, file.path), head_dim, context)
    if _ROPE_FACTORS not in file.tensors:
        return rope
    # Llama 3's scaling arrives as one divisor for every pair.
    if file.tensors[_ROPE_FACTORS].shape != (head_dim // 2,):
        raise _wrong_shape(file, _ROPE_FACTORS, (head_dim // 2,))
    factors = _floats(file, _ROPE_FACTORS, _ROPE_FACTORS)
    with np.errstate(all="ignore"):  # a factor of 0 gives infinity, which ModelSpec refuses
        inverse = np.array(rope.inverse_frequencies, dtype=np.float32) / factors
    return replace(rope, inverse_frequencies=tuple(float(value) for value in inverse))


def _rows(file: GgufFile, tensor: str) -> int:
    if tensor not in file.tensors:
        raise file.error(f"tensor {tensor} is missing")
    return file.tensors[tensor].shape[0]


def _tensor_name(name: str) -> str:
    """The GGUF name of a canonical name."""
    if name in _ENDS:
        return _ENDS[name]
    _, layer, part = name.split(".")
    return f"blk.{layer}.{_IN_LAYER[part]}"


def _check_tensors(file: GgufFile, model: ModelSpec) -> None:
    """Every tensor of the model present, in its shape, of a type that is read; nothing else in the file."""
    wanted: dict[str, tuple[int, ...]] = {_tensor_name(name): (length,) for name, length in model.vectors()}
    matrices = {_tensor_name(name): shape for name, shape in model.matrices()}
    wanted.update(matrices)
    missing = [name for name in wanted if name not in file.tensors]
    surplus = [name for name in file.tensors if name not in wanted and name != _ROPE_FACTORS]
    if missing or surplus:
        raise CheckpointError(
            f"the tensors are not those of the {model.architecture} that the metadata describes",
            where=file.path,
            got=f"missing: {', '.join(missing[:8]) or 'none'}; not expected: {surplus[:8]!a}",
            wanted=f"{len(wanted)} tensors",
        )
    for name, shape in wanted.items():
        tensor = file.tensors[name]
        if tensor.shape != shape:
            raise _wrong_shape(file, name, shape)
        kind = BLOCK_TYPES.get(tensor.type_id)
        readable = [known.name for known in BLOCK_TYPES.values() if name in matrices or known.name in _FLOATS]
        if kind is None or kind.name not in readable:
            raise UnsupportedModel(
                f"tensor {name} is of a type that is not supported",
                where=file.path,
                got=_type_name(tensor.type_id),
                wanted=f"one of {', '.join(readable)}",
            )


def _type_name(type_id: int) -> str:
    import gguf

    return str(gguf.GGMLQuantizationType(type_id).name)


def _wrong_shape(file: GgufFile, tensor: str, wanted: tuple[int, ...]) -> CheckpointError:
    return file.error(f"tensor {tensor} has the wrong shape", got=file.tensors[tensor].shape, wanted=wanted)


def _floats(file: GgufFile, tensor: str, name: str) -> NDArray[np.float32]:
    if (type_id := file.tensors[tensor].type_id) not in BLOCK_TYPES or BLOCK_TYPES[type_id].name not in _FLOATS:
        raise UnsupportedModel(
            f"tensor {tensor} is of a type that is not supported",
            where=file.path,
            got=_type_name(type_id),
            wanted=f"one of {', '.join(_FLOATS)}",
        )
    return dequantize(name, file.bytes_of(tensor), type_id).reshape(-1)


def _matrix(file: GgufFile, name: str, paired_head: int) -> GgufMatrix:
    tensor = _tensor_name(name)
    entry = file.tensors[tensor]
    rotary = name.endswith((".query", ".key"))
    return GgufMatrix(name, file.bytes_of(tensor), entry.type_id, entry.shape[1], paired_head if rotary else 0)


def _vector(file: GgufFile, name: str, paired_head: int) -> Callable[[], NDArray[np.float32]]:
    read = partial(_floats, file, _tensor_name(name), name)
    if not paired_head or not name.endswith((".query_bias", ".key_bias")):
        return read
    return lambda: (values := read())[unrotated_rows(np.arange(len(values)), paired_head)]


def _licence(file: GgufFile) -> str | None:
    licence = file.metadata.get("general.license")
    return licence[:100] if isinstance(licence, str) and licence.isprintable() and licence else None
