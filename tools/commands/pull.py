"""Fetch a model into the cache and print where it is.

example: edgemem pull smollm2-135m;  edgemem pull hf:Qwen/Qwen3-0.6B;  edgemem pull hf:ORG/MODEL@REVISION:FILE.gguf
The cache is EDGEMEM_CACHE, else XDG_CACHE_HOME/edgemem, else ~/.cache/edgemem; what comes from the hub goes to the
hub's own cache (HF_HOME) unless EDGEMEM_CACHE is set. HF_TOKEN and HF_ENDPOINT are honoured.
"""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a known name, or hf:ORG/MODEL[@REVISION][:FILE.gguf]")
    parser.add_argument("--offline", action="store_true", help="use only what is already in the cache")
    parser.add_argument("--json", action="store_true", help='print {"path": ...}')


def run(args: argparse.Namespace) -> int:
    from edgemem.tools.console import print_json
    from edgemem.tools.download import pull

    path = pull(args.name, offline=args.offline, quiet=args.json)
    if args.json:
        print_json({"path": str(path)})
    else:
        print(path)
    return 0
