"""Run the back layers of PACKAGE for devices that have paired with this server.

example: edgemem split serve smollm2-135m --split 15 --metrics 9410
A code is shown for the first device; the server can be stopped and started again, and devices go on where they were.
With --split 0,15 a conversation can also move to a server that does all layers.
With --replicas the sessions are spread over a Ray cluster, or over processes of this machine where there is none.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from edgemem.tools.options import add_model, model_name, positive, whole
from edgemem.tools.quantities import size_bytes
from edgemem.tools.split_network import add_network, serve_network

if TYPE_CHECKING:
    from edgemem.runtime.package import Package
    from edgemem.split.frames import Hello, Message, Refused, Welcome
    from edgemem.split.listener import Caller
    from edgemem.split.peers import Device
    from edgemem.split.server import ServerSettings

_SWEEP_S = 10.0
_SPLIT_HELP = "first layers here, each in memory by itself (the middle, or a back half's); 0 gets tokens, not states"


class _Serves(NamedTuple):
    """What stands behind the listener. sweep: to be called now and then."""

    open_session: Callable[[Hello, Device], Awaitable[Welcome | Refused]]
    handle: Callable[[Caller, Message], Awaitable[Message]]
    sweep: Callable[[], object]


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--split", type=_splits, metavar="L[,L...]", help=_SPLIT_HELP)
    parser.add_argument("-t", "--threads", type=positive, metavar="N", help="default: the physical cores")
    group = parser.add_argument_group("sessions")
    group.add_argument("--sessions", type=positive, default=64, metavar="N", help="held at once, at most (64)")
    group.add_argument("-c", "--ctx-size", type=positive, metavar="N", help="KV slots of one (the package's, or 4096)")
    group.add_argument("--memory", type=size_bytes, default=4 << 30, metavar="SIZE", help="of all at most (4GiB)")
    group.add_argument("--idle", type=positive, default=600, metavar="S", help="seconds until it is freed, idle (600)")
    group.add_argument(
        "--batch", type=positive, default=8, metavar="N", help="sessions that one pass serves, at most (8)"
    )
    group.add_argument("--metrics", type=positive, metavar="PORT", help="answer /metrics on this port of 127.0.0.1")
    group.add_argument("--replicas", type=_replicas, metavar="A-B", help="on Ray Serve: so many, by the sessions held")
    add_network(parser)


def run(args: argparse.Namespace) -> int:
    import asyncio  # not at the top: it takes a fifth of the command line's start

    from edgemem.runtime.package import Package
    from edgemem.split.server import ServerSettings
    from edgemem.tools.source import locate_package

    if args.replicas and args.metrics:
        args.usage_error("--metrics is of one server; a fleet's are on Ray's dashboard")
    with Package.open(locate_package(model_name(args))) as package:
        slots = min(package.manifest.max_context, args.ctx_size or 4096)
        if args.split is None:
            whole_package = package.manifest.part is None
            args.split = [package.model.layers // 2 if whole_package else package.manifest.layers[0]]
        settings = ServerSettings(
            sessions=args.sessions, slots=slots, bytes=args.memory, idle_s=float(args.idle), batch=args.batch
        )
        with (_fleet if args.replicas else _single)(args, package, settings) as serves:
            asyncio.run(_serve(args, serves))
    return 0


async def _serve(args: argparse.Namespace, serves: _Serves) -> None:
    import asyncio

    sweeping = asyncio.ensure_future(_sweep_on(serves.sweep))
    try:
        await serve_network(args, serves.open_session, serves.handle)
    finally:
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping


async def _sweep_on(sweep: Callable[[], object]) -> None:
    import asyncio

    while True:
        await asyncio.sleep(_SWEEP_S)
        sweep()


@contextmanager
def _single(args: argparse.Namespace, package: Package, settings: ServerSettings) -> Iterator[_Serves]:
    from edgemem.split.server import BackServer
    from edgemem.split.stage_pool import open_pools
    from edgemem.tools.console import note

    model_hash, version = _terms(package)
    pools = open_pools(package, args.split, capacity=settings.slots, threads=args.threads)
    server = BackServer(pools, model_hash=model_hash, version=version, settings=settings)
    stop: Callable[[], None] = lambda: None  # noqa: E731 - until metrics are served
    try:
        if args.metrics:
            port, stop = server.metrics.serve(args.metrics)
            note(f"metrics on http://127.0.0.1:{port}/metrics")
        yield _Serves(server.open_session, server.handle, server.sweep)
    finally:
        stop()
        server.close()


@contextmanager
def _fleet(args: argparse.Namespace, package: Package, settings: ServerSettings) -> Iterator[_Serves]:
    from edgemem.split.ray_app import Fleet, FleetSettings

    model_hash, version = _terms(package)
    fleet = Fleet(
        package.path,
        args.split,
        model_hash=model_hash,
        version=version,
        server=settings,
        settings=FleetSettings(replicas=args.replicas, threads=args.threads),
    )
    try:
        yield _Serves(fleet.open_session, fleet.handle, lambda: None)
    finally:
        fleet.close()


def _terms(package: Package) -> tuple[str, str]:
    """The model's hash and our version."""
    from edgemem.tools.versions import version_of

    return package.manifest.model_hash, version_of("edgemem-runtime") or "unknown"


def _splits(text: str) -> list[int]:
    """Whole numbers between commas, each once, for argparse."""
    return list(dict.fromkeys(map(whole, text.split(","))))


def _replicas(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of replicas, as 2 or 1-4")
    return int(found[1]), int(found[2] or found[1])
