"""Share a model's layers with a server of your own: the first run here, the rest there.

example: edgemem split serve smollm2-135m --split 15                            on the server
         edgemem split pair CODE --name home                                    here, once
         edgemem split run smollm2-135m --server home -p "Why is the sky blue?"
"""

from __future__ import annotations

import argparse
from importlib import import_module

VERBS = {
    "serve": "split_serve",
    "run": "split_run",
    "pair": "split_pair",
    "peers": "split_peers",
    "cut": "split_cut",
    "calibrate": "split_calibrate",
    "codec": "split_codec_curve",
    "plan": "split_plan",
    "bench": "split_bench",
}


def configure(parser: argparse.ArgumentParser) -> None:
    form = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb, name in VERBS.items():
        module = import_module(f"edgemem.tools.{name}")
        text = module.__doc__ or ""
        own = verbs.add_parser(verb, help=text.split("\n")[0].rstrip("."), description=text, formatter_class=form)
        own.set_defaults(verb=module.run, usage_error=own.error)
        module.configure(own)


def run(args: argparse.Namespace) -> int:
    return int(args.verb(args))
