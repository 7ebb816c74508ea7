"""The writer: what it writes, and that the package before survives whatever goes wrong."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_packages import random_block, random_blocks, small_manifest, small_model, small_package, small_precision

from edgemem.compiler import swap
from edgemem.compiler.weights_writer import Block
from edgemem.compiler.writer import PackageWriter
from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.runtime.errors import EdgememError, NumericError, PackageError
from edgemem.runtime.manifest import WEIGHTS_FILE
from edgemem.runtime.package import Package

MODEL = small_model()
PRECISION = small_precision(MODEL)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return small_package(tmp_path / "small.edgemem", seed=1)


def check_untouched(out: Path) -> None:
    """The package of seed 1 opens, and nothing else lies beside it."""
    with Package.open(out) as package:
        assert np.array_equal(package.vector("norm"), dict(random_blocks(MODEL, PRECISION, 1))["norm"])
    assert os.listdir(out.parent) == [out.name]


def write(out: Path, blocks: Iterator[tuple[str, Block]]) -> None:
    with PackageWriter(out) as writer:
        writer.write_weights(MODEL, PRECISION, blocks)
        writer.add_file("model.onnx", b"")
        writer.finish(small_manifest())


def failure(out: Path) -> str | None:
    """The message of the PackageError, if writing fails with one."""
    try:
        write(out, random_blocks(MODEL, PRECISION, 2))
    except PackageError as error:
        return str(error)
    return None


def altered(change: Callable[[str, Block], Iterator[tuple[str, Block]]]) -> Iterator[tuple[str, Block]]:
    for name, block in random_blocks(MODEL, PRECISION):
        yield from change(name, block)


def swapped(target: str, new: Block) -> Iterator[tuple[str, Block]]:
    return altered(lambda name, block: iter([(name, new if name == target else block)]))


def test_staged_package_opens_before_it_replaces(out: Path) -> None:
    with PackageWriter(out) as writer:
        entries = writer.write_weights(MODEL, PRECISION, random_blocks(MODEL, PRECISION, 2))
        writer.path("model.onnx").write_bytes(b"graph")
        writer.adopt("model.onnx")
        first = small_manifest()
        staged = writer.staged(replace(first, quality=None))
        with Package.open(staged) as package:
            assert package.manifest.quality is None
            assert dict(package.tensors) == entries
        with Package.open(out) as package:
            assert np.array_equal(package.vector("norm"), dict(random_blocks(MODEL, PRECISION, 1))["norm"])
        manifest = writer.finish(first)
    with Package.open(out) as package:
        assert package.manifest == manifest
        assert package.manifest.quality == first.quality
        assert np.array_equal(package.vector("norm"), dict(random_blocks(MODEL, PRECISION, 2))["norm"])
    assert os.listdir(out.parent) == [out.name]


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_rows_may_come_in_blocks_and_names_in_any_order(tmp_path: Path, rows: int) -> None:
    whole = small_package(tmp_path / "whole.edgemem")
    chunks = [
        (name, _rows(block, start, start + rows))
        for name, block in random_blocks(MODEL, PRECISION)
        for start in range(0, block.shape[0], rows)
    ]
    names = sorted({name for name, _ in chunks}, reverse=True)
    with PackageWriter(tmp_path / "blocks.edgemem") as writer:
        writer.write_weights(MODEL, PRECISION, (chunk for name in names for chunk in chunks if chunk[0] == name))
        assert writer.path(WEIGHTS_FILE).read_bytes() == (whole / WEIGHTS_FILE).read_bytes()


def _rows(block: Block, start: int, stop: int) -> Block:
    if not isinstance(block, QuantizedMatrix):
        return block[start:stop]
    minima = None if block.minima is None else block.minima[start:stop]
    return QuantizedMatrix(block.codes[start:stop], block.scales[start:stop], minima, block.bits)


def test_bfloat16_rounds_to_nearest_even(tmp_path: Path) -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, 1.0039065, -3.0e38, 0.0], dtype=np.float32)
    head = np.zeros((40, 64), dtype=np.float32)
    head[0, :6] = values
    write(tmp_path / "x.edgemem", swapped("head", head))
    with Package.open(tmp_path / "x.edgemem") as package:
        got = package.matrix("head").rows(0, 1)[0, :6]
    assert got[:4].tolist() == [1.0, 1.0, 1.015625, 1.0078125]
    np.testing.assert_allclose(got[4:], values[4:], rtol=2**-8)


def _bad_blocks() -> dict[str, tuple[type[EdgememError], str, Callable[[], Iterator[tuple[str, Block]]]]]:
    random = np.random.default_rng(0)

    def numbers(*shape: int) -> Any:
        return random.standard_normal(shape).astype(np.float32)

    int4 = Precision.parse("int4-g32-min")
    query, embedding = "layers.0.query", "embedding"

    def planted(name: str, part: str, index: int, value: float) -> Iterator[tuple[str, Block]]:
        def change(found: str, block: Block) -> Iterator[tuple[str, Block]]:
            if found == name:
                values = getattr(block, part) if isinstance(block, QuantizedMatrix) else block
                values.reshape(-1)[index] = value
            yield found, block

        return altered(change)

    cases: dict[str, tuple[type[EdgememError], str, Callable[[], Iterator[tuple[str, Block]]]]] = {
        "unknown name": (PackageError, "'extra'", lambda: iter([("extra", numbers(4))])),
        "missing": (PackageError, "'norm'", lambda: altered(lambda n, b: iter([] if n == "norm" else [(n, b)]))),
        "twice": (PackageError, "'norm'", lambda: altered(lambda n, b: iter([(n, b)] * (1 + (n == "norm"))))),
        "short": (PackageError, query, lambda: swapped(query, random_block(random, 63, 64, int4))),
        "long": (PackageError, query, lambda: swapped(query, random_block(random, 65, 64, int4))),
        "empty": (PackageError, query, lambda: swapped(query, random_block(random, 0, 64, int4))),
        "wide": (PackageError, query, lambda: swapped(query, random_block(random, 64, 128, int4))),
        "precision": (PackageError, query, lambda: swapped(query, random_block(random, 64, 64, Precision("int8", 32)))),
        "float": (PackageError, query, lambda: swapped(query, numbers(64, 64))),
        "quantized": (PackageError, "head", lambda: swapped("head", random_block(random, 40, 64, int4))),
        "double": (PackageError, "head", lambda: swapped("head", numbers(40, 64).astype(np.float64))),
        "transposed": (PackageError, "head", lambda: swapped("head", numbers(64, 40))),
        "vector type": (PackageError, "norm", lambda: swapped("norm", numbers(64).astype(np.float16))),
        "vector shape": (PackageError, "norm", lambda: swapped("norm", numbers(64, 1))),
        "fp16 overflow": (NumericError, r"layers\.1\.up", lambda: swapped("layers.1.up", numbers(128, 64) + 1e5)),
    }
    for name, part in ((embedding, "scales"), (query, "scales"), (query, "minima"), ("head", "weight"), ("norm", "")):
        for index in (0, 20, -1):
            for value in (np.nan, np.inf, -np.inf):
                pattern = rf"{name}.*NaN or Inf.*1 of its values"
                cases[f"{value} in {name} {part} at {index}"] = (
                    NumericError,
                    f"(?s){pattern}",
                    lambda name=name, part=part, index=index, value=value: planted(name, part, index, value),  # type: ignore[misc]
                )
    return cases


BAD_BLOCKS = _bad_blocks()


@pytest.mark.parametrize("case", BAD_BLOCKS)
def test_a_bad_block_is_named_and_the_old_package_stays(out: Path, case: str) -> None:
    error, pattern, blocks = BAD_BLOCKS[case]
    with pytest.raises(error, match=pattern):
        write(out, blocks())
    check_untouched(out)


@pytest.mark.parametrize("problem", [KeyboardInterrupt, RuntimeError, OSError(errno.EIO, "bad disk")])
def test_interrupted_while_the_weights_come(out: Path, problem: Any) -> None:
    def blocks() -> Iterator[tuple[str, Block]]:
        for number, item in enumerate(random_blocks(MODEL, PRECISION)):
            if number == 20:
                raise problem
            yield item

    with pytest.raises(problem if isinstance(problem, type) else OSError):
        write(out, blocks())
    check_untouched(out)


@pytest.mark.parametrize("call", ["fsync", "rename", "pwrite", "posix_fallocate"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("exchange", [True, False])
def test_each_system_call_that_fails_leaves_the_old_package_or_the_new(
    out: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, exchange: bool
) -> None:
    """Fail the first, second, third... call until the writing succeeds."""
    if not exchange:
        monkeypatch.setattr(swap, "_exchange", lambda a, b: False)
    real = getattr(os, call)
    for failing in range(400):
        calls = iter(range(1_000_000))

        def fail(*arguments: Any, failing: int = failing, calls: Iterator[int] = calls) -> Any:
            if next(calls) == failing:
                raise OSError(code, os.strerror(code))
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            message = failure(out)
        if message is None:
            break
        assert str(out) in message
        assert ("bytes free" in message) == (code == errno.ENOSPC)
        if call == "fsync" and failing >= 4:  # the last one comes after the swap: then it is the new package
            Package.open(out).close()
        else:
            check_untouched(out)
    else:
        pytest.fail("it never succeeded")
    assert failing > 0 or (call == "rename" and exchange)
    assert os.listdir(out.parent) == [out.name]


def test_a_disk_too_small_is_refused_before_anything_is_written(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(out)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(PackageError, match=r"(?s)no room.*1,000,000 bytes free.*wanted: 33,\d{3},\d{3} bytes"):
        write(out, iter([]))
    check_untouched(out)


def test_a_disk_that_fills_up_while_another_writes_is_a_package_error(out: Path) -> None:
    full = pytest.raises(PackageError, match="no room for the package")
    with PackageWriter(out) as writer, full, writer.disk_errors():
        raise OSError(errno.ENOSPC, "No space left on device")
    check_untouched(out)


def test_a_file_size_limit_is_a_package_error(out: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(PackageError, match="cannot write"):
            write(out, random_blocks(MODEL, PRECISION))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    check_untouched(out)


def test_no_file_is_written_outside(out: Path) -> None:
    with PackageWriter(out) as writer:
        for name in ("../escape", "/tmp/escape", "sub/x", "", ".hidden", "UPPER"):
            with pytest.raises(PackageError, match="no file name"):
                writer.add_file(name, b"x")
    check_untouched(out)


def test_a_manifest_that_misses_files_is_not_written(out: Path) -> None:
    with PackageWriter(out) as writer, pytest.raises(PackageError, match=r"weights\.safetensors"):
        writer.finish(small_manifest())
    check_untouched(out)


def test_what_is_no_package_is_never_replaced(tmp_path: Path) -> None:
    def folder(name: str, *files: str) -> Path:
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("precious")
        return tmp_path / name

    (tmp_path / "file").write_text("precious")
    (tmp_path / "dangling").symlink_to("/nowhere/at/all")
    (folder("nested", "manifest.yaml") / "photos").mkdir()
    (folder("linked", "manifest.yaml") / "weights.safetensors").symlink_to(tmp_path / "file")
    folder("empty")
    folder("photos", "manifest.yaml", "holiday.jpg")
    folder("model", "config.json", "model.safetensors")
    folder("cluster", "manifest.yaml")
    folder("notes", "manifest.yaml", "weights.safetensors", "notes.txt")
    for name in ("file", "nested", "linked", "empty", "photos", "model", "cluster", "notes"):
        before = sorted(str(path) for path in tmp_path.rglob("*"))
        with pytest.raises(PackageError, match=r"(?s)is not replaced.*choose another output"):
            PackageWriter(tmp_path / name)
        assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    with pytest.raises(PackageError, match="cannot write"):
        PackageWriter(tmp_path / "file" / "below")


def test_what_appears_meanwhile_is_not_replaced_either(tmp_path: Path) -> None:
    out = tmp_path / "new.edgemem"
    with PackageWriter(out) as writer:
        writer.write_weights(MODEL, PRECISION, random_blocks(MODEL, PRECISION))
        writer.add_file("model.onnx", b"")
        out.mkdir()
        (out / "notes").write_text("precious")
        with pytest.raises(PackageError, match="not replaced"):
            writer.finish(small_manifest())
    assert (out / "notes").read_text() == "precious"
    assert os.listdir(tmp_path) == ["new.edgemem"]


def test_a_damaged_package_and_one_with_engines_are_replaced(out: Path) -> None:
    (out / "engines").mkdir()
    (out / "engines" / "plan").write_bytes(b"x")
    (out / "manifest.yaml").write_text("format: 99")
    write(out, random_blocks(MODEL, PRECISION, 1))
    check_untouched(out)
    assert not (out / "engines").exists()


def test_a_linked_output_is_replaced_where_it_lies(out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.edgemem"
    link.symlink_to(out)
    write(link, random_blocks(MODEL, PRECISION, 2))
    assert link.is_symlink()
    assert os.listdir(link.parent) == ["link.edgemem"]
    with Package.open(out) as package:
        assert np.array_equal(package.vector("norm"), dict(random_blocks(MODEL, PRECISION, 2))["norm"])


def test_missing_parents_are_made_and_the_mode_is_the_usual(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "c.edgemem"
    write(out, random_blocks(MODEL, PRECISION))
    (tmp_path / "usual").mkdir()
    (tmp_path / "file").write_text("")
    assert out.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert (out / WEIGHTS_FILE).stat().st_mode == (tmp_path / "file").stat().st_mode


def test_left_overs_of_the_dead_go_and_the_living_stay(out: Path) -> None:
    beside = out.parent
    dead = beside / f".{out.name}.partial-00000000"
    shutil.copytree(out, dead)
    other = beside / ".other.edgemem.partial-00000000"
    other.mkdir()
    with PackageWriter(out) as living:
        assert not dead.exists()
        living.add_file("model.onnx", b"living")
        write(out, random_blocks(MODEL, PRECISION, 2))
        assert living.path("model.onnx").read_bytes() == b"living"
    assert sorted(os.listdir(beside)) == [other.name, out.name]


def test_a_package_moved_aside_by_a_process_that_died_comes_back(out: Path) -> None:
    out.rename(out.parent / f".{out.name}.previous-00000000")
    PackageWriter(out).__exit__()
    check_untouched(out)
    shutil.copytree(out, out.parent / f".{out.name}.previous-00000000")
    PackageWriter(out).__exit__()
    check_untouched(out)


KILLED = """
import os, signal, sys
from pathlib import Path
from small_packages import *
from edgemem.compiler import swap
from edgemem.runtime.package import Package
out, calls = Path(sys.argv[1]), ["fsync", "rename", "pwrite", "mkdir", "unlink", "rmdir", "open"]
small_package(out, seed=1)
for last in range(2000):
    child = os.fork()
    if child == 0:
        counter = iter(range(1_000_000))
        def mortal(real):
            def call(*arguments, **more):
                if next(counter) == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **more)
            return call
        for name in calls:
            setattr(os, name, mortal(getattr(os, name)))
        small_package(out, seed=1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    with Package.open(out) as package:
        package.vector("norm")
    if status == 0:
        break
    assert os.WIFSIGNALED(status), status
small_package(out, seed=1)
assert os.listdir(out.parent) == [out.name], os.listdir(out.parent)
print(last)
"""


def test_killed_at_every_system_call_there_is_always_a_whole_package(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OPENBLAS_NUM_THREADS": "1"}
    script = [sys.executable, "-c", KILLED, str(tmp_path / "p" / "small.edgemem")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 40 < int(done.stdout) < 1999


def test_memory_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    def peak(layers: int) -> int:
        model = small_model(
            layers=layers, layer_ropes=(0,) * layers, windows=(0,) * layers, hidden=512, intermediate=2048
        )
        precision = {name: Precision("int4", 32) for name, _ in model.matrices()}
        tracemalloc.start()
        with PackageWriter(tmp_path / f"{layers}.edgemem") as writer:
            writer.write_weights(model, precision, random_blocks(model, precision, rows=256))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(16) < peak(2) + (256 << 10)  # the header alone grows
