"""From a package to a plan in its engines/: write the standard graph, build it in a process of its own, seal the plan.

The builder is a large foreign library that reads a graph and gives a program. It runs under a memory limit, ends with
this process, and what it refuses is told operator by operator.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgemem.compiler.emit_standard import emit_standard
from edgemem.compiler.onnx_plan import file_sha256
from edgemem.profiles.process import last_words
from edgemem.runtime.engine_plan import PlanRecord, build_folder, package_hash, write_plan
from edgemem.runtime.errors import BudgetError, EngineError, FileError
from edgemem.runtime.machine import available_memory
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.package import Package
from edgemem.runtime.plan_seal import seal
from edgemem.runtime.plan_shape import PlanShape
from edgemem.runtime.private_files import one_writer, read_private, write_private
from edgemem.runtime.tensorrt_library import Library, own_target

Progress = Callable[[str, float], None]
Sizes = tuple[int, int, int]  # least, usual, greatest
Shapes = Mapping[str, Sequence[Sequence[int]]]  # by input: three shapes of these sizes

_TIMING_BYTES = 256 << 20
_SHOWN = 10  # refusals in a message
_OUT_OF_MEMORY = re.compile(r"out.?of.?memory|bad_alloc|MemoryError|memory alloc", re.IGNORECASE)


@dataclass(frozen=True)
class BuiltPlan:
    """What the builder's process said of a finished plan. Tensors by name: {"dtype", "shape"}, -1 where a profile says.

    layers: of TensorRT's network. flags: of the build. said: its warnings, at most 20.
    """

    inputs: Mapping[str, Mapping[str, Any]]
    outputs: Mapping[str, Mapping[str, Any]]
    layers: int
    flags: tuple[str, ...]
    said: tuple[str, ...]


def build_plan(
    package: Package,
    shape: PlanShape,
    library: Library,
    *,
    target: str | None,
    keys: Path,
    seal: Callable[[bytes, Path], bytes] = seal,
    memory_bytes: int | None = None,
    progress: Progress = lambda stage, share: None,
) -> tuple[Path, PlanRecord, BuiltPlan]:
    """Build a plan of `shape` and put it, sealed, into the package's engines/: where it lies, and what it is.

    target: None for this machine's own GPU. keys: the folder of this device's keys. seal: or plan_seal.sign.
    memory_bytes: that the builder may allocate, by default what the machine has free.
    Raises EngineError listing what the parser refused or saying how the build failed, BudgetError for want of memory,
    FileError where the package cannot be written.
    """
    seal(b"", keys)  # a key that cannot be used is told before the long build
    with build_folder(package) as folder:
        progress("emit", 0.0)
        graph = emit_standard(folder, package, shape.capacity, shape.layers)
        plan = folder / "built.plan"
        built = build_graph(
            graph,
            plan,
            profiles(package.model, shape),
            library,
            target=target,
            keys=keys,
            memory_bytes=memory_bytes,
            progress=progress,
        )
        record = PlanRecord(
            **asdict(shape),
            library=library.name,
            version=library.version,
            target=target or str(own_target()),
            package=package_hash(package.manifest),
            flags=built.flags,
            graph_sha256=file_sha256(graph),
            plan_bytes=plan.stat().st_size,
            plan_sha256=file_sha256(plan),
        )
        return write_plan(package, plan, record, lambda data: seal(data, keys)), record, built


def profiles(model: ModelSpec, shape: PlanShape) -> list[Shapes]:
    """One for a decode step in each bucket, and last one for all other runs, in the order of PlanShape.profile."""

    def sized(tokens: Sizes, bucket: Sizes, rows: Sizes) -> Shapes:
        given: dict[str, list[tuple[int, ...]]] = {
            "position_ids": [(1, size) for size in tokens],
            "slots": [(size,) for size in bucket],
        }
        if shape.layers[0] == 0:
            given["input_ids"] = given["position_ids"]
        else:
            given["hidden_states"] = [(1, size, model.hidden) for size in tokens]
        if shape.layers[1] == model.layers:
            given["logits_rows"] = [(size,) for size in rows]
        return given

    one = (1, 1, 1)
    steps = [sized(one, (bucket,) * 3, one) for bucket in shape.buckets]
    chunk, capacity = shape.chunk, shape.capacity
    return [*steps, sized((1, chunk, chunk), (shape.buckets[0], capacity, capacity), (1, 1, shape.rows))]


def build_graph(
    graph: Path,
    plan: Path,
    profiles: Sequence[Shapes],
    library: Library,
    *,
    target: str | None,
    keys: Path,
    memory_bytes: int | None = None,
    progress: Progress = lambda stage, share: None,
) -> BuiltPlan:
    """Build the ONNX file `graph`, strongly typed, into the new file `plan`. Arguments and errors: see build_plan."""
    limit = available_memory() if memory_bytes is None else memory_bytes
    timing = plan.with_suffix(".timing")
    job = {
        "library": library.name,
        "graph": str(graph),
        "plan": str(plan),
        "profiles": list(profiles),
        "target": target,
        "memory_bytes": limit,
        "timing_cache": str(timing),
    }
    with timing_cache(timing, library, target, keys):
        said = _run(job, limit, progress)
    return BuiltPlan(said["inputs"], said["outputs"], said["layers"], tuple(said["flags"]), tuple(said["said"]))


def _run(job: dict[str, Any], limit: int, progress: Progress) -> dict[str, Any]:
    """The child's last line; it does not outlive this call. Raises EngineError, BudgetError."""
    last: dict[str, Any] = {}
    with (
        tempfile.TemporaryFile() as errors,
        tempfile.TemporaryFile("w+") as given,
    ):
        json.dump(job, given)
        given.seek(0)
        with subprocess.Popen(
            [sys.executable, "-m", "edgemem.compiler.tensorrt_child"],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # the terminal's Ctrl-C reaches this process alone, which then ends that one
        ) as child:
            try:
                for line in child.stdout or ():
                    last = json.loads(line)
                    if "stage" in last:
                        progress(last["stage"], last["share"])
                child.wait()
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace")
    return _settled(last, said, child.returncode, limit)


def _settled(last: dict[str, Any], said: str, status: int, limit: int) -> dict[str, Any]:
    """What was built, or the error for what was said instead."""
    if "inputs" in last:
        return last
    if "refused" in last:
        raise _refused(last["refused"])
    if "unwritten" in last:
        raise FileError("the plan cannot be written", got=last["unwritten"], do="make room on the package's disk")
    reason = last.get("failed") or last_words(said, status)
    if _OUT_OF_MEMORY.search(reason) or _OUT_OF_MEMORY.search(said):
        raise BudgetError(
            "building the plan needs more memory than there is",
            got=f"{limit:,} bytes for the builder's process; it said: {reason[:400]}",
            do="free memory, build fewer buckets or a shorter context, or build on a larger machine with --target",
        )
    raise EngineError("TensorRT could not build the plan", got=reason[:2000], do="see the README on what it can build")


def _refused(nodes: Sequence[Mapping[str, str]]) -> EngineError:
    lines = [f"{node['operator']} (node {node['node']}): {node['reason']}" for node in nodes[:_SHOWN]]
    if len(nodes) > _SHOWN:
        lines.append(f"and {len(nodes) - _SHOWN} more")
    return EngineError(
        f"TensorRT's parser refused {len(nodes)} of the graph's nodes",
        got="\n    ".join(lines),
        do="install a newer TensorRT, or run the package with another engine",
    )


@contextmanager
def timing_cache(path: Path, library: Library, target: str | None, keys: Path) -> Iterator[None]:
    """Lends the child this device's timings of earlier builds, and keeps what it added. TensorRT-RTX times nothing."""
    if library.rtx:
        yield
        return
    name = f"timing-{library.version}-{target or 'own'}"
    if (known := read_private(keys, name, _TIMING_BYTES)) is not None:
        path.write_bytes(known)
    yield
    if path.exists():
        with one_writer(keys):
            write_private(keys, name, path.read_bytes())
        path.unlink()
