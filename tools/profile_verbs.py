"""The verbs of `edgemem profile` that measure nothing: compare, report and devices here, predict beside it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from edgemem.tools import profile_prediction
from edgemem.tools.options import file_path
from edgemem.tools.profile_flags import add_device_files, add_formats
from edgemem.tools.verbs import Verb


def _configure_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=file_path, metavar="A.json", help="the record to compare with")
    parser.add_argument("b", type=file_path, metavar="B.json", help="the record that is judged")
    add_formats(parser, "json", "md")


def _compare(args: argparse.Namespace) -> int:
    from edgemem.profiles.comparison import HEADERS, compare
    from edgemem.profiles.record_file import read_record
    from edgemem.profiles.table import markdown_table
    from edgemem.tools.console import print_json, print_table

    found = compare(read_record(args.a), read_record(args.b))
    tables: list[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = [
        ("conditions that differ", ("", "A", "B"), found.differences),
        ("cells that both measured", HEADERS, [pair.cells() for pair in found.pairs]),
    ]
    if args.format == "json":
        print_json({"a": str(args.a), "b": str(args.b), **found.to_dict()})
        return 0
    for title, headers, texts in tables:
        if not texts:
            print(f"{title}: none\n")
        elif args.format == "md":
            print(f"{title}\n\n{markdown_table(headers, texts)}")
        else:
            print_table(title, headers, texts)
            print()
    for name, cells in (("A", found.only_a), ("B", found.only_b)):
        if cells:
            print(f"only in {name}: {', '.join(cells)}")
    return 0


def _configure_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("record", type=file_path, metavar="RECORD.json")
    parser.add_argument("-o", "--output", type=file_path, metavar="FILE.html", help="default: report.html beside it")


def _report(args: argparse.Namespace) -> int:
    from edgemem.profiles.html_report import html_report
    from edgemem.profiles.record_file import read_record
    from edgemem.tools.profile_output import REPORT_FILE, write_text

    out = args.output or args.record.with_name(REPORT_FILE)
    write_text(out, html_report(read_record(args.record)))
    print(out)
    return 0


def _configure_devices(parser: argparse.ArgumentParser) -> None:
    add_device_files(parser)
    add_formats(parser, "json")


def _devices(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from edgemem.profiles.devices import DeviceTable
    from edgemem.tools.console import print_json, print_table

    devices = DeviceTable.load(args.devices).devices
    if args.format == "json":
        print_json({"devices": [asdict(device) for device in devices]})
        return 0
    headers = ("device", "GB/s", "memory GiB", "L2 MiB", "W", "source")
    print_table("", headers, [_device_cells(device) for device in devices])
    return 0


def _device_cells(device: Any) -> list[str]:
    peak, power = device.datasheet_bandwidth, device.power_w
    return [
        device.name,
        "measured only" if peak is None else f"{peak / 1e9:g}",
        ", ".join(str(size >> 30) for size in device.memory_bytes) or "–",
        "–" if device.l2_bytes is None else str(device.l2_bytes >> 20),
        "–" if power is None else "–".join(str(limit) for limit in dict.fromkeys(power)),
        device.source,
    ]


VERBS = {
    "compare": Verb("set two runs side by side", _configure_compare, _compare),
    "predict": Verb(
        "estimate the speed of a device that is not here", profile_prediction.configure, profile_prediction.run
    ),
    "report": Verb("write the HTML report of a record", _configure_report, _report),
    "devices": Verb("list the devices whose datasheets are known", _configure_devices, _devices),
}
