"""Look at a conversation that was stored with --store, or forget it.

example: edgemem memory show ~/talk --html held.html
         edgemem memory forget ~/talk --last 2
What `forget --last` takes from the conversation stays in the journal's files until `forget --all`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemem.tools.options import file_path, positive

if TYPE_CHECKING:
    from edgemem.runtime.store import Identity
    from edgemem.runtime.store.upkeep import Look
    from edgemem.runtime.tokenizer import Tokenizer


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    show = _verb(verbs, "show", _show, "the tokens that are held, their surprisal shaded")
    show.add_argument("-m", "--model", metavar="PACKAGE", help="where the tokenizer is (default: looked for)")
    show.add_argument("--html", type=file_path, metavar="FILE", help="write a page instead")
    stats = _verb(verbs, "stats", _stats, "how much was said, is held and is safe on disk")
    stats.add_argument("--json", action="store_true", help="one JSON object")
    forget = _verb(verbs, "forget", _forget, "forget the last turns, or all")
    amount = forget.add_mutually_exclusive_group(required=True)
    amount.add_argument("--last", type=positive, metavar="N", help="the last N turns")
    amount.add_argument("--all", action="store_true", help="everything, and remove its files")
    forget.add_argument("-y", "--yes", action="store_true", help="do not ask")
    _verb(verbs, "repair", _repair, "cut a damaged journal off at its first damage")


def run(args: argparse.Namespace) -> int:
    return int(args.verb(args))


def _verb(verbs: Any, name: str, run_verb: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary)
    parser.add_argument("folder", type=file_path, metavar="DIR", help="the folder that was given as --store")
    parser.set_defaults(verb=run_verb)
    return parser


def _show(args: argparse.Namespace) -> int:
    from rich.console import Console

    from edgemem.runtime.store.upkeep import look
    from edgemem.tools.memory_view import facts_of, held_cells, page, terminal_text
    from edgemem.tools.profile_output import write_text

    seen = look(args.folder)
    held, sinks = seen.conversation.held, _sinks(seen)
    cells = held_cells(held, sinks, _tokenizer(seen.header.identity, args.model))
    facts = facts_of(held, sinks, seen.conversation.tokens)
    if args.html is not None:
        write_text(args.html, page(cells, f"The memory in {args.folder}", facts))
        print(f"wrote {args.html}")
        return 0
    console = Console(highlight=False, soft_wrap=True)
    console.print(terminal_text(cells))
    console.print(f"{facts}; bold: sinks, underlined: pinned", style="dim", markup=False)
    return 0


def _stats(args: argparse.Namespace) -> int:
    from edgemem.profiles.units import size_text
    from edgemem.runtime.store.upkeep import look
    from edgemem.tools.console import print_facts, print_json

    seen = look(args.folder)
    conversation, policy = seen.conversation, seen.header.policy
    evictions, evicted = _evictions(args.folder, endless=policy.get("policy") != "full")
    journal, snapshots = (_bytes_of(args.folder, prefix) for prefix in ("journal", "snapshot"))
    newest = next((frame for frame in seen.snapshots if frame <= seen.last), None)  # repair leaves later ones behind
    numbers = {
        "turns": conversation.turns,
        "turn_under_way": conversation.unfinished is not None,
        "tokens": conversation.tokens,
        "held": conversation.length,
        "pinned": int(conversation.held["pinned"].sum()),
        "evictions": evictions,
        "evicted": evicted,
        "policy": dict(policy),
        "journal_bytes": journal,
        "snapshot_bytes": snapshots,
        "frames": seen.last,
        "snapshot_at_frame": newest,
    }
    if args.json:
        print_json(numbers)
        return 0
    behind = "none" if newest is None else f"at frame {newest} of {seen.last}"
    print_facts(
        [
            ("turns", f"{conversation.turns}{', the last under way' if conversation.unfinished else ''}"),
            ("tokens", f"{conversation.tokens} so far, {conversation.length} held, {numbers['pinned']} pinned"),
            ("evictions", f"{evictions}, of {evicted} slots"),
            ("policy", f"{policy.get('policy')}, budget {policy.get('budget')}"),
            ("journal", f"{size_text(journal)} in {len(seen.segments)} files, {seen.last} frames, all sound"),
            ("snapshot", f"{behind}, {size_text(snapshots)}"),
        ]
    )
    return 0


def _forget(args: argparse.Namespace) -> int:
    from edgemem.runtime.store.upkeep import forget
    from edgemem.tools.forgetting import forget_last

    what = "the whole conversation" if args.all else f"the last {args.last} turns"
    if not args.yes and not _agreed(f"forget {what} in {args.folder}? [y/N] ", args):
        print("nothing was forgotten")
        return 1
    if args.all:
        print(f"forgotten: {forget(args.folder)} files removed")
    else:
        left = forget_last(args.folder, args.last)
        print(f"forgotten; {left} messages are left")
    return 0


def _repair(args: argparse.Namespace) -> int:
    from edgemem.profiles.units import size_text
    from edgemem.runtime.store.upkeep import repair

    cut = repair(args.folder)
    print(f"{size_text(cut)} set aside in {args.folder / 'journal.cut'}" if cut else "the journal is sound")
    return 0


def _agreed(question: str, args: argparse.Namespace) -> bool:
    if not sys.stdin.isatty():
        args.usage_error("forget asks first: give --yes where nobody can answer")
    return input(question).strip().lower() in ("y", "yes")


def _sinks(seen: Look) -> int:
    sinks = seen.header.policy.get("sinks")
    return sinks if type(sinks) is int else 0


def _evictions(folder: Path, *, endless: bool) -> tuple[int, int]:
    """How often slots were given up in favour of others, and how many in all; what was truncated does not count.

    Where only the first slots stay it may be either: an endless memory evicts for tokens, which come next.
    """
    from edgemem.runtime.store import Keep, Tokens
    from edgemem.runtime.store.upkeep import read_history

    evictions = evicted = length = 0
    for entry, following in pairwise(chain(read_history(folder), [None])):
        if isinstance(entry, Tokens):
            length += len(entry.ids)
        elif isinstance(entry, Keep):
            kept = len(entry.slots)
            if kept and (int(entry.slots[-1]) >= kept or (endless and isinstance(following, Tokens))):
                evictions, evicted = evictions + 1, evicted + length - kept
            length = kept
    return evictions, evicted


def _bytes_of(folder: Path, prefix: str) -> int:
    return sum(entry.stat().st_size for entry in folder.iterdir() if entry.name.startswith(f"{prefix}-"))


def _tokenizer(identity: Identity, name: str | None) -> Tokenizer:
    """That of the package given, or of one in the cache that the conversation was held with."""
    from edgemem.runtime.errors import SettingsError, StoreError
    from edgemem.runtime.package import Package
    from edgemem.runtime.tokenizer import TOKENIZER_FILES, Tokenizer
    from edgemem.tools.source import locate_package

    name = name or os.environ.get("EDGEMEM_MODEL")
    for path in [locate_package(name)] if name else _packages():
        with Package.open(path, verify=False) as package:
            if package.manifest.files[TOKENIZER_FILES[0]].sha256 == identity.tokenizer:
                return Tokenizer.open(package)
            if name:
                raise StoreError("the conversation was held with another tokenizer", where=path)
    raise SettingsError("no package with the conversation's tokenizer was found", do="give it with -m PACKAGE")


def _packages() -> Iterator[Path]:
    from edgemem.tools.source import cache_folder

    yield from sorted((cache_folder() / "packages").glob("*.edgemem"))
