"""Writes genai_config.json, by which onnxruntime-genai opens the package folder. edgemem itself never reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgemem.runtime.model import ModelSpec

GENAI_FILE = "genai_config.json"


def genai_config(model: ModelSpec, max_context: int, generation: Mapping[str, Any]) -> bytes:
    """The file's content. `generation` is generation_config.json: bos_token_id, eos_token_id, pad_token_id.

    `eos_token_id` is one id or several; the pad id, which a batch of one never needs, is the first of them if missing.
    """
    end = generation.get("eos_token_id")
    ends = list(end) if isinstance(end, list) else [end] if end is not None else []
    pad = generation.get("pad_token_id")
    tokens = {"bos_token_id": generation.get("bos_token_id"), "eos_token_id": end, "pad_token_id": pad}
    if pad is None and ends:
        tokens["pad_token_id"] = ends[0]
    config = {
        "model": {
            "type": "decoder",
            "context_length": max_context,
            "vocab_size": model.vocabulary,
            **{name: value for name, value in tokens.items() if value is not None},
            "decoder": _decoder(model),
        },
        "search": {
            "do_sample": False,
            "early_stopping": True,
            "max_length": max_context,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
    return json.dumps(config, indent=2).encode()


def _decoder(model: ModelSpec) -> dict[str, Any]:
    return {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": model.head_dim,
        "hidden_size": model.hidden,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads,
    }
