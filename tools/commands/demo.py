"""See edgemem at work on data that comes with it.

example: edgemem demo glasses --html timeline.html
"""

from __future__ import annotations

import argparse

from edgemem.tools import demo_glasses


def configure(parser: argparse.ArgumentParser) -> None:
    demos = parser.add_subparsers(title="demos", metavar="DEMO", required=True)
    form = argparse.RawDescriptionHelpFormatter
    summary = "a kitchen is heard, pictures are taken, a question is answered"
    glasses = demos.add_parser("glasses", help=summary, description=demo_glasses.__doc__, formatter_class=form)
    glasses.set_defaults(demo=demo_glasses.run)
    demo_glasses.configure(glasses)


def run(args: argparse.Namespace) -> int:
    return int(args.demo(args))
