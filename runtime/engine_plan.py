"""A plan in a package's engines/: a built engine, the record of what it was built from and for, and the record's seal.

NAME.plan is a program, so it is read whole into memory of our own, checked there against the sealed record, and given
out only then. Nothing is deserialised here. All three files may be hostile.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgemem.runtime.errors import EngineError, FileError, UnsafePathError, shown
from edgemem.runtime.folder_lock import lock_folder
from edgemem.runtime.manifest import WEIGHTS_FILE, Manifest
from edgemem.runtime.package import ENGINES_FOLDER, Package
from edgemem.runtime.plan_seal import SEAL_BYTES, check_seal
from edgemem.runtime.plan_shape import PlanShape
from edgemem.runtime.safe_files import SafeFolder, read_at_most, sha256_of

FORMAT = 1
GRAPH_FILE, DATA_FILE = "decoder.onnx", "decoder.data"  # of a graph for ONNX Runtime, in a folder of their own
_RECORD_BYTES = 64 << 10
_READ_BYTES = 64 << 20
_BUILDING = ".building-"
_REBUILD = "build it again: edgemem compile PACKAGE --engine tensorrt (onnx for ONNX Runtime's providers)"
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class PlanRecord(PlanShape):
    """What a plan was built from and for.

    library, version: that built it. target: compute capability, such as "sm86". package: see package_hash. flags: of
    the build. graph_sha256: of the standard-operator graph, which says how the plan is spoken to. data_bytes,
    data_sha256: of the weights beside it where the plan is that graph itself, for ONNX Runtime; else 0 and "".
    """

    format: int = FORMAT
    library: str
    version: str
    target: str
    package: str
    flags: tuple[str, ...]
    graph_sha256: str
    plan_bytes: int
    plan_sha256: str
    data_bytes: int = 0
    data_sha256: str = ""

    @property
    def name(self) -> str:
        """Of its files, without their endings: one plan a library, target and range of layers."""
        return plan_name(self.library, self.target, self.layers)

    @property
    def file(self) -> str:
        """The plan, inside engines/."""
        return f"{self.name}.plan" if not self.data_sha256 else f"{self.name}.graph/{GRAPH_FILE}"

    def to_bytes(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()


def plan_name(library: str, target: str, layers: tuple[int, int]) -> str:
    return f"{library}-{target}-layers-{layers[0]}-{layers[1]}"


def package_hash(manifest: Manifest) -> str:
    """SHA-256, 64 hex digits, of all that a plan takes from a package: the model's numbers and the weights file."""
    facts = {"model": manifest.model.to_dict(), "weights": manifest.files[WEIGHTS_FILE].sha256}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def build_folder(package: Package) -> Iterator[Path]:
    """A new folder of this user's alone inside engines/, for files on their way there; gone at the end.

    One process at a time builds in a package. Raises FileError where another does, or the folder cannot be made.
    """
    engines = package.path / ENGINES_FOLDER
    try:
        engines.mkdir(exist_ok=True)
        if not stat.S_ISDIR(engines.lstat().st_mode):
            raise UnsafePathError("the folder for plans is a link or no folder", where=engines, do="remove it")
        lock = lock_folder(engines, "plans")
        try:
            for left in engines.glob(f"{_BUILDING}*"):  # of a process that was ended
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=engines) as folder:
                yield Path(folder)
        finally:
            os.close(lock)
    except OSError as problem:
        raise FileError("building in the package failed", where=engines, got=problem.strerror or problem) from problem


def write_plan(package: Package, plan: Path, record: PlanRecord, seal: Callable[[bytes], bytes]) -> Path:
    """Move the finished `plan`, in a build_folder, into engines/ beside its record and seal; where it lies then.

    plan: a file, or the folder of a graph and its data. A reader that comes in between finds files that do not fit, and
    refuses them.
    """
    engines, data = package.path / ENGINES_FOLDER, record.to_bytes()
    for ending, content in (("json", data), ("seal", seal(data))):
        part = plan.with_suffix(f".{ending}")
        part.write_bytes(content)
        os.replace(part, engines / f"{record.name}.{ending}")
    target = engines / record.file.split("/")[0]
    if plan.is_dir() and os.path.lexists(target):  # a folder takes no other's place
        os.rename(target, plan.with_suffix(".old"))
    os.replace(plan, target)
    return engines / record.file


def read_record(package: Package, name: str, keys: Path) -> PlanRecord:
    """The record of plan `name`, its seal checked. Raises EngineError where there is none or it is not to be trusted,
    and UnsafePathError for files that are links or the like."""
    where = package.path / ENGINES_FOLDER / f"{name}.json"
    with SafeFolder(package.path) as folder:
        data = _small(folder, f"{name}.json", _RECORD_BYTES)
        seal = _small(folder, f"{name}.seal", SEAL_BYTES)
    if data is None or seal is None:
        raise EngineError("there is no plan for this", where=where, do=_REBUILD)
    check_seal(seal, data, keys, where)
    try:
        record = _parsed(data)
    except (ValueError, TypeError, KeyError, RecursionError) as problem:
        raise EngineError("a plan's record of another version", where=where, got=problem, do=_REBUILD) from problem
    if record.name != name:
        raise EngineError("the plan's record is that of another", where=where, got=shown(record.name), do=_REBUILD)
    return record


def check_record(package: Package, record: PlanRecord, *, library: str, version: str, target: str | None) -> None:
    """Raises EngineError unless the plan is of this package, library and GPU. target None: not looked at."""
    wanted = {
        "package": package_hash(package.manifest),
        "library": library,
        "version": version,
        "target": target or record.target,
    }
    for name, value in wanted.items():
        got = getattr(record, name)
        if got != value:
            raise EngineError(
                f"the plan was built for another {name}",
                where=package.path / ENGINES_FOLDER / record.file,
                got=shown(got),
                wanted=value,
                do=_REBUILD,
            )


def read_plan(package: Package, record: PlanRecord) -> memoryview:
    """The plan's bytes in memory that no other process can change, once they are those of the record.

    Raises EngineError where they are not.
    """
    with _opened(package, record.file, record.plan_bytes) as descriptor:
        plan = memoryview(bytearray(record.plan_bytes))
        _check(package, record.file, _fill(descriptor, plan), record.plan_sha256)
    return plan.toreadonly()


def check_data(package: Package, record: PlanRecord) -> None:
    """Raises EngineError unless the weights beside a graph for ONNX Runtime are those of the record."""
    name = f"{record.name}.graph/{DATA_FILE}"
    with _opened(package, name, record.data_bytes) as descriptor:
        _check(package, name, sha256_of(descriptor), record.data_sha256)


@contextmanager
def _opened(package: Package, name: str, size: int) -> Iterator[int]:
    """The descriptor of a file of engines/ of exactly `size` bytes."""
    where = package.path / ENGINES_FOLDER / name
    with SafeFolder(package.path) as folder:
        try:
            descriptor = folder.open(f"{ENGINES_FOLDER}/{name}")
        except FileNotFoundError as problem:
            raise EngineError("the plan is gone", where=where, do=_REBUILD) from problem
        except OSError as problem:
            raise FileError("the plan cannot be read", where=where, got=problem.strerror) from problem
    try:
        _check(package, name, os.fstat(descriptor).st_size, size)
        yield descriptor
    finally:
        os.close(descriptor)


def _check(package: Package, name: str, got: object, wanted: object) -> None:
    if got != wanted:
        where = package.path / ENGINES_FOLDER / name
        raise EngineError("the plan was altered since it was built", where=where, got=got, wanted=wanted, do=_REBUILD)


def _fill(descriptor: int, plan: memoryview) -> str:
    """Read the file into `plan`; the SHA-256 of what came."""
    digest, offset = hashlib.sha256(), 0
    while count := os.preadv(descriptor, [plan[offset : offset + _READ_BYTES]], offset) if offset < len(plan) else 0:
        digest.update(plan[offset : offset + count])
        offset += count
    return digest.hexdigest()


def _small(folder: SafeFolder, name: str, limit: int) -> bytes | None:
    """All of a file of engines/ of at most `limit` bytes, None where there is none."""
    where = folder.path / ENGINES_FOLDER / name
    try:
        descriptor = folder.open(f"{ENGINES_FOLDER}/{name}")
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise FileError("a plan's record cannot be read", where=where, got=problem.strerror) from problem
    try:
        data = read_at_most(descriptor, limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise UnsafePathError("a plan's record is too long", where=where, wanted=f"at most {limit} bytes")
    return data


def _parsed(data: bytes) -> PlanRecord:
    """Raises ValueError, TypeError, KeyError or RecursionError for anything that this version does not write."""
    values: dict[str, Any] = json.loads(data)
    if set(values) != {field.name for field in fields(PlanRecord)}:
        raise ValueError(f"keys {shown(sorted(values))}")
    if values["format"] != FORMAT:
        raise ValueError(f"format {shown(values['format'])}, not {FORMAT}")
    for name in ("layers", "buckets", "flags"):
        values[name] = tuple(values[name])
    record = PlanRecord(**values)
    numbers = (*record.layers, *record.buckets, record.capacity, record.chunk, record.rows)
    numbers += (record.plan_bytes, record.data_bytes)
    texts = (record.library, record.version, record.target, *record.flags)
    hashes = (record.package, record.graph_sha256, record.plan_sha256, record.data_sha256 or "0" * 64)
    if not all(type(number) is int and number >= 0 for number in numbers) or len(record.layers) != 2:
        raise ValueError("numbers that are none")
    if not all(isinstance(text, str) for text in texts) or not all(_HASH.fullmatch(each) for each in hashes):
        raise ValueError("texts that are none")
    if not record.buckets or list(record.buckets) != sorted(set(record.buckets)):
        raise ValueError(f"buckets {shown(record.buckets)}")
    if record.buckets[-1] != record.capacity or not 0 < record.rows <= record.chunk <= record.capacity:
        raise ValueError("sizes that do not fit each other")
    return record
