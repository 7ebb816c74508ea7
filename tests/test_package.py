"""Opening a sound package, and asking it for things."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leftovers import descriptors
from small_packages import FILES, random_blocks, small_manifest, small_model, small_package, small_precision

from edgemem.compiler.weights_writer import WeightsPlan
from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.runtime.errors import EngineError, PackageError, UnsafePathError
from edgemem.runtime.finite import find_not_finite
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.package import Package
from edgemem.runtime.weight_layout import tensor_specs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return small_package(tmp_path / "small.edgemem")


@pytest.mark.parametrize("verify", [True, False])
def test_gives_back_what_was_written(path: Path, verify: bool) -> None:
    model = small_model()
    precision = small_precision(model)
    with Package.open(path, verify=verify) as package:
        assert package.model == model
        assert package.manifest.name == "small"
        for name, block in random_blocks(model, precision):
            if name in dict(model.vectors()):
                assert np.array_equal(package.vector(name), block)
                continue
            matrix, kind = package.matrix(name), precision[name]
            assert matrix.stored == kind == package.precision(name)
            assert matrix.shape == dict(model.matrices())[name]
            if isinstance(block, QuantizedMatrix):
                part = matrix.quantized(3, 9)
                assert part is not None
                assert np.array_equal(part.codes, block.codes[3:9])
                assert np.array_equal(matrix.rows(3, 9), block.dequantize()[3:9])
                assert np.array_equal(matrix.rows(), block.dequantize())
            else:
                assert matrix.quantized() is None
                error = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}[kind.kind]
                np.testing.assert_allclose(matrix.rows(1, 7), block[1:7], rtol=error, atol=1e-7)
                assert matrix.rows(1, 7).dtype == np.float32


def test_arrays_outlive_the_package_and_cannot_be_written(path: Path) -> None:
    with Package.open(path) as package:
        part = package.matrix("embedding").quantized()
    assert part is not None
    assert part.codes.sum() > 0
    with pytest.raises(ValueError, match="read-only"):
        part.codes[0, 0, 0] = 1
    with pytest.raises(PackageError, match="closed"):
        package.matrix("embedding")


def test_unknown_names_are_refused_with_the_known_ones(path: Path) -> None:
    with Package.open(path) as package:
        for ask in (package.matrix, package.vector, package.precision, package.file):
            with pytest.raises(PackageError, match=r"layers\.7\.query"):
                ask("layers.7.query")
        with pytest.raises(PackageError, match="no vector 'embedding'"):
            package.vector("embedding")


def test_a_missing_graph_names_those_that_exist(path: Path) -> None:
    with Package.open(path) as package, pytest.raises(EngineError) as caught:
        package.graph(0, 2)
    assert "[0, 2)" in str(caught.value)
    assert "[0, 3)" in str(caught.value)
    assert "--stages 2" in str(caught.value)


@pytest.mark.parametrize("layers", [(1, 2), (0, 0), (3, 3), (0, 4), (-1, 3)])
def test_a_part_that_compile_never_writes_is_not_promised(path: Path, layers: tuple[int, int]) -> None:
    with Package.open(path) as package, pytest.raises(EngineError, match=r"the front \[0, K\) or the back \[K, 3\)"):
        package.graph(*layers)


def test_files_are_given_while_they_are_what_was_opened(path: Path) -> None:
    with Package.open(path) as package:
        assert package.file("tokenizer.json").read_bytes() == FILES["tokenizer.json"]
        shutil.copy(path / "tokenizer.json", path / "copy")
        (path / "copy").rename(path / "tokenizer.json")  # same bytes, another file
        with pytest.raises(PackageError, match="changed since"):
            package.file("tokenizer.json")
        (path / "tokenizer.json").unlink()
        (path / "tokenizer.json").symlink_to("/etc/passwd")
        with pytest.raises(UnsafePathError, match=r"tokenizer\.json"):
            package.file("tokenizer.json")
        (path / "tokenizer.json").unlink()
        with pytest.raises(PackageError, match=r"tokenizer\.json"):
            package.file("tokenizer.json")


def test_a_graph_is_looked_through_before_it_is_given(path: Path) -> None:
    with Package.open(path) as package, pytest.raises(PackageError, match=r"model\.onnx"):
        package.graph()


def test_opens_through_a_link_and_by_a_relative_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path)
    (path.parent / "link").symlink_to(path)
    for way in (Path("../link"), Path(), "../small.edgemem"):
        with Package.open(way) as package:
            assert package.model.layers == 3


def test_engines_built_here_are_ignored(path: Path) -> None:
    (path / "engines").mkdir()
    (path / "engines" / "anything").write_bytes(b"x")
    Package.open(path).close()


def test_closes_every_descriptor(path: Path) -> None:
    before = descriptors()
    package = Package.open(path)
    assert descriptors() - before
    package.close()
    package.close()
    (path / "model.onnx").unlink()
    with pytest.raises(PackageError):
        Package.open(path)
    assert not descriptors() - before


def test_what_is_no_package_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0")
    (tmp_path / "text").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "pipe")
    cases = {
        "model.gguf": "a GGUF model file.*edgemem compile .*model.gguf",
        "text": "a file.*edgemem compile",
        "folder": "a folder without manifest.yaml.*edgemem compile",
        "hub": "a model folder without manifest.yaml.*edgemem compile .*hub",
        "pipe": "no folder",
        "missing": "nothing there",
        "text/more": "nothing there",
    }
    for name, pattern in cases.items():
        with pytest.raises(PackageError, match=f"(?s)not a compiled package.*{pattern}"):
            Package.open(tmp_path / name)
    with pytest.raises(PackageError, match="not a compiled package"):
        Package.open("bad\0path")


def test_all_imaginable_layouts_have_no_holes_and_fuse_what_is_alike() -> None:
    model = small_model()
    precision = small_precision(model)
    names = [spec.name for spec in tensor_specs(model, precision)]
    parts = ("codes", "scales", "minima")
    start = names.index("layers.0.query.codes")
    assert names[start : start + 9] == [f"layers.0.{m}.{part}" for part in parts for m in ("query", "key", "value")]
    start = names.index("layers.1.query.codes")  # its key is stored otherwise
    assert names[start : start + 4] == [*(f"layers.1.query.{part}" for part in parts), "layers.1.key.codes"]
    assert names[: len(list(model.vectors()))] == [name for name, _ in model.vectors()]
    assert names[-1] == "head.weight"


@st.composite
def layouts(draw: st.DrawFn) -> tuple[ModelSpec, dict[str, Precision]]:
    layers = draw(st.integers(1, 3))
    flags = {
        name: draw(st.booleans()) for name in ("tied_head", "qkv_bias", "output_bias", "qk_norm", "sandwich_norms")
    }
    model = small_model(
        layers=layers,
        layer_ropes=(0,) * layers,
        windows=(0,) * layers,
        vocabulary=draw(st.integers(1, 50)),
        hidden=128 * draw(st.integers(1, 2)),
        kv_heads=draw(st.sampled_from([1, 2, 4])),
        heads=4,
        **flags,
    )
    kinds = ["int4-g32", "int4-g128-min", "int8-g64", "int8-g32-min", "fp16", "bf16", "fp32"]
    few = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3))
    return model, {name: Precision.parse(draw(st.sampled_from(few))) for name, _ in model.matrices()}


@settings(deadline=None, max_examples=60)
@given(layouts())
def test_the_plan_covers_the_file_without_holes(layout: tuple[ModelSpec, dict[str, Precision]]) -> None:
    model, precision = layout
    plan = WeightsPlan(model, precision)
    position = len(plan.header)
    assert position % 64 == 0
    for name, entry in plan.entries.items():
        assert entry.start == position
        assert entry.dtype != "F32" or name.endswith(".weight") or entry.start % 4 == 0
        position = entry.stop
    assert position == plan.file_bytes
    vectors = 4 * sum(length for _, length in model.vectors())
    matrices = sum(precision[name].bytes_for(*shape) for name, shape in model.matrices())
    assert position == len(plan.header) + vectors + matrices


def test_a_group_must_divide_the_rows() -> None:
    model = small_model(hidden=96)
    with pytest.raises(ValueError, match=r"layers\.0\.query"):
        WeightsPlan(
            model,
            {name: Precision("int4", 64) for name, _ in model.matrices() if name != "embedding"}
            | {"embedding": Precision("fp16")},
        )


@pytest.mark.parametrize(
    ("dtype", "nan", "inf"), [("<f4", 0x7FC00001, 0xFF800000), ("<f2", 0x7E01, 0xFC00), ("<u2", 0x7FC1, 0xFF80)]
)
def test_not_finite_is_counted_and_placed(dtype: str, nan: int, inf: int) -> None:
    bits = "<u4" if dtype == "<f4" else "<u2"
    largest = np.array([inf - 1 - (1 << (31 if bits == "<u4" else 15))], dtype=bits)
    values = np.repeat(largest, 60).reshape(5, 12)
    assert find_not_finite(values.view(dtype)) is None
    values[2, 3], values[4, 11] = nan, inf
    found = find_not_finite(values.view(dtype))
    assert found is not None
    assert (found.total, found.first) == (2, (2, 3))
    assert find_not_finite(np.zeros(0, dtype=dtype)) is None


def test_the_manifest_helper_is_what_the_package_says(path: Path) -> None:
    with Package.open(path) as package:
        assert package.manifest.precision == small_manifest().precision
        assert {name: record.bytes for name, record in package.manifest.files.items() if name in FILES} == {
            name: len(data) for name, data in FILES.items()
        }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["", "manifest.yaml"])
def test_what_may_not_be_read_is_a_package_error(path: Path, name: str) -> None:
    (path / name).chmod(0)
    try:
        with pytest.raises(PackageError, match=r"Permission denied(.|\n)*permissions"):
            Package.open(path)
    finally:
        (path / name).chmod(0o700)
