"""Answer a prompt with a paired server's help: the first layers run here, the others there.

example: edgemem split run smollm2-135m --server home -p "Why is the sky blue?"
When the server goes, or comes back, a line on stderr says who answers from there on. With --local this device goes on
alone at the same token, with --fallback a smaller model does; without, the server is tried again for a minute. Where a
token would be faster at another split, within --memory, the conversation moves there between two tokens, and a line
says so; with a codec other than fp32 it may go on in other words there. --stay keeps it where it is.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from edgemem.tools.options import add_sampling, file_path, positive, sampling_of, whole
from edgemem.tools.quantities import size_bytes

if TYPE_CHECKING:
    from edgemem.runtime.engine import Engine
    from edgemem.runtime.package import Package
    from edgemem.runtime.session import Session
    from edgemem.runtime.tokenizer import Tokenizer
    from edgemem.split.codec import CodecSettings
    from edgemem.split.guide import News
    from edgemem.split.remote_back import RemoteBack

_USUAL_CONTEXT = 4096
_MODES = ("fp32", "fp16", "int8")
_AT_HELP = "layers here, 0 to all (half of them, or a front half's); after it, other splits that the server has"
_CODEC_HELP = f"of what is sent: {', '.join(_MODES)}, or a file of `split calibrate` (fp16)"
_MEMORY_HELP = "of this device, for moves (what it takes at the beginning)"
_LEAST_HELP = "layers that must run here after a move (0, where the server gets the tokens)"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", metavar="PACKAGE", help="compiled package: a path or a model's name")
    server = parser.add_mutually_exclusive_group()
    server.add_argument("--server", metavar="NAME", help="a server that this device was paired with")
    server.add_argument(
        "--insecure-loopback", type=positive, metavar="PORT", help="a server of this machine, in plain text"
    )
    parser.add_argument("-p", "--prompt", default="-", metavar="TEXT", help="the prompt (default: read from stdin)")
    parser.add_argument("-n", "--n-predict", type=positive, default=256, metavar="N", help="tokens at most (256)")
    parser.add_argument("--raw", action="store_true", help="continue the prompt's text, without the chat template")
    parser.add_argument("--at", type=_splits, default=[], metavar="L[,L...]", help=_AT_HELP)
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--local", action="store_true", help="hold all layers here too, to go on without the server")
    alone.add_argument("--fallback", metavar="PACKAGE", help="the same with a smaller model of the same tokenizer")
    parser.add_argument("--warm", action="store_true", help="with either: keep up with the server, to go on at once")
    parser.add_argument("--codec", default="fp16", metavar="CODEC", help=_CODEC_HELP)
    parser.add_argument("-c", "--ctx-size", type=positive, metavar="N", help="KV slots (the package's, at most 4096)")
    parser.add_argument("-t", "--threads", type=positive, metavar="N", help="default: the physical cores")
    moves = parser.add_argument_group("moves to a faster split")
    moves.add_argument("--stay", action="store_true", help="never move")
    moves.add_argument("--memory", type=size_bytes, metavar="SIZE", help=_MEMORY_HELP)
    moves.add_argument("--least", type=whole, default=0, metavar="L", help=_LEAST_HELP)
    add_sampling(parser)


def run(args: argparse.Namespace) -> int:
    from edgemem.runtime.package import Package
    from edgemem.runtime.session import Session
    from edgemem.runtime.tokenizer import Tokenizer
    from edgemem.tools.source import locate_package

    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    with ExitStack() as opened:
        package = opened.enter_context(Package.open(locate_package(args.package)))
        tokenizer = Tokenizer.open(package)
        fallback = None if args.fallback is None else _fallback(opened, args.fallback, tokenizer)
        engine = _open(args, package, fallback)
        opened.callback(engine.close)
        _answer(args, Session(engine, tokenizer), prompt)
    return 0


def _fallback(opened: ExitStack, name: str, tokenizer: Tokenizer) -> Package:
    from edgemem.runtime.package import Package
    from edgemem.runtime.tokenizer import Tokenizer
    from edgemem.split.fallback_back import check_same_tokens
    from edgemem.tools.source import locate_package

    package = opened.enter_context(Package.open(locate_package(name)))
    package.require()
    check_same_tokens(tokenizer, Tokenizer.open(package))
    return package


def _open(args: argparse.Namespace, package: Package, fallback: Package | None) -> Engine:
    from edgemem.runtime.errors import SettingsError
    from edgemem.runtime.open import open_engine
    from edgemem.tools.console import note

    layers = package.model.layers
    usual = layers // 2 if package.manifest.part is None else package.manifest.layers[1]
    at, *others = [layers if split is None else split for split in args.at] or [usual]
    if others and not (0 < at < layers and package.manifest.part is None):
        raise SettingsError(
            "this conversation cannot move to other splits",
            got=f"--at {at} first, of {layers} layers",
            wanted="to begin inside the model, of which the package has all layers",
            do="give one split alone, or another first",
        )
    slots = args.ctx_size or min(one.manifest.max_context for one in (package, fallback) if one is not None)
    if args.ctx_size is None:
        slots = min(slots, _USUAL_CONTEXT)
    if at == layers:
        if args.server is not None or args.insecure_loopback is not None:
            note(f"all {layers} layers run here: the server is not asked")
        return open_engine(package, capacity=slots, threads=args.threads)
    engine, back = _open_split(args, package, at, others, fallback, slots)
    try:
        _sync(back, alone=args.local or fallback is not None)
    except BaseException:
        engine.close()
        raise
    return engine


def _open_split(
    args: argparse.Namespace, package: Package, at: int, others: list[int], fallback: Package | None, slots: int
) -> tuple[Engine, RemoteBack]:
    """The engine, and its back stage to begin with."""
    from edgemem.split.moving_opening import open_moving_engine
    from edgemem.split.opening import open_split_engine
    from edgemem.split.switching import SwitchSettings
    from edgemem.tools.split_dial import dial_of
    from edgemem.tools.split_problem import workspace_bytes
    from edgemem.tools.versions import version_of

    same: dict[str, Any] = {
        "version": version_of("edgemem-runtime") or "unknown",
        "codec": _codec(args.codec, package, at),
        "capacity": slots,
        "threads": args.threads,
        "local": args.local,
        "fallback": fallback,
        "settings": SwitchSettings(warm=args.warm),
    }
    dial = dial_of(args)
    if args.stay or not 0 < at < package.model.layers or package.manifest.part is not None:
        return open_split_engine(package, at, dial, **same)
    return open_moving_engine(
        package,
        at,
        dial,
        splits=others,
        device_bytes=args.memory,
        least=args.least,
        workspace_bytes=workspace_bytes(package, slots, args.threads),
        **same,
    )


def _sync(back: RemoteBack, *, alone: bool) -> None:
    """Raises what RemoteBack.sync raises where this device cannot go on alone."""
    from edgemem.runtime.errors import LinkError
    from edgemem.tools.console import note

    try:
        back.sync()
    except LinkError as problem:
        if not alone:
            raise
        note(f"{back.route}: {problem}")


def _codec(text: str, package: Package, split: int) -> CodecSettings:
    """text: a mode, or else a file that `split calibrate` wrote for this model and split."""
    from edgemem.split.codec import CodecSettings
    from edgemem.split.codec_file import read_codec_file

    if text in _MODES:
        return CodecSettings(text)  # type: ignore[arg-type]
    return read_codec_file(file_path(text)).settings_for(package.manifest.model_hash, split)


def _answer(args: argparse.Namespace, session: Session, prompt: str) -> None:
    from edgemem.runtime.engine import route_of
    from edgemem.split.moving_engine import MovingEngine
    from edgemem.tools.console import note

    engine = session.engine
    route = route_of(engine)
    for chunk in session.stream(prompt, sampling=sampling_of(args), max_tokens=args.n_predict, raw=args.raw):
        news = engine.take_news() if isinstance(engine, MovingEngine) else []
        for one in news:
            note(f"\n{news_text(one, engine.model.layers)}")
        now = route_of(engine)
        if now != route and not any(one.kind == "moved" for one in news):
            note(f"\n{now}{reason(engine)}")
        route = now
        print(chunk.text, end="", flush=True)
    print(flush=True)


def news_text(news: News, layers: int) -> str:
    """`all layers here: 12 ms a token expected, 41 ms before`."""
    from edgemem.profiles.units import number_text

    offer, here = news.offer, number_text(news.here_ms)
    place = {0: "all layers on the server", layers: "all layers here"}.get(offer.split, f"{offer.split} layers here")
    there = number_text(offer.token_ms)
    if news.kind == "moved":
        return f"{place}: {there} ms a token expected, {here} ms before"
    gain = f"{place} would take {there} ms a token in place of {here} ms"
    if news.kind == "refused":
        return f"{gain}, but {'' if news.problem is None else news.problem.what}"
    return (
        f"{gain}; to move takes {number_text(offer.cost_ms / 1e3)} s, more than the {news.tokens_left} tokens left gain"
    )


def reason(engine: Engine) -> str:
    """The reason, where the server does not answer as it should."""
    from edgemem.split.moving_engine import MovingEngine
    from edgemem.split.remote_back import RemoteBack

    split = engine.engine if isinstance(engine, MovingEngine) else engine
    back = getattr(split, "back", None)
    return f": {back.problem.what}" if isinstance(back, RemoteBack) and back.problem is not None else ""


def _splits(text: str) -> list[int | None]:
    """Whole numbers between commas, None for `all`, for argparse."""
    return [None if part == "all" else whole(part) for part in text.split(",")]
