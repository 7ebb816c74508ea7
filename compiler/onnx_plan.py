"""Puts the standard-operator graph into a package's engines/, sealed, for ONNX Runtime's TensorRT providers.

Beside it lie the weights as TensorRT takes them: a second copy, made when it is asked for and safe to delete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from edgemem.compiler.emit_standard import DATA_FILE, emit_standard
from edgemem.runtime.engine_plan import PlanRecord, build_folder, package_hash, write_plan
from edgemem.runtime.onnx_plan import LIBRARY, TARGET, VERSION
from edgemem.runtime.package import Package
from edgemem.runtime.plan_seal import seal
from edgemem.runtime.plan_shape import PlanShape
from edgemem.runtime.safe_files import sha256_of


def build_onnx_plan(
    package: Package, shape: PlanShape, *, keys: Path, seal: Callable[[bytes, Path], bytes] = seal
) -> tuple[Path, PlanRecord]:
    """Write the graph of `shape`: where it lies, and what it is. keys, seal: see build_plan. Raises FileError."""
    with build_folder(package) as folder:
        built = folder / "built"
        built.mkdir()
        graph = emit_standard(built, package, shape.capacity, shape.layers)
        record = PlanRecord(
            **asdict(shape),
            library=LIBRARY,
            version=VERSION,
            target=TARGET,
            package=package_hash(package.manifest),
            flags=(),
            graph_sha256=file_sha256(graph),
            plan_bytes=graph.stat().st_size,
            plan_sha256=file_sha256(graph),
            data_bytes=(built / DATA_FILE).stat().st_size,
            data_sha256=file_sha256(built / DATA_FILE),
        )
        return write_plan(package, built, record, lambda data: seal(data, keys)), record


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(file.fileno())
