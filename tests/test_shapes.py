"""Shapes against what their authors publish: the number of parameters, and the configuration that is read to compile.

Counts are those of the released files' headers, a tied head once.
"""

from __future__ import annotations

from typing import Any

import pytest

from edgemem.compiler.architectures import read_architecture
from edgemem.compiler.fields import Fields
from edgemem.profiles.shapes import SHAPES, parameters, shape
from edgemem.runtime.errors import SettingsError

PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "gemma-3-1b": 999_885_952,
    "mistral-7b": 7_248_023_552,
    "phi-3-mini": 3_821_079_552,
}


def config(
    model_type: str, sizes: tuple[int, int, int], heads: tuple[int, int], vocabulary: int, context: int, **others: Any
) -> dict[str, Any]:
    """A config.json. sizes: layers, hidden, intermediate. heads: of queries, of keys."""
    layers, hidden, intermediate = sizes
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        **others,
    }


def llama3(factor: float) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_theta": 500_000.0, "rope_scaling": {**scaling, "original_max_position_embeddings": 8192}}


QWEN = {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "use_sliding_window": False, "sliding_window": None}
UNTIED = {"tie_word_embeddings": False}
CONFIGS = {
    "smollm2-135m": config("llama", (30, 576, 1536), (9, 3), 49_152, 8192, rope_theta=1e5),
    "smollm2-1.7b": config("llama", (24, 2048, 8192), (32, 32), 49_152, 8192, rope_theta=1.3e5),
    "qwen2.5-0.5b": config("qwen2", (24, 896, 4864), (14, 2), 151_936, 32_768, **QWEN),
    "qwen2.5-7b": config("qwen2", (28, 3584, 18_944), (28, 4), 152_064, 131_072, **QWEN, **UNTIED),
    "qwen3-0.6b": config("qwen3", (28, 1024, 3072), (16, 8), 151_936, 40_960, **QWEN, head_dim=128),
    "qwen3-8b": config("qwen3", (36, 4096, 12_288), (32, 8), 151_936, 40_960, **QWEN, **UNTIED, head_dim=128),
    "llama-3.2-1b": config("llama", (16, 2048, 8192), (32, 8), 128_256, 131_072, **llama3(32.0)),
    "llama-3.2-3b": config("llama", (28, 3072, 8192), (24, 8), 128_256, 131_072, **llama3(32.0)),
    "llama-3.1-8b": config("llama", (32, 4096, 14_336), (32, 8), 128_256, 131_072, **llama3(8.0), **UNTIED),
    "gemma-3-1b": config(
        "gemma3_text",
        (26, 1152, 6912),
        (4, 1),
        262_144,
        32_768,
        head_dim=256,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=256,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        sliding_window=512,
        sliding_window_pattern=6,
    ),
    "mistral-7b": config(
        "mistral", (32, 4096, 14_336), (32, 8), 32_768, 32_768, rope_theta=1e6, sliding_window=None, **UNTIED
    ),
    "phi-3-mini": config(
        "phi3", (32, 3072, 8192), (32, 32), 32_064, 4096, rope_theta=1e4, sliding_window=2047, **UNTIED
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_published(name: str) -> None:
    assert parameters(shape(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_shape_is_what_compiling_the_released_model_would_read(name: str) -> None:
    assert shape(name) == read_architecture(Fields(CONFIGS[name], "config.json")).model


def test_another_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"qwen2\.5-7b") as raised:
        shape("qwen2.5-7B")
    assert raised.value.got == "'qwen2.5-7B'"
