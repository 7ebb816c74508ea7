"""Cut PACKAGE into the halves of a split, so that each side has only its own on disk.

example: edgemem split cut smollm2-135m --at 15
NAME-front.edgemem has the layers below L, the embedding and the tokenizer: what the device needs. NAME-back.edgemem
has the other layers, the final norm and the head: what the server needs. Neither has a graph, so the native engine
runs them.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edgemem.tools.options import add_model, file_path, model_name, positive

if TYPE_CHECKING:
    from edgemem.compiler.halves import Half


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--at", type=positive, required=True, metavar="L", help="the first layer of the back")
    parser.add_argument("-o", "--output", type=file_path, metavar="DIR", help="default: beside the package")
    parser.add_argument("--json", action="store_true", help="print one object with the paths and the bytes")


def run(args: argparse.Namespace) -> int:
    from edgemem.compiler.halves import cut, shared_bytes
    from edgemem.profiles.units import size_text
    from edgemem.runtime.package import Package
    from edgemem.tools.console import print_facts, print_json
    from edgemem.tools.contents import package_totals
    from edgemem.tools.source import locate_package

    with Package.open(locate_package(model_name(args))) as package:
        whole = package_totals(package.manifest).file_bytes
        front, back = cut(package, args.at, package.path.parent if args.output is None else args.output)
    shared = shared_bytes(front.manifest, back.manifest)
    if args.json:
        print_json({"front": _plain(front), "back": _plain(back), "shared_bytes": shared, "whole_bytes": whole})
        return 0
    facts: list[tuple[str, object]] = [("front", _line(front)), ("back", _line(back)), ("whole", size_text(whole))]
    if shared:
        facts.append(("in both", f"{size_text(shared)}: the embedding, which is the head too"))
    print_facts([*facts, ("graphs", "none: the native engine runs the halves")])
    return 0


def _plain(half: Half) -> dict[str, Any]:
    from edgemem.tools.contents import package_totals

    first, last = half.manifest.layers
    return {"path": str(half.path), "first": first, "last": last, "bytes": package_totals(half.manifest).file_bytes}


def _line(half: Half) -> str:
    from edgemem.profiles.units import size_text

    plain = _plain(half)
    return f"{half.path}: layers [{plain['first']}, {plain['last']}), {size_text(plain['bytes'])}"
