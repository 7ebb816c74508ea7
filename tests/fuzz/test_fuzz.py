"""Every fuzz target over a few thousand mutations, the same each time; its seeds must be accepted as they are."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from driver import mutations

TARGETS = sorted(path.stem for path in Path(__file__).parent.glob("fuzz_*.py"))


@pytest.mark.parametrize("name", TARGETS)
def test_no_mutation_makes_a_finding(name: str) -> None:
    target = import_module(name)
    assert all(target.fuzz_one_input(data) for data in target.SEEDS)
    verdicts = {target.fuzz_one_input(data) for data in mutations(target.SEEDS, 3000)}
    assert verdicts == {True, False}
    assert not target.fuzz_one_input(b"")


def test_mutations_repeat_and_differ() -> None:
    seeds = [b"some seed", b"another"]
    first = list(mutations(seeds, 500))
    assert first == list(mutations(seeds, 500))
    assert len(set(first)) > 300
    assert first != list(mutations(seeds, 500, seed=1))
