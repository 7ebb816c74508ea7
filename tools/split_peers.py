"""List the servers that this device may ask, and the devices that this server lets in; or forget one."""

from __future__ import annotations

import argparse
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    forget = verbs.add_parser("forget", help="forget a peer: it is let in, or asked, no more from now on")
    forget.add_argument("forget", metavar="NAME")


def run(args: argparse.Namespace) -> int:
    return _list(args.json) if getattr(args, "forget", None) is None else _forget(args.forget)


def _list(as_json: bool) -> int:
    from edgemem.split.peers import fingerprint
    from edgemem.tools.console import print_json, print_table

    servers, devices = (file.read() for file in _files())
    rows = [("server", each.name, each.address, fingerprint(each.certificate or b"")) for each in servers]
    rows += [("device", each.name, "", each.fingerprint) for each in devices]
    if as_json:
        keys = ("kind", "name", "address", "sha256")
        print_json({"peers": [dict(zip(keys, row, strict=True)) for row in rows]})
    elif rows:
        print_table("", ("kind", "name", "address", "certificate"), [(*row[:3], row[3][:16]) for row in rows])
    else:
        print(
            "paired with nobody\n  on the server: edgemem split serve PACKAGE\n  on the device: edgemem split pair CODE"
        )
    return 0


def _forget(name: str) -> int:
    """From whichever list has it, or both."""
    from edgemem.runtime.errors import SettingsError

    holding = [file for file in _files() if any(peer.name == name for peer in file.read())]
    if not holding:
        there = sorted({peer.name for file in _files() for peer in file.read()})
        raise SettingsError(f"no peer is called {name!a}", got=f"paired: {', '.join(there) or 'none'}")
    for file in holding:
        file.forget(name)
    print(f"forgotten: {name}")
    return 0


def _files() -> tuple[Any, Any]:
    from edgemem.split.peers import Device, PeerFile, Server
    from edgemem.tools.split_folder import split_folder

    return PeerFile(split_folder(), Server), PeerFile(split_folder(), Device)
