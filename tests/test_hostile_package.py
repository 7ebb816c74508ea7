"""Packages that are not what they should be: each gets one clear error, and a good one beside it still opens.

Rows M1 to M8 of the reliability table. "Consistent" spoils the files and makes the manifest agree with them, as
an attacker would: then only the checks behind the hashes are left.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_packages import (
    FILES,
    edit_manifest,
    join_weights,
    replace_file,
    small_model,
    small_package,
    small_precision,
    split_weights,
)

from edgemem.runtime.errors import FileError, PackageError, TokenizerMismatch, UnsafePathError
from edgemem.runtime.manifest import MANIFEST_FILE, WEIGHTS_FILE
from edgemem.runtime.package import Package
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.runtime.weight_layout import tensor_specs

ALL_FILES = (WEIGHTS_FILE, *FILES, MANIFEST_FILE)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_package(tmp_path_factory.mktemp("good") / "good.edgemem")


@pytest.fixture
def spoiled(good: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(good, tmp_path / "spoiled.edgemem"))


def refused(package: Path, *, error: type[FileError] = PackageError, verify: bool = True, file: str = "") -> str:
    """The message of the one error; it names the package and `file`."""
    with pytest.raises(error) as caught:
        Package.open(package, verify=verify)
    assert str(package / file) in str(caught.value)
    return str(caught.value)


def edges(package: Path) -> list[int]:
    with Package.open(package) as opened:
        starts = [entry.start for entry in opened.tensors.values()]
    return sorted({edge + step for edge in [0, 8, *starts] for step in (-1, 0, 1) if edge + step >= 0})


# M1: truncated


def test_weights_cut_at_every_edge(good: Path, spoiled: Path) -> None:
    data = (good / WEIGHTS_FILE).read_bytes()
    for length in [*edges(good), *range(0, len(data), 4096), len(data) - 1]:
        (spoiled / WEIGHTS_FILE).write_bytes(data[:length])
        message = refused(spoiled, file=WEIGHTS_FILE, verify=False)
        assert f"{length} bytes" in message
        assert f"{len(data)} bytes" in message
    Package.open(good).close()


def test_weights_cut_consistently(good: Path, spoiled: Path) -> None:
    data = (good / WEIGHTS_FILE).read_bytes()
    for length in [*edges(good)[::3], *range(0, len(data), 4096), len(data) - 1]:
        replace_file(spoiled, WEIGHTS_FILE, data[:length])
        refused(spoiled, file=WEIGHTS_FILE)
    Package.open(good).close()


def test_manifest_cut_short(good: Path, spoiled: Path) -> None:
    """At every fifth byte; test_manifest.py cuts at every one."""
    data = (good / MANIFEST_FILE).read_bytes()
    for length in [*range(0, len(data), 5), len(data) - 1]:
        (spoiled / MANIFEST_FILE).write_bytes(data[:length])
        refused(spoiled, file=MANIFEST_FILE, verify=False)
    Package.open(good).close()


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_missing_file_is_named(spoiled: Path, name: str) -> None:
    (spoiled / name).unlink()
    assert name in refused(spoiled)


@pytest.mark.parametrize("name", ["extra", ".hidden", "model.onnx.data", "weights.safetensors~", "a\nb\x1b[31m"])
def test_an_extra_file_is_named_harmlessly(spoiled: Path, name: str) -> None:
    (spoiled / name).write_bytes(b"")
    message = refused(spoiled)
    assert ascii(name)[1:-1] in message
    assert "\x1b" not in message


# M2: bit flips


def test_thousands_of_bit_flips_are_all_found(good: Path, spoiled: Path) -> None:
    random = np.random.default_rng(0)
    contents = {name: (good / name).read_bytes() for name in ALL_FILES}
    names = random.choice(ALL_FILES, size=1500, p=[0.7, 0.02, 0.02, 0.26])
    for name in names:
        data = bytearray(contents[name])
        data[random.integers(len(data))] ^= 1 << int(random.integers(8))
        (spoiled / name).write_bytes(data)
        message = refused(spoiled, file=name)
        assert name == MANIFEST_FILE or "SHA-256" in message
        (spoiled / name).write_bytes(contents[name])
    Package.open(spoiled).close()


# M3: tensors that overlap, leave gaps, or are others


def _shift(entry: dict[str, Any], by: int) -> None:
    entry["data_offsets"] = [entry["data_offsets"][0] + by, entry["data_offsets"][1] + by]


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_other_layout_is_refused(good: Path, spoiled: Path, data: st.DataObject) -> None:
    header, body = split_weights((good / WEIGHTS_FILE).read_bytes())
    names = st.sampled_from(list(header))
    name, other = data.draw(names), data.draw(names)
    change = data.draw(st.sampled_from(["shift", "swap", "rename", "drop", "extra", "dtype", "shape", "tail", "order"]))
    if change == "shift":
        _shift(header[name], data.draw(st.integers(-64, 64).filter(bool)))
    elif change == "swap" and header[name] != header[other]:
        header[name], header[other] = header[other], header[name]
    elif change == "rename":
        header[data.draw(st.text(max_size=8).filter(lambda text: text not in header))] = header.pop(name)
    elif change == "drop":
        del header[name]
    elif change == "extra":
        header["extra"] = {"dtype": "U8", "shape": [0], "data_offsets": [len(body), len(body)]}
    elif change == "dtype":
        header[name]["dtype"] = data.draw(
            st.sampled_from(["U8", "I8", "F16", "BF16", "F32", "F64", "X"]).filter(
                lambda dtype: dtype != header[name]["dtype"]
            )
        )
    elif change == "shape":
        header[name]["shape"] = [*header[name]["shape"], 1]
    elif change == "tail":
        body += data.draw(st.binary(min_size=1, max_size=9))
    else:  # the tensors' bytes exchanged for those of an equal one: same sizes, other order
        key, value = header["layers.0.key.codes"], header["layers.0.value.codes"]
        key["data_offsets"], value["data_offsets"] = value["data_offsets"], key["data_offsets"]
    replace_file(spoiled, WEIGHTS_FILE, join_weights(header, body))
    refused(spoiled, file=WEIGHTS_FILE, verify=False)


def test_a_duplicate_tensor_is_refused(good: Path, spoiled: Path) -> None:
    header, body = split_weights((good / WEIGHTS_FILE).read_bytes())
    text = ",".join(f'"norm": {entry}'.replace("'", '"') for entry in [header["norm"]] * 2)
    replace_file(spoiled, WEIGHTS_FILE, join_weights("{" + text + "}", body))
    assert "duplicate" in refused(spoiled, file=WEIGHTS_FILE)


def test_the_helper_gives_back_a_sound_package(good: Path, spoiled: Path) -> None:
    """Else the tests above would pass for the wrong reason."""
    replace_file(spoiled, WEIGHTS_FILE, join_weights(*split_weights((good / WEIGHTS_FILE).read_bytes())))
    Package.open(spoiled).close()


# M4: dimensions

DIMENSIONS = ["layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocabulary"]
strange_sizes = st.one_of(
    st.sampled_from([0, -1, True, False, None, 1.0, 1e300, "64", [64], 1 << 31, (1 << 31) + 1, 1 << 63, 1 << 64]),
    st.integers(),
    st.floats(allow_nan=False),
)


@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(DIMENSIONS), size=strange_sizes)
def test_strange_model_dimensions(good: Path, spoiled: Path, name: str, size: object) -> None:
    true = getattr(small_model(), name)
    if type(size) is type(true) and size == true:
        return
    shutil.copy(good / MANIFEST_FILE, spoiled / MANIFEST_FILE)
    edit_manifest(spoiled, lambda plain: plain["model"].update({name: size}))
    refused(spoiled, verify=False)


@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(axis=st.integers(0, 2), size=strange_sizes, offset=st.booleans())
def test_strange_tensor_dimensions_and_offsets(good: Path, spoiled: Path, axis: int, size: Any, offset: bool) -> None:
    header, body = split_weights((good / WEIGHTS_FILE).read_bytes())
    entry = header["layers.0.query.codes"]
    values = entry["data_offsets"][:2] if offset else entry["shape"]
    axis %= len(values)
    if type(size) is int and size == values[axis]:
        return
    values[axis] = size
    entry["data_offsets" if offset else "shape"] = values
    replace_file(spoiled, WEIGHTS_FILE, join_weights(header, body))
    refused(spoiled, file=WEIGHTS_FILE, verify=False)


OVERSIZED = """
import resource, sys
from pathlib import Path
from edgemem.runtime.errors import PackageError
from edgemem.runtime.package import Package
resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        Package.open(path, verify=False)
    except PackageError as error:
        print(len(str(error)))
print("KiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_oversized_claims_cost_no_memory(good: Path, tmp_path: Path) -> None:
    header, body = split_weights((good / WEIGHTS_FILE).read_bytes())
    name = "layers.0.query.codes"

    def sparse(package: Path, file: str, start: bytes, size: int) -> None:
        (package / file).write_bytes(start)
        os.truncate(package / file, size)
        edit_manifest(package, lambda plain: plain["files"][file].update(bytes=size))

    def huge_manifest(package: Path) -> None:
        os.truncate(package / MANIFEST_FILE, 10 << 30)

    cases: list[Callable[[Path], object]] = [
        huge_manifest,
        lambda p: edit_manifest(p, lambda plain: plain["model"].update(hidden=1 << 31, vocabulary=1 << 20)),
        lambda p: edit_manifest(p, lambda plain: plain["tokenizer"].update(probes=[{"text": "", "ids": [1] * 60000}])),
        lambda p: replace_file(p, WEIGHTS_FILE, (99_999_999).to_bytes(8, "little") + b"{" * 1000),
        lambda p: replace_file(p, WEIGHTS_FILE, ((1 << 64) - 1).to_bytes(8, "little") + b"{}"),
        lambda p: replace_file(
            p, WEIGHTS_FILE, join_weights({**header, name: {**header[name], "shape": [1 << 31] * 8}}, body)
        ),
        lambda p: replace_file(p, WEIGHTS_FILE, join_weights('{"a":' + "[" * 1_000_000, b"")),
        lambda p: sparse(p, WEIGHTS_FILE, (100_000_000).to_bytes(8, "little") + b'{"', 200 << 30),
        lambda p: sparse(p, WEIGHTS_FILE, join_weights(header, b""), 200 << 30),
    ]
    paths = []
    for number, spoil in enumerate(cases):
        paths.append(Path(shutil.copytree(good, tmp_path / str(number))))
        spoil(paths[-1])
    script = [sys.executable, "-c", OVERSIZED, *map(str, paths)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *lengths, memory = done.stdout.splitlines()
    assert len(lengths) == len(cases)
    assert max(map(int, lengths)) < 2000
    assert int(memory.removeprefix("KiB ")) < 64 << 10


# M5: values


def float_tensors() -> list[tuple[str, str]]:
    model = small_model()
    specs = tensor_specs(model, small_precision(model))
    return [(spec.name, spec.dtype) for spec in specs if spec.dtype != "U8"]


@pytest.mark.parametrize(("name", "dtype"), float_tensors())
def test_nan_and_inf_are_found_wherever_they_are(good: Path, spoiled: Path, name: str, dtype: str) -> None:
    bad = {"F32": (0x7FC00000, 0x7F800000), "F16": (0x7E00, 0xFC00), "BF16": (0x7FC0, 0xFF80)}[dtype]
    data = (good / WEIGHTS_FILE).read_bytes()
    with Package.open(good) as package:
        entry = package.tensors[name]
    bits = np.uint32 if dtype == "F32" else np.uint16
    count = (entry.stop - entry.start) // bits().itemsize
    for index in (0, count // 2, count - 1):
        changed = bytearray(data)
        start = entry.start + index * bits().itemsize
        changed[start : start + bits().itemsize] = bits(bad[index % 2]).tobytes()
        replace_file(spoiled, WEIGHTS_FILE, bytes(changed))
        message = refused(spoiled, file=WEIGHTS_FILE)
        assert repr(name) in message
        assert str([int(i) for i in np.unravel_index(index, entry.shape)]) in message


def test_a_vector_is_checked_even_without_verifying(good: Path, spoiled: Path) -> None:
    with Package.open(good) as package:
        entry = package.tensors["norm"]
    data = bytearray((good / WEIGHTS_FILE).read_bytes())
    data[entry.start : entry.start + 4] = np.float32(np.nan).tobytes()
    replace_file(spoiled, WEIGHTS_FILE, bytes(data))
    with Package.open(spoiled, verify=False) as package, pytest.raises(PackageError, match=r"'norm'.*NaN"):
        package.vector("norm")


# M6: files that are not files


def _link(path: Path, _: bytes) -> None:
    (path.parent.parent / "outside").write_bytes(_)
    path.symlink_to(path.parent.parent / "outside")


def _hard_link(path: Path, data: bytes) -> None:
    (path.parent.parent / "outside").write_bytes(data)
    os.link(path.parent.parent / "outside", path)


def _socket(path: Path, _: bytes) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


SUBSTITUTES: dict[str, Callable[[Path, bytes], object]] = {
    "link": _link,
    "hard link": _hard_link,
    "pipe": lambda path, _: os.mkfifo(path),
    "folder": lambda path, _: path.mkdir(),
    "socket": _socket,
    "link to a device": lambda path, _: path.symlink_to("/dev/zero"),
    "dangling link": lambda path, _: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("name", ALL_FILES)
@pytest.mark.parametrize("kind", SUBSTITUTES)
def test_anything_but_a_plain_file_is_refused(good: Path, spoiled: Path, name: str, kind: str) -> None:
    data = (spoiled / name).read_bytes()
    (spoiled / name).unlink()
    SUBSTITUTES[kind](spoiled / name, data)
    assert repr(name) in refused(spoiled, error=UnsafePathError)
    Package.open(good).close()


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/../model.onnx", "engines/plan", ".."])
def test_names_that_lead_elsewhere_are_refused(spoiled: Path, name: str) -> None:
    def rename(plain: dict[str, Any]) -> None:
        plain["files"][name] = plain["files"].pop("tokenizer.json")

    edit_manifest(spoiled, rename)
    assert repr(name) in refused(spoiled, error=UnsafePathError, file=MANIFEST_FILE)


# M7: another tokenizer


def _without_merges(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["merges"].clear()


def _with_exchanged_ids(tokenizer: dict[str, Any]) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["o"] = vocabulary["o"], vocabulary["e"]


def _with_one_more(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["vocab"]["novelty"] = len(tokenizer["model"]["vocab"])


@pytest.mark.parametrize("change", [_without_merges, _with_exchanged_ids, _with_one_more, dict.clear])
def test_another_tokenizer_is_refused_however_consistent(
    tiny_package: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    spoiled = Path(shutil.copytree(tiny_package, tmp_path / "spoiled.edgemem"))
    tokenizer = json.loads((spoiled / "tokenizer.json").read_text())
    change(tokenizer)
    replace_file(spoiled, "tokenizer.json", json.dumps(tokenizer).encode())
    with Package.open(spoiled) as package, pytest.raises(TokenizerMismatch):
        Tokenizer.open(package)
    with Package.open(tiny_package) as package:
        Tokenizer.open(package)


# M8: other versions and other models


def test_another_format_version_says_recompile(spoiled: Path) -> None:
    edit_manifest(spoiled, lambda plain: plain.update(format=2, future={}))
    message = refused(spoiled, file=MANIFEST_FILE)
    assert "format 2" in message
    assert "format 1" in message
    assert "recompile" in message


def test_precisions_of_another_file_are_refused(spoiled: Path) -> None:
    edit_manifest(spoiled, lambda plain: plain["precision"].update(embedding="int8-g64"))
    message = refused(spoiled, file=WEIGHTS_FILE)
    assert "'embedding.codes'" in message
    assert "(40, 1, 64)" in message


def test_a_group_that_does_not_divide_is_refused(spoiled: Path) -> None:
    edit_manifest(spoiled, lambda plain: plain["precision"].update(embedding="int8-g128"))
    assert "groups of 128" in refused(spoiled, file=WEIGHTS_FILE)


def test_weights_of_another_model_are_refused(good: Path, spoiled: Path, tmp_path: Path) -> None:
    other = small_package(tmp_path / "other.edgemem", model=small_model(tied_head=True))
    replace_file(spoiled, WEIGHTS_FILE, (other / WEIGHTS_FILE).read_bytes())
    assert "'head.weight'" in refused(spoiled, file=WEIGHTS_FILE)
    Package.open(good).close()
