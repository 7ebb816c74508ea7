"""Tiny random checkpoints of every family in Hugging Face's folder layout, made without torch.

The tokenizer is real: a byte-level BPE trained here, with special tokens and a chat template. `tiny_hf_model` opens
such a folder with transformers (torch float32): the outside truth. Import as `from tiny_models import tiny_folder`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

FAMILIES = ("llama", "llama3", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3")
VOCABULARY = 320
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORPUS = [
    "The river ran slowly past the mill, and the miller counted the sacks of grain that the farmers brought.",
    "She asked whether the lamp was on the table, and he answered that the lamp had been there all the time.",
    "When the rain stopped the children went out to the garden; the stones were wet and the grass was green.",
    "There is nothing in the box, there is something in the other box, and there are three more in the house.",
]

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
_LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
    "long_factor": [1.0, 1.1, 1.3, 1.8, 2.5, 3.5, 5.0, 7.0],
}
_DIFFERENCES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False},
    "llama3": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_theta": 500000.0,
        "rope_scaling": _LLAMA3_SCALING,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
        "sliding_window": 128,
        "max_window_layers": 2,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 32,
        "rope_theta": 1000000.0,
        "attention_bias": False,
        "use_sliding_window": False,
    },
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 8},
    "gemma3_text": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "attn_logit_softcapping": None,  # transformers reads it for Gemma 3 and does not apply it
        "final_logit_softcapping": 8.0,
        "attention_bias": False,
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": 128,
        "partial_rotary_factor": 0.5,
        "rope_scaling": _LONGROPE,
        "original_max_position_embeddings": 128,
        "sliding_window": None,
    },
}


def tiny_config(family: str, *, tied: bool) -> dict[str, Any]:
    """config.json of a tiny model as its publisher would write it; change it and pass it to `write_folder`."""
    config = {**_COMMON, **_DIFFERENCES[family], "tie_word_embeddings": tied}
    if family == "gemma3_text":
        del config["hidden_act"]
    return config


def tiny_folder(tmp_path: Path, family: str, *, tied: bool, seed: int = 0) -> Path:
    """A folder with config.json, model.safetensors (float32) and tokenizer files; its path."""
    folder = tmp_path / f"tiny-{family}-{'tied' if tied else 'untied'}-{seed}"
    return write_folder(folder, tiny_config(family, tied=tied), seed)


def write_folder(folder: Path, config: dict[str, Any], seed: int) -> Path:
    """Write `config`, random weights of its dimensions and the tiny tokenizer into `folder`, which is made."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tiny_weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder)
    return folder


def tiny_weights(config: dict[str, Any], seed: int) -> dict[str, NDArray[np.float32]]:
    """Random float32 tensors under the family's own names, scaled so that attention and logits are well spread."""
    random = np.random.default_rng(seed)
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    gemma, fused = config["model_type"] == "gemma3_text", config["model_type"] == "phi3"
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim

    def matrix(rows: int, columns: int, gain: float = 1.2) -> NDArray[np.float32]:
        return (random.standard_normal((rows, columns)) * gain / columns**0.5).astype(np.float32)

    def norm(length: int) -> NDArray[np.float32]:
        return ((0.0 if gemma else 1.0) + 0.2 * random.standard_normal(length)).astype(np.float32)

    tensors = {"model.embed_tokens.weight": matrix(VOCABULARY, hidden, 2.5)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        query, key, value = (matrix(rows, hidden) for rows in (queries, keys, keys))
        gate, up = matrix(wide, hidden), matrix(wide, hidden)
        if fused:
            tensors[at + "self_attn.qkv_proj.weight"] = np.concatenate([query, key, value])
            tensors[at + "mlp.gate_up_proj.weight"] = np.concatenate([gate, up])
        else:
            for name, weight in (("q", query), ("k", key), ("v", value)):
                tensors[f"{at}self_attn.{name}_proj.weight"] = weight
                if config["model_type"] == "qwen2":
                    bias = random.standard_normal(len(weight)).astype(np.float32)
                    tensors[f"{at}self_attn.{name}_proj.bias"] = bias
            tensors[at + "mlp.gate_proj.weight"], tensors[at + "mlp.up_proj.weight"] = gate, up
        tensors[at + "self_attn.o_proj.weight"] = matrix(hidden, queries)
        tensors[at + "mlp.down_proj.weight"] = matrix(hidden, wide)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if gemma:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for name in norms:
            tensors[f"{at}{name}.weight"] = norm(hidden)
        if gemma or config["model_type"] == "qwen3":
            tensors[at + "self_attn.q_norm.weight"] = norm(head_dim)
            tensors[at + "self_attn.k_norm.weight"] = norm(head_dim)
    tensors["model.norm.weight"] = norm(hidden)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(VOCABULARY, hidden, 2.5)
    return tensors


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json (byte-level BPE, exactly VOCABULARY entries), tokenizer_config.json, generation_config.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"the tiny corpus gave {tokenizer.get_vocab_size()} tokens, wanted {VOCABULARY}")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    generation = {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))


def tiny_hf_model(folder: Path) -> Any:
    """The folder opened by transformers in torch float32 with eager attention, one thread, ready to evaluate.

    Raises ValueError if transformers misses a tensor or was given one too many.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {key: value for key, value in loading.items() if value}
    if wrong:
        raise ValueError(f"transformers did not take the tiny checkpoint whole: {wrong}")
    return model.eval()


def hf_logits(model: Any, tokens: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """(n,) token ids to (n, vocabulary) float32 by a model of `tiny_hf_model`, in one prefill."""
    import torch

    with torch.no_grad():
        logits = model(torch.from_numpy(np.asarray(tokens, dtype=np.int64))[None]).logits
    return np.asarray(logits[0].numpy(), dtype=np.float32)
