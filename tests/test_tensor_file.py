"""The strict safetensors reader: what it reads, and everything it must refuse."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from edgemem.runtime.errors import CheckpointError, FileError, PackageError
from edgemem.runtime.limits import LIMITS
from edgemem.runtime.tensor_file import TensorFile

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "U8", "shape": [5], "data_offsets": [24, 29]},
    "c": {"dtype": "F16", "shape": [2], "data_offsets": [29, 33]},
}


def write(path: Path, header: dict[str, Any] | str | bytes, body: int | bytes = 33) -> Path:
    raw = json.dumps(header) if isinstance(header, dict) else header
    raw = raw.encode() if isinstance(raw, str) else raw
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + (bytes(body) if isinstance(body, int) else body))
    return path


def changed(**entry: Any) -> dict[str, Any]:
    """GOOD with values of tensor `a` replaced."""
    return {**GOOD, "a": {**GOOD["a"], **entry}}


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        TensorFile.open(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {
        "one": np.arange(12, dtype=np.float32).reshape(3, 4),
        "two": np.arange(7, dtype=np.float16),
        "three": np.arange(-3, 3, dtype=np.int64),
        "four": np.array([True, False]),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    with TensorFile.open(tmp_path / "x.safetensors") as file:
        assert file.metadata == {"format": "pt"}
        assert set(file.tensors) == set(tensors)
        for name, wanted in tensors.items():
            got = file.array(name)
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)
            assert not got.flags.writeable


def test_bfloat16_arrives_as_its_bits(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    values = torch.tensor([[1.5, -2.0, 3.25]], dtype=torch.bfloat16)
    save_torch({"x": values}, tmp_path / "x.safetensors")
    with TensorFile.open(tmp_path / "x.safetensors") as file:
        bits = file.array("x")
    assert bits.dtype == np.uint16
    np.testing.assert_array_equal((bits.astype(np.uint32) << 16).view(np.float32), values.float().numpy())


def test_odd_offsets_are_read_in_place(tmp_path: Path) -> None:
    body = np.arange(6, dtype=np.float32).tobytes() + bytes(5) + np.array([1.5, 2.5], np.float16).tobytes()
    with TensorFile.open(write(tmp_path / "x", GOOD, body)) as file:
        np.testing.assert_array_equal(file.array("a"), np.arange(6, dtype=np.float32).reshape(2, 3))
        np.testing.assert_array_equal(file.array("c"), np.array([1.5, 2.5], np.float16))
        assert list(file.tensors) == ["a", "b", "c"]


def test_arrays_outlive_close_but_a_closed_file_gives_none(tmp_path: Path) -> None:
    file = TensorFile.open(write(tmp_path / "x", GOOD, bytes(range(33))))
    array = file.array("b")
    file.close()
    assert array.tolist() == list(range(24, 29))
    with pytest.raises(CheckpointError, match="closed"):
        file.array("b")


def test_the_caller_chooses_the_error_and_may_open_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x", GOOD)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        file = TensorFile.open(Path("its name"), error=PackageError, descriptor=descriptor)
        assert file.array("a").shape == (2, 3)
        with pytest.raises(PackageError, match="no tensor 'z'"):
            file.array("z")
        os.fstat(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (changed(shape=[2, 0]), "no positive whole number"),
        (changed(shape=[-2, -3]), "no positive whole number"),
        (changed(shape=[True, 6]), "no positive whole number"),
        (changed(shape=[2.0, 3]), "no positive whole number"),
        (changed(shape=[2, "3"]), "no positive whole number"),
        (changed(shape=[1] * 9), "at most 8 sizes"),
        (changed(shape=6), "at most 8 sizes"),
        (changed(shape=[1 << 40]), "dimension 1099511627776"),
        (changed(shape=[1 << 31, 1 << 31, 1 << 31]), "multiply past"),
        (changed(shape=[2, 4]), "wanted 32 for F32"),
        (changed(dtype="F31"), "dtype 'F31'"),
        (changed(dtype=["F32"]), "dtype"),
        (changed(dtype="F16"), "wanted 12 for F16"),
        (changed(data_offsets=[0, 24, 24]), "two whole numbers"),
        (changed(data_offsets=[False, 24]), "two whole numbers"),
        (changed(data_offsets=[0.0, 24]), "two whole numbers"),
        (changed(data_offsets=[-24, 0]), "truncated"),
        (changed(data_offsets=[24, 0]), "truncated"),
        (changed(data_offsets=[0, 1 << 63]), "truncated"),
        ({**GOOD, "a": [1, 2]}, "wanted an object"),
        ({**GOOD, "a": {**GOOD["a"], "extra": 1}}, "wanted an object"),
        ({**GOOD, "": GOOD["a"]}, "name of 0 bytes"),
        ({**GOOD, "n" * 257: GOOD["a"]}, "name of 257 bytes"),
        ({**GOOD, "__metadata__": {"a": 1}}, "__metadata__"),
        ({**GOOD, "__metadata__": "text"}, "__metadata__"),
        ({**GOOD, "d": {"dtype": "U8", "shape": [5], "data_offsets": [24, 29]}}, "overlaps"),
        ({**GOOD, "b": {"dtype": "U8", "shape": [6], "data_offsets": [23, 29]}}, "overlaps"),
        ({**GOOD, "b": {"dtype": "U8", "shape": [4], "data_offsets": [25, 29]}}, "hole"),
        ({"a": GOOD["a"], "b": GOOD["b"]}, "behind the last"),
        ({}, "behind the last"),
        ("[1, 2]", "no object"),
        ('{"a": ', "no valid JSON"),
        ("not json", "no valid JSON"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
        ("[" * 100_000, "no valid JSON"),
        (b'{"\xff": 1}', "no valid JSON"),
        ('{"\\ud800": {"dtype": "U8", "shape": [33], "data_offsets": [0, 33]}}', "malformed"),
        ('{"a": {"dtype": "U8", "dtype": "U8", "shape": [33], "data_offsets": [0, 33]}}', "duplicate key 'dtype'"),
        (json.dumps(GOOD)[:-1] + ', "a": 1}', "duplicate key 'a'"),
    ],
)
def test_bad_headers_are_refused(tmp_path: Path, header: Any, message: str) -> None:
    assert message in refused(write(tmp_path / "x", header))


def test_a_header_of_too_many_values_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    raw = "[" + "," * (LIMITS.tensors * (LIMITS.dimensions + 4) + 1) + "]"
    assert "too many values" in refused(write(tmp_path / "x", raw))


@pytest.mark.parametrize("length", [0, 1, 1 << 20, LIMITS.tensor_header_bytes + 1, (1 << 64) - 1])
def test_impossible_header_lengths_are_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(length.to_bytes(8, "little") + json.dumps(GOOD).encode() + bytes(33))
    assert "length is impossible" in refused(path)


def test_every_truncation_and_any_tail_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "x", GOOD).read_bytes()
    path = tmp_path / "cut"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path)
    path.write_bytes(whole + b"\0")
    assert "behind the last" in refused(path)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "absent"):
        refused(path)


def test_messages_show_hostile_names_harmlessly(tmp_path: Path) -> None:
    message = refused(write(tmp_path / "x", {"\x1b[2J\n" + "x" * 200: {}}))
    assert "\x1b" not in message
    assert len(message) < 600


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_layouts_load_exactly_if_they_tile_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    spans = data.draw(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), min_size=1, max_size=5))
    size = data.draw(st.integers(0, 24))
    header = {
        f"t{index}": {"dtype": "U8", "shape": [length], "data_offsets": [start, start + length]}
        for index, (start, length) in enumerate(spans)
    }
    path = write(tmp_path_factory.getbasetemp() / "layout", header, size)
    covered = sorted(byte for start, length in spans for byte in range(start, start + length))
    if covered == list(range(size)):
        with TensorFile.open(path) as file:
            assert sum(entry.stop - entry.start for entry in file.tensors.values()) == size
    else:
        refused(path)


@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), max_size=6), cut=st.integers(0, 40))
@settings(deadline=None, max_examples=500)
def test_damage_gives_the_named_error_or_loads(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    raw = bytearray(write(path, {**GOOD, "__metadata__": {"format": "pt"}}).read_bytes())
    for place, mask in flips:
        raw[place % len(raw)] ^= mask
    path.write_bytes(raw[: len(raw) - cut])
    with suppress(FileError), TensorFile.open(path) as file:
        assert all(file.array(name).shape == entry.shape for name, entry in file.tensors.items())
