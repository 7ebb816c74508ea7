"""Measure the time per token of PACKAGE against the link: on the device only, on the server only, and split.

example: edgemem split bench smollm2-135m --out bench
Both sides run here, slowed to the ratios given by sleeping, over a proxy on loopback that makes the link; the planner's
predictions and its choice are compared with what was measured. It writes record.json, table.md and report.html.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edgemem.tools.options import add_model, file_path, model_name, names, positive
from edgemem.tools.quantities import bits_per_second, milliseconds, number_within

if TYPE_CHECKING:
    from edgemem.runtime.package import Package
    from edgemem.tools.split_bench_record import Record
    from edgemem.tools.split_bench_run import BenchSettings

_SLOWDOWN = number_within(1, 1000)
_RATES, _TRIPS = "1Mbit,10Mbit,100Mbit,1Gbit", "1ms,10ms,50ms,200ms"


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--at", type=_splits, metavar="LIST", help="splits (a quarter, half and three quarters)")
    parser.add_argument("--rates", type=_rates, default=_RATES, metavar="LIST", help=f"of the link ({_RATES})")
    parser.add_argument("--trips", type=_trips, default=_TRIPS, metavar="LIST", help=f"round trips ({_TRIPS})")
    parser.add_argument("--tokens", type=positive, default=8, metavar="N", help="timed on each link, each way (8)")
    parser.add_argument("--device-slowdown", type=_SLOWDOWN, default=4.0, metavar="X", help="of its compute (4)")
    parser.add_argument("--server-slowdown", type=_SLOWDOWN, default=1.0, metavar="X", help="of its compute (1)")
    parser.add_argument("--codec", choices=("fp32", "fp16", "int8"), default="fp16", help="of what is sent (fp16)")
    parser.add_argument("-t", "--threads", type=positive, default=1, metavar="N", help="of each side (1)")
    parser.add_argument("--out", type=file_path, metavar="DIR", help="write record, tables and report here")
    parser.add_argument("--json", action="store_true", help="print one object")


def run(args: argparse.Namespace) -> int:
    from edgemem.profiles.plain import to_plain
    from edgemem.runtime.package import Package
    from edgemem.tools.console import print_json, print_table
    from edgemem.tools.source import locate_package
    from edgemem.tools.split_bench_report import html, markdown, summary, tables_of
    from edgemem.tools.split_report import write_report

    with Package.open(locate_package(model_name(args))) as package:
        package.require()
        record = _measure(package, args)
    if args.json:
        print_json(to_plain(record))
    else:
        for table in tables_of(record):
            print_table(table.title, table.headers, table.rows)
            print(f"  {table.note}\n")
        for line in summary(record):
            print(line)
    if args.out is not None:
        write_report(args.out, record, markdown(record), lambda: html(record))
    return 0


def _measure(package: Package, args: argparse.Namespace) -> Record:
    from edgemem.profiles.plain import printable
    from edgemem.tools.console import progress_bar
    from edgemem.tools.split_bench_record import FORMAT, Record
    from edgemem.tools.split_bench_run import run_bench

    settings = _settings(package, args)
    with progress_bar(quiet=args.json) as progress:
        found = run_bench(package, settings, lambda share: progress("bench", share))
    weights = package.manifest.model_hash
    device, server = ((one.layer_ms, one.entry_ms, one.exit_ms) for one in (found.device, found.server))
    return Record(
        FORMAT,
        {"package": printable(package.manifest.name), "weights sha256": weights},
        _conditions(package, args),
        package.model.layers,
        args.device_slowdown,
        args.server_slowdown,
        device,
        server,
        found.overhead_bytes,
        found.links,
    )


def _settings(package: Package, args: argparse.Namespace) -> BenchSettings:
    from edgemem.split.codec import CodecSettings
    from edgemem.tools.split_bench_run import BenchSettings

    layers = package.model.layers
    splits = args.at or tuple(sorted({max(1, layers * part // 4) for part in (1, 2, 3)}))
    if not all(0 < split < layers for split in splits):
        args.usage_error(f"splits are from 1 to {layers - 1} in this model")
    links = tuple((rate, trip) for trip in args.trips for rate in args.rates)
    return BenchSettings(
        splits, links, args.tokens, args.threads, args.device_slowdown, args.server_slowdown, CodecSettings(args.codec)
    )


def _conditions(package: Package, args: argparse.Namespace) -> dict[str, str]:
    from edgemem.tools.split_bench_run import SLOTS
    from edgemem.tools.split_report import stated_conditions

    return stated_conditions(
        package,
        SLOTS,
        f"native, fp16 keys and values, {args.threads} threads a side",
        states=args.codec,
        context=f"{SLOTS} slots, of which few are in use",
        tokens=f"{args.tokens} timed on each link, each way",
    )


def _splits(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive(part) for part in names(text)}))


def _rates(text: str) -> tuple[float, ...]:
    return tuple(map(bits_per_second, names(text)))


def _trips(text: str) -> tuple[float, ...]:
    return tuple(map(milliseconds, names(text)))
