"""config.json to ModelSpec, with transformers' own configuration and rotary classes as the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny_config
from transformers import AutoConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from edgemem.compiler.architectures import read_architecture
from edgemem.compiler.fields import Fields
from edgemem.runtime.errors import CheckpointError, UnsupportedModel
from edgemem.runtime.model import ModelSpec, Rope

torch.set_num_threads(1)
LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def model_of(config: dict[str, Any], max_context: int | None = None) -> ModelSpec:
    return read_architecture(Fields(config, "config.json"), max_context).model


def with_changes(family: str = "llama", **changes: Any) -> dict[str, Any]:
    return {**tiny_config(family, tied=False), **changes}


def truth_of(config: dict[str, Any], folder: Path) -> Any:
    """What transformers makes of the same file."""
    (folder / "config.json").write_text(json.dumps(config))
    return AutoConfig.from_pretrained(folder)


def assert_same_rope(rope: Rope, frequencies: torch.Tensor, amplitude: float) -> None:
    got = np.array(rope.inverse_frequencies)
    # torch's own power is exact to one unit in the last place; Llama 3's ramp then subtracts, and widens that.
    np.testing.assert_allclose(got, frequencies.double().numpy(), rtol=5e-7, atol=0)
    assert all(value == np.float32(value) for value in rope.inverse_frequencies)
    assert rope.amplitude == pytest.approx(amplitude, rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rewritten", [False, True], ids=["as published", "as transformers writes it"])
def test_dimensions_of_every_family(tmp_path: Path, family: str, rewritten: bool) -> None:
    config = tiny_config(family, tied=True)
    truth = truth_of(config, tmp_path)
    if rewritten:
        truth.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert "rope_parameters" in config
        assert "rope_theta" not in config
    model = model_of(config)
    assert (model.layers, model.hidden, model.intermediate) == (
        truth.num_hidden_layers,
        truth.hidden_size,
        truth.intermediate_size,
    )
    assert (model.heads, model.kv_heads) == (truth.num_attention_heads, truth.num_key_value_heads)
    assert model.head_dim == (getattr(truth, "head_dim", None) or truth.hidden_size // truth.num_attention_heads)
    assert (model.vocabulary, model.norm_epsilon) == (truth.vocab_size, truth.rms_norm_eps)
    assert model.tied_head is truth.tie_word_embeddings is True
    assert model.qkv_bias is (family == "qwen2")
    assert not model.output_bias
    assert model.qk_norm is (family in ("qwen3", "gemma3_text"))
    kinds = getattr(truth, "layer_types", None)
    sliding = [kind == "sliding_attention" for kind in kinds or []] or [bool(getattr(truth, "sliding_window", 0))] * 3
    assert model.windows == tuple(truth.sliding_window if local else 0 for local in sliding)
    assert model == model_of(tiny_config(family, tied=True))


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"type": "linear", "factor": 4.0},
        {"rope_type": "llama3", **LLAMA3},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
        {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096, "truncate": False},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "attention_factor": 0.75},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 16, "beta_slow": 2},
        {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "mscale": 0.7, "mscale_all_dim": 0.9},
    ],
)
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_frequencies_of_llama_scalings(
    tmp_path: Path, scaling: dict[str, Any] | None, theta: float, head_dim: int
) -> None:
    config = with_changes(rope_theta=theta, rope_scaling=scaling, head_dim=head_dim, max_position_embeddings=16384)
    truth = LlamaRotaryEmbedding(truth_of(config, tmp_path))
    (rope,) = model_of(config).ropes
    assert_same_rope(rope, truth.inv_freq, truth.attention_scaling)


@pytest.mark.parametrize("context", [None, 4096, 4097, 131072])
@pytest.mark.parametrize("early", [False, True], ids=["longrope", "su"])
def test_phi3_chooses_its_factors_by_the_context(tmp_path: Path, context: int | None, early: bool) -> None:
    short, long = [1.0 + i / 50 for i in range(12)], [1.0 + i * i / 3 for i in range(12)]
    config = with_changes(
        "phi3",
        head_dim=32,
        partial_rotary_factor=0.75,
        max_position_embeddings=131072,
        rope_scaling={
            "type": "su" if early else "longrope",
            "short_factor": short,
            "long_factor": long,
            **({"original_max_position_embeddings": 4096} if early else {}),
        },
        original_max_position_embeddings=4096,
    )
    truth = Phi3RotaryEmbedding(truth_of(config, tmp_path))
    positions = torch.tensor([[4095 if context in (None, 4096) else 4096]])
    truth(torch.zeros(1, 1, 1), positions)
    model = model_of(config, context)
    assert_same_rope(model.ropes[0], truth.inv_freq, truth.attention_scaling)
    assert model.ropes[0].rotary_dim == 24
    assert model.trained_context == (4096 if context in (None, 4096) else 131072)


@pytest.mark.parametrize("new_format", [False, True])
def test_gemma3_has_two_ropes(tmp_path: Path, new_format: bool) -> None:
    config = with_changes(
        "gemma3_text", rope_scaling={"rope_type": "linear", "factor": 8.0}, rope_local_base_freq=5000.0
    )
    config_truth = truth_of(config, tmp_path)
    if new_format:
        config_truth.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
    truth = Gemma3RotaryEmbedding(config_truth)
    model = model_of(config)
    assert_same_rope(model.ropes[0], truth.full_attention_inv_freq, 1.0)
    assert_same_rope(model.ropes[1], truth.sliding_attention_inv_freq, 1.0)
    assert model.layer_ropes == (1, 1, 0, 1)


def test_gemma3_constants() -> None:
    config = with_changes("gemma3_text", hidden_size=1152, query_pre_attn_scalar=168, final_logit_softcapping=30.0)
    model = model_of(config)
    assert model.embedding_scale == float(torch.tensor(1152**0.5, dtype=torch.float32))
    assert model.attention_scale == 168**-0.5
    assert (model.logit_softcap, model.activation, model.sandwich_norms) == (30.0, "gelu_tanh", True)


def test_gemma3_layers_follow_the_pattern_where_none_are_listed() -> None:
    config = with_changes("gemma3_text", num_hidden_layers=13, layer_types=None)
    assert [index for index, window in enumerate(model_of(config).windows) if not window] == [5, 11]
    assert [
        index for index, window in enumerate(model_of({**config, "sliding_window_pattern": 4}).windows) if not window
    ] == [3, 7, 11]


def test_gemma3_with_pictures_is_read_by_its_text_part_and_its_defaults(tmp_path: Path) -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"model_type": "siglip_vision_model"}}
    truth = truth_of(config, tmp_path).text_config
    architecture = read_architecture(Fields(config, "config.json"))
    model = architecture.model
    assert architecture.has_other_modalities
    assert (model.heads, model.kv_heads, model.head_dim) == (8, 4, 256)
    assert (model.vocabulary, model.intermediate) == (truth.vocab_size, truth.intermediate_size)
    assert model.windows == tuple(1024 if kind == "sliding_attention" else 0 for kind in truth.layer_types)
    assert model.tied_head


def test_sliding_windows() -> None:
    assert model_of(with_changes("mistral", sliding_window=4096)).windows == (4096,) * 3
    assert model_of(with_changes("mistral", sliding_window=None)).windows == (0,) * 3
    absent = with_changes("mistral")
    del absent["sliding_window"]
    assert model_of(absent).windows == (4096,) * 3
    qwen = with_changes("qwen2", sliding_window=100, max_window_layers=2)
    assert model_of(qwen).windows == (0, 0, 0)
    assert model_of({**qwen, "use_sliding_window": True}).windows == (0, 0, 100)


def test_biases_and_head_sizes() -> None:
    biased = model_of(with_changes("llama", attention_bias=True))
    assert biased.qkv_bias
    assert biased.output_bias
    assert model_of(with_changes("llama", head_dim=8)).head_dim == 8
    assert model_of(with_changes("llama", num_key_value_heads=None)).kv_heads == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba2"}, "architecture 'mamba2' is not supported"),
        ({"num_local_experts": 8}, "mixtures of experts"),
        ({"num_experts": 64}, "mixtures of experts"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantised"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "relu2"}, "activation 'relu2'"),
        ({"residual_multiplier": 0.22}, "residual_multiplier"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "'linear_attention'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"rope_scaling": {"type": "default", "mrope_section": [2, 3, 3]}}, "mrope_section"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "gemma3 only"),
        ({"head_dim": 7}, "rotated dimensions"),
        ({"head_dim": 1 << 30}, "rotated dimensions"),
    ],
)
def test_variants_that_are_not_built_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match="config") as caught:
        model_of(with_changes("llama", **changes))
    assert message in str(caught.value)


def test_an_unsupported_architecture_lists_the_supported_ones() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        model_of({"model_type": "rwkv"})
    for name in ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gemma3", "phi3"):
        assert name in str(caught.value)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "phi3"])
def test_attention_bias_is_refused_where_the_family_has_no_such_switch(family: str) -> None:
    with pytest.raises(UnsupportedModel, match="attention_bias"):
        model_of(with_changes(family, attention_bias=True))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", None),
        ("model_type", 3),
        ("hidden_size", True),
        ("hidden_size", 64.0),
        ("hidden_size", "64"),
        ("hidden_size", 0),
        ("hidden_size", -64),
        ("hidden_size", None),
        ("hidden_size", 1 << 40),
        ("num_hidden_layers", 100_000),
        ("num_attention_heads", 5),
        ("num_key_value_heads", 3),
        ("vocab_size", 1 << 21),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", -1e-5),
        ("tie_word_embeddings", 1),
        ("attention_bias", "no"),
        ("rope_theta", True),
        ("rope_theta", 0),
        ("rope_theta", 1e-300),
        ("rope_scaling", [1]),
        ("rope_scaling", {"rope_type": "linear"}),
        ("rope_scaling", {"rope_type": "linear", "factor": float("inf")}),
        ("rope_scaling", {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}),
        ("rope_scaling", {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
        ("layer_types", ["full_attention"]),
        ("layer_types", ["sliding_attention"] * 3),
    ],
)
def test_bad_values_name_the_file_and_what_was_wanted(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        model_of(with_changes("llama", **{key: value}))
    assert "config.json" in str(caught.value)
    assert "wanted" in str(caught.value)


@pytest.mark.parametrize("factor", [1e308, 1.5, 0, -0.5, True, "half"])
def test_phi3_refuses_odd_rotary_shares(factor: Any) -> None:
    with pytest.raises(CheckpointError, match="partial_rotary_factor"):
        model_of(with_changes("phi3", partial_rotary_factor=factor))


def test_gemma3_refuses_a_null_window() -> None:
    with pytest.raises(CheckpointError, match="sliding_window"):
        model_of(with_changes("gemma3_text", sliding_window=None))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_every_canonical_tensor_has_one_place(family: str, tied: bool) -> None:
    architecture = read_architecture(Fields(tiny_config(family, tied=tied), "config.json"))
    model = architecture.model
    wanted = {name for name, _ in model.matrices()} | {name for name, _ in model.vectors()}
    assert set(architecture.parts) == wanted
    spans = [(part.tensor, part.start) for part in architecture.parts.values()]
    assert len(set(spans)) == len(spans)
