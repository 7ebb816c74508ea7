"""Find where to split PACKAGE between this device and a server, within a memory and a deadline for one token.

example: edgemem split plan smollm2-135m --memory 1GiB --deadline 80ms --link 20Mbit,30ms
This device is measured; with --server NAME so are the link and the server. The best quality is chosen, then the longest
context, then the fewest bytes on the wire: our reconstruction of arXiv 2511.04002.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edgemem.tools.options import add_model, file_path, model_name, positive, whole
from edgemem.tools.quantities import link_of, milliseconds, size_bytes

if TYPE_CHECKING:
    from edgemem.split.planner import Constraints


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    limits = parser.add_argument_group("limits")
    limits.add_argument("--memory", type=size_bytes, required=True, metavar="SIZE", help="of this device: 1GiB")
    limits.add_argument("--deadline", type=milliseconds, required=True, metavar="TIME", help="for one token: 80ms")
    limits.add_argument("--kl", type=float, default=0.1, metavar="NATS", help="a token, at most (0.1)")
    limits.add_argument("--server-memory", type=size_bytes, metavar="SIZE", help="of the server (no bound)")
    limits.add_argument("--least", type=whole, default=0, metavar="L", help="layers that must run here (0)")
    limits.add_argument("--context", type=positive, metavar="N", help="slots (tried: powers of two from 512)")
    limits.add_argument(
        "--prefer", choices=("bytes", "time"), default="bytes", help="at one quality and context: fewest bytes, or time"
    )
    sides = parser.add_argument_group("both sides")
    server = sides.add_mutually_exclusive_group(required=True)
    server.add_argument("--link", type=link_of, metavar="RATE,TRIP", help="its rate and round trip: 20Mbit,30ms")
    server.add_argument("--server", metavar="NAME", help="measure the link to this paired server, and the server")
    server.add_argument("--insecure-loopback", type=positive, metavar="PORT", help="the same of a server in plain text")
    sides.add_argument("--server-speedup", type=_speedup, metavar="X", help="with --link: as fast as X devices (1)")
    sides.add_argument("--at", type=positive, metavar="L", help="the split that the server serves (half of the layers)")
    sides.add_argument("-t", "--threads", type=positive, metavar="N", help="default: the physical cores")
    offered = parser.add_argument_group("offered beside PACKAGE with fp16 states")
    offered.add_argument(
        "--also", action="append", default=[], metavar="PACKAGE", help="the same model at another width; repeat"
    )
    offered.add_argument(
        "--codec", action="append", type=file_path, default=[], metavar="FILE", help="of `split calibrate`; repeat"
    )
    parser.add_argument("--json", action="store_true", help="print one object")


def run(args: argparse.Namespace) -> int:
    from contextlib import ExitStack

    from edgemem.runtime.package import Package
    from edgemem.split.planner import plan
    from edgemem.tools.console import note, print_json
    from edgemem.tools.source import locate_package
    from edgemem.tools.split_plan_view import plan_object, print_plan
    from edgemem.tools.split_problem import known_problem

    if args.link is None and args.server_speedup is not None:
        args.usage_error("--server-speedup needs --link; a server is measured")
    with ExitStack() as opened:
        names = [model_name(args), *args.also]
        packages = [opened.enter_context(Package.open(locate_package(name))) for name in names]
        for package in packages:
            package.require()
        note("measuring ...")
        known = known_problem(args, packages)
    found = plan(known.problem, _constraints(args))
    if args.json:
        print_json(plan_object(found, known.notes))
    else:
        print_plan(found, known.notes)
    return 0 if found.chosen is not None else 1


def _constraints(args: argparse.Namespace) -> Constraints:
    from edgemem.split.planner import Constraints

    return Constraints(
        device_bytes=args.memory,
        deadline_ms=args.deadline,
        kl_nats=args.kl,
        server_bytes=args.server_memory,
        least_split=args.least,
        prefer=args.prefer,
    )


def _speedup(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-3 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0.001 to a million")
    return value
