"""Dimensions of well-known models by name, as their authors publish them: what a speed depends on, without weights.

Frequencies are those that compiling the released checkpoint gives. This file holds no licence, tokenizer or tensor.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgemem.runtime.errors import SettingsError
from edgemem.runtime.model import ModelSpec, Rope

_LLAMA3_CONTEXT, _LLAMA3_LOW, _LLAMA3_HIGH = 8192, 1.0, 4.0


def shape(name: str) -> ModelSpec:
    """The model of this name; SettingsError, listing those there are, for another."""
    if name not in SHAPES:
        raise SettingsError("there is no such shape", got=repr(name), wanted=", ".join(SHAPES))
    return SHAPES[name]


def parameters(model: ModelSpec) -> int:
    """Weights and biases, a tied head counted once."""
    matrices = sum(rows * columns for _, (rows, columns) in model.matrices())
    return matrices + sum(length for _, length in model.vectors())


def plain_rope(base: float, dim: int) -> Rope:
    """Pair i of `dim` rotated dimensions turns by base ** (-2 i / dim) a position, rounded as transformers does."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    periods = (base ** exponents.astype(np.float64)).astype(np.float32)
    return Rope(tuple(float(value) for value in np.float32(1) / periods))


def _llama3_rope(dim: int, factor: float) -> Rope:
    """Llama 3.1's stretching: long waves `factor` times as long, short ones as they were, a ramp between."""
    inverse = np.array(plain_rope(500_000.0, dim).inverse_frequencies, dtype=np.float32)
    waves = np.float32(2 * math.pi) / inverse
    ramp = (np.float32(_LLAMA3_CONTEXT) / waves - np.float32(_LLAMA3_LOW)) / np.float32(_LLAMA3_HIGH - _LLAMA3_LOW)
    stretched = inverse / np.float32(factor)
    blended = (np.float32(1) - ramp) * inverse / np.float32(factor) + ramp * inverse
    scaled = np.where(waves > np.float32(_LLAMA3_CONTEXT / _LLAMA3_LOW), stretched, blended)
    scaled = np.where(waves < np.float32(_LLAMA3_CONTEXT / _LLAMA3_HIGH), inverse, scaled)
    return Rope(tuple(float(value) for value in scaled))


def _decoder(
    architecture: str,
    sizes: tuple[int, int, int],
    heads: tuple[int, int, int],
    vocabulary: int,
    context: int,
    rope: Rope,
    **others: Any,
) -> ModelSpec:
    """sizes: layers, hidden, intermediate. heads: of queries, of keys, and the width of one."""
    (layers, hidden, intermediate), (queries, keys, width) = sizes, heads
    values: dict[str, Any] = {
        "norm_epsilon": 1e-5,
        "activation": "silu",
        "tied_head": True,
        "ropes": (rope,),
        "layer_ropes": (0,) * layers,
        "windows": (0,) * layers,
        "attention_scale": width**-0.5,
    }
    return ModelSpec(
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=queries,
        kv_heads=keys,
        head_dim=width,
        vocabulary=vocabulary,
        trained_context=context,
        **{**values, **others},
    )


def _qwen25(
    sizes: tuple[int, int, int],
    heads: tuple[int, int],
    context: int,
    vocabulary: int = 151_936,
    *,
    tied: bool = True,
) -> ModelSpec:
    width = sizes[1] // heads[0]
    others = {"tied_head": tied, "qkv_bias": True, "norm_epsilon": 1e-6}
    return _decoder("qwen2", sizes, (*heads, width), vocabulary, context, plain_rope(1e6, width), **others)


def _qwen3(sizes: tuple[int, int, int], heads: tuple[int, int], *, tied: bool = True) -> ModelSpec:
    others = {"tied_head": tied, "qk_norm": True, "norm_epsilon": 1e-6}
    return _decoder("qwen3", sizes, (*heads, 128), 151_936, 40_960, plain_rope(1e6, 128), **others)


def _llama3(
    sizes: tuple[int, int, int], heads: tuple[int, int], factor: float = 32.0, *, tied: bool = True
) -> ModelSpec:
    width = sizes[1] // heads[0]
    rope = _llama3_rope(width, factor)
    return _decoder("llama", sizes, (*heads, width), 128_256, 131_072, rope, tied_head=tied)


def _smollm2(sizes: tuple[int, int, int], heads: tuple[int, int], base: float = 100_000.0) -> ModelSpec:
    return _decoder("llama", sizes, (*heads, 64), 49_152, 8192, plain_rope(base, 64))


def _gemma3_1b() -> ModelSpec:
    """Of six layers five see a window of 512 slots, turning at a base of their own."""
    layers, hidden, head_dim = 26, 1152, 256
    is_global = [(layer + 1) % 6 == 0 for layer in range(layers)]
    return _decoder(
        "gemma3_text",
        (layers, hidden, 6912),
        (4, 1, head_dim),
        262_144,
        32_768,
        plain_rope(1e6, head_dim),
        norm_epsilon=1e-6,
        activation="gelu_tanh",
        ropes=(plain_rope(1e6, head_dim), plain_rope(1e4, head_dim)),
        layer_ropes=tuple(0 if whole else 1 for whole in is_global),
        windows=tuple(0 if whole else 512 for whole in is_global),
        qk_norm=True,
        sandwich_norms=True,
        embedding_scale=float(np.float32(hidden**0.5)),
    )


SHAPES: dict[str, ModelSpec] = {
    "smollm2-135m": _smollm2((30, 576, 1536), (9, 3)),
    "smollm2-360m": _smollm2((32, 960, 2560), (15, 5)),
    "smollm2-1.7b": _smollm2((24, 2048, 8192), (32, 32), 130_000.0),
    "qwen2.5-0.5b": _qwen25((24, 896, 4864), (14, 2), 32_768),
    "qwen2.5-1.5b": _qwen25((28, 1536, 8960), (12, 2), 131_072),
    "qwen2.5-3b": _qwen25((36, 2048, 11_008), (16, 2), 32_768),
    "qwen2.5-7b": _qwen25((28, 3584, 18_944), (28, 4), 131_072, 152_064, tied=False),
    "qwen3-0.6b": _qwen3((28, 1024, 3072), (16, 8)),
    "qwen3-1.7b": _qwen3((28, 2048, 6144), (16, 8)),
    "qwen3-4b": _qwen3((36, 2560, 9728), (32, 8)),
    "qwen3-8b": _qwen3((36, 4096, 12_288), (32, 8), tied=False),
    "llama-3.2-1b": _llama3((16, 2048, 8192), (32, 8)),
    "llama-3.2-3b": _llama3((28, 3072, 8192), (24, 8)),
    "llama-3.1-8b": _llama3((32, 4096, 14_336), (32, 8), 8.0, tied=False),
    "gemma-3-1b": _gemma3_1b(),
    # Mistral 7B v0.3: no sliding window, a vocabulary of 32,768.
    "mistral-7b": _decoder(
        "mistral", (32, 4096, 14_336), (32, 8, 128), 32_768, 32_768, plain_rope(1e6, 128), tied_head=False
    ),
    # Phi-3 mini 4k.
    "phi-3-mini": _decoder(
        "phi3",
        (32, 3072, 8192),
        (32, 32, 96),
        32_064,
        4096,
        plain_rope(1e4, 96),
        tied_head=False,
        windows=(2047,) * 32,
    ),
}
