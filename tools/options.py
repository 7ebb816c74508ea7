"""Flags that several commands share, and the objects they stand for. EDGEMEM_MODEL and EDGEMEM_THREADS are defaults."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgemem.runtime.errors import ContextError
from edgemem.tools.providers import SHORT_NAMES, provider_names
from edgemem.tools.source import expanded, locate_package

if TYPE_CHECKING:
    from edgemem.runtime.package import Package
    from edgemem.runtime.sampling import Sampling
    from edgemem.runtime.session import Session

_CONTEXT_HELP = "KV slots (default: the package's context, at most 4096)"
_PROVIDERS_HELP = f"comma-separated, of {', '.join(SHORT_NAMES)}, or ONNX Runtime's names (default: cpu)"


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", nargs="?", metavar="PACKAGE", help="compiled package: a path or a model's name")
    parser.add_argument("-m", "--model", metavar="PACKAGE", help="the same, as a flag (default: EDGEMEM_MODEL)")


def add_engine(parser: argparse.ArgumentParser, *, context: str = _CONTEXT_HELP) -> None:
    """`context`: what -c is for, and its default."""
    group = parser.add_argument_group("engine")
    group.add_argument("-c", "--ctx-size", type=positive, metavar="N", help=context)
    group.add_argument(
        "-t",
        "--threads",
        type=positive,
        metavar="N",
        default=os.environ.get("EDGEMEM_THREADS") or None,
        help="default: EDGEMEM_THREADS, else the physical cores",
    )
    group.add_argument("--engine", metavar="NAME", help="native (default where its kernels were built) or onnx")
    group.add_argument("--providers", type=names, metavar="LIST", help=_PROVIDERS_HELP)
    group.add_argument("--kv", metavar="KIND", help="keys and values of the native engine: fp16 (default) or int8")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--temp", type=float, default=0.0, metavar="T", help="temperature; 0, the default, is greedy")
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="0 for all (default)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="1 for all (default)")
    group.add_argument("--min-p", type=float, default=0.0, metavar="P", help="0 for all (default)")
    group.add_argument("--repeat-penalty", type=float, default=1.0, metavar="X", help="1 for none (default)")
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed gives a fresh run the same text (0)"
    )


def model_name(args: argparse.Namespace) -> str:
    """What the user calls the package; ends with a usage error where it was given twice or not at all."""
    if args.package and args.model:
        args.usage_error("give the package once: as PACKAGE or with -m")
    name = args.package or args.model or os.environ.get("EDGEMEM_MODEL")
    if not name:
        args.usage_error("no package: give PACKAGE, -m PACKAGE or EDGEMEM_MODEL")
    return str(name)


def open_session(args: argparse.Namespace) -> Session:
    from edgemem.runtime.session import Session

    return Session.open(
        locate_package(model_name(args)),
        engine=args.engine,
        context=args.ctx_size,
        threads=args.threads,
        providers=provider_names(args.providers),
        kv=args.kv,
    )


def package_of(session: Session) -> Package:
    """The package that open_session opened the session over."""
    return cast("Package", session.package)


def sampling_of(args: argparse.Namespace) -> Sampling:
    from edgemem.runtime.sampling import Sampling

    return Sampling(
        temperature=args.temp,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repeat_penalty,
        seed=args.seed,
    )


def in_flags(error: ContextError, session: Session) -> ContextError:
    """The same error with advice in the words of the command line."""
    most = package_of(session).manifest.max_context
    larger = f", or give a larger context (-c, at most {most})" if session.engine.capacity < most else ""
    return ContextError(error.what, where=error.where, got=error.got, wanted=error.wanted, do=f"say less{larger}")


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def file_path(text: str) -> Path:
    """A path, `~` being the user's home, for argparse."""
    return expanded(text)


def names(text: str) -> list[str]:
    """Comma-separated names, for argparse."""
    return [name.strip() for name in text.split(",") if name.strip()]
