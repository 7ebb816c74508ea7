"""Answer a prompt with a paired server's help: the first layers run here, the others there.

example: edgemem split run smollm2-135m --server home -p "Why is the sky blue?"
When the server goes, or comes back, a line on stderr says who answers from there on. With --local this device goes on
alone at the same token; without, the server is tried again for a minute.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from edgemem.tools.options import add_sampling, file_path, positive, sampling_of, whole

if TYPE_CHECKING:
    from edgemem.runtime.engine import Engine
    from edgemem.runtime.package import Package
    from edgemem.runtime.session import Session
    from edgemem.split.codec import CodecSettings
    from edgemem.split.remote_back import RemoteBack

_USUAL_CONTEXT = 4096
_MODES = ("fp32", "fp16", "int8")
_CODEC_HELP = f"of what is sent: {', '.join(_MODES)}, or a file of `split calibrate` (fp16)"


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
    parser.add_argument("--at", type=whole, metavar="L", help="layers here, 0 to all (half of them, or a front half's)")
    parser.add_argument("--local", action="store_true", help="hold all layers here too, to go on without the server")
    parser.add_argument("--warm", action="store_true", help="with --local: keep up with the server, to go on at once")
    parser.add_argument("--codec", default="fp16", metavar="CODEC", help=_CODEC_HELP)
    parser.add_argument("-c", "--ctx-size", type=positive, metavar="N", help="KV slots (the package's, at most 4096)")
    parser.add_argument("-t", "--threads", type=positive, metavar="N", help="default: the physical cores")
    add_sampling(parser)


def run(args: argparse.Namespace) -> int:
    from contextlib import ExitStack

    from edgemem.runtime.package import Package
    from edgemem.runtime.session import Session
    from edgemem.runtime.tokenizer import Tokenizer
    from edgemem.tools.source import locate_package

    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    with ExitStack() as opened:
        package = opened.enter_context(Package.open(locate_package(args.package)))
        tokenizer = Tokenizer.open(package)
        engine, back = _open(args, package)
        opened.callback(engine.close)
        _answer(args, Session(engine, tokenizer), back, prompt)
    return 0


def _open(args: argparse.Namespace, package: Package) -> tuple[Engine, RemoteBack | None]:
    """The engine, and its back stage where that is a server's."""
    from edgemem.runtime.errors import LinkError
    from edgemem.runtime.open import open_engine
    from edgemem.split.opening import open_split_engine
    from edgemem.split.switching import SwitchSettings
    from edgemem.tools.console import note
    from edgemem.tools.split_dial import dial_of
    from edgemem.tools.versions import version_of

    layers = package.model.layers
    usual = layers // 2 if package.manifest.part is None else package.manifest.layers[1]
    split = usual if args.at is None else args.at
    slots = min(package.manifest.max_context, _USUAL_CONTEXT) if args.ctx_size is None else args.ctx_size
    if split == layers:
        return open_engine(package, capacity=slots, threads=args.threads), None
    engine, back = open_split_engine(
        package,
        split,
        dial_of(args),
        version=version_of("edgemem-runtime") or "unknown",
        codec=_codec(args.codec, package, split),
        capacity=slots,
        threads=args.threads,
        local=args.local,
        settings=SwitchSettings(warm=args.warm),
    )
    try:
        back.sync()
    except LinkError as problem:
        if not args.local:
            engine.close()
            raise
        note(f"local: {problem}")
    except BaseException:
        engine.close()
        raise
    return engine, back


def _codec(text: str, package: Package, split: int) -> CodecSettings:
    """text: a mode, or else a file that `split calibrate` wrote for this model and split."""
    from edgemem.split.codec import CodecSettings
    from edgemem.split.codec_file import read_codec_file

    if text in _MODES:
        return CodecSettings(text)  # type: ignore[arg-type]
    return read_codec_file(file_path(text)).settings_for(package.manifest.model_hash, split)


def _answer(args: argparse.Namespace, session: Session, back: RemoteBack | None, prompt: str) -> None:
    from edgemem.runtime.engine import route_of
    from edgemem.tools.console import note

    route = route_of(session.engine)
    chunks = session.stream(prompt, sampling=sampling_of(args), max_tokens=args.n_predict, raw=args.raw)
    for chunk in chunks:
        now = route_of(session.engine)
        if now != route:
            route, why = now, "" if back is None or back.problem is None else f": {back.problem.what}"
            note(f"\n{now}{why}")
        print(chunk.text, end="", flush=True)
    print(flush=True)
