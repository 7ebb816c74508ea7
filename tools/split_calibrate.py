"""Find the codec for a split of PACKAGE: the fewest bytes a token whose answers stay near those of fp16 states.

example: edgemem split calibrate smollm2-135m --at 15 --text book.txt -o codec.yaml
The text's hidden states at the split are coded by rising errors, and the layers behind it say what that changes. The
bound holds for the mean of tokens like the text's with 95 % confidence. Then: edgemem split run ... --codec codec.yaml
The codec and this search are our reconstruction of arXiv 2511.04002, whose rules are not public.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgemem.tools.options import add_model, file_path, model_name, positive

if TYPE_CHECKING:
    from edgemem.runtime.package import Package
    from edgemem.split.calibration import Calibration, Measured

_CONTEXT = 256
_TOKENS_HELP = "from all over the text (1024); each needs four bytes for every token of the vocabulary"


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--at", type=positive, required=True, metavar="L", help="the first layer behind the split")
    parser.add_argument("--text", type=file_path, required=True, metavar="FILE", help="UTF-8 text")
    parser.add_argument("--tokens", type=positive, default=1024, metavar="N", help=_TOKENS_HELP)
    parser.add_argument("--limit", type=float, default=0.01, metavar="NATS", help="KL a token, on the mean (0.01)")
    parser.add_argument("-o", "--out", type=file_path, metavar="FILE", help="write the codec here, as YAML")
    parser.add_argument("-t", "--threads", type=positive, metavar="N", help="default: the physical cores")
    parser.add_argument("--json", action="store_true", help="print one object")


def run(args: argparse.Namespace) -> int:
    from edgemem.runtime.package import Package
    from edgemem.split.codec_file import CodecFile
    from edgemem.tools.profile_output import write_text
    from edgemem.tools.source import locate_package

    with Package.open(locate_package(model_name(args))) as package:
        found = _calibrate(package, args)
        model_hash = package.manifest.model_hash
    best = found.best
    measured = {"text": args.text.name, "limit": args.limit, **_plain(best), "fp16_bytes": 2 * package.model.hidden}
    del measured["settings"]
    file = CodecFile(package.manifest.name, model_hash, args.at, best.settings, measured)
    _print(found, 2 * package.model.hidden, as_json=args.json)
    if args.out is not None:
        write_text(args.out, file.dump())
    return 0


def _calibrate(package: Package, args: argparse.Namespace) -> Calibration:
    from edgemem.runtime.native_engine import NativeEngine
    from edgemem.runtime.tokenizer import Tokenizer
    from edgemem.split.calibration import calibrate
    from edgemem.tools.console import progress_bar
    from edgemem.tools.split_states import SplitDivergence, spread_windows, states_at

    context = min(_CONTEXT, package.manifest.max_context, args.tokens)
    windows = spread_windows(args.text, Tokenizer.open(package), tokens=args.tokens, context=context)
    states = states_at(package, args.at, windows, args.threads)
    layers = (args.at, package.model.layers)
    back = NativeEngine(package, layers=layers, capacity=context, threads=args.threads)
    try:
        with progress_bar(quiet=args.json) as progress:
            divergence = SplitDivergence(back, states)
            return calibrate(states, divergence, args.limit, lambda share: progress("calibrate", share))
    finally:
        back.close()


def _print(found: Calibration, fp16_bytes: int, *, as_json: bool) -> None:
    from edgemem.profiles.units import number_text
    from edgemem.tools.console import print_facts, print_json

    best = found.best
    if as_json:
        print_json({"best": _plain(best), "fp16_bytes": fp16_bytes, "tried": [_plain(one) for one in found.tried]})
        return
    settings = best.settings
    print_facts(
        [
            ("mode", settings.mode),
            *([("tau", number_text(settings.tau)), ("delta", settings.delta)] if settings.mode == "adaptive" else []),
            ("bytes a token", f"{best.token_bytes:.1f}, {fp16_bytes / best.token_bytes:.2f} times fewer than fp16"),
            ("KL divergence", f"{best.kl:.6f} nats, at most {best.kl_bound:.6f} with 95 % confidence"),
            ("error", f"{best.error:.2%} of a token's norm"),
            ("outliers", f"{best.outliers:.3%} of all values"),
            ("settings tried", len(found.tried)),
        ]
    )


def _plain(measured: Measured) -> dict[str, Any]:
    return {**asdict(measured), "settings": measured.settings.to_dict()}
