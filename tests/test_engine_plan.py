"""Plans in a package: sealed by this device or signed by a builder it trusts, and refused in every other state."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runnable_packages import plain_model, runnable_package, same_precision

from edgemem.runtime.engine_plan import (
    PlanRecord,
    build_folder,
    check_record,
    package_hash,
    read_plan,
    read_record,
    write_plan,
)
from edgemem.runtime.errors import EdgememError, EngineError, FileError, UnsafePathError
from edgemem.runtime.package import ENGINES_FOLDER, Package
from edgemem.runtime.plan_seal import seal, sign

PLAN = bytes(range(256)) * 40


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Package]:
    model = plain_model(layers=1)
    with Package.open(runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "fp16"))) as opened:
        yield opened


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def record_of(of: Package, /, **changes: Any) -> PlanRecord:
    values: dict[str, Any] = {
        "library": "tensorrt_rtx",
        "version": "1.7.1",
        "target": "sm86",
        "package": package_hash(of.manifest),
        "layers": (0, 1),
        "capacity": 64,
        "buckets": (16, 64),
        "chunk": 8,
        "rows": 4,
        "flags": (),
        "graph_sha256": "0" * 64,
        "plan_bytes": len(PLAN),
        "plan_sha256": hashlib.sha256(PLAN).hexdigest(),
    }
    return PlanRecord(**{**values, **changes})


def put(package: Package, record: PlanRecord, sealed: Callable[[bytes], bytes]) -> Path:
    with build_folder(package) as folder:
        (folder / "a.plan").write_bytes(PLAN)
        return write_plan(package, folder / "a.plan", record, sealed)


def opened(package: Package, record: PlanRecord, keys: Path) -> memoryview:
    """As the engine opens it."""
    found = read_record(package, record.name, keys)
    check_record(package, found, library="tensorrt_rtx", version="1.7.1", target="sm86")
    return read_plan(package, found)


@pytest.mark.parametrize("by", ["device", "builder"])
def test_a_plan_comes_back_as_it_was_built(package: Package, keys: Path, tmp_path: Path, by: str) -> None:
    record = record_of(package)
    if by == "device":
        put(package, record, lambda data: seal(data, keys))
    else:
        put(package, record, lambda data: sign(data, tmp_path / "theirs"))
        with pytest.raises(EngineError, match="does not trust") as caught:
            read_record(package, record.name, keys)
        trust(keys, str(caught.value.got))
    assert read_record(package, record.name, keys) == record
    assert bytes(opened(package, record, keys)) == PLAN
    assert sorted(os.listdir(package.path / ENGINES_FOLDER)) == [
        "lock",
        *(f"{record.name}.{ending}" for ending in ("json", "plan", "seal")),
    ]
    Package.open(package.path).close()  # the folder is no part of the package


def trust(keys: Path, builder: str) -> None:
    keys.mkdir(mode=0o700, exist_ok=True)
    (keys / "trusted_builders").touch(mode=0o600)
    (keys / "trusted_builders").write_text(f"{builder}\n")


def test_another_device_refuses_the_plan(package: Package, keys: Path, tmp_path: Path) -> None:
    put(package, record_of(package), lambda data: seal(data, keys))
    other = tmp_path / "other"
    with pytest.raises(EngineError, match="not made on this device"):
        read_record(package, record_of(package).name, other)
    seal(b"", other)  # it has a key now
    with pytest.raises(EngineError, match="not made on this device"):
        read_record(package, record_of(package).name, other)


def test_a_signature_of_another_builder_s_name_is_refused(package: Package, keys: Path, tmp_path: Path) -> None:
    trusted, forged = (sign(b"", tmp_path / name) for name in ("trusted", "forger"))
    trust(keys, trusted.split()[1].decode())
    put(
        package,
        record_of(package),
        lambda data: sign(data, tmp_path / "forger").replace(*(each.split()[1] for each in (forged, trusted))),
    )
    with pytest.raises(EngineError, match="altered since it was signed"):
        read_record(package, record_of(package).name, keys)


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


TAMPERING: dict[str, Callable[[Path], object]] = {
    "a bit of the plan": lambda stem: flip(stem.with_suffix(".plan"), 700),
    "a longer plan": lambda stem: stem.with_suffix(".plan").write_bytes(PLAN + b"x"),
    "a shorter plan": lambda stem: stem.with_suffix(".plan").write_bytes(PLAN[:-1]),
    "no plan": lambda stem: stem.with_suffix(".plan").unlink(),
    "a bit of the record": lambda stem: flip(stem.with_suffix(".json"), 40),
    "no record": lambda stem: stem.with_suffix(".json").unlink(),
    "a long record": lambda stem: stem.with_suffix(".json").write_bytes(b" " * (1 << 20)),
    "a bit of the seal": lambda stem: flip(stem.with_suffix(".seal"), 30),
    "another seal": lambda stem: stem.with_suffix(".seal").write_bytes(b"trust me\n"),
    "no seal": lambda stem: stem.with_suffix(".seal").unlink(),
    "a link": lambda stem: elsewhere(stem.with_suffix(".plan")),
    "a pipe": lambda stem: (stem.with_suffix(".plan").unlink(), os.mkfifo(stem.with_suffix(".plan"))),
    "a hard link": lambda stem: os.link(stem.with_suffix(".plan"), stem.with_suffix(".copy")),
}


def elsewhere(path: Path) -> None:
    """The same bytes, by a link to where others may write."""
    moved = path.rename(path.parents[2] / "moved")
    path.symlink_to(moved)


@pytest.mark.parametrize("tampering", TAMPERING)
def test_what_was_altered_is_refused(package: Package, keys: Path, tampering: str) -> None:
    record = record_of(package)
    stem = put(package, record, lambda data: seal(data, keys)).with_suffix("")
    TAMPERING[tampering](stem)
    with pytest.raises(EdgememError) as caught:
        opened(package, record, keys)
    assert isinstance(caught.value, (EngineError, UnsafePathError))


def test_a_plan_of_other_layers_does_not_pass_under_their_name(package: Package, keys: Path) -> None:
    record = record_of(package, layers=(1, 2))
    put(package, record, lambda data: seal(data, keys))
    wanted = record_of(package).name
    for path in (package.path / ENGINES_FOLDER).glob(f"{record.name}.*"):
        path.rename(path.with_name(wanted + path.suffix))
    with pytest.raises(EngineError, match="that of another"):
        read_record(package, wanted, keys)


@pytest.mark.parametrize(
    "changes", [{"package": "1" * 64}, {"version": "1.7.0"}, {"target": "sm89"}, {"library": "tensorrt"}], ids=str
)
def test_a_plan_for_something_else_is_refused(package: Package, keys: Path, changes: dict[str, Any]) -> None:
    record = record_of(package, **changes)
    put(package, record, lambda data: seal(data, keys))
    with pytest.raises(EngineError, match=f"another {next(iter(changes))}(.|\n)*build it again"):
        opened(package, record, keys)


def test_the_hash_is_of_the_weights_and_of_the_numbers(package: Package, tmp_path: Path) -> None:
    hashes = {package_hash(package.manifest)}
    for index, (changes, seed) in enumerate([({"attention_scale": 0.5}, 0), ({}, 1)]):
        model = plain_model(layers=1, **changes)
        path = runnable_package(tmp_path / f"{index}.edgemem", model, same_precision(model, "fp16"), seed=seed)
        with Package.open(path) as other:
            hashes.add(package_hash(other.manifest))
    assert len(hashes) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"more": 1},
        {"plan_bytes": -1},
        {"plan_bytes": True},
        {"plan_sha256": "../../x"},
        {"buckets": [64, 16]},
        {"buckets": [16]},
        {"rows": 9},
        {"flags": [1]},
        {"layers": 3},
    ],
    ids=str,
)
def test_a_sealed_record_of_another_shape_is_refused(package: Package, keys: Path, changes: dict[str, Any]) -> None:
    record = record_of(package)
    put(package, record, lambda data: seal(data, keys))
    stem = package.path / ENGINES_FOLDER / record.name
    data = json.dumps({**json.loads(record.to_bytes()), **changes}).encode()
    stem.with_suffix(".json").write_bytes(data)
    stem.with_suffix(".seal").write_bytes(seal(data, keys))
    with pytest.raises(EngineError, match="another version"):
        read_record(package, record.name, keys)


@pytest.mark.parametrize("data", [b"[" * 60000, b"[]", b"\xff", b"{", b"null"])
def test_a_sealed_record_that_is_none_is_refused(package: Package, keys: Path, data: bytes) -> None:
    put(package, record_of(package), lambda _: seal(data, keys))
    (package.path / ENGINES_FOLDER / f"{record_of(package).name}.json").write_bytes(data)
    with pytest.raises(EngineError, match="another version"):
        read_record(package, record_of(package).name, keys)


def test_an_engines_folder_that_is_a_link_is_neither_read_nor_written(
    package: Package, keys: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (package.path / ENGINES_FOLDER).symlink_to(outside)
    with pytest.raises(UnsafePathError):
        read_record(package, "x", keys)
    with pytest.raises(UnsafePathError):
        put(package, record_of(package), lambda data: seal(data, keys))
    assert not list(outside.iterdir())


def test_one_process_at_a_time_builds_and_what_one_left_is_cleared(package: Package) -> None:
    left = package.path / ENGINES_FOLDER / ".building-gone"
    left.mkdir(parents=True)
    with build_folder(package) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not left.exists()
        with pytest.raises(FileError, match="another process"), build_folder(package):
            pass
    assert not folder.exists()


def test_a_key_that_others_may_read_is_refused(package: Package, keys: Path) -> None:
    put(package, record_of(package), lambda data: seal(data, keys))
    (keys / "device.key").chmod(0o644)
    with pytest.raises(FileError, match="open to others"):
        read_record(package, record_of(package).name, keys)


@pytest.mark.parametrize("content", [b"", bytes(31)])
def test_a_damaged_key_knows_no_plan(package: Package, keys: Path, content: bytes) -> None:
    put(package, record_of(package), lambda data: seal(data, keys))
    (keys / "device.key").write_bytes(content)
    code = hmac.new(content, b"edgemem engine plan 1\n" + record_of(package).to_bytes(), "sha256").hexdigest()
    seal_file = package.path / ENGINES_FOLDER / f"{record_of(package).name}.seal"
    seal_file.write_text(f"hmac-sha256 {code}\n")
    with pytest.raises(FileError, match="a key is damaged"):
        read_record(package, record_of(package).name, keys)


def test_a_signed_plan_without_the_cryptography_library(
    package: Package, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = sign(record_of(package).to_bytes(), tmp_path / "theirs")
    put(package, record_of(package), lambda _: signature)
    trust(keys, signature.split()[1].decode())
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match="need the cryptography library"):
        read_record(package, record_of(package).name, keys)
