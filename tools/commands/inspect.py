"""Show what is inside a package or model file, and the least time in which memory can serve a token.

example: edgemem inspect smollm2-135m --bandwidth 68 --context 1024
The streamed floor counts what a decode step reads and writes at that context; the footprint floor counts the whole
weights file and the KV cache of that context, as arXiv 2605.30571 does.
Without --bandwidth, the read bandwidth of this machine is measured.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemem.tools.options import positive

if TYPE_CHECKING:
    from edgemem.runtime.manifest import Manifest
    from edgemem.tools.contents import TensorRun


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", metavar="PACKAGE", help="a package, a model folder, a .gguf file, or a model's name")
    parser.add_argument("--bandwidth", type=_bandwidth, metavar="GB/s", help="memory bandwidth, decimal gigabytes")
    parser.add_argument("--context", type=positive, default=512, metavar="N", help="KV slots in use (512)")
    parser.add_argument("--json", action="store_true", help="print one object")


def run(args: argparse.Namespace) -> int:
    from edgemem.runtime.manifest import MANIFEST_FILE
    from edgemem.tools.source import expanded, locate_package, named_model

    path = expanded(args.package)
    named = named_model(args.package) is not None
    if not named and os.path.exists(path) and not os.path.exists(path / MANIFEST_FILE):
        return _checkpoint(args, path)
    return _package(args, locate_package(args.package))


def _package(args: argparse.Namespace, path: Path) -> int:
    from dataclasses import asdict

    from edgemem.runtime.package import Package
    from edgemem.tools.console import print_facts, print_json
    from edgemem.tools.contents import package_totals, tensor_runs

    with Package.open(path) as package:
        manifest = package.manifest
    runs = tensor_runs(manifest.model, manifest.precision_of, manifest.layers)
    totals = package_totals(manifest)
    step = _step(args, manifest)
    if args.json:
        print_json(
            {
                "path": str(path),
                "name": manifest.name,
                "model": manifest.model.to_dict(),
                "part": None if manifest.part is None else asdict(manifest.part),
                "max_context": manifest.max_context,
                "tensors": [asdict(run) for run in runs],
                **asdict(totals),
                "bits_per_weight": totals.bits_per_weight,
                **step,
                "graphs": [asdict(graph) for graph in manifest.graphs],
                "origin": asdict(manifest.origin),
                "quality": None if manifest.quality is None else asdict(manifest.quality),
            }
        )
        return 0
    _print_runs(manifest.name, runs)
    print_facts(_package_facts(manifest, args, step))
    return 0


def _package_facts(manifest: Manifest, args: argparse.Namespace, step: dict[str, Any]) -> list[tuple[str, object]]:
    from edgemem.profiles.units import size_text
    from edgemem.tools.contents import package_totals

    totals = package_totals(manifest)
    streamed = size_text(step["bytes_per_token"])
    origin, quality = manifest.origin, manifest.quality
    source = "measured here" if args.bandwidth is None else "given"
    facts: list[tuple[str, object]] = [
        ("model", _model_line(manifest.model)),
        *_part_facts(manifest),
        ("context", f"{manifest.max_context} slots, trained for {manifest.model.trained_context}"),
        ("weights", f"{totals.weights / 1e6:.1f} million, {totals.bits_per_weight:.2f} bits each"),
        ("size", f"{size_text(totals.file_bytes)} on disk, weights {size_text(totals.weight_bytes)}"),
        (
            "per token",
            f"{streamed} streamed by the {step['engine']} engine at {args.context} slots",
        ),
        ("bandwidth", f"{step['bandwidth_gb_s']:.1f} GB/s ({source})"),
        ("streamed floor", f"{step['streamed_floor_ms']:.3f} ms = {1e3 / step['streamed_floor_ms']:.0f} tokens/s"),
        ("footprint floor", f"{step['footprint_floor_ms']:.3f} ms"),
        ("graphs", ", ".join(f"{graph.file} [{graph.first}, {graph.last})" for graph in manifest.graphs) or "none"),
        ("origin", f"{origin.source} ({origin.format}), licence {origin.licence or 'not stated'}"),
    ]
    if quality is None:
        return [*facts, ("quality", "not measured when it was compiled")]
    text = (
        f"perplexity {quality.perplexity:.3f} (reference {quality.reference_perplexity:.3f}), "
        f"KL {quality.kl_mean:.5f}, top-1 {quality.top1_agreement:.2%}, {quality.tokens} tokens"
    )
    return [*facts, ("quality", text)]


def _part_facts(manifest: Manifest) -> list[tuple[str, object]]:
    if manifest.part is None:
        return []
    first, last = manifest.layers
    return [("part", f"layers [{first}, {last}), cut from weights of sha256 {manifest.model_hash}")]


def _step(args: argparse.Namespace, manifest: Manifest) -> dict[str, Any]:
    """Bytes and floors of one decode step at the given context, by the engine that runs where none is asked for."""
    from edgemem.profiles.floors import engine_step, floors_at
    from edgemem.runtime.open import default_engine

    engine = default_engine()
    cost, floors = engine_step(manifest, args.context, engine), floors_at(manifest, args.context, engine)
    bandwidth = args.bandwidth
    if bandwidth is None:
        from edgemem.profiles.bandwidth import measured_bandwidth
        from edgemem.runtime.machine import usable_cores

        bandwidth = measured_bandwidth(usable_cores(), engine)
    return {
        "engine": engine,
        "context": args.context,
        "bytes_per_token": cost.streamed_bytes,
        "weight_bytes_per_token": cost.weight_bytes,
        "kv_read_bytes_per_token": cost.kv_read_bytes,
        "kv_write_bytes_per_token": cost.kv_write_bytes,
        "footprint_bytes": floors.footprint_bytes,
        "bandwidth_gb_s": bandwidth / 1e9,
        "bandwidth_source": "measured" if args.bandwidth is None else "given",
        **floors.milliseconds(bandwidth),
    }


def _checkpoint(args: argparse.Namespace, path: Path) -> int:
    from dataclasses import asdict

    from edgemem.compiler.checkpoint import open_checkpoint
    from edgemem.tools.console import print_facts, print_json
    from edgemem.tools.contents import tensor_runs

    with open_checkpoint(path) as checkpoint:
        model, origin = checkpoint.model, checkpoint.origin
        runs = tensor_runs(model, lambda name: checkpoint.matrix(name).stored)
    if args.json:
        tensors = [asdict(run) for run in runs]
        print_json({"path": str(path), "model": model.to_dict(), "tensors": tensors, "origin": asdict(origin)})
        return 0
    _print_runs(origin.source, runs)
    weights = sum(rows * columns for _, (rows, columns) in model.matrices())
    print_facts(
        [
            ("model", _model_line(model)),
            ("context", f"trained for {model.trained_context}"),
            ("weights", f"{weights / 1e6:.1f} million"),
            ("origin", f"{origin.format}, licence {origin.licence or 'not stated'}, sha256 {origin.sha256}"),
        ]
    )
    return 0


def _print_runs(title: str, runs: list[TensorRun]) -> None:
    from edgemem.profiles.units import size_text
    from edgemem.tools.console import print_table

    headers = ("layers", "tensor", "shape", "precision", "bytes")
    rows = [
        (
            run.layers,
            run.tensor,
            " x ".join(map(str, run.shape)),
            run.precision,
            "–" if run.bytes is None else size_text(run.bytes),
        )
        for run in runs
    ]
    print_table(title, headers, rows)


def _model_line(model: Any) -> str:
    heads = f"{model.heads} heads over {model.kv_heads} of {model.head_dim}"
    tied = "tied" if model.tied_head else "own"
    return (
        f"{model.architecture}: {model.layers} layers, hidden {model.hidden}, MLP {model.intermediate}, {heads}, "
        f"vocabulary {model.vocabulary}, {tied} head"
    )


def _bandwidth(text: str) -> float:
    """Decimal GB/s to bytes a second, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no bandwidth in GB/s")
    return value * 1e9
