"""A record of a profile run: written and read back, and refused where it is not one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_records import BYTES, KEY, cell, record, session, target

from edgemem.profiles.plain import from_plain, parse_json, printable, to_plain
from edgemem.profiles.record import Block, StepBytes, Sweep, Telemetry
from edgemem.profiles.record_file import read_record, record_from_dict, record_to_dict, write_record
from edgemem.profiles.settings import ProfileSettings
from edgemem.runtime.errors import FileError, SettingsError

Change = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Part:
    ratio: float
    names: tuple[str, ...]


@dataclass(frozen=True)
class Whole:
    count: int
    on: bool
    kind: Literal["a", "b"]
    parts: tuple[Part, ...]
    pair: tuple[int, int]
    by_name: dict[str, int | None]
    note: str | None


TEXTS = st.text(max_size=20).filter(str.isprintable)
WHOLES = st.builds(
    Whole,
    count=st.integers(-(1 << 62), 1 << 62),
    on=st.booleans(),
    kind=st.sampled_from(["a", "b"]),
    parts=st.lists(
        st.builds(Part, st.floats(allow_nan=False, allow_infinity=False), st.lists(TEXTS, max_size=3).map(tuple)),
        max_size=3,
    ).map(tuple),
    pair=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    by_name=st.dictionaries(TEXTS, st.none() | st.integers(0, 9), max_size=3),
    note=st.none() | TEXTS,
)
PLAIN = to_plain(Whole(3, True, "a", (Part(0.5, ("x",)),), (1, 2), {"k": None}, None))


@given(WHOLES)
def test_plain_values_read_back_as_they_were(whole: Whole) -> None:
    assert from_plain(Whole, parse_json(json.dumps(to_plain(whole)))) == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plain: plain.update(more=1), "unknown keys"),
        (lambda plain: plain.pop("count"), "missing keys"),
        (lambda plain: plain.update(count=True), "count: got True"),
        (lambda plain: plain.update(count=1.0), "count: got 1.0"),
        (lambda plain: plain.update(count=1 << 63), "count"),
        (lambda plain: plain.update(on=1), "on: got 1"),
        (lambda plain: plain.update(kind="c"), "kind: got 'c'"),
        (lambda plain: plain.update(kind=["a"]), "kind"),
        (lambda plain: plain.update(parts={}), "parts: got {}"),
        (lambda plain: plain["parts"][0].update(ratio=True), r"parts\[0\].ratio"),
        (lambda plain: plain["parts"][0].update(ratio=math.inf), r"parts\[0\].ratio"),
        (lambda plain: plain["parts"][0].update(ratio=10**400), r"parts\[0\].ratio"),
        (lambda plain: plain["parts"][0].update(names=["a\nb"]), r"parts\[0\].names\[0\]"),
        (lambda plain: plain["parts"][0].update(names=["\ud800"]), r"parts\[0\].names\[0\]"),
        (lambda plain: plain["parts"][0].update(names=["x" * 5000]), r"parts\[0\].names\[0\]"),
        (lambda plain: plain.update(parts=[None]), r"parts\[0\]"),
        (lambda plain: plain.update(pair=[1]), "pair"),
        (lambda plain: plain.update(by_name={"k": "1"}), "by_name.k"),
        (lambda plain: plain.update(by_name=[]), "by_name"),
        (lambda plain: plain.update(note=3), "note"),
    ],
)
def test_plain_values_of_another_kind_are_refused(change: Change, said: str) -> None:
    plain = json.loads(json.dumps(PLAIN))
    change(plain)
    with pytest.raises(ValueError, match=said):
        from_plain(Whole, plain)


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": -Infinity}', '{"a": 1, "a": 2}', "[" * 100_000, "{", ""])
def test_json_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@given(st.text())
def test_a_printable_text_is_taken(text: str) -> None:
    short = printable(text)
    assert from_plain(str, short) == short


def test_a_record_reads_back_as_it_was(tmp_path: Path) -> None:
    telemetry = Telemetry(1.5, 20.0, 61.5, {"cpu": (2000.0, 2100.0)}, ("cpu thermal",))
    sessions = [session(number, (1.0, 2.0), telemetry=telemetry) for number in range(2)]
    shape = target(name="other", kind="shape", quality=None, quality_note="random weights")
    whole = record(cell(sessions=sessions), targets=(target(), shape), interrupted=True)
    write_record(whole, tmp_path / "record.json")
    assert read_record(tmp_path / "record.json") == whole
    assert read_record(tmp_path / "record.json") != record()


def test_figures_are_written_but_not_believed() -> None:
    plain = record_to_dict(record())
    assert plain["cells"][0]["figures"]["tokens_per_s"] == pytest.approx(1000 / 1.01, rel=0.02)
    assert plain["cells"][1]["figures"] is None
    plain["cells"][0]["figures"] = {"tokens_per_s": 1e9}
    assert record_from_dict(plain) == record()


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.update(format=2),
        lambda plain: plain.update(format=True),
        lambda plain: plain.update(format=None),
        lambda plain: plain.update(cells={}),
        lambda plain: plain.update(cells=[None]),
        lambda plain: plain.update(more=1),
        lambda plain: plain["cells"].append(plain["cells"][0]),
        lambda plain: plain["cells"][0]["key"].update(target="none"),
        lambda plain: plain["cells"][0]["key"].update(context=0),
        lambda plain: plain["cells"][0].update(status="failed"),
        lambda plain: plain["cells"][0].update(sessions=[]),
        lambda plain: plain["cells"][0].update(bytes=None),
        lambda plain: plain["cells"][0]["bytes"].update(useful=0),
        lambda plain: plain["cells"][0]["bytes"].update(weights=1),
        lambda plain: plain["cells"][0]["sessions"][0].update(sweeps=[]),
        lambda plain: plain["cells"][0]["sessions"][0]["sweeps"][0].update(bytes_per_s=0.0),
        lambda plain: plain["cells"][0]["sessions"][0]["blocks"][0].update(step_ms=[]),
        lambda plain: plain["cells"][0]["sessions"][0]["blocks"][0].update(step_ms=[1.0, -1.0]),
        lambda plain: plain["cells"][1].update(reason=None),
        lambda plain: plain["targets"].append(plain["targets"][0]),
        lambda plain: plain["targets"][0].update(sha256="xyz"),
        lambda plain: plain["targets"][0].update(quality=None),
        lambda plain: plain["targets"][0]["model"].update(layers=0),
        lambda plain: plain["targets"][0]["model"].update(layers="3"),
        lambda plain: plain["targets"][0]["precision"].update(layers=[]),
        lambda plain: plain["device"].update(cores=0),
        lambda plain: plain["device"].update(reported="a\x1b[31m"),
        lambda plain: plain["settings"].update(sessions=0),
        lambda plain: plain["settings"].update(engines=["native", "native"]),
    ],
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, change: Change) -> None:
    plain = record_to_dict(record())
    change(plain)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(FileError, match="not a profile record"):
        read_record(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "bytes"):
        with pytest.raises(FileError, match="not a profile record"):
            read_record(path)


def test_samples_out_of_range_are_refused() -> None:
    for wrong in (
        lambda: Block(0, 1.0, ()),
        lambda: Block(0, 0.0, (1.0,)),
        lambda: Sweep(0, -1.0),
        lambda: Telemetry(0.0, None, None, {}, ()),
        lambda: StepBytes(2, 2, 3, -1, 0, 2),
        lambda: replace(BYTES, moved=0),
        lambda: replace(KEY, threads=0),
    ):
        with pytest.raises(ValueError, match=r"wanted|is|are"):
            wrong()


@pytest.mark.parametrize(
    "wrong",
    [
        {"engines": ()},
        {"engines": ("native", "native")},
        {"engines": ("onxx",)},
        {"contexts": ()},
        {"contexts": (0,)},
        {"contexts": (True,)},
        {"contexts": (512, 512)},
        {"sessions": 0},
        {"steps": 7},
        {"graphs": "both"},
        {"threads": 0},
        {"kv": "fp32"},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        ProfileSettings(**wrong)
