"""Runs a fuzz target: by atheris where it is installed, else over seeded mutations of its seeds.

    python tests/fuzz/fuzz_manifest.py [atheris's own arguments]
    python tests/fuzz/fuzz_manifest.py 100000          # without atheris: this many mutations

A target is `fuzz_one_input(data: bytes) -> bool`: whether the parser accepted the data. It raises for a finding.
"""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own helpers make the seeds

Target = Callable[[bytes], bool]
_EXTREMES = (
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff" * 8,
    b"\0" * 8,
    b"-1",
    b"1e999",
    b"true",
    b"\xed\xa0\x80",
    b'"',
)
# Values in texts of JSON and YAML, and what to put in their place: most other changes only make such a text unreadable.
_VALUE = re.compile(rb'[:\[,] ?("[^"\n]{0,80}"|-?\d[\d.e+-]*|true|false|null)')
_VALUES = b'null true -1 0 1.5 1e308 9999999999999999999 "" "x" "\\ud800" [] {} [[]] [null] [0] {"a":1}'.split(b" ")


def mutations(seeds: Sequence[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` inputs, the same for the same arguments: each a seed with one to four changes."""
    source = random.Random(seed)
    for _ in range(count):
        data = bytearray(source.choice(seeds))
        for _ in range(source.randint(1, 4)):
            _mutate(data, source, seeds)
        yield bytes(data)


def _mutate(data: bytearray, source: random.Random, seeds: Sequence[bytes]) -> None:
    start = source.randint(0, len(data))
    stop = min(len(data), start + source.choice((1, 2, 4, 8, 64, 1024)))
    kind = source.randrange(8)
    if kind == 0 and start < len(data):
        data[start] ^= 1 << source.randrange(8)
    elif kind == 1:
        data[start:stop] = source.randbytes(stop - start)
    elif kind == 2:
        del data[start:stop]
    elif kind == 3:
        data[start:start] = data[start:stop]
    elif kind == 4:
        data[start : start + source.choice((0, 1, 4, 8))] = source.choice(_EXTREMES)
    elif kind == 5:
        other = source.choice(seeds)
        begin = source.randint(0, len(other))
        data[start:stop] = other[begin : begin + stop - start]
    elif kind == 6:
        if found := list(_VALUE.finditer(data)):
            begin, end = source.choice(found).span(1)
            data[begin:end] = source.choice(_VALUES)
    else:
        del data[start:]


@contextmanager
def in_memory_file(data: bytes) -> Iterator[int]:
    """A descriptor of a file that holds `data` and lies on no disk; its path is /proc/self/fd/N."""
    descriptor = os.memfd_create("fuzz")
    try:
        os.write(descriptor, data)
        yield descriptor
    finally:
        os.close(descriptor)


def main(target: Target, seeds: Sequence[bytes]) -> None:
    """Fuzz for ever with atheris, or over a number of mutations without it."""
    try:
        import atheris
    except ModuleNotFoundError:
        count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
        for number, data in enumerate(mutations(seeds, count, seed=random.SystemRandom().randrange(1 << 32))):
            try:
                target(data)
            except BaseException:
                finding = Path(f"finding-{number}.bin")
                finding.write_bytes(data)
                print(f"the input is in {finding}", file=sys.stderr)
                raise
        print(f"{count} mutations, nothing found; install atheris for coverage-guided fuzzing")
        return
    # The seeds go in as a corpus folder, which atheris reads and grows.
    corpus = Path(sys.argv[0]).with_suffix(".corpus")
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    atheris.instrument_all()

    def one_input(data: bytes) -> None:
        target(data)

    atheris.Setup([*sys.argv, str(corpus)], one_input)
    atheris.Fuzz()
