"""Verbs of a command that also takes a PACKAGE, beside which argparse's own subcommands cannot stand."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Verb(NamedTuple):
    """summary: the description of its help."""

    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def dispatch_verbs(parser: argparse.ArgumentParser, verbs: Mapping[str, Verb]) -> None:
    """A first word that is a verb has its own parser."""
    own_parse = parser.parse_known_args

    def parse(words: Sequence[str], namespace: argparse.Namespace | None = None) -> Any:
        if not words or words[0] not in verbs:
            return own_parse(words, namespace)
        verb = verbs[words[0]]
        form = argparse.RawDescriptionHelpFormatter
        own = argparse.ArgumentParser(prog=f"{parser.prog} {words[0]}", description=verb.summary, formatter_class=form)
        own.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        own.set_defaults(run=verb.run, usage_error=own.error)
        verb.configure(own)
        return own.parse_known_args(words[1:], namespace)

    parser.parse_known_args = parse  # type: ignore[assignment, method-assign]
