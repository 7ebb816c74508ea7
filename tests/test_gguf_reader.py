"""The GGUF reader: the same model as from Hugging Face's folder, exact quantised imports, and hostile files."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import neighbour_order, write_gguf
from tiny_models import tiny_config, tiny_folder, tiny_weights, write_tokenizer

from edgemem.compiler.checkpoint import Checkpoint, open_checkpoint
from edgemem.compiler.gguf_blocks import BLOCK_TYPES, GgufMatrix
from edgemem.compiler.gguf_file import GgufFile
from edgemem.kernels.formats import unpack_int4
from edgemem.runtime.errors import (
    CheckpointError,
    EdgememError,
    FileError,
    NumericError,
    SettingsError,
    UnsupportedModel,
)

GGUF_FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text")
EXACT = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0)
STORED = {
    Type.F32: "fp32",
    Type.F16: "fp16",
    Type.BF16: "bf16",
    Type.Q4_0: "int4-g32",
    Type.Q4_1: "int4-g32-min",
    Type.Q5_0: "int8-g32",
    Type.Q5_1: "int8-g32-min",
    Type.Q8_0: "int8-g32",
    Type.Q4_K: "int4-g32-min",
    Type.Q5_K: "int8-g32-min",
    Type.Q6_K: "None",
}


def gguf_of(folder: Path, family: str, **options: Any) -> Path:
    config = options.pop("config", None) or tiny_config(family, tied=options.pop("tied", False))
    weights = options.pop("weights", None) or tiny_weights(config, 0)
    folder.mkdir(exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        write_tokenizer(folder)
    return write_gguf(folder / "model.gguf", config, weights, folder / "tokenizer.json", **options)


def assert_same(got: Checkpoint, wanted: Checkpoint) -> None:
    for field in dataclass_fields(wanted.model):
        ours, theirs = getattr(got.model, field.name), getattr(wanted.model, field.name)
        if field.name == "ropes":
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a.inverse_frequencies, b.inverse_frequencies, rtol=5e-7, atol=0)
                assert a.amplitude == b.amplitude
        elif isinstance(theirs, float):
            assert ours == pytest.approx(theirs, rel=1e-7), field.name
        else:
            assert ours == theirs, field.name
    for name, _ in wanted.model.matrices():
        np.testing.assert_array_equal(got.matrix(name).rows(), wanted.matrix(name).rows(), err_msg=name)
    for name, _ in wanted.model.vectors():
        np.testing.assert_array_equal(got.vector(name), wanted.vector(name), err_msg=name)


@pytest.mark.parametrize("family", GGUF_FAMILIES)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_same_checkpoint_as_from_the_folder(tmp_path: Path, family: str, tied: bool) -> None:
    folder = tiny_folder(tmp_path, family, tied=tied)
    config = tiny_config(family, tied=tied)

    def extra(writer: gguf.GGUFWriter) -> None:
        if family == "gemma3_text":
            writer.add_array("gemma3.attention.sliding_window_pattern", [True, True, False, True])
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(8.0)
            writer.add_final_logit_softcapping(8.0)
            writer.add_float32("gemma3.attention.scale", 24**-0.5)

    path = write_gguf(tmp_path / "model.gguf", config, tiny_weights(config, 0), folder / "tokenizer.json", extra=extra)
    with open_checkpoint(path) as ours, open_checkpoint(folder) as theirs:
        assert_same(ours, theirs)


def test_llama3_scaling_arrives_as_a_tensor_of_divisors(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "llama3", tied=True)
    config = tiny_config("llama3", tied=True)
    plain = {**config, "rope_scaling": None}
    with open_checkpoint(folder) as wanted:
        scaled = np.array(wanted.model.ropes[0].inverse_frequencies)
        unscaled = 500000.0 ** -(np.arange(0, 16, 2) / 16)
        divisors = (unscaled / scaled).astype(np.float32)
        assert divisors[0] == pytest.approx(1)
        assert divisors[-1] == pytest.approx(8)
        path = write_gguf(
            tmp_path / "model.gguf",
            plain,
            tiny_weights(config, 0),
            folder / "tokenizer.json",
            extra=lambda writer: writer.add_tensor("rope_freqs.weight", divisors),
        )
        with open_checkpoint(path) as got:
            assert_same(got, wanted)


def test_biases_of_llama_are_put_back_in_order_too(tmp_path: Path) -> None:
    config = {**tiny_config("llama", tied=True), "attention_bias": True}
    weights = tiny_weights(config, 0)
    random = np.random.default_rng(4)
    for layer in range(3):
        for letter, length in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
            weights[f"model.layers.{layer}.self_attn.{letter}_proj.bias"] = random.random(length, dtype=np.float32)
    with open_checkpoint(gguf_of(tmp_path / "x", "llama", config=config, weights=weights)) as checkpoint:
        assert checkpoint.model.qkv_bias
        assert checkpoint.model.output_bias
        for letter, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
            wanted = weights[f"model.layers.1.self_attn.{letter}_proj.bias"]
            np.testing.assert_array_equal(checkpoint.vector(f"layers.1.{name}_bias"), wanted)


def test_gemma3_without_a_pattern_has_every_sixth_layer_global(tmp_path: Path) -> None:
    config = {**tiny_config("gemma3_text", tied=True), "num_hidden_layers": 7}
    with open_checkpoint(gguf_of(tmp_path / "x", "gemma3_text", config=config)) as checkpoint:
        assert checkpoint.model.windows == (8, 8, 8, 8, 8, 0, 8)
        assert checkpoint.model.layer_ropes == (1, 1, 1, 1, 1, 0, 1)
        assert checkpoint.model.ropes[1].inverse_frequencies[1] == pytest.approx(10000.0 ** (-2 / 32), rel=1e-6)


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16, *EXACT], ids=lambda kind: kind.name)
def test_quantised_files_import_exactly(tmp_path: Path, kind: Type) -> None:
    config = tiny_config("llama", tied=False)
    weights = tiny_weights(config, 2)
    path = gguf_of(tmp_path / "x", "llama", config=config, weights=weights, types=lambda name, weight: kind)
    with open_checkpoint(path) as checkpoint:
        for name, heads, key in (
            ("layers.1.query", 4, "model.layers.1.self_attn.q_proj.weight"),
            ("layers.1.key", 2, "model.layers.1.self_attn.k_proj.weight"),
            ("layers.2.down", 0, "model.layers.2.mlp.down_proj.weight"),
            ("embedding", 0, "model.embed_tokens.weight"),
        ):
            stored = neighbour_order(weights[key], heads) if heads else weights[key]
            exact = gguf.dequantize(gguf.quantize(stored, kind), kind)
            if heads:
                half = exact.shape[0] // heads // 2
                exact = exact.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(exact.shape)
            matrix = checkpoint.matrix(name)
            assert str(matrix.stored) == STORED[kind]
            np.testing.assert_array_equal(matrix.rows(), exact)
            np.testing.assert_array_equal(matrix.rows(5, 21), exact[5:21])
            quantized = matrix.quantized(5, 21)
            if kind in EXACT:
                assert quantized is not None
                assert quantized.precision == matrix.stored
                np.testing.assert_array_equal(quantized.dequantize(), exact[5:21])
            else:
                assert quantized is None


def random_blocks(kind: Type, rows: int, columns: int, seed: int) -> np.ndarray:
    """Arbitrary bytes are valid blocks as long as the fp16 factors are finite numbers."""
    random = np.random.default_rng(seed)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = random.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    halves = {Type.Q6_K: [208], Type.Q4_1: [0, 2], Type.Q5_1: [0, 2], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2]}
    for start in halves.get(kind, [0]):
        factors = (random.standard_normal(len(raw)) * 0.01).astype(np.float16)
        raw[:, start : start + 2] = factors.view(np.uint8).reshape(-1, 2)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [*EXACT, Type.Q4_K, Type.Q5_K, Type.Q6_K], ids=lambda kind: kind.name)
def test_arbitrary_blocks_agree_with_the_library(kind: Type, seed: int) -> None:
    raw = random_blocks(kind, 6, 512, seed)
    exact = gguf.dequantize(raw, kind)
    matrix = GgufMatrix("m", raw, int(kind), 512)
    assert str(matrix.stored) == STORED[kind]
    np.testing.assert_array_equal(matrix.rows(), exact)
    np.testing.assert_array_equal(matrix.rows(2, 3), exact[2:3])
    quantized = matrix.quantized()
    if kind == Type.Q6_K:
        assert quantized is None
    elif kind in EXACT:
        np.testing.assert_array_equal(quantized.dequantize(), exact)
        np.testing.assert_array_equal(matrix.quantized(2, 3).dequantize(), exact[2:3])
    else:
        assert_only_the_factors_are_rounded(quantized, raw, kind, exact)


def assert_only_the_factors_are_rounded(quantized: Any, raw: np.ndarray, kind: Type, exact: np.ndarray) -> None:
    """Codes reproduce the file's values with exact factors, and the fp16 factors are the nearest ones."""
    blocks = raw.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
    scales, minima = gguf.quants.Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
    factors = np.ascontiguousarray(blocks[:, :4]).view(np.float16).astype(np.float32)
    scale = (factors[:, :1] * scales).reshape(quantized.scales.shape)
    minimum = -(factors[:, 1:] * minima).reshape(quantized.scales.shape)
    np.testing.assert_array_equal(quantized.scales, scale.astype(np.float16))
    np.testing.assert_array_equal(quantized.minima, minimum.astype(np.float16))
    codes = unpack_int4(quantized.codes) if quantized.bits == 4 else quantized.codes
    np.testing.assert_array_equal((codes * scale[..., None] + minimum[..., None]).reshape(exact.shape), exact)
    rounding = np.abs(quantized.dequantize() - exact).reshape(codes.shape).max(axis=2)
    assert (rounding <= np.abs(scale) * 32 * 2**-11 + np.abs(minimum) * 2**-11 + 2**-23).all()


@pytest.mark.parametrize("kind", [Type.Q4_K, Type.Q5_K, Type.Q6_K], ids=lambda kind: kind.name)
def test_super_blocks_in_a_file_with_rows_put_back_in_order(tmp_path: Path, kind: Type) -> None:
    config = {**tiny_config("llama", tied=True), "hidden_size": 256, "num_hidden_layers": 1}
    weights = tiny_weights(config, 0)
    raw = random_blocks(kind, 256, 256, 9)
    path = gguf_of(tmp_path / "x", "llama", config=config, weights=weights)
    file = GgufFile(path)
    place = file.tensors["blk.0.attn_q.weight"]
    assert place.shape == (256, 256)
    matrix = GgufMatrix("q", raw, int(kind), 256, paired_head=64)
    exact = gguf.dequantize(raw, kind).reshape(4, 32, 2, 256).swapaxes(1, 2).reshape(256, 256)
    np.testing.assert_array_equal(matrix.rows(), exact)
    np.testing.assert_array_equal(matrix.rows(60, 70), exact[60:70])
    if kind != Type.Q6_K:
        np.testing.assert_array_equal(matrix.quantized(60, 70).dequantize(), matrix.quantized().dequantize()[60:70])


@pytest.mark.parametrize("kind", [Type.Q4_1, Type.Q8_0, Type.Q4_K, Type.Q6_K, Type.F16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_factors_that_are_not_finite_are_refused(kind: Type, bad: float) -> None:
    if kind == Type.F16:
        raw = np.ones((4, 256), np.float16).view(np.uint8).copy()
        at = 0
    else:
        raw = random_blocks(kind, 4, 256, 1)
        at = 208 if kind == Type.Q6_K else 0
    raw[2, at : at + 2] = np.array([bad], np.float16).view(np.uint8)
    matrix = GgufMatrix("layers.7.up", raw, int(kind), 256)
    with pytest.raises(NumericError, match=r"layers\.7\.up"):
        matrix.rows()
    assert matrix.rows(0, 2).shape == (2, 256)
    if matrix.stored is not None and matrix.stored.quantized:
        with pytest.raises(NumericError, match=r"layers\.7\.up \(scales\)") as caught:
            matrix.quantized()
        assert "(2, 0)" in str(caught.value)


def test_factors_that_overflow_fp16_are_refused_not_changed() -> None:
    raw = random_blocks(Type.Q4_K, 1, 256, 1)
    raw[0, :2] = np.array([60000], np.float16).view(np.uint8)
    raw[0, 4:16] = 63
    matrix = GgufMatrix("m", raw, int(Type.Q4_K), 256)
    assert np.isfinite(matrix.rows()).all()
    with pytest.raises(NumericError, match="scales"):
        matrix.quantized()


def test_rows_outside_the_matrix_are_refused() -> None:
    matrix = GgufMatrix("m", random_blocks(Type.Q8_0, 4, 64, 0), int(Type.Q8_0), 64)
    for start, stop in ((-1, 2), (3, 2), (0, 5)):
        with pytest.raises(SettingsError, match="no such rows"):
            matrix.quantized(start, stop)


def test_origin_and_the_only_file_of_a_folder(tmp_path: Path) -> None:
    path = gguf_of(tmp_path / "x", "llama", extra=lambda writer: writer.add_license("apache-2.0"))
    with open_checkpoint(tmp_path / "x") as checkpoint:
        origin = checkpoint.origin
    assert (origin.source, origin.format, origin.licence) == ("model.gguf", "gguf", "apache-2.0")
    assert len(origin.sha256) == 64
    (tmp_path / "x" / "other.gguf").write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="several GGUF files"):
        open_checkpoint(tmp_path / "x")


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, type_id: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", type_id) + raw


def tensor(name: str = "t", sizes: tuple[int, ...] = (8,), type_id: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, type_id, offset)


def container(
    pairs: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (tensor(),),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    body: int = 32,
    alignment: int = 32,
) -> bytes:
    counts = (len(tensors), len(pairs)) if counts is None else counts
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + bytes(body)


U32 = struct.pack("<I", 7)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "bad magic": (container(magic=b"GGUX"), "no GGUF file"),
    "version 1": (container(version=1), "version is not supported"),
    "future version": (container(version=4), "version is not supported"),
    "big endian": (container(version=3 << 24), "version is not supported"),
    "huge tensor count": (container(counts=(1 << 63, 0)), "too many tensors"),
    "huge key count": (container(counts=(1, 1 << 63)), "too many keys"),
    "more keys than there are": (container((pair("a", 4, U32),), counts=(1, 2)), ""),
    "duplicate key": (container((pair("a", 4, U32), pair("a", 4, U32))), "duplicate key"),
    "unknown value type": (container((pair("a", 13, U32),)), "unknown type"),
    "huge string": (container((text("a") + struct.pack("<IQ", 8, 1 << 62),)), "too long"),
    "string past the end": (container((text("a") + struct.pack("<IQ", 8, 5000),)), "beyond the file"),
    "huge key": (container((struct.pack("<Q", 1 << 20) + bytes(16),)), "too long"),
    "string not UTF-8": (container((pair("a", 8, text(b"\xff\xfe")),)), "no UTF-8"),
    "key not UTF-8": (container((text(b"\xff") + U32 + U32,)), "no UTF-8"),
    "huge array": (container((pair("a", 9, struct.pack("<IQ", 4, 1 << 62)),)), "too many elements"),
    "huge array of strings": (container((pair("a", 9, struct.pack("<IQ", 8, 1 << 61)),)), "too many strings"),
    "array of arrays": (container((pair("a", 9, struct.pack("<IQ", 9, 1)),)), "elements of an unknown type"),
    "array of an unknown type": (container((pair("a", 9, struct.pack("<IQ", 99, 1)),)), "elements of an unknown type"),
    "alignment of another type": (container((pair("general.alignment", 6, struct.pack("<f", 32)),)), "alignment"),
    "alignment true": (container((pair("general.alignment", 7, b"\1"),)), "alignment"),
    "alignment 0": (container((pair("general.alignment", 4, struct.pack("<I", 0)),)), "alignment"),
    "alignment 24": (container((pair("general.alignment", 4, struct.pack("<I", 24)),)), "alignment"),
    "huge alignment": (container((pair("general.alignment", 4, struct.pack("<I", 1 << 31)),)), "alignment"),
    "duplicate tensor": (container((), (tensor(), tensor(offset=32)), body=64), "duplicate tensor"),
    "long tensor name": (container((), (tensor("n" * 300),)), "too long"),
    "no dimensions": (container((), (tensor(sizes=()),)), "0 dimensions"),
    "five dimensions": (container((), (tensor(sizes=(8, 1, 1, 1, 1)),)), "5 dimensions"),
    "huge dimension": (container((), (tensor(sizes=(1 << 40,)),)), "impossible shape"),
    "product overflows": (container((), (tensor(sizes=(1 << 31, 1 << 31, 1 << 31)),)), "impossible shape"),
    "zero dimension": (container((), (tensor(sizes=(8, 0)),)), "impossible shape"),
    "unknown tensor type": (container((), (tensor(type_id=4242),)), "unknown type"),
    "removed tensor type": (container((), (tensor(type_id=4),)), "unknown type"),
    "broken blocks": (container((), (tensor(sizes=(33,), type_id=2),)), "broken rows"),
    "bad offset": (container((), (tensor(offset=1),)), "out of place"),
    "hole": (container((), (tensor(), tensor("u", offset=96)), body=128), "out of place"),
    "overlap": (container((), (tensor(), tensor("u", offset=0))), "out of place"),
    "offset overflows": (container((), (tensor(offset=(1 << 64) - 32),)), "out of place"),
    "not enough data": (container((), (tensor(sizes=(1000,)),)), "truncated"),
    "data past the file": (container((), (tensor(sizes=(1 << 31, 1 << 20)),)), "truncated"),
    "tail": (container(body=64), "behind the last"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_containers_are_refused(tmp_path: Path, case: str) -> None:
    raw, message = HOSTILE[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        GgufFile(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


def test_well_formed_containers_are_read(tmp_path: Path) -> None:
    pairs = (
        pair("general.alignment", 4, struct.pack("<I", 64)),
        pair("numbers", 9, struct.pack("<IQ3h", 3, 3, -1, 0, 1)),
        pair("texts", 9, struct.pack("<IQ", 8, 2) + text("ä") + text("")),
        pair("flag", 7, b"\1"),
        pair("big", 10, struct.pack("<Q", 1 << 60)),
    )
    tensors = (tensor("a", (4, 2)), tensor("b", (32,), 8, offset=64))
    for version in (2, 3):
        path = tmp_path / "x.gguf"
        path.write_bytes(container(pairs, tensors, version=version, body=128, alignment=64))
        file = GgufFile(path)
        assert file.metadata["numbers"].tolist() == [-1, 0, 1]
        assert file.metadata["texts"].decode() == ["ä", ""]
        assert file.metadata["flag"] is True
        assert file.metadata["big"] == 1 << 60
        assert file.bytes_of("a").shape == (2, 16)
        assert file.bytes_of("b").shape == (1, 34)
        file.close()
        with pytest.raises(CheckpointError, match="closed"):
            file.bytes_of("a")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    config = {**tiny_config("llama", tied=True), "num_hidden_layers": 1}
    path = gguf_of(tmp_path / "x", "llama", config=config, types=lambda name, weight: Type.Q4_0)
    whole = path.read_bytes()
    with open_checkpoint(path):
        pass
    edges = {
        edge + delta
        for entry in GgufFile(path).tensors.values()
        for edge in (entry.start, entry.stop)
        for delta in (-1, 0, 1)
    }
    lengths = {*range(200), *range(200, len(whole), 211), *edges, len(whole) - 1}
    cut = tmp_path / "cut.gguf"
    for length in sorted(length for length in lengths if length < len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(cut)


def with_key(key: str, value: Any) -> Callable[[gguf.GGUFWriter], None]:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    return lambda writer: getattr(writer, f"add_{kinds[type(value)]}")(key, value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.expert_count", 8, "expert_count"),
        ("llama.rope.scaling.type", "longrope", "rope scaling"),
        ("llama.rope.dimension_count", 8, "differs from the head size"),
        ("llama.attention.value_length", 8, "differs from the head size"),
        ("split.count", 3, "several parts"),
        ("llama.attention.clamp_kqv", 8.0, "clamp_kqv"),
    ],
)
def test_variants_that_are_not_built_are_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    path = gguf_of(tmp_path / "x", "llama", extra=with_key(key, value))
    with pytest.raises(UnsupportedModel, match=message):
        open_checkpoint(path)


def test_another_architecture_lists_the_supported_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(container((pair("general.architecture", 8, text("mamba")),)))
    with pytest.raises(UnsupportedModel, match="'mamba'") as caught:
        open_checkpoint(path)
    assert all(name in str(caught.value) for name in ("llama", "qwen2", "qwen3", "gemma3"))


def test_unsupported_tensor_types_are_named(tmp_path: Path) -> None:
    config = {**tiny_config("llama", tied=True), "hidden_size": 256, "intermediate_size": 256}
    path = gguf_of(tmp_path / "x", "llama", config=config)
    raw = path.read_bytes()
    up = text("blk.1.ffn_up.weight") + struct.pack("<I2QI", 2, 256, 256, 0)
    assert raw.count(up) == 1
    later = raw.replace(up, up[:-4] + struct.pack("<I", int(Type.I32)))  # same size, another meaning
    path.write_bytes(later)
    with pytest.raises(UnsupportedModel, match=r"blk\.1\.ffn_up\.weight") as caught:
        open_checkpoint(path)
    assert "I32" in str(caught.value)
    assert "Q4_K" in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "surplus", "shape", "rope"])
def test_tensors_must_be_those_of_the_metadata(tmp_path: Path, change: str) -> None:
    config = tiny_config("llama", tied=True)
    weights = tiny_weights(config, 0)
    extra: Callable[[gguf.GGUFWriter], None] = lambda writer: None  # noqa: E731
    if change == "missing":
        del weights["model.layers.2.mlp.up_proj.weight"]
    elif change == "shape":
        weights["model.layers.2.mlp.up_proj.weight"] = np.ones((95, 64), np.float32)
    elif change == "surplus":
        extra = lambda writer: writer.add_tensor("blk.0.attn_sinks", np.ones(4, np.float32))  # noqa: E731
    else:
        extra = lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(7, np.float32))  # noqa: E731
    path = gguf_of(tmp_path / "x", "llama", config=config, weights=weights, extra=extra)
    names = {"missing": "blk.2.ffn_up", "shape": "blk.2.ffn_up", "surplus": "blk.0.attn_sinks", "rope": "rope_freqs"}
    with pytest.raises(CheckpointError, match=names[change].replace(".", r"\.")):
        open_checkpoint(path)


@given(
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=4),
    cut=st.one_of(st.just(0), st.integers(0, 1 << 20)),
    within=st.sampled_from([600, 5000, 1 << 20]),
)
@settings(deadline=None, max_examples=400)
def test_damage_gives_one_of_our_errors_or_loads(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int, within: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damage-gguf"
    if not folder.exists():
        config = {**tiny_config("gemma3_text", tied=True), "num_hidden_layers": 1}
        gguf_of(folder, "gemma3_text", config=config, types=lambda name, weight: Type.Q4_1)
    raw = bytearray((folder / "model.gguf").read_bytes())
    span = min(len(raw), within)
    for place, mask in flips:
        raw[place % span] ^= mask
    path = folder / "damaged.bin"
    path.write_bytes(raw[: len(raw) - cut % len(raw)])
    try:
        with suppress(FileError, NumericError), open_checkpoint(path) as checkpoint:
            for name, _ in checkpoint.model.matrices():
                checkpoint.matrix(name).quantized(0, 2)
            for name, _ in checkpoint.model.vectors():
                checkpoint.vector(name)
    except EdgememError as problem:
        pytest.fail(f"an error of another family: {problem!r}")


def test_every_block_size_is_the_librarys() -> None:
    for type_id, kind in BLOCK_TYPES.items():
        assert Type(type_id).name == kind.name
        if kind.block_bytes:
            assert gguf.GGML_QUANT_SIZES[Type(type_id)] == (kind.block, kind.block_bytes)


@pytest.mark.model
def test_the_real_smollm2(smollm2_gguf: Path) -> None:
    with open_checkpoint(smollm2_gguf) as checkpoint:
        model = checkpoint.model
        assert (model.layers, model.hidden, model.heads, model.kv_heads, model.vocabulary) == (30, 576, 9, 3, 49152)
        assert model.tied_head
        assert str(checkpoint.matrix("embedding").stored) == "int8-g32"
        for name in ("embedding", "layers.0.query", "layers.29.down"):
            matrix = checkpoint.matrix(name)
            quantized = matrix.quantized(64, 128)
            assert quantized is not None
            np.testing.assert_array_equal(quantized.dequantize(), matrix.rows(64, 128))
