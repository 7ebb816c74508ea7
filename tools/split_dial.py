"""Which server a command asks: the one that --server or --insecure-loopback names."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemem.split.remote_session import Dial


def dial_of(args: argparse.Namespace) -> Dial:
    """How to reach it. Raises SettingsError for a name that nobody paired has; without either flag the usage ends."""
    from edgemem.split.identity import own_identity
    from edgemem.split.opening import dial_to
    from edgemem.split.peers import PeerFile, Server
    from edgemem.tools.split_folder import split_folder

    if args.insecure_loopback is not None:
        return dial_to(Server("loopback", "127.0.0.1", args.insecure_loopback, None), None)
    if args.server is None:
        args.usage_error("give --server NAME, of a server that was paired")
    server = PeerFile(split_folder(), Server).named(args.server)
    return dial_to(server, None if server.certificate is None else own_identity(split_folder(), "device"))
