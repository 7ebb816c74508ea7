"""Tiny GGUF files from the tiny checkpoints of tiny_models, by the rules of llama.cpp's converter.

Query and key rows of llama are put in neighbour order, Gemma's norms get their +1. Import from `tiny_gguf`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from tiny_models import CHAT_TEMPLATE

TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
Quantize = Callable[[str, NDArray[np.float32]], gguf.GGMLQuantizationType]


def gguf_name(name: str, gemma: bool) -> str:
    if name in TENSORS:
        return TENSORS[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    after = {"post_attention_layernorm": "post_attention_norm" if gemma else "ffn_norm"}
    after |= {"pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}
    return f"blk.{layer}.{(IN_LAYER | after)[part]}.{kind}"


def neighbour_order(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rotate-half rows (head, half, pair) to (head, pair, half), as the converter writes llama's queries and keys."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write_gguf(
    path: Path,
    config: dict[str, Any],
    weights: dict[str, NDArray[np.float32]],
    tokenizer: Path | None = None,
    *,
    types: Quantize = lambda name, weight: gguf.GGMLQuantizationType.F32,
    extra: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """Write a tiny Hugging Face model as GGUF; `tokenizer` is its tokenizer.json, `extra` adds more keys."""
    architecture = {"gemma3_text": "gemma3", "mistral": "llama"}.get(config["model_type"], config["model_type"])
    gemma = architecture == "gemma3"
    writer = gguf.GGUFWriter(path, architecture)
    _write_dimensions(writer, config, gemma)
    if tokenizer is not None:
        write_byte_level_vocabulary(writer, tokenizer)
    extra(writer)
    for name, original in weights.items():
        weight = converted(name, original, config, architecture)
        kind = types(name, weight) if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name, gemma), gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(name: str, weight: NDArray[Any], config: dict[str, Any], architecture: str) -> NDArray[Any]:
    """A Hugging Face tensor as the converter stores it."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    projection = name.split(".")[-2]
    if architecture == "llama" and projection in heads:
        return neighbour_order(weight, heads[projection])
    return weight + 1 if architecture == "gemma3" and name.endswith("norm.weight") else weight


def _write_dimensions(writer: gguf.GGUFWriter, config: dict[str, Any], gemma: bool) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if gemma:
        writer.add_sliding_window(config["sliding_window"])


def write_byte_level_vocabulary(writer: gguf.GGUFWriter, tokenizer: Path, pre: str = "gpt-2") -> None:
    """The vocabulary and merges of a byte-level tokenizer.json, with the tiny models' chat template."""
    plain = json.loads(tokenizer.read_text())
    ids = dict(plain["model"]["vocab"])
    control = {token["content"]: token["id"] for token in plain["added_tokens"]}
    ids.update(control)
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in control else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in plain["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
