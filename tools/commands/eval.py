"""Measure a package's quality on a text: perplexity, and how near its answers are to a float32 reference.

example: edgemem eval smollm2-135m --text book.txt --tokens 1024
KL is by default against the package's own weights, dequantised, in float32: it shows the engine's error alone.
--reference SOURCE shows what compression lost. The text is read in windows of -c tokens.
What bounded memories keep, and what that is worth, is measured by edgemem eval memory, how well the camera is woken by
edgemem eval capture; each has its own --help. A package that is called so is given by its path, ./memory or ./capture.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgemem.tools import eval_capture, eval_memory
from edgemem.tools.options import add_engine, add_model, file_path, model_name, positive
from edgemem.tools.verbs import Verb, dispatch_verbs

if TYPE_CHECKING:
    from edgemem.runtime.package import Package
    from edgemem.runtime.weights import WeightSource

_REFERENCE_HELP = "the model before compression, or another package of it (default: the package's own weights)"


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--text", type=file_path, required=True, metavar="FILE", help="UTF-8 text")
    parser.add_argument("--tokens", type=positive, default=1024, metavar="N", help="of the text, at most (1024)")
    parser.add_argument("--reference", metavar="SOURCE", help=_REFERENCE_HELP)
    parser.add_argument("--json", action="store_true", help="print one object")
    add_engine(parser, context="tokens a window, each from an empty memory (512)")
    memory = Verb(eval_memory.__doc__ or "", eval_memory.configure, eval_memory.run)
    capture = Verb(eval_capture.__doc__ or "", eval_capture.configure, eval_capture.run)
    dispatch_verbs(parser, {"memory": memory, "capture": capture})


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from edgemem.runtime.open import open_engine
    from edgemem.runtime.package import Package
    from edgemem.runtime.tokenizer import Tokenizer
    from edgemem.tools.console import print_facts, print_json, progress_bar
    from edgemem.tools.evaluate import evaluate, text_windows
    from edgemem.tools.providers import provider_names
    from edgemem.tools.source import locate_package

    path = locate_package(model_name(args))
    with Package.open(path) as package, _reference(args, package) as reference:
        context = args.ctx_size or min(512, package.manifest.max_context)
        windows = text_windows(args.text, Tokenizer.open(package), tokens=args.tokens, context=context)
        settings = {"threads": args.threads, "providers": provider_names(args.providers), "kv": args.kv}
        engine = open_engine(package, args.engine, capacity=context, **settings)
        try:
            with progress_bar(quiet=args.json) as progress:
                result = evaluate(engine, reference, windows, lambda share: progress("evaluate", share))
        finally:
            engine.close()
    if args.json:
        names = {
            "package": str(path),
            "reference": args.reference or "package",
            "text": str(args.text),
            "engine": engine.name,
        }
        print_json({**asdict(result), **names, "context": context})
        return 0
    print_facts(
        [
            ("perplexity", f"{result.perplexity:.4f}, reference {result.reference_perplexity:.4f}"),
            ("KL divergence", f"{result.kl_mean:.6f} nats"),
            ("top-1 agreement", f"{result.top1_agreement:.2%}"),
            ("tokens", f"{result.tokens} in windows of {context}"),
            ("reference", args.reference or "the package's own weights in float32"),
        ]
    )
    return 0


@contextmanager
def _reference(args: argparse.Namespace, package: Package) -> Iterator[WeightSource]:
    """The weights to compare with, open; a checkpoint with the rotary factors that suit the package's context."""
    from edgemem.compiler.checkpoint import open_checkpoint
    from edgemem.runtime.manifest import MANIFEST_FILE
    from edgemem.runtime.package import Package
    from edgemem.tools.download import locate_checkpoint
    from edgemem.tools.source import expanded, named_model

    if args.reference is None:
        yield package
    elif named_model(args.reference) is None and os.path.exists(expanded(args.reference) / MANIFEST_FILE):
        with Package.open(expanded(args.reference)) as other:
            yield other
    else:
        source = locate_checkpoint(args.reference, quiet=args.json)
        with open_checkpoint(source, max_context=package.manifest.max_context) as checkpoint:
            yield checkpoint
