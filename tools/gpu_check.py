"""Check the cuda engine on this machine's GPU, and measure it: python tools/gpu_check.py [--seconds 480] [--out DIR]

Needs a checkout, an NVIDIA GPU, torch and Triton, and no network. Runs the engine's tests on the GPU, then measures the
memory's read ceiling, decode steps of known shapes with random weights, the same in plain torch, each kernel, and a
plan by TensorRT where that is installed.
Writes a record as `edgemem profile` does, and a page of tables beside it. Ends with 1 if a test failed, with 2 where
there is no GPU to use.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemem.tools.gpu_plan import Deadline
    from edgemem.tools.gpu_report import Findings

ROOT = Path(__file__).resolve().parent.parent
_FOLDERS = ("kernels", "runtime", "profiles", "split", "compiler", "tools")
_KERNELS = ("matvec", "attention", "cache", "sampling", "chunk")
_TESTS = (*(f"test_cuda_{name}.py" for name in _KERNELS), "test_cuda_engine.py", "test_engines.py")
_TESTS_SHARE, _TIMINGS_END = 0.4, 60  # of the time; seconds left that only kernels may use
_SECONDS_A_MODEL, _SECONDS_A_BASELINE, _SECONDS_A_PLAN = 15, 10, 90  # with less than that nothing new is begun


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu_check", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=480, metavar="S", help="of the whole run, about (480)")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), metavar="DIR", help="for the record (gpu-check)")
    parser.add_argument("--package", type=Path, metavar="PATH", help="of a real model: compare its text with onnx's")
    parser.add_argument("--no-tests", action="store_true", help="only measure")
    parser.add_argument("--warm", nargs=2, metavar=("SHAPE", "WEIGHTS"), help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    with _importable():
        from edgemem.runtime.cuda_support import cuda_support

        support = cuda_support()
        if not support.usable:
            what, do = support.obstacle or ("there is no NVIDIA GPU", "run this where one is")
            print(f"gpu_check: error: {what}\n  do: {do}", file=sys.stderr)
            return 2
        if args.warm:
            return _warm(*args.warm)
        return _check(args)


def _check(args: argparse.Namespace) -> int:
    from edgemem.tools.gpu_plan import Deadline
    from edgemem.tools.gpu_report import Findings, write_findings

    deadline = Deadline(args.seconds, time.monotonic)
    found = Findings()
    _measure_ceiling(found)
    _compile_and_test(found, deadline, with_tests=not args.no_tests)
    if args.package is not None:
        _compare(found, args.package)
    _measure_models(found, deadline)
    _measure_tensorrt(found, deadline)
    _measure_kernels(found, deadline)
    for path in write_findings(found, args.out):
        _note(f"written: {path}")
    return 1 if found.tests_failed else 0


def _measure_ceiling(found: Findings) -> None:
    from edgemem.kernels.cuda.sweep import DeviceSweep, sweep_bytes
    from edgemem.runtime.cuda_budget import available_gpu_memory

    found.sweep = DeviceSweep(sweep_bytes(available_gpu_memory()))
    found.sweep.read(2)
    found.reads = found.sweep.read(10)
    _note(f"read ceiling {max(found.reads) / 1e9:.0f} GB/s over {found.sweep.bytes / 1e9:.1f} GB")


def _compile_and_test(found: Findings, deadline: Deadline, *, with_tests: bool) -> None:
    """All kernels into Triton's cache, by processes of their own, and the tests beside them: nothing is timed yet."""
    from edgemem.tools.gpu_plan import timings

    found.timings, found.too_large = timings(_free())
    began = time.monotonic()
    limit = deadline.left(_TESTS_SHARE)
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        tests = pool.submit(_run_tests, limit) if with_tests else None
        warmed = [
            pool.submit(_run, [sys.executable, __file__, "--warm", timing.name, timing.weights], limit)
            for timing in found.timings
        ]
        failed = [problem for job in warmed if (problem := job.result()[1]) is not None]
        found.tests, found.tests_failed = tests.result() if tests is not None else ("not asked for", False)
    _note(f"tests: {found.tests}; kernels compiled in {time.monotonic() - began:.0f} s")
    for problem in failed:
        _note(f"compiling failed: {problem}")


def _compare(found: Findings, package: Path) -> None:
    from edgemem.tools.gpu_agreement import measure_agreement

    def compare() -> None:
        found.agreement = f"{package.name}: {measure_agreement(package)}"
        _note(found.agreement)

    _try(found, f"agreement of {package.name}", compare)


def _measure_models(found: Findings, deadline: Deadline) -> None:
    from edgemem.runtime.cuda_graphs import known_modes
    from edgemem.tools.gpu_baseline import can_int4, measure_baseline
    from edgemem.tools.gpu_decode import measure_decode, slots_for, step_bytes
    from edgemem.tools.gpu_models import RandomModel
    from edgemem.tools.gpu_plan import CONTEXT

    def decode(model: RandomModel) -> None:
        decoded = measure_decode(model, CONTEXT, found.sweep, known_modes())
        found.cells += decoded.cells
        found.host_share.update({(model.label, mode): share for mode, share in decoded.host_share.items()})

    def baseline(model: RandomModel) -> None:
        is_int4 = model.weights != "bf16"
        if not is_int4 or can_int4(model.model):
            bytes_, reads = step_bytes(model, CONTEXT), found.sweep.read(3)
            found.cells += measure_baseline(model.model, model.label, CONTEXT, bytes_, reads, int4=is_int4)

    models = [RandomModel(timing.name, timing.weights, slots_for(CONTEXT)) for timing in found.timings]
    for measure, needs in ((decode, _SECONDS_A_MODEL), (baseline, _SECONDS_A_BASELINE)):
        for model in models:
            what = f"{measure.__name__} {model.label}"
            if deadline.left() < _TIMINGS_END + needs:
                found.unmeasured.append(f"{what}: no time was left")
                continue
            found.targets.setdefault(model.label, model.target())
            _try(found, what, partial(measure, model))


def _measure_tensorrt(found: Findings, deadline: Deadline) -> None:
    from edgemem.runtime.tensorrt_library import what_is_missing
    from edgemem.tools.gpu_tensorrt import measure_tensorrt

    def measure() -> None:
        found.tensorrt = measure_tensorrt(max(found.reads), _note)

    if (missing := what_is_missing()) is not None:
        found.unmeasured.append(f"tensorrt: {missing}")
    elif deadline.left() < _TIMINGS_END + _SECONDS_A_PLAN:
        found.unmeasured.append("tensorrt: no time was left")
    else:
        _try(found, "tensorrt", measure)


def _measure_kernels(found: Findings, deadline: Deadline) -> None:
    from edgemem.tools.gpu_kernels import KernelRow, kernel_jobs
    from edgemem.tools.gpu_plan import KERNEL_MODEL

    def measure(job: Callable[[], KernelRow]) -> None:
        found.kernels.append(job())

    for what, job in kernel_jobs(KERNEL_MODEL):
        if deadline.left() == 0:
            found.unmeasured.append(f"kernel {what}: no time was left")
        else:
            _try(found, f"kernel {what}", partial(measure, job))


def _try(found: Findings, what: str, measure: Callable[[], None]) -> None:
    """What goes wrong with one measurement is that one's own."""
    import torch
    from triton.errors import TritonError

    from edgemem.runtime.errors import EdgememError

    began = time.monotonic()
    try:
        measure()
    except (EdgememError, RuntimeError, TritonError, ValueError) as problem:
        found.unmeasured.append(f"{what}: {' '.join(str(problem).split())[:500]}")
        _note(f"{what}: failed: {problem}")
    else:
        _note(f"{what}: {time.monotonic() - began:.1f} s")
    torch.cuda.empty_cache()


def _warm(name: str, weights: str) -> int:
    from edgemem.tools.gpu_decode import slots_for, warm
    from edgemem.tools.gpu_models import RandomModel
    from edgemem.tools.gpu_plan import CONTEXT

    warm(RandomModel(name, weights, slots_for(CONTEXT), layers=1))
    return 0


def _run_tests(limit: float) -> tuple[str, bool]:
    """What pytest says at the end, and whether anything failed."""
    files = [str(ROOT / "tests" / name) for name in _TESTS]
    if find_spec("pytest") is None or not all(map(os.path.exists, files)):
        return "not run: pytest or the folder tests is missing", False
    words = [sys.executable, "-m", "pytest", "-q", "-k", "cuda", "-p", "no:cacheprovider", *files]
    out, problem = _run(words, limit)
    last = next((line for line in reversed(out.splitlines()) if line.strip()), "no output")
    return (last, False) if problem is None else (f"FAILED: {last}; {problem}", True)


def _run(words: Sequence[str], limit: float) -> tuple[str, str | None]:
    """What a process printed, and what went wrong with it."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=max(1.0, limit), cwd=ROOT, check=False)
    except subprocess.TimeoutExpired:
        return "", f"longer than {limit:.0f} s"
    tail = " ".join((done.stdout + done.stderr).split())[-2000:]
    return done.stdout, None if done.returncode == 0 else f"status {done.returncode}: {tail}"


def _free() -> int:
    from edgemem.runtime.cuda_budget import available_gpu_memory

    return available_gpu_memory()


@contextmanager
def _importable() -> Iterator[None]:
    """The checkout's folders as edgemem.*, here and in child processes, where the package is not installed."""
    if find_spec("edgemem") is not None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "edgemem").mkdir()
        for name in _FOLDERS:
            (Path(folder) / "edgemem" / name).symlink_to(ROOT / name)
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        yield


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
