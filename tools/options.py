"""Flags that several commands share, and the objects they stand for. EDGEMEM_MODEL and EDGEMEM_THREADS are defaults."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgemem.runtime.errors import ContextError
from edgemem.tools.providers import SHORT_NAMES, provider_names
from edgemem.tools.source import expanded, locate_package

if TYPE_CHECKING:
    from edgemem.runtime.package import Package
    from edgemem.runtime.retention.recall import RecallSettings
    from edgemem.runtime.retention.settings import RetentionSettings
    from edgemem.runtime.sampling import Sampling
    from edgemem.runtime.session import Session

_CONTEXT_HELP = "KV slots (default: the package's context, at most 4096)"
_ENGINE_HELP = (
    "cuda (default on an NVIDIA GPU that it can use), native (default where its kernels were built), onnx, or tensorrt "
    "(wants a plan: edgemem compile --engine tensorrt)"
)
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
    group.add_argument("--engine", metavar="NAME", help=_ENGINE_HELP)
    group.add_argument("--providers", type=names, metavar="LIST", help=_PROVIDERS_HELP)
    group.add_argument("--kv", metavar="KIND", help="keys and values of native and cuda: fp16 (default) or int8")


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


def add_memory(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--memory",
        choices=("full", "window", "entropy"),
        help="what stays when the slots are full: all, so that the conversation ends (full, the default); the first "
        "and the newest (window); the first, the most surprising and the newest (entropy)",
    )
    group.add_argument("--budget", type=positive, metavar="N", help="slots held at most (-c, or 1024)")
    group.add_argument("--sinks", type=whole, metavar="N", help="first slots that always stay (4)")
    group.add_argument("--recent", type=whole, metavar="N", help="newest slots that entropy always keeps (0)")
    group.add_argument("--decay", type=float, metavar="X", help="of a slot's surprisal at each turn's end (0.9)")
    group.add_argument(
        "--recall", action="store_true", help="bring back what a question is about, of what is gone; not with --store"
    )
    group.add_argument(
        "--store", type=file_path, metavar="DIR", help="keep the conversation in this folder, and go on with it"
    )


def recall_of(args: argparse.Namespace) -> RecallSettings | None:
    """Where what is evicted is put away; None where it is gone."""
    from edgemem.runtime.retention.recall import RecallSettings

    return RecallSettings() if args.recall else None


def memory_of(args: argparse.Namespace) -> RetentionSettings | None:
    """What stays of the conversation; None where nothing was said about it."""
    from edgemem.runtime.retention.settings import RetentionSettings

    given = {name: getattr(args, name) for name in ("budget", "sinks", "recent", "decay")}
    given = {name: value for name, value in given.items() if value is not None}
    if args.memory is None:
        if given:
            args.usage_error(f"--{next(iter(given))} needs --memory")
        return None
    if args.ctx_size is not None or args.memory == "full":
        given.setdefault("budget", args.ctx_size or 4096)
    return RetentionSettings(policy=args.memory, **given)


def model_name(args: argparse.Namespace) -> str:
    """What the user calls the package; ends with a usage error where it was given twice or not at all."""
    if args.package and args.model:
        args.usage_error("give the package once: as PACKAGE or with -m")
    name = args.package or args.model or os.environ.get("EDGEMEM_MODEL")
    if not name:
        args.usage_error("no package: give PACKAGE, -m PACKAGE or EDGEMEM_MODEL")
    return str(name)


def open_session(args: argparse.Namespace, **memory: Any) -> Session:
    """memory: what else Session.open takes."""
    from edgemem.runtime.session import Session

    return Session.open(
        locate_package(model_name(args)),
        engine=args.engine,
        context=args.ctx_size,
        threads=args.threads,
        providers=provider_names(args.providers),
        kv=args.kv,
        **memory,
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


def in_flags(error: ContextError, session: Session, *, flag: str = "-c") -> ContextError:
    """The same error with advice in the words of the command line. flag: the one that bounds the context."""
    if session.memory.endless:
        do = "say less, give a shorter --system, or a larger --budget"
        return ContextError(error.what, where=error.where, got=error.got, wanted=error.wanted, do=do)
    most = package_of(session).manifest.max_context
    grows = session.memory.settings.budget < most
    larger = f", or give a larger context ({flag}, at most {most})" if grows else ""
    return ContextError(error.what, where=error.where, got=error.got, wanted=error.wanted, do=f"say less{larger}")


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def whole(text: str) -> int:
    """A whole number from 0, for argparse."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def file_path(text: str) -> Path:
    """A path, `~` being the user's home, for argparse."""
    return expanded(text)


def names(text: str) -> list[str]:
    """Comma-separated names, for argparse."""
    return [name.strip() for name in text.split(",") if name.strip()]
