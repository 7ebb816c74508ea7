"""Find where to split PACKAGE between this device and a server, within a memory and a deadline for one token.

example: edgemem split plan smollm2-135m --memory 1GiB --deadline 80ms --link 20Mbit,30ms
This device is measured; with --server NAME so are the link and the server. The best quality is chosen, then the longest
context, then the fewest bytes on the wire: our reconstruction of arXiv 2511.04002.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from time import sleep
from typing import TYPE_CHECKING

from edgemem.tools.options import add_model, file_path, model_name, positive, whole
from edgemem.tools.quantities import link_of, milliseconds, number_within, size_bytes

if TYPE_CHECKING:
    from edgemem.runtime.package import Package
    from edgemem.split.planner import Constraints, Plan, Problem
    from edgemem.split.sides import LinkSpeed

_WATCH_HELP = "with a server: measure the link again this often; plan anew when it stays different"


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
    sides.add_argument(
        "--server-speedup", type=number_within(1e-3, 1e6), metavar="X", help="with --link: as fast as X devices (1)"
    )
    sides.add_argument("--at", type=positive, metavar="L", help="the split that the server serves (half of the layers)")
    sides.add_argument("--watch", type=milliseconds, metavar="TIME", help=_WATCH_HELP)
    sides.add_argument("-t", "--threads", type=positive, metavar="N", help="default: the physical cores")
    offered = parser.add_argument_group("offered beside PACKAGE with fp16 states")
    offered.add_argument(
        "--also", action="append", default=[], metavar="PACKAGE", help="the same model at another width; repeat"
    )
    offered.add_argument(
        "--codec", action="append", type=file_path, default=[], metavar="FILE", help="of `split calibrate`; repeat"
    )
    parser.add_argument("--json", action="store_true", help="print one object for each plan")


def run(args: argparse.Namespace) -> int:
    from contextlib import ExitStack

    from edgemem.runtime.package import Package
    from edgemem.split.replanning import links_to_plan_for
    from edgemem.tools.console import note
    from edgemem.tools.source import locate_package
    from edgemem.tools.split_problem import known_problem

    if args.link is None and args.server_speedup is not None:
        args.usage_error("--server-speedup needs --link; a server is measured")
    if args.link is not None and args.watch is not None:
        args.usage_error("--watch needs a server, to measure the link to it")
    with ExitStack() as opened:
        names = [model_name(args), *args.also]
        packages = [opened.enter_context(Package.open(locate_package(name))) for name in names]
        for package in packages:
            package.require()
        _check_limits(args, packages)
        note("measuring ...")
        known = known_problem(args, packages)
        found = _planned(args, known.problem, known.notes)
        if args.watch is not None:
            for link in links_to_plan_for(known.problem.link, _links(args, packages[0])):
                note("the link has changed")
                _planned(args, replace(known.problem, link=link), known.notes)
    return 0 if found.chosen is not None else 1


def _check_limits(args: argparse.Namespace, packages: Sequence[Package]) -> None:
    """Raises SettingsError for a context or a number of layers that the packages do not have."""
    from edgemem.runtime.engine_inputs import context_slots
    from edgemem.runtime.errors import SettingsError

    for package in packages:
        context_slots(args.context, package)
    layers = packages[0].model.layers
    if args.least > layers:
        raise SettingsError("the model has fewer layers", got=f"--least {args.least}", wanted=f"at most {layers}")


def _planned(args: argparse.Namespace, problem: Problem, notes: tuple[str, ...]) -> Plan:
    """The plan, which is printed."""
    from edgemem.split.planner import plan
    from edgemem.tools.console import print_json
    from edgemem.tools.split_plan_view import plan_object, print_plan

    found = plan(problem, _constraints(args))
    if args.json:
        print_json(plan_object(found, notes))
    else:
        print_plan(found, notes)
    return found


def _links(args: argparse.Namespace, package: Package) -> Iterator[LinkSpeed]:
    """The link as it is now and then, until Ctrl-C."""
    from edgemem.runtime.errors import LinkError
    from edgemem.tools.console import note
    from edgemem.tools.split_problem import measured_link

    while True:
        sleep(args.watch / 1e3)
        try:
            yield measured_link(args, package)
        except LinkError as problem:  # there is nothing to plan for; it may come back
            note(str(problem))


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
