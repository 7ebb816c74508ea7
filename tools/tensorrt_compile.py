"""`edgemem compile PACKAGE --engine tensorrt`: plans for a GPU from a package that is there, whole and staged.

With `--engine onnx` it is the graph that they are built from, for ONNX Runtime's TensorRT providers.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edgemem.runtime.tensorrt_library import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edgemem.runtime.engine_plan import PlanRecord
    from edgemem.runtime.package import Package
    from edgemem.runtime.plan_shape import PlanShape
    from edgemem.tools.console import Progress

_HELP = "build a TensorRT plan into the package, or write the graph for ONNX Runtime's TensorRT providers"
_CONTEXT = 4096  # slots by default, as those that run and chat open a package with
# What is said of model files, and not of a package.
_OF_SOURCES = ("output", "weights", "head", "front_layers", "front_weights", "back_weights", "plan", "calibrate_text")


def configure(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("plans", "SOURCE is then a package, and --max-context the plan's KV slots (4096)")
    group.add_argument("--engine", choices=("tensorrt", "onnx"), help=_HELP)
    group.add_argument("--target", choices=TARGETS, help="GPU to build for, with TensorRT-RTX (default: the one here)")
    group.add_argument("--sign", action="store_true", help="for other devices, which must trust this builder's key")


def run(args: argparse.Namespace) -> int:
    """Build the whole model's plan, and those of front and back at each of --stages."""
    import time

    from edgemem.runtime.package import Package
    from edgemem.runtime.plan_seal import builder_key, default_keys
    from edgemem.tools.console import progress_bar
    from edgemem.tools.source import locate_package

    for name in _OF_SOURCES:
        if getattr(args, name) is not None:
            args.usage_error(f"--{name.replace('_', '-')} is for model files, not for --engine")
    build, started = _builder(args), time.perf_counter()
    plans = []
    with Package.open(locate_package(args.source)) as package:
        for shape in _shapes(args, package):
            with progress_bar(quiet=args.json) as progress:
                plans.append(build(package, shape, progress))
    builder = builder_key(default_keys()) if args.sign else None
    _report(args, plans, builder, time.perf_counter() - started)
    return 0


def _builder(args: argparse.Namespace) -> Callable[[Package, PlanShape, Progress], tuple[Path, PlanRecord]]:
    """What is done for each shape."""
    from edgemem.runtime.plan_seal import default_keys, seal, sign

    sealed: Any = {"keys": default_keys(), "seal": sign if args.sign else seal}
    if args.engine == "onnx":
        from edgemem.compiler.onnx_plan import build_onnx_plan

        if args.target is not None:
            args.usage_error("--target is for --engine tensorrt")
        return lambda package, shape, _: build_onnx_plan(package, shape, **sealed)
    from edgemem.compiler.tensorrt_build import build_plan
    from edgemem.runtime.tensorrt_library import library_for

    library = library_for(args.target)
    return lambda package, shape, progress: build_plan(
        package, shape, library, target=args.target, progress=progress, **sealed
    )[:2]


def _shapes(args: argparse.Namespace, package: Package) -> list[PlanShape]:
    from edgemem.runtime.engine_inputs import context_slots
    from edgemem.runtime.plan_shape import plan_shape

    first, last = package.manifest.layers
    ranges = [(first, last)]
    for layer in _cuts(args, first, last):
        ranges += [(first, layer), (layer, last)]
    capacity = context_slots(args.max_context or min(_CONTEXT, package.manifest.max_context), package)
    return [plan_shape(package.model, layers, capacity) for layers in ranges]


def _cuts(args: argparse.Namespace, first: int, last: int) -> list[int]:
    if args.stages is None:
        return []
    if args.stages == "all":
        return list(range(first + 1, last))
    cuts = sorted({int(text) for text in args.stages.split(",") if text.isascii() and text.isdigit()})
    if len(cuts) != len(set(args.stages.split(","))) or not all(first < cut < last for cut in cuts):
        args.usage_error(f"--stages: layers from {first + 1} to {last - 1}, or all")
    return cuts


def _report(
    args: argparse.Namespace, plans: Sequence[tuple[Path, PlanRecord]], builder: str | None, seconds: float
) -> None:
    from dataclasses import asdict

    from edgemem.profiles.units import size_text
    from edgemem.tools.console import print_facts, print_json

    if args.json:
        facts = [{"path": str(path), **asdict(record)} for path, record in plans]
        print_json({"plans": facts, "builder": builder, "seconds": seconds})
        return
    for path, record in plans:
        print_facts(
            [
                ("plan", path),
                ("size", size_text(record.plan_bytes + record.data_bytes)),
                ("for", f"{record.target}, {record.library} {record.version}"),
                ("layers", f"{record.layers[0]} to {record.layers[1] - 1}"),
                ("context", f"{record.capacity} slots, looked at in steps of {', '.join(map(str, record.buckets))}"),
            ]
        )
    if builder is not None:
        print_facts([("signed by", builder)])
    print_facts([("built in", f"{seconds:.1f} s")])
