"""Pair this device with the server that shows CODE.

Whoever has the code can pair one device with the server, for ten minutes: do not show it around.
"""

from __future__ import annotations

import argparse
import re
import socket


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("code", nargs="+", metavar="CODE", help="as `edgemem split serve` prints it, spaces or not")
    parser.add_argument("--name", metavar="NAME", help="what to call the server (default: its host)")
    parser.add_argument(
        "--as", dest="own_name", metavar="NAME", help="what the server calls this device (its hostname)"
    )


def run(args: argparse.Namespace) -> int:
    from edgemem.split.pairing_code import PairingCode
    from edgemem.split.pairing_device import pair
    from edgemem.tools.split_folder import split_folder

    code = PairingCode.parse(" ".join(args.code))
    name = args.name or _as_name(code.host)
    own_name = args.own_name or _as_name(socket.gethostname())
    server = pair(code, split_folder(), name=name, device_name=own_name)
    print(f"paired with {server.name} at {server.address}\n  edgemem split run PACKAGE --server {server.name}")
    return 0


def _as_name(host: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", host).strip("-._")[:56] or "unnamed"
