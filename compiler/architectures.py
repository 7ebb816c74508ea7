"""Hugging Face config.json to ModelSpec, and canonical tensor names to the checkpoint's names.

One table row a family. What a configuration asks for and ModelSpec cannot describe is refused by name, never ignored;
the one exception is Gemma 3's attn_logit_softcapping, which transformers does not apply either. It reads no tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemem.compiler.fields import Fields
from edgemem.compiler.rope_frequencies import build_rope, original_context
from edgemem.runtime.errors import CheckpointError, SettingsError, UnsupportedModel, shown
from edgemem.runtime.limits import LIMITS
from edgemem.runtime.model import Activation, ModelSpec, Rope


@dataclass(frozen=True)
class Family:
    """What distinguishes an architecture beyond its numbers. `qkv_bias`: None where attention_bias decides."""

    qkv_bias: bool | None = None
    qk_norm: bool = False
    gemma: bool = False
    fused: bool = False
    partial_rotary: bool = False
    window: str = "none"  # "none", "all" (every layer), "late" (from max_window_layers on), "pattern" (local : global)
    default_window: int = 0  # where the key is absent; a null always means full attention
    epsilon: float = 1e-6
    context: int = 32_768


FAMILIES: dict[str, Family] = {
    "llama": Family(context=2048),
    "mistral": Family(qkv_bias=False, window="all", default_window=4096, context=131_072),
    "qwen2": Family(qkv_bias=True, window="late", default_window=4096),
    "qwen3": Family(qk_norm=True, window="late", default_window=4096),
    "gemma3_text": Family(qk_norm=True, gemma=True, window="pattern", context=131_072),
    "phi3": Family(qkv_bias=False, fused=True, partial_rotary=True, window="all", epsilon=1e-5, context=4096),
}
# Released Gemma 3 files with pictures leave out every value that equals the class's default.
_GEMMA_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
}
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
_UNKNOWN_MATHEMATICS = (
    "mlp_bias",
    "use_bidirectional_attention",
    "use_qk_norm",
    "qk_layernorm",
    "clip_qkv",
    "residual_multiplier",
    "embedding_multiplier",
    "logits_scaling",
    "no_rope_layers",
    "num_kv_shared_layers",
    "attention_chunk_size",
    "altup_num_inputs",
)


@dataclass(frozen=True)
class Part:
    """Where a canonical tensor lies: rows [start, stop) of the file's tensor (all if None), and what is added to it."""

    tensor: str
    start: int = 0
    stop: int | None = None
    added: float = 0.0


@dataclass(frozen=True)
class Architecture:
    """A model's description and, by canonical name, where its tensors lie below a prefix such as `model.`."""

    model: ModelSpec
    parts: dict[str, Part]
    prefixes: tuple[tuple[str, str], ...]  # (prefix of the decoder, prefix of lm_head), the likeliest first
    has_other_modalities: bool


def read_architecture(config: Fields, max_context: int | None = None) -> Architecture:
    """The architecture a config.json describes; `max_context` only chooses LongRoPE's factors.

    Raises UnsupportedModel for another architecture or a variant that is not built, CheckpointError for bad values.
    """
    kind = config.text("model_type")
    multimodal = kind == "gemma3"
    if multimodal:
        config = _gemma_text(config)
        kind = "gemma3_text"
    family = FAMILIES.get(kind)
    if family is None:
        raise UnsupportedModel(
            f"architecture {ascii(kind)[:60]} is not supported",
            where=config.where,
            wanted=f"one of {', '.join([*FAMILIES, 'gemma3'])}",
        )
    if family.gemma:
        config = Fields({**_GEMMA_DEFAULTS, **config.values}, config.where)
    _refuse_variants(config)
    model = _model(config, kind, family, max_context)
    prefixes = [("model.", "")]
    if multimodal:
        prefixes = [("language_model.model.", "language_model."), ("model.language_model.", ""), *prefixes]
    return Architecture(model, dict(_parts(model, family)), tuple(prefixes), multimodal)


def checked_model(where: object, **values: Any) -> ModelSpec:
    """A ModelSpec from the values of a file; what ModelSpec refuses becomes a CheckpointError naming that file."""
    try:
        return ModelSpec(**values)
    except SettingsError as problem:
        raise CheckpointError(problem.what, where=where, got=problem.got, wanted=problem.wanted) from problem


def float32_root(value: int) -> float:
    """The square root rounded to float32, which is how the reference holds Gemma's embedding scale."""
    return float(np.float32(value**0.5))


def _without_nulls(config: Fields) -> dict[str, Any]:
    return {key: value for key, value in config.values.items() if value is not None}


def _gemma_text(config: Fields) -> Fields:
    text = config.table("text_config")
    if text is None:
        raise config.wrong("text_config", "the decoder's configuration")
    inherited = {key: config.get(key) for key in ("tie_word_embeddings", "quantization_config") if config.has(key)}
    return Fields({**inherited, **text.values}, config.where)


def _refuse_variants(config: Fields) -> None:
    for key in _EXPERTS:
        if config.get(key) not in (None, 0, False):
            raise UnsupportedModel(
                "mixtures of experts are not supported",
                where=config.where,
                got=f"{key} = {ascii(config.get(key))[:60]}",
                wanted="a dense decoder",
            )
    if config.has("quantization_config"):
        raise UnsupportedModel(
            "Hugging Face checkpoints that are already quantised are not supported",
            where=config.where,
            got="quantization_config",
            wanted="F32, F16 or BF16 weights",
            do="take the original checkpoint, or a GGUF file",
        )
    for key in _UNKNOWN_MATHEMATICS:
        if config.get(key) not in (None, False, 0, []):
            raise UnsupportedModel(
                "this variant of the architecture is not supported",
                where=config.where,
                got=f"{key} = {ascii(config.get(key))[:60]}",
                wanted=f"{key} absent or off",
            )


def _model(config: Fields, kind: str, family: Family, max_context: int | None) -> ModelSpec:
    layers = config.integer("num_hidden_layers", most=LIMITS.layers)
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads", most=LIMITS.dimension)
    if not config.has("head_dim") and hidden % heads:
        raise config.wrong("num_attention_heads", f"a divisor of hidden_size, {hidden}, as head_dim is not given")
    head_dim = config.integer("head_dim", hidden // heads or None)
    bias = config.flag("attention_bias", False)
    if bias and family.qkv_bias is not None:
        raise UnsupportedModel(
            f"attention_bias is not supported for {kind}",
            where=config.where,
            got="attention_bias = true",
            wanted="attention_bias absent or false",
        )
    windows = _windows(config, family, layers)
    ropes, layer_ropes, context = _ropes(config, family, windows, head_dim, max_context)
    scalar = config.number("query_pre_attn_scalar") if family.gemma else float(head_dim)
    return checked_model(
        config.where,
        architecture=kind,
        layers=layers,
        hidden=hidden,
        intermediate=config.integer("intermediate_size"),
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        vocabulary=config.integer("vocab_size", most=LIMITS.vocabulary),
        trained_context=context,
        norm_epsilon=config.number("rms_norm_eps", family.epsilon),
        activation=_activation(config, "hidden_activation" if family.gemma else "hidden_act"),
        tied_head=config.flag("tie_word_embeddings", family.gemma),
        ropes=ropes,
        layer_ropes=layer_ropes,
        windows=windows,
        attention_scale=scalar**-0.5,
        qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=bias,
        qk_norm=family.qk_norm,
        sandwich_norms=family.gemma,
        embedding_scale=float32_root(hidden) if family.gemma else 1.0,
        # Its attn_logit_softcapping is a remnant of Gemma 2: see the top of the file.
        logit_softcap=config.number("final_logit_softcapping", 0.0, zero=True) if family.gemma else 0.0,
    )


def _activation(config: Fields, key: str) -> Activation:
    name = config.text(key, "silu")
    if name not in _ACTIVATIONS:
        raise UnsupportedModel(
            f"activation {ascii(name)[:60]} is not supported",
            where=config.where,
            wanted=f"one of {', '.join(_ACTIVATIONS)}",
        )
    return _ACTIVATIONS[name]


def _windows(config: Fields, family: Family, layers: int) -> tuple[int, ...]:
    """Each layer's sliding window in slots, 0 for full attention."""
    if family.window == "none" or (family.window == "late" and not config.flag("use_sliding_window", False)):
        kinds = _layer_types(config, layers) or ["full_attention"] * layers
        if "sliding_attention" in kinds:
            raise config.wrong("layer_types", "full_attention only, as no sliding window is in use")
        return (0,) * layers
    absent = "sliding_window" not in config.values
    if family.window != "pattern" and not config.has("sliding_window") and not (absent and family.default_window):
        return (0,) * layers
    window = config.integer("sliding_window", family.default_window or None, most=LIMITS.context)
    if family.window == "all":
        kinds = ["sliding_attention"] * layers
    elif family.window == "late":
        first = config.integer("max_window_layers", 28, least=0)
        kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    else:
        period = config.integer("sliding_window_pattern", 6)
        kinds = ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(layers)]
    kinds = _layer_types(config, layers) or kinds
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _layer_types(config: Fields, layers: int) -> list[str] | None:
    kinds = config.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise config.wrong("layer_types", f"a list of {layers} kinds of attention, one a layer")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedModel(
                f"attention of kind {ascii(kind)[:60]} is not supported",
                where=config.where,
                wanted="full_attention or sliding_attention",
            )
    return kinds


def _ropes(
    config: Fields, family: Family, windows: tuple[int, ...], head_dim: int, max_context: int | None
) -> tuple[tuple[Rope, ...], tuple[int, ...], int]:
    """(ropes, the rope of each layer, the context that the chosen frequencies reach)."""
    trained = config.integer("max_position_embeddings", family.context, most=LIMITS.context)
    if family.gemma:
        tables = [_gemma_rope(config, "full_attention"), _gemma_rope(config, "sliding_attention")]
        ropes = tuple(build_rope(table, head_dim, trained) for table in tables)
        return ropes, tuple(1 if window else 0 for window in windows), trained
    parameters = _rope_parameters(config, family)
    rope = build_rope(parameters, head_dim, trained, max_context)
    if parameters.get("rope_type") == "longrope":
        original = original_context(parameters, trained)
        trained = original if max_context is None or max_context <= original else trained
    return (rope,), (0,) * len(windows), trained


def _rope_parameters(config: Fields, family: Family) -> Fields:
    """The one table of rotary parameters, from the new key rope_parameters or the old rope_theta and rope_scaling."""
    given = config.table("rope_scaling") or config.table("rope_parameters") or Fields({}, config.where)
    if given.has("full_attention") or given.has("sliding_attention"):
        raise UnsupportedModel(
            "rope parameters by kind of layer are supported for gemma3 only",
            where=config.where,
            got=shown(list(given.values)),
            wanted="one table for all layers",
        )
    parameters = _without_nulls(given)
    parameters.setdefault("rope_type", parameters.pop("type", "default"))
    for key in ("rope_theta", "partial_rotary_factor"):
        if config.has(key):
            parameters.setdefault(key, config.get(key))
    if config.has("original_max_position_embeddings"):
        parameters["original_max_position_embeddings"] = config.get("original_max_position_embeddings")
    if family.fused and parameters["rope_type"] in ("su", "yarn"):  # LongRoPE's names in early Phi-3 files
        parameters["rope_type"] = "longrope"
    if not family.partial_rotary and parameters.get("partial_rotary_factor", 1) != 1:
        raise UnsupportedModel(
            "partial_rotary_factor is supported for phi3 only",
            where=config.where,
            got=shown(parameters["partial_rotary_factor"]),
            wanted="1, or no such key",
        )
    return Fields(parameters, config.where)


def _gemma_rope(config: Fields, kind: str) -> Fields:
    """Gemma 3 keeps two tables: global layers scale to the long context, local ones turn at their own base."""
    nested = config.table("rope_parameters") or Fields({}, config.where)
    parameters = _without_nulls(nested.table(kind) or Fields({}, config.where))
    if kind == "full_attention":
        parameters.update(_without_nulls(config.table("rope_scaling") or Fields({}, config.where)))
        parameters.setdefault("rope_theta", config.number("rope_theta", 1_000_000.0))
    else:
        parameters.setdefault("rope_theta", config.number("rope_local_base_freq", 10_000.0))
    return Fields(parameters, config.where)


def _parts(model: ModelSpec, family: Family) -> Iterator[tuple[str, Part]]:
    """(canonical name, its place) of every tensor; lm_head comes without the decoder's prefix."""
    added = 1.0 if family.gemma else 0.0
    yield "embedding", Part("embed_tokens.weight")
    yield "norm", Part("norm.weight", added=added)
    if not model.tied_head:
        yield "head", Part("lm_head.weight")
    for layer in range(model.layers):
        ours, theirs = f"layers.{layer}.", f"layers.{layer}."
        yield from ((ours + name, part) for name, part in _matrix_parts(model, family, theirs))
        yield from ((ours + name, Part(theirs + tensor, added=added)) for name, tensor in _norm_names(model))
        for name, projection in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            if model.qkv_bias:
                yield f"{ours}{name}_bias", Part(f"{theirs}self_attn.{projection}.bias")
        if model.output_bias:
            yield f"{ours}output_bias", Part(f"{theirs}self_attn.o_proj.bias")


def _matrix_parts(model: ModelSpec, family: Family, prefix: str) -> Iterator[tuple[str, Part]]:
    yield "output", Part(f"{prefix}self_attn.o_proj.weight")
    yield "down", Part(f"{prefix}mlp.down_proj.weight")
    if not family.fused:
        for name, projection in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            yield name, Part(f"{prefix}self_attn.{projection}.weight")
        yield "gate", Part(f"{prefix}mlp.gate_proj.weight")
        yield "up", Part(f"{prefix}mlp.up_proj.weight")
        return
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    fused, gate_up = f"{prefix}self_attn.qkv_proj.weight", f"{prefix}mlp.gate_up_proj.weight"
    yield "query", Part(fused, 0, queries)
    yield "key", Part(fused, queries, queries + keys)
    yield "value", Part(fused, queries + keys, queries + 2 * keys)
    yield "gate", Part(gate_up, 0, model.intermediate)
    yield "up", Part(gate_up, model.intermediate, 2 * model.intermediate)


def _norm_names(model: ModelSpec) -> Iterator[tuple[str, str]]:
    yield "attention_norm", "input_layernorm.weight"
    if model.sandwich_norms:
        yield "attention_post_norm", "post_attention_layernorm.weight"
        yield "mlp_norm", "pre_feedforward_layernorm.weight"
        yield "mlp_post_norm", "post_feedforward_layernorm.weight"
    else:
        yield "mlp_norm", "post_attention_layernorm.weight"
    if model.qk_norm:
        yield "query_norm", "self_attn.q_norm.weight"
        yield "key_norm", "self_attn.k_norm.weight"
