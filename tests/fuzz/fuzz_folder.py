"""Any config, index and tokenizer files beside sound weights are a checkpoint or one of our errors.

A checkpoint that is opened reads whole: every tensor that its model describes, in its shape.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import driver
from safetensors.numpy import save_file
from tiny_models import VOCABULARY, tiny_config, tiny_weights

from edgemem.compiler.checkpoint import open_checkpoint
from edgemem.runtime.errors import FileError

_FILES = (
    "config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
)
_SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_KINDS: dict[str, dict[str, Any]] = {
    "llama3": {"num_key_value_heads": 1},
    "qwen2": {},
    "gemma3_text": {"layer_types": ["sliding_attention"]},
    "phi3": {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}},
}
_TOKENIZER = {"model": {"vocab": {"a": 0, "b": VOCABULARY - 1}}, "added_tokens": [{"content": "</s>", "id": 2}]}
_MEMORY = "/dev/shm"
_HOLDER = tempfile.TemporaryDirectory(dir=_MEMORY if Path(_MEMORY).is_dir() else None)
_FOLDER = Path(_HOLDER.name)


def _seed(kind: str) -> bytes:
    """The files of a model of one layer, whose weights are laid into the folder."""
    config = {**tiny_config(kind, tied=kind == "gemma3_text"), **_SIZES, **_KINDS[kind]}
    weights = tiny_weights(config, seed=0)
    save_file(weights, _FOLDER / f"{kind}.safetensors")
    index = {"weight_map": dict.fromkeys(weights, f"{kind}.safetensors")}
    parts = (config, index, _TOKENIZER, {"eos_token": "</s>", "chat_template": "x"}, {"eos_token_id": [2, 0]})
    return b"\0".join(json.dumps(part).encode() for part in parts)


SEEDS = [_seed(kind) for kind in _KINDS]


def fuzz_one_input(data: bytes) -> bool:
    contents = [*data.split(b"\0"), *[b""] * len(_FILES)]
    for name, content in zip(_FILES, contents, strict=False):
        (_FOLDER / name).write_bytes(content)
    try:
        checkpoint = open_checkpoint(_FOLDER)
    except FileError:
        return False
    with checkpoint:
        model = checkpoint.model
        for name, shape in model.matrices():
            if checkpoint.matrix(name).rows().shape != shape:
                raise AssertionError(f"{name} is not {shape}")
        for name, length in model.vectors():
            if checkpoint.vector(name).shape != (length,):
                raise AssertionError(f"{name} is not {length} long")
        json.loads(checkpoint.tokenizer_files["generation_config.json"])
    return True


if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
