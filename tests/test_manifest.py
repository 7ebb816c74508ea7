"""The manifest: written readably, read strictly (rows M1, M2, M4 and M8 of its part)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_packages import small_manifest, small_model

from edgemem.kernels.formats import Precision
from edgemem.runtime import strict_yaml
from edgemem.runtime.errors import PackageError, UnsafePathError
from edgemem.runtime.limits import LIMITS
from edgemem.runtime.manifest import Manifest, Origin, Probe, Quality, TokenizerRecord
from edgemem.runtime.manifest_yaml import dump, load, seal
from edgemem.runtime.precision_table import LAYER_MATRICES, compact, expand
from edgemem.runtime.strict_yaml import parse_yaml

MANIFEST = small_manifest()
RAW = dump(MANIFEST)


def plain() -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(RAW)
    return value


def load_plain(value: object) -> Manifest:
    return load(seal(yaml.safe_dump(value, sort_keys=False).encode()), where="here/manifest.yaml")


def refused(value: object) -> str:
    with pytest.raises(PackageError) as caught:
        load_plain(value)
    assert "here/manifest.yaml" in str(caught.value)
    return str(caught.value)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside, containers too."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(path: tuple[Any, ...], change: Callable[[Any, Any], object]) -> dict[str, Any]:
    """A plain manifest after change(container, key) at `path`."""
    value = container = plain()
    for key in path[:-1]:
        container = container[key]
    change(container, path[-1])
    return value


def put(new: object) -> Callable[[Any, Any], None]:
    def change(container: Any, key: Any) -> None:
        container[key] = new

    return change


def test_reads_back_equal_and_is_readable() -> None:
    assert load(RAW, where="x") == MANIFEST
    lines = RAW.decode().splitlines()
    assert lines[:5] == ["format: 1", "name: small", "model:", "  architecture: llama", "  layers: 3"]
    assert max(map(len, lines)) <= 140
    assert any(line.startswith("  - inverse_frequencies: [1.0, 0.74") for line in lines)
    assert "origin:\n  source: org/small\n  format: huggingface\n" in RAW.decode()


def test_same_values_in_two_places_are_written_twice() -> None:
    probe = Probe("again", (5, 6))
    twice = replace(MANIFEST, tokenizer=TokenizerRecord(40, (probe, probe)))
    assert load(dump(twice), where="x") == twice


@settings(deadline=None, max_examples=150)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Cn")), max_size=40),
    ids=st.lists(st.integers(0, LIMITS.vocabulary - 1), max_size=5),
    measured=st.lists(st.floats(0, 1e30), min_size=3, max_size=3),
    agreement=st.floats(0, 1),
)
def test_any_text_and_number_survives(text: str, ids: list[int], measured: list[float], agreement: float) -> None:
    manifest = replace(
        MANIFEST,
        name=text,
        tokenizer=TokenizerRecord(40, (Probe(text, tuple(ids)),)),
        origin=Origin(text, text, "b" * 64, text),
        quality=Quality(text, 1, *measured, agreement),
    )
    assert load(dump(manifest), where="x") == manifest


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "1e5",
        "1.5e5",
        "08",
        "007",
        "+.5",
        ".5",
        "1_0",
        "0x10",
        "null",
        "~",
        "1:30",
        "2026-01-01",
        "<<",
        "=",
        "- a",
        "a: b",
        "",
    ],
)
def test_texts_that_look_like_something_else_stay_texts(text: str) -> None:
    manifest = replace(MANIFEST, name=text, tokenizer=TokenizerRecord(40, (Probe(f"\n{text}\r\t", ()),)))
    assert load(dump(manifest), where="x") == manifest


def test_no_bad_manifest_is_written() -> None:
    with pytest.raises(PackageError, match="max_context"):
        dump(replace(MANIFEST, max_context=0))
    with pytest.raises(PackageError, match="sha256"):
        dump(replace(MANIFEST, origin=Origin("x", "gguf", "0")))


def test_cut_anywhere_it_is_refused() -> None:
    for length in range(len(RAW)):
        with pytest.raises(PackageError):
            load(RAW[:length], where="x")


def test_every_flipped_bit_is_found() -> None:
    for index in range(len(RAW)):
        flipped = bytearray(RAW)
        flipped[index] ^= 1 << index % 8
        with pytest.raises(PackageError):
            load(bytes(flipped), where="x")


WRONG: dict[type, list[object]] = {
    str: [None, True, -1, 0.5, [], ["x"], {}, {"x": "y"}],
    int: [None, True, -1, 1 << 64, 10**30, 1.0, "1", [], [1], {}],
    float: [None, True, 1, -0.5, float("nan"), float("inf"), "0.5", [], [0.5], {}],
    bool: [None, 0, 1, 1.0, "yes", "true", [], {}],
    list: [None, 1, "abc", {}, {"a": 1}],
    dict: [None, 1, "abc", [], [["a", 1]], {}],
}


@pytest.mark.parametrize("path", list(places(plain())), ids=lambda path: ".".join(map(str, path)))
def test_every_key_is_needed_and_every_type_is_checked(path: tuple[Any, ...]) -> None:
    if isinstance(path[-1], str) and path[0] != "files":
        refused(changed(path, lambda container, key: container.pop(key)))
    current = plain()
    for key in path:
        current = current[key]
    for wrong in WRONG[type(current)]:
        if wrong is not None or path not in (("quality",), ("origin", "licence")):
            refused(changed(path, put(wrong)))


@pytest.mark.parametrize(
    "place",
    [
        "model",
        "model.ropes.0",
        "precision",
        "precision.layers.0",
        "tokenizer",
        "tokenizer.probes.0",
        "origin",
        "quality",
        "graphs.0",
    ],
)
def test_unknown_keys_are_refused_with_their_place(place: str) -> None:
    path = [int(key) if key.isdigit() else key for key in place.split(".")]
    message = refused(changed((*path, "novelty"), put(1)))
    assert f"wrong at {path[0]}" in message
    assert "novelty" in message or path[0] == "precision"


def test_an_unknown_key_at_the_top_or_in_a_file_is_named() -> None:
    for path in (("novelty",), ("files", "model.onnx", "novelty")):
        assert "novelty" in refused(changed(path, put(1)))


@pytest.mark.parametrize("version", [0, 2, 99, -1, "1", 1.5, None, [1]])
def test_other_versions_name_both_and_say_recompile(version: object) -> None:
    message = refused({**plain(), "format": version, "new_in_that_version": 1})
    assert repr(version) in message
    assert "format 1" in message
    assert "recompile" in message


@pytest.mark.parametrize("version", [True, 1.0])
def test_a_version_equal_to_one_but_no_whole_number_is_refused(version: object) -> None:
    assert "format" in refused({**plain(), "format": version})


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", ".hidden", "", "..", "a\0b", "UPPER", "a" * 65, "naïve", "a b", "a\n"]
)
def test_unsafe_file_names_are_refused(name: str) -> None:
    with pytest.raises(UnsafePathError, match="here/manifest"):
        load_plain(changed(("files", name), put({"bytes": 1, "sha256": "0" * 64})))


def test_files_must_hold_the_weights_and_the_graphs_and_not_the_manifest() -> None:
    record = {"bytes": 1, "sha256": "0" * 64}
    assert "weights.safetensors" in refused(changed(("files", "weights.safetensors"), lambda c, k: c.pop(k)))
    assert "graphs[0].file" in refused(changed(("files", "model.onnx"), lambda c, k: c.pop(k)))
    assert "manifest.yaml" in refused(changed(("files", "manifest.yaml"), put(record)))


@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 1), (2, 1), (-1, 2), (0, 4), (3, 4), (False, True)])
def test_graph_ranges_must_be_inside_the_model(first: int, last: int) -> None:
    assert "graphs[0]" in refused(changed(("graphs", 0), put({"file": "model.onnx", "first": first, "last": last})))


@pytest.mark.parametrize("yaml_text", ["", "1", "[]", "null", "- format: 1"])
def test_a_document_that_is_no_table_is_refused(yaml_text: str) -> None:
    with pytest.raises(PackageError):
        load(seal(yaml_text.encode()), where="x")


def test_too_long_and_not_text_are_refused() -> None:
    with pytest.raises(PackageError, match="too long"):
        load(b"#" * (LIMITS.manifest_bytes + 1), where="x")
    for raw in (b"\xff\xfe", b"name: \xc3\x28", b"\x00", "format: 1\ud800".encode("utf-8", "surrogatepass")):
        with pytest.raises(PackageError, match="no valid YAML"):
            load(seal(raw), where="x")


HOSTILE_YAML = {
    "alias": "a: &x 1\nb: *x",
    "anchor": "a: &x [1]",
    "billion laughs": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
    "tag": "a: !!python/object/apply:os.system ['true']",
    "known tag": "a: !!str 1",
    "tagged list": "a: !!set {x}",
    "duplicate key": "a: 1\na: 2",
    "duplicate inner key": "a: {b: 1, b: 1}",
    "duplicate key in other spelling": 'a: 1\n"a": 2',
    "number as key": "1: 2",
    "null as key": "? \n: 2",
    "list as key": "? [a]\n: 1",
    "two documents": "a: 1\n---\nb: 2",
    "deep": "[" * 5000 + "]" * 5000,
    "deep and open": "{a: " * 5000,
    "wide": "[" + "1," * 60_000 + "1]",
    "tab": "a:\n\t- b",
    "open quote": 'a: "b',
    "control character": "a: \x07",
    "lone surrogate": 'a: "\\ud800"',
}


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
@pytest.mark.parametrize("text", HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_hostile_yaml_is_a_value_error(text: str, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_yaml, "_LOADER", getattr(yaml, loader))
    if text.startswith("a: &a"):
        text += "".join(f"\n{key}: [*c, *c]" for key in "defghijklm")
    with pytest.raises(ValueError, match=r"line|document|character"):
        parse_yaml(text)


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_plain_yaml_values(loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_yaml, "_LOADER", getattr(yaml, loader))
    text = "a: [1, -2, 1.5, 1.0e-05, 1., true, null, ~, no, '1', 0o17, 1_000, .inf, '', 2026-01-01]\nb:\nc: {}"
    values = [1, -2, 1.5, 1e-5, 1.0, True, None, None, "no", "1", "0o17", "1_000", ".inf", "", "2026-01-01"]
    assert parse_yaml(text) == {"a": values, "b": None, "c": {}}
    assert load(RAW, where="x") == MANIFEST


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_the_precision_table_is_compact_and_exact(data: st.DataObject) -> None:
    layers = data.draw(st.integers(1, 12))
    model = small_model(
        layers=layers, layer_ropes=(0,) * layers, windows=(0,) * layers, tied_head=data.draw(st.booleans())
    )
    kinds = st.sampled_from([Precision.parse(text) for text in ("int4-g32-min", "int4-g32", "fp16")])
    precision = {name: data.draw(kinds) for name, _ in model.matrices()}
    table = compact(model, precision)
    assert expand(model, table) == precision
    alike = [[precision[f"layers.{layer}.{matrix}"] for matrix in LAYER_MATRICES] for layer in range(layers)]
    assert len(table["layers"]) == 1 + sum(a != b for a, b in pairwise(alike))
    assert ("head" in table) is not model.tied_head


@pytest.mark.parametrize(
    ("first", "last"), [(0, 2), (0, 4), (1, 3), (0, 0), (2, 3), (True, 3), (0, 3.0), ("0", "3"), (0, 1 << 70)]
)
def test_precision_runs_must_cover_the_layers_once(first: object, last: object) -> None:
    table = compact(small_model(), {name: Precision("fp16") for name, _ in small_model().matrices()})
    table["layers"][0].update(first=first, last=last)
    with pytest.raises(ValueError, match="layers"):
        expand(small_model(), table)


@pytest.mark.parametrize("kind", ["int3-g32", "int4", "int4-g16", "INT4-g32", "", 4, None, ["fp16"]])
def test_unknown_precisions_are_refused(kind: object) -> None:
    assert "precision" in refused(changed(("precision", "embedding"), put(kind)))


def test_precision_of_an_unknown_matrix_is_a_package_error() -> None:
    assert str(MANIFEST.precision_of("layers.1.down")) == "int8-g128-min"
    with pytest.raises(PackageError, match=re.escape("layers.9.down")):
        MANIFEST.precision_of("layers.9.down")
