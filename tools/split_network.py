"""The network side of `edgemem split serve`: its flags, the listener, the pairing code, and an orderly end."""

from __future__ import annotations

import argparse
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from edgemem.tools.options import positive

if TYPE_CHECKING:
    import asyncio

    from edgemem.split.frames import Hello, Message, Refused, Welcome
    from edgemem.split.listener import Caller, Listener
    from edgemem.split.pairing_code import PairingCode
    from edgemem.split.pairing_door import PairingDoor
    from edgemem.split.peers import Device
    from edgemem.split.roll import Roll

_PORT = 7410
_GRACE_S = 5.0


def add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument("--host", metavar="ADDRESS", help="address to listen on (0.0.0.0)")
    group.add_argument("--port", type=_port, default=_PORT, metavar="N", help=f"port, 0 for a free one ({_PORT})")
    group.add_argument("--pair-port", type=_port, metavar="N", help="port of the pairing (the next one)")
    group.add_argument("--address", metavar="HOST", help="where devices find this machine, for the code (looked up)")
    group.add_argument("--no-pair", action="store_true", help="show no code: only who has paired before comes in")
    group.add_argument("--connections", type=positive, default=64, metavar="N", help="devices at once, at most (64)")
    group.add_argument(
        "--insecure-loopback", action="store_true", help="plain text and no pairing, for this machine's own programs"
    )


async def serve_network(
    args: argparse.Namespace,
    open_session: Callable[[Hello, Device], Awaitable[Welcome | Refused] | Welcome | Refused],
    handle: Callable[[Caller, Message], Awaitable[Message]],
) -> None:
    """Serve until Ctrl-C or SIGTERM, then finish what is under way. open_session, handle: as Listener takes them."""
    import asyncio

    from edgemem.split.door import DoorLimits
    from edgemem.split.listener import Listener, ListenerLimits
    from edgemem.tools.console import note
    from edgemem.tools.versions import version_of

    roll = None if args.insecure_loopback else _roll()
    listener = Listener(
        args.host or ("127.0.0.1" if roll is None else "0.0.0.0"),
        args.port,
        roll=roll,
        open_session=open_session,
        handle=handle,
        version=version_of("edgemem-runtime") or "unknown",
        limits=ListenerLimits(door=DoorLimits(connections=args.connections)),
    )
    stop, pairing = _stop_event(), None
    await listener.start()
    try:
        door = None if roll is None or args.no_pair else _pairing_door(args, listener)  # its port is had first
        note(f"serving on {listener.host} port {listener.port}{', in plain text' if roll is None else ''}")
        if door is not None:
            pairing = asyncio.ensure_future(_pair(door, args, listener))
        await stop.wait()
        note("finishing what is under way")
    finally:
        if pairing is not None:
            pairing.cancel()
            await asyncio.wait([pairing])
        await listener.drain(_GRACE_S)


def _pairing_door(args: argparse.Namespace, listener: Listener) -> PairingDoor:
    from edgemem.split.identity import own_identity
    from edgemem.split.pairing_door import PairingDoor
    from edgemem.tools.split_folder import split_folder

    usual = min(listener.port + 1, 65535) if args.port else 0
    port = usual if args.pair_port is None else args.pair_port
    folder = split_folder()
    return PairingDoor(listener.host, port, identity=own_identity(folder, "server"), folder=folder)


async def _pair(door: PairingDoor, args: argparse.Namespace, listener: Listener) -> None:
    from edgemem.tools.console import note

    device = await door.serve(args.address or _own_address(listener.host), listener.port, _show)
    note("the code is used up or too old" if device is None else f"paired with {device.name}")


def _show(code: PairingCode) -> None:
    print(
        f"to pair a device, within ten minutes and once:\n  edgemem split pair {code.text()}\n"
        f"  ({code.host} port {code.port})",
        flush=True,
    )


def _roll() -> Roll:
    from edgemem.split.identity import own_identity
    from edgemem.split.roll import Roll
    from edgemem.tools.split_folder import split_folder

    folder = split_folder()
    return Roll(folder, own_identity(folder, "server"))


def _stop_event() -> asyncio.Event:
    """Set by the first Ctrl-C or SIGTERM; the second does what it does elsewhere."""
    import asyncio

    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def once(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, once, number)
    return stop


def _own_address(host: str) -> str:
    """What to put into the code: the address listened on, or where this machine would send from."""
    if host not in ("0.0.0.0", "::"):
        return host
    elsewhere = "192.0.2.1" if host == "0.0.0.0" else "2001:db8::1"  # documentation addresses: nothing is sent
    with socket.socket(socket.AF_INET if host == "0.0.0.0" else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((elsewhere, 9))
        except OSError:  # no network but this machine's own
            return "127.0.0.1" if host == "0.0.0.0" else "::1"
        return str(probe.getsockname()[0])


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 65535")
    return int(text)
