"""Times edgemem beside other CPU runtimes on the same weights: same threads, same minutes, rounds alternating.

    python -m edgemem.tools.bench_peers [--models smollm2-135m] [--runtimes edgemem-onnx,llama.cpp] [--rounds 5]

Installs the others into environments of their own. Weigh the ratios: absolute figures are this machine's, this hour's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from edgemem.runtime.errors import EdgememError, SettingsError
from edgemem.runtime.machine import usable_cores
from edgemem.tools.console import note, print_json, print_table
from edgemem.tools.peers.comparison import Comparison
from edgemem.tools.peers.environments import RUNTIMES
from edgemem.tools.peers.models import MODELS, prepare_model
from edgemem.tools.peers.results import BASE, HEADERS, comma_separated, markdown
from edgemem.tools.peers.workload import parse_speed_test
from edgemem.tools.source import cache_folder

_TESTS = "pp128,pp512,tg128,tg128@d2048"
_INTERRUPTED = 130  # as a shell has it for SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        models = _names(options.models, MODELS, "model to compare on")
        comparison = Comparison(
            tests=[parse_speed_test(name) for name in options.tests.split(",")],
            runtimes=_names(options.runtimes, RUNTIMES, "runtime to compare"),
            threads=options.threads,
            rounds=options.rounds,
            repetitions=options.repetitions,
        )
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
    except (EdgememError, OSError) as problem:
        note(str(problem))
        return 1
    status = _measure(comparison, models)
    _show(comparison, options)
    if options.out is not None:
        _write(comparison, options.out)
    return status


def _measure(comparison: Comparison, models: Sequence[str]) -> int:
    """All models in turn; the exit status. What goes wrong with one, or an interrupt, loses nothing of the others."""
    status = 0
    try:
        comparison.install()
        for name in models:
            try:
                model = prepare_model(name, cache_folder() / "peers", comparison.context)
            except EdgememError as problem:
                note(f"{name}: {problem}")
                comparison.failures[name] = " ".join(str(problem).split())
                status = 1
            else:
                comparison.run(model)
    except KeyboardInterrupt:
        note("interrupted; what was finished follows")
        return _INTERRUPTED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgemem.tools.bench_peers", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated; default: %(default)s")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help="comma-separated; default: %(default)s")
    parser.add_argument("--tests", default=_TESTS, help="ppN, tgN, tgN@dDEPTH, comma-separated; default: %(default)s")
    parser.add_argument("--threads", type=_positive, default=usable_cores(), help="of each runtime and of the sweep")
    parser.add_argument("--rounds", type=_positive, default=5, help="fresh processes of each runtime")
    parser.add_argument("--repetitions", type=_positive, default=2, help="of each test within a process")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write the record and the table there")
    form = parser.add_mutually_exclusive_group()
    for name in ("json", "md", "csv"):
        form.add_argument(f"--{name}", action="store_true")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small")
    return value


def _names(text: str, known: Collection[str], what: str) -> list[str]:
    """The names in a comma-separated list, each once."""
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in known:
            raise SettingsError(f"there is no such {what}", got=repr(name), wanted=", ".join(known))
    return names


def _show(comparison: Comparison, options: argparse.Namespace) -> None:
    rows = comparison.rows()
    if options.json:
        print_json(comparison.record())
    elif options.csv:
        print(comma_separated(rows), end="")
    elif options.md:
        print(f"{markdown(rows)}\n{_notes(comparison)}")
    else:
        print_table("", HEADERS, [row.cells() for row in rows])
        print(_notes(comparison))


def _notes(comparison: Comparison) -> str:
    """What a reader of the table must know."""
    lines = []
    if comparison.ceiling is not None:
        lines.append(
            f"Read ceiling {comparison.ceiling / 1e9:.1f} GB/s on {comparison.threads} threads, "
            f"the best of {len(comparison.sweeps)} measurements between the runs."
        )
    for model, runtimes in comparison.same_tokens().items():
        for name, counts in runtimes.items():
            told = ", ".join(f"{count} in {test}" for test, count in counts.items())
            lines.append(f"First greedy tokens of {model} in {name} that are {BASE}'s, of 16 at most: {told}.")
    lines += [f"{where}: {why}" for where, why in comparison.failures.items()]
    return "\n".join(lines)


def _write(comparison: Comparison, folder: Path) -> None:
    """DIR/peers-TIME-Nt.json and .md."""
    record = comparison.record()
    name = f"peers-{record['date'][:16].replace(':', '')}-{comparison.threads}t"
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{name}.md").write_text(f"{markdown(comparison.rows())}\n{_notes(comparison)}\n")
    note(f"wrote {folder / name}.json and .md")


if __name__ == "__main__":
    sys.exit(main())
