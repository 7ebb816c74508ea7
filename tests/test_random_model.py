"""Packages of random weights: real ones, in the precision that was asked for, and both engines run them alike."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from runnable_packages import plain_model, rich_model, rope

from edgemem.compiler.filler_tokenizer import END, byte_characters, filler_tokenizer_files, filler_tokens
from edgemem.compiler.random_model import random_block, random_plan, write_random_package
from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.kernels.native import native
from edgemem.profiles.shapes import shape
from edgemem.runtime.errors import PackageError, SettingsError
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.tokenizer import Tokenizer

MODELS = {
    "plain": plain_model(vocabulary=320, tied_head=True),
    "rich": rich_model(vocabulary=300, logit_softcap=30.0, embedding_scale=8.0),
    "wide": plain_model(vocabulary=320, hidden=128, intermediate=192, heads=8, ropes=(rope(8),)),
}
PLANS = ("int4-g32", "int4-g32-min", "int4-g64", "int4-g128-min", "int8-g32", "int8-g64-min", "fp16", "bf16", "fp32")
TOKENS = np.arange(256, 296, dtype=np.int32)


def written(folder: Path, model: ModelSpec, weights: str, **settings: object) -> Path:
    out = folder / "random.edgemem"
    write_random_package(out, model, weights=Precision.parse(weights), **settings)  # type: ignore[arg-type]
    return out


@pytest.mark.skipif(native() is None, reason="the native kernels were not built")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weights", PLANS)
def test_both_engines_run_it_and_agree(tmp_path: Path, name: str, weights: str) -> None:
    logits = []
    with Package.open(written(tmp_path, MODELS[name], weights)) as package:
        for engine_name in ("native", "onnx"):
            engine = open_engine(package, engine_name, capacity=64, threads=1)
            logits.append(np.array(engine.extend(TOKENS).logits))
            engine.close()
    assert all(np.isfinite(row).all() for row in logits)
    assert 0.1 < logits[0].std() < 10
    assert np.corrcoef(*logits)[0, 1] > 0.99


@pytest.mark.parametrize("weights", PLANS)
def test_it_is_stored_as_it_was_asked_for(tmp_path: Path, weights: str) -> None:
    asked = Precision.parse(weights)
    with Package.open(written(tmp_path, MODELS["wide"], weights), verify=True) as package:
        for name, (rows, columns) in package.model.matrices():
            stored = package.precision(name)
            if name not in ("embedding", "head"):
                assert (stored.kind, stored.minimum) == (asked.kind, asked.minimum)
                if asked.quantized:  # of 192 columns 128 is no divisor, 64 is
                    assert stored.group == max(g for g in (32, 64, 128) if columns % g == 0 and g <= asked.group)
            assert package.matrix(name).rows(0, rows).std() == pytest.approx(columns**-0.5, rel=0.15)
        manifest = package.manifest
    assert manifest.origin.source == "random weights, seed 0"
    assert manifest.quality is None


def test_the_head_is_int8_beside_int4_and_else_like_the_layers() -> None:
    model = MODELS["wide"]
    for weights, head in (("int4-g64-min", "int8-g64"), ("int8-g32", "int8-g32"), ("bf16", "bf16")):
        plan = random_plan(model, Precision.parse(weights))
        assert {str(plan["embedding"]), str(plan["head"])} == {head}
    plan = random_plan(model, Precision.parse("int4-g32"), Precision.parse("fp16"))
    assert (str(plan["embedding"]), str(plan["head"]), str(plan["layers.0.down"])) == ("fp16", "fp16", "int4-g32")


def test_columns_that_no_group_divides_are_fp16() -> None:
    plan = random_plan(plain_model(intermediate=80), Precision("int4", 64, True))
    assert (str(plan["layers.0.down"]), str(plan["layers.0.up"])) == ("fp16", "int4-g64-min")


def test_a_known_shape_has_its_size() -> None:
    """SmolLM2-135M in int4-g32 symmetric: 4.5 bits a weight, and an int8 embedding of 8.5."""
    model = shape("smollm2-135m")
    plan = random_plan(model, Precision("int4", 32))
    bits = sum(8 * plan[name].bytes_for(*size) for name, size in model.matrices())
    embedding = model.vocabulary * model.hidden
    layers = sum(rows * columns for _, (rows, columns) in model.matrices()) - embedding
    assert bits == 4.5 * layers + 8.5 * embedding


@pytest.mark.parametrize("text", PLANS)
def test_blocks_have_no_zeros_to_speak_of_and_the_right_deviation(text: str) -> None:
    precision = Precision.parse(text)
    block = random_block(np.random.default_rng(0), 64, 512, precision)
    weights = block.dequantize() if isinstance(block, QuantizedMatrix) else block
    assert weights.shape == (64, 512)
    assert weights.std() == pytest.approx(512**-0.5, rel=0.05)
    assert abs(weights.mean()) < 0.12 * weights.std()
    assert np.count_nonzero(weights == 0) < 0.08 * weights.size  # one code of 16 is zero in symmetric int4
    if isinstance(block, QuantizedMatrix):
        assert block.precision == precision


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def files(folder: str, seed: int) -> dict[str, bytes]:
        (tmp_path / folder).mkdir()
        out = written(tmp_path / folder, MODELS["plain"], "int4-g32", seed=seed)
        return {path.name: path.read_bytes() for path in out.iterdir()}

    first, again, other = files("a", 3), files("b", 3), files("c", 4)
    assert first == again
    assert first["weights.safetensors"] != other["weights.safetensors"]
    assert first["model.onnx"] == other["model.onnx"]


def test_blocks_are_small_and_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of one row, a matrix comes out whole all the same."""
    monkeypatch.setattr("edgemem.compiler.random_model._BLOCK_VALUES", 64)
    heard: list[tuple[str, float]] = []
    written(tmp_path, MODELS["plain"], "int8-g32", progress=lambda stage, share: heard.append((stage, share)))
    assert heard[0] == ("draw", 0.0)
    assert heard == sorted(heard, key=lambda told: told[1])
    assert len(heard) == len(list(MODELS["plain"].matrices()))


def test_a_disk_without_room_is_known_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shape("qwen2.5-7b")
    plan = random_plan(model, Precision("int4", 128))
    weights = sum(plan[name].bytes_for(*size) for name, size in model.matrices())
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=weights))
    with pytest.raises(PackageError, match="no room") as raised:
        written(tmp_path, model, "int4-g128")
    assert raised.value.got == f"{weights:,} bytes free"
    wanted = int(str(raised.value.wanted).removesuffix(" bytes").replace(",", ""))
    assert weights < wanted < weights + (64 << 20)
    assert os.listdir(tmp_path) == []


def test_what_stood_there_stays_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = written(tmp_path, MODELS["plain"], "fp16")
    before = (out / "manifest.yaml").read_bytes()

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgemem.compiler.random_model.emit_graph", interrupt)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, MODELS["plain"], "int4-g32")
    assert os.listdir(tmp_path) == ["random.edgemem"]
    assert (out / "manifest.yaml").read_bytes() == before


@pytest.mark.parametrize(("context", "stored"), [(None, 512), (96, 96)])
def test_the_context_is_the_models_where_none_is_asked(tmp_path: Path, context: int | None, stored: int) -> None:
    out = tmp_path / "m.edgemem"
    manifest = write_random_package(out, MODELS["plain"], weights=Precision("bf16"), max_context=context)
    assert manifest.max_context == stored
    with Package.open(out) as package:
        assert package.manifest == manifest


@pytest.mark.parametrize(
    ("model", "context", "word"),
    [
        (MODELS["plain"], 1, "context"),
        (MODELS["plain"], 513, "context"),
        (plain_model(vocabulary=256), None, "vocabulary"),
    ],
)
def test_impossible_packages_are_refused(tmp_path: Path, model: ModelSpec, context: int | None, word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        write_random_package(tmp_path / "m.edgemem", model, weights=Precision("bf16"), max_context=context)
    assert os.listdir(tmp_path) == []


# the tokenizer


def test_any_text_survives_the_tokenizer_as_bytes() -> None:
    tokenizer = Tokenizer(filler_tokenizer_files(300), 300)
    text = "naïve\n\t\x00 text – 漢字 🙂"
    ids = tokenizer.encode_text(text)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([257, 299]) == "<filler 0><filler 42>"
    assert tokenizer.eos_ids == {0}


def test_tokens_are_as_many_as_the_models_and_all_different() -> None:
    tokens = filler_tokens(1000, ["th"])
    assert len(tokens) == len(set(tokens)) == 1000
    assert (tokens[0], tokens[257], tokens[258]) == (END, "th", "<filler 0>")


def test_byte_characters_are_those_of_byte_level_bpe() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(byte_characters()) == sorted(ByteLevel.alphabet())
    assert byte_characters()[ord(" ")] == "Ġ"
