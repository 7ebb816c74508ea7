"""The Hugging Face folder reader against transformers' own tensors, and against damaged and hostile folders."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny_models import FAMILIES, VOCABULARY, tiny_config, tiny_folder, write_folder, write_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3ForConditionalGeneration

from edgemem.compiler.checkpoint import Checkpoint, open_checkpoint
from edgemem.kernels.formats import Precision
from edgemem.runtime.errors import (
    CheckpointError,
    EdgememError,
    FileError,
    NumericError,
    SettingsError,
    TokenizerMismatch,
    UnsafePathError,
    UnsupportedModel,
)

torch.set_num_threads(1)
NORMS = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
}
GEMMA_NORMS = NORMS | {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def assert_holds(checkpoint: Checkpoint, state: dict[str, torch.Tensor]) -> None:
    """Every tensor of the model equals transformers' own, up to the renaming, splitting and +1 of the reader."""
    model = checkpoint.model
    gemma, queries, keys = model.sandwich_norms, model.heads * model.head_dim, model.kv_heads * model.head_dim
    for name, shape in model.matrices():
        wanted = _matrix_of(name, state, queries, keys, model.intermediate).float().numpy()
        matrix = checkpoint.matrix(name)
        assert matrix.shape == shape
        np.testing.assert_array_equal(matrix.rows(), wanted, err_msg=name)
        np.testing.assert_array_equal(matrix.rows(3, 9), wanted[3:9])
    for name, length in model.vectors():
        values = checkpoint.vector(name)
        assert values.shape == (length,)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, _vector_of(name, state, gemma), err_msg=name)


def _matrix_of(name: str, state: dict[str, torch.Tensor], queries: int, keys: int, wide: int) -> torch.Tensor:
    if name == "embedding":
        return state["embed_tokens.weight"]
    if name == "head":
        return state["lm_head.weight"]
    _, layer, part = name.split(".")
    at = f"layers.{layer}."
    if part in ("query", "key", "value") and f"{at}self_attn.qkv_proj.weight" in state:
        split = state[f"{at}self_attn.qkv_proj.weight"].split([queries, keys, keys])
        return split[("query", "key", "value").index(part)]
    if part in ("gate", "up") and f"{at}mlp.gate_up_proj.weight" in state:
        return state[f"{at}mlp.gate_up_proj.weight"].split([wide, wide])[("gate", "up").index(part)]
    owner = "mlp" if part in ("gate", "up", "down") else "self_attn"
    letter = part if owner == "mlp" else part[0]
    return state[f"{at}{owner}.{letter}_proj.weight"]


def _vector_of(name: str, state: dict[str, torch.Tensor], gemma: bool) -> np.ndarray:
    added = 1.0 if gemma else 0.0
    if name == "norm":
        return state["norm.weight"].float().numpy() + np.float32(added)
    _, layer, part = name.split(".")
    if part.endswith("_bias"):
        return state[f"layers.{layer}.self_attn.{part[0]}_proj.bias"].float().numpy()
    norm = (GEMMA_NORMS if gemma else NORMS)[part]
    return state[f"layers.{layer}.{norm}.weight"].float().numpy() + np.float32(added)


def saved_model(folder: Path, family: str, tied: bool, dtype: torch.dtype, **saving: Any) -> dict[str, torch.Tensor]:
    """A random model saved by transformers into `folder`; its tensors without the prefix `model.`."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_config(family, tied=tied)))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder, **saving)
    write_tokenizer(folder)
    return {name.removeprefix("model."): tensor.detach() for name, tensor in model.state_dict().items()}


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path, "llama", tied=False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_every_tensor_of_a_saved_model(tmp_path: Path, family: str, tied: bool) -> None:
    state = saved_model(tmp_path / "model", family, tied, torch.float32)
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.model.tied_head is tied
        assert_holds(checkpoint, state)


@pytest.mark.parametrize(
    ("dtype", "stored"), [(torch.float32, "fp32"), (torch.float16, "fp16"), (torch.bfloat16, "bf16")]
)
def test_sharded_folders_of_every_float_type(tmp_path: Path, dtype: torch.dtype, stored: str) -> None:
    state = saved_model(tmp_path / "model", "qwen2", False, dtype, max_shard_size="30KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 3
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert_holds(checkpoint, state)
        assert checkpoint.matrix("layers.1.query").stored == Precision.parse(stored)
        assert checkpoint.matrix("layers.1.query").quantized() is None


def test_gemma3_with_pictures(tmp_path: Path) -> None:
    text = tiny_config("gemma3_text", tied=True)
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = {"model_type": "gemma3", "text_config": text, "vision_config": vision, "mm_tokens_per_image": 4}
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    model = Gemma3ForConditionalGeneration(AutoConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    prefix = "model.language_model."
    state = {key.removeprefix(prefix): value for key, value in model.state_dict().items() if key.startswith(prefix)}
    with open_checkpoint(folder) as checkpoint:
        assert_holds(checkpoint, state)


def test_tokenizer_files_are_uniform(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("from the file")
    edit_json(folder / "generation_config.json", eos_token_id=2, temperature=0.5)
    edit_json(folder / "tokenizer_config.json", model_max_length=1000000000000000019884624838656)
    with open_checkpoint(folder) as checkpoint:
        files = checkpoint.tokenizer_files
    assert files["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == "from the file"
    generation = json.loads(files["generation_config.json"])
    assert generation == {"bos_token_id": 0, "eos_token_id": [2], "pad_token_id": 0, "temperature": 0.5}


def test_missing_tokenizer_settings_are_made_from_the_configuration(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    edit_json(folder / "config.json", eos_token_id=[2, 0, 2])
    with open_checkpoint(folder) as checkpoint:
        files = checkpoint.tokenizer_files
    generation = json.loads(files["generation_config.json"])
    assert (generation["eos_token_id"], generation["bos_token_id"]) == ([2, 0], 0)
    assert json.loads(files["tokenizer_config.json"]) == {}


def test_end_of_text_is_found_by_its_name_where_no_id_is_given(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", eos_token_id=None)
    with open_checkpoint(folder) as checkpoint:
        assert json.loads(checkpoint.tokenizer_files["generation_config.json"])["eos_token_id"] == [2]


def test_of_several_named_templates_the_default_is_taken(folder: Path) -> None:
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    edit_json(folder / "tokenizer_config.json", chat_template=templates)
    with open_checkpoint(folder) as checkpoint:
        assert json.loads(checkpoint.tokenizer_files["tokenizer_config.json"])["chat_template"] == "plain"


def test_origin_names_folder_licence_and_every_byte(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\nlicense: other\n")
    with open_checkpoint(folder) as checkpoint:
        origin = checkpoint.origin
    assert (origin.source, origin.format, origin.licence) == (folder.name, "huggingface", "apache-2.0")
    edit_json(folder / "config.json", unrelated="changed")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.origin.sha256 != origin.sha256


def test_the_cache_layout_of_hugging_face_is_followed(tmp_path: Path) -> None:
    plain = tiny_folder(tmp_path, "llama", tied=True)
    root = tmp_path / "models--some--model"
    snapshot, blobs = root / "snapshots" / "abc123", root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for index, file in enumerate(plain.iterdir()):
        shutil.copy(file, blobs / str(index))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(index))
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.origin.source == "some/model@abc123"
        assert checkpoint.matrix("embedding").rows(0, 1).shape == (1, 64)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(UnsafePathError, match="leads out"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "", "..", "a\0b", "a\\b"])
def test_the_index_cannot_name_files_elsewhere(folder: Path, name: str) -> None:
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsafePathError, match="unsafe file name"):
        open_checkpoint(folder)


def test_pipes_are_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(UnsafePathError, match="regular file"):
        open_checkpoint(folder)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"model.norm.weight": 3}])
def test_broken_indexes_are_refused(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="weight_map"):
        open_checkpoint(folder)


def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path: Path) -> None:
    saved_model(tmp_path / "model", "llama", False, torch.float32, max_shard_size="60KB")
    path = tmp_path / "model" / "model.safetensors.index.json"
    index = json.loads(path.read_text())["weight_map"]
    first, second = sorted(set(index.values()))[:2]
    index[next(name for name, file in index.items() if file == first)] = second
    path.write_text(json.dumps({"weight_map": index}))
    with pytest.raises(CheckpointError, match="disagree"):
        open_checkpoint(tmp_path / "model")
    index.update(dict.fromkeys(index, "absent.safetensors"))
    path.write_text(json.dumps({"weight_map": index}))
    with pytest.raises(CheckpointError, match="cannot find"):
        open_checkpoint(tmp_path / "model")


def rewrite_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_missing_and_unexpected_tensors_are_named(folder: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(64, np.float32)

    rewrite_weights(folder, change)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert "missing: model.layers.1.mlp.up_proj.weight" in str(caught.value)
    assert "not expected: model.layers.0.self_attn.q_proj.bias" in str(caught.value)


def test_harmless_extras_are_let_pass(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "llama", tied=True)

    def change(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

    rewrite_weights(folder, change)
    with open_checkpoint(folder) as checkpoint:
        assert "head" not in dict(checkpoint.model.matrices())


def test_shapes_are_compared_before_reading(folder: Path) -> None:
    rewrite_weights(folder, lambda tensors: tensors.update({"model.norm.weight": np.ones(63, np.float32)}))
    with pytest.raises(CheckpointError, match="wrong shape") as caught:
        open_checkpoint(folder)
    assert "(63,)" in str(caught.value)
    assert "(64,)" in str(caught.value)


def test_other_types_of_weights_are_not_supported(folder: Path) -> None:
    rewrite_weights(folder, lambda tensors: tensors.update({"model.norm.weight": np.ones(64, np.int8)}))
    with pytest.raises(UnsupportedModel, match="I8"):
        open_checkpoint(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (17, 33), (63, 63)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_not_finite_is_found_wherever_it_is(
    folder: Path, bad: float, place: tuple[int, int], dtype: Any
) -> None:
    def change(tensors: dict[str, Any]) -> None:
        weight = tensors["model.layers.2.self_attn.o_proj.weight"].astype(dtype)
        weight[place] = bad
        tensors["model.layers.2.self_attn.o_proj.weight"] = weight
        tensors["model.norm.weight"][5] = bad

    rewrite_weights(folder, change)
    with open_checkpoint(folder) as checkpoint:
        with pytest.raises(NumericError) as caught:
            checkpoint.matrix("layers.2.output").rows()
        assert "layers.2.output" in str(caught.value)
        assert f"1 NaN or Inf of 4096 values, the first at {place}" in str(caught.value)
        with pytest.raises(NumericError, match=r"tensor norm"):
            checkpoint.vector("norm")
        assert checkpoint.matrix("layers.1.output").rows().shape == (64, 64)


def test_large_finite_values_are_no_error(folder: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"][:] = np.finfo(np.float32).max

    rewrite_weights(folder, change)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.vector("norm").max() == np.finfo(np.float32).max


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 65)])
def test_rows_outside_the_matrix_are_refused(folder: Path, start: int, stop: int) -> None:
    with open_checkpoint(folder) as checkpoint, pytest.raises(SettingsError, match="no such rows"):
        checkpoint.matrix("layers.0.query").rows(start, stop)


def test_unknown_names_are_refused(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        with pytest.raises(SettingsError, match="no matrix"):
            checkpoint.matrix("norm")
        with pytest.raises(SettingsError, match="no vector"):
            checkpoint.vector("embedding")


def test_a_missing_tokenizer_says_what_to_do(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerMismatch, match="save_pretrained"):
        open_checkpoint(folder)


def test_wrong_tokenizers_are_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    plain = json.loads(path.read_text())
    plain["model"]["vocab"]["surplus"] = VOCABULARY
    path.write_text(json.dumps(plain))
    with pytest.raises(TokenizerMismatch, match=f"token {VOCABULARY}"):
        open_checkpoint(folder)
    for text in ("{", "[]", "{}", '{"model": {"vocab": {"a": "b"}}}', '{"model": {"vocab": {"a": -1}}}'):
        path.write_text(text)
        with pytest.raises(TokenizerMismatch, match="malformed"):
            open_checkpoint(folder)


@pytest.mark.parametrize("ends", [VOCABULARY, -1, True, "2", [2, VOCABULARY], {}])
def test_end_ids_outside_the_vocabulary_are_refused(folder: Path, ends: Any) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=ends)
    with pytest.raises(TokenizerMismatch, match="eos_token_id"):
        open_checkpoint(folder)


def test_folders_without_a_model_say_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="is missing"):
        open_checkpoint(tmp_path)
    folder = write_folder(tmp_path / "bin", tiny_config("llama", tied=True), 0)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pytorch_model"):
        open_checkpoint(folder)


def test_opening_reads_no_weights(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "llama", tied=False)
    rewrite_weights(folder, lambda tensors: tensors["model.embed_tokens.weight"].fill(np.nan))
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.matrix("embedding").shape == (VOCABULARY, 64)


@pytest.mark.parametrize("context", [0, -1, True, 1.5, 1 << 30])
def test_max_context_is_checked(folder: Path, context: Any) -> None:
    with pytest.raises(SettingsError, match="max_context"):
        open_checkpoint(folder, max_context=context)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from(
        [1 << 20, 1 << 31, 1 << 62, 10**40, 0.0, -1.5, 1e-308, 1e308, "", "llama", "\ud800", [], {}, [None], [1, 2, 3]]
    ),
    st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "content", "default", "id"]), st.integers(-1, 9)),
)


@pytest.mark.parametrize("family", ["llama3", "phi3", "gemma3_text", "qwen2"])
@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_odd_values_give_one_of_our_errors_or_load(
    tmp_path_factory: pytest.TempPathFactory, family: str, data: st.DataObject
) -> None:
    base = tmp_path_factory.getbasetemp() / f"odd-{family}"
    if not base.exists():
        base.mkdir()
        tiny_folder(base, family, tied=False)
    folder = next(base.iterdir())
    name = data.draw(st.sampled_from(["config.json", "config.json", "generation_config.json", "tokenizer_config.json"]))
    good = (folder / name).read_bytes()
    plain = json.loads(good)
    target = plain
    if family != "qwen2" and name == "config.json" and data.draw(st.booleans()):
        target = plain["rope_scaling"]
    for key in data.draw(st.lists(st.sampled_from(sorted(target)), min_size=1, max_size=3, unique=True)):
        target[key] = data.draw(ODD)
    (folder / name).write_text(json.dumps(plain))
    try:
        with suppress(FileError, NumericError), open_checkpoint(folder) as checkpoint:
            assert json.loads(checkpoint.tokenizer_files["generation_config.json"])
    finally:
        (folder / name).write_bytes(good)


@given(
    name=st.sampled_from(["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"]),
    places=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), max_size=4),
    kept=st.floats(0.0, 1.0),
    truncate=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_damage_gives_one_of_our_errors_or_loads(
    tmp_path_factory: pytest.TempPathFactory, name: str, places: list[tuple[int, int]], kept: float, truncate: bool
) -> None:
    base = tmp_path_factory.getbasetemp() / "damage"
    if not base.exists():
        base.mkdir()
        tiny_folder(base, "qwen3", tied=True)
    folder = next(base.iterdir())
    good = (folder / name).read_bytes()
    # The header is where the structure is; flips among the weights only change numbers.
    raw, span = bytearray(good), min(len(good), 6000)
    for place, mask in places:
        raw[place % span] ^= mask
    (folder / name).write_bytes(raw[: int(len(raw) * kept)] if truncate else raw)
    try:
        with suppress(FileError, NumericError), open_checkpoint(folder) as checkpoint:
            for matrix, _ in checkpoint.model.matrices():
                checkpoint.matrix(matrix).rows(0, 2)
    except EdgememError as problem:
        pytest.fail(f"an error of another family: {problem!r}")
    finally:
        (folder / name).write_bytes(good)
