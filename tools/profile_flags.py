"""Flags that several verbs of `edgemem profile` share."""

from __future__ import annotations

import argparse

from edgemem.tools.options import file_path

_FORMATS = {
    "json": "print one object",
    "jsonl": "print one object a cell",
    "csv": "print the table as CSV",
    "md": "print the table as markdown",
}


def add_device_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--devices",
        type=file_path,
        action="append",
        default=[],
        metavar="FILE|DIR",
        help="more devices: a YAML file, or a folder of them; repeatable",
    )


def add_formats(parser: argparse.ArgumentParser, *forms: str) -> None:
    """Flags that choose what stdout holds, as `format`; None for people."""
    group = parser.add_mutually_exclusive_group()
    for form in forms:
        group.add_argument(f"--{form}", dest="format", action="store_const", const=form, help=_FORMATS[form])
