"""Turn model files into a package for this device, then reopen it and measure what the compression cost.

example: edgemem compile smollm2-135m
         edgemem compile ./Qwen3-0.6B -o qwen.edgemem --weights int4 --calibrate
SOURCE is a Hugging Face folder, a .gguf file, or a name as for edgemem pull. Without --weights, tensors that are
already quantised stay as they are and others become int4.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgemem.tools import tensorrt_compile
from edgemem.tools.options import file_path, positive

if TYPE_CHECKING:
    from edgemem.compiler.build import CompileOptions
    from edgemem.runtime.manifest import Manifest

_KINDS = ("int4", "int8", "fp16", "fp32")
_NEEDS = ("onnx", "gguf")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="model folder, .gguf file, known name or hf:ORG/MODEL")
    output = "default: by the model's name, in the cache"
    parser.add_argument("-o", "--output", type=file_path, metavar="OUT.edgemem", help=output)
    parser.add_argument("--weights", choices=_KINDS, help="of all layers")
    parser.add_argument("--group", type=int, choices=(32, 64, 128), default=32, help="weights per scale (32)")
    parser.add_argument("--head", choices=("int8", "int4", "fp16"), help="of embedding and head")
    parser.add_argument("--front-layers", type=positive, metavar="K", help="layers below K take --front-weights")
    parser.add_argument("--front-weights", choices=_KINDS, help="of the layers below --front-layers")
    parser.add_argument("--back-weights", choices=_KINDS, help="of the layers from --front-layers on")
    parser.add_argument("--plan", type=file_path, metavar="FILE.yaml", help="precisions by tensor pattern")
    parser.add_argument("--calibrate", action="store_true", help="choose codes by what a text shows to matter (slower)")
    parser.add_argument("--calibrate-text", type=file_path, metavar="FILE", help="calibrate on this text, not our own")
    parser.add_argument("--stages", metavar="K[,K2]|all", help="also write front and back graphs cut at these layers")
    parser.add_argument("--max-context", type=positive, metavar="N", help="KV slots at most (as trained, to 32768)")
    parser.add_argument(
        "--check-tokens", type=int, default=512, metavar="N", help="text to compare on (512); 0 for none"
    )
    parser.add_argument("--offline", action="store_true", help="do not download SOURCE")
    parser.add_argument("--json", action="store_true", help="print one object with the path and the quality")
    tensorrt_compile.configure(parser)


def run(args: argparse.Namespace) -> int:
    import time

    from edgemem.tools.console import progress_bar
    from edgemem.tools.download import locate_checkpoint
    from edgemem.tools.source import package_in_cache

    _require_libraries()
    if args.engine is not None:
        return tensorrt_compile.run(args)
    if args.target is not None or args.sign:
        args.usage_error("--target and --sign are for --engine tensorrt")
    if args.check_tokens < 0 or args.check_tokens == 1:
        args.usage_error("--check-tokens is 0 or at least 2")
    source = locate_checkpoint(args.source, offline=args.offline, quiet=args.json)
    out = args.output
    if out is None:
        out = package_in_cache(args.source)
        _refuse_other_source(out, source)
    options = _options(args, source)
    started = time.perf_counter()
    with progress_bar(quiet=args.json) as progress:
        from edgemem.compiler.build import compile_model

        manifest = compile_model(source, out, options, progress)
    _report(args, out, manifest, time.perf_counter() - started)
    return 0


def _require_libraries() -> None:
    from importlib.util import find_spec

    from edgemem.runtime.errors import SettingsError

    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise SettingsError(
            "compiling needs libraries that running does not",
            got=f"not installed: {', '.join(missing)}",
            do='pip install "edgemem-runtime[compile]"',
        )


def _refuse_other_source(out: Path, source: Path) -> None:
    """SettingsError if the package that already has this name in the cache was made from other model files."""
    from edgemem.compiler.checkpoint import open_checkpoint
    from edgemem.runtime.errors import FileError, SettingsError
    from edgemem.runtime.package import Package

    if not os.path.exists(out):
        return
    try:
        with Package.open(out, verify=False) as package:
            before = package.manifest.origin
    except FileError:  # damaged, or no package: what may replace it is for the writer to say
        return
    with open_checkpoint(source) as checkpoint:
        origin = checkpoint.origin
    if origin.sha256 != before.sha256:
        raise SettingsError(
            "the cache has a package of this name from another source",
            where=out,
            got=f"{before.source}, sha256 {before.sha256}",
            wanted=f"{origin.source}, sha256 {origin.sha256}",
            do=f"-o OUT.edgemem to keep both, or -o {out} to replace it",
        )


def _options(args: argparse.Namespace, source: Path) -> CompileOptions:
    from edgemem.compiler.build import CompileOptions

    return CompileOptions(
        weights=args.weights,
        group=args.group,
        head=args.head,
        front_layers=args.front_layers,
        front_weights=args.front_weights,
        back_weights=args.back_weights,
        plan=args.plan,
        calibrate=args.calibrate_text or args.calibrate,
        stages=_stages(args, source),
        max_context=args.max_context,
        check_tokens=args.check_tokens,
    )


def _stages(args: argparse.Namespace, source: Path) -> tuple[int, ...]:
    """The layers to cut at; `all` are all boundaries of this model."""
    if args.stages is None:
        return ()
    if args.stages == "all":
        from edgemem.compiler.checkpoint import open_checkpoint

        with open_checkpoint(source, max_context=args.max_context) as checkpoint:
            return tuple(range(1, checkpoint.model.layers))
    try:
        return tuple(sorted({positive(text) for text in args.stages.split(",")}))
    except argparse.ArgumentTypeError as error:
        args.usage_error(f"--stages: {error}")
        raise


def _report(args: argparse.Namespace, out: Path, manifest: Manifest, seconds: float) -> None:
    from dataclasses import asdict

    from edgemem.profiles.units import size_text
    from edgemem.tools.console import print_facts, print_json
    from edgemem.tools.contents import package_totals

    totals, quality = package_totals(manifest), manifest.quality
    if args.json:
        facts = {"path": str(out), "name": manifest.name, "bytes": totals.file_bytes, "seconds": seconds}
        measured = None if quality is None else asdict(quality)
        print_json({**facts, "bits_per_weight": totals.bits_per_weight, "quality": measured})
        return
    lines: list[tuple[str, object]] = [
        ("package", out),
        ("size", f"{size_text(totals.file_bytes)}, {totals.bits_per_weight:.2f} bits per weight"),
    ]
    if quality is not None:
        lines += [
            ("perplexity", f"{quality.perplexity:.3f}, reference {quality.reference_perplexity:.3f}"),
            ("KL divergence", f"{quality.kl_mean:.5f} nats, mean of {quality.tokens} tokens"),
            ("top-1 agreement", f"{quality.top1_agreement:.2%}"),
        ]
    lines += [("other group", text) for text in _other_groups(args.group, manifest)]
    print_facts([*lines, ("compiled in", f"{seconds:.1f} s")])


def _other_groups(asked: int, manifest: Manifest) -> list[str]:
    """By precision, the tensors whose rows the group asked for does not divide."""
    found: dict[str, dict[str, None]] = {}
    for name, (_, columns) in manifest.model.matrices():
        precision = manifest.precision_of(name)
        if columns % asked and precision.quantized:
            found.setdefault(str(precision), {})[name.rpartition(".")[2]] = None
    return [
        f"{', '.join(names)} as {precision}: {asked} does not divide the rows" for precision, names in found.items()
    ]
