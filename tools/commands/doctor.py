"""Say what this machine has, what is missing, and the command that adds it.

example: edgemem doctor --bandwidth
Ends with 1 if something is missing that edgemem run needs.
"""

from __future__ import annotations

import argparse
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bandwidth", action="store_true", help="also measure the memory read bandwidth")
    parser.add_argument("--json", action="store_true", help="print one object")


def run(args: argparse.Namespace) -> int:
    from edgemem.tools.console import print_json
    from edgemem.tools.machine_report import machine_report

    report = machine_report()
    if args.bandwidth and report["ready"]:
        from edgemem.profiles.bandwidth import measured_bandwidth

        report["read_bandwidth_gb_s"] = measured_bandwidth(report["cpu"]["usable_cores"]) / 1e9
    if args.json:
        print_json(report)
    else:
        _show(report)
    return 0 if report["ready"] else 1


def _show(report: dict[str, Any]) -> None:
    from edgemem.profiles.units import size_text
    from edgemem.tools.console import print_facts, print_table
    from edgemem.tools.machine_report import LIBRARIES

    cpu, cache = report["cpu"], report["cache"]
    facts: list[tuple[str, object]] = [
        ("edgemem", f"{report['edgemem']}, Python {report['python']}, {report['system']}"),
        ("cpu", f"{cpu['model']}, {cpu['logical']} threads, {cpu.get('usable_cores', 'unknown')} usable cores"),
        ("features", ", ".join(cpu["features"]) or "unknown"),
        ("memory", f"{size_text(report.get('memory_available_bytes', 0))} available"),
        *[("gpu", ", ".join(gpu.values())) for gpu in report["gpus"]],
        *([] if report["gpus"] else [("gpu", "none found (nvidia-smi)")]),
        ("engines", ", ".join(f"{name} ({on or 'not there'})" for name, on in report["engines"].items())),
        ("providers", ", ".join(report["providers"]) or "none"),
        ("cache", f"{cache['path']}, {size_text(cache['free_bytes'])} free"),
    ]
    if "read_bandwidth_gb_s" in report:
        facts.append(("read bandwidth", f"{report['read_bandwidth_gb_s']:.1f} GB/s, {cpu['usable_cores']} threads"))
    print_facts(facts)
    print()
    rows = [
        (library.module, report["libraries"][library.module] or "not installed", library.needed_for)
        for library in LIBRARIES
    ]
    print_table("", ("library", "version", "needed for"), rows)
    print()
    for item in report["missing"]:
        print(f"missing: {item['what']} (for {item['needed_for']})\n  add: {item['add']}")
    if not report["missing"]:
        print("nothing is missing")
