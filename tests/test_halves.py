"""Halves of a package: the same weights and the same results as the whole, and refused wherever they are not enough."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runnable_packages import plain_model, rich_model, runnable_package, same_precision
from small_packages import (
    edit_manifest,
    join_weights,
    part_manifest,
    replace_file,
    small_manifest,
    small_model,
    small_package,
    split_weights,
)

from edgemem.compiler.halves import cut, shared_bytes
from edgemem.kernels.formats import Precision
from edgemem.kernels.native import native
from edgemem.runtime.errors import EngineError, PackageError, SettingsError
from edgemem.runtime.manifest import MANIFEST_FILE, WEIGHTS_FILE, Manifest, Part
from edgemem.runtime.manifest_yaml import dump, load
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.onnx_engine import OnnxEngine
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.session import Session
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.tools.cli import main

needs_native = pytest.mark.skipif(native() is None, reason="the native kernels were not built")
TOKENS = np.array([3, 14, 15, 92, 6, 5, 35], dtype=np.int32)


def two_precisions(model: ModelSpec, at: int) -> dict[str, Precision]:
    """int8 below layer `at`, int4 from there on, as --front-weights and --back-weights make it."""
    front = same_precision(model, "int8-g32", embedding="int8-g64")
    back = same_precision(model, "int4-g32-min")
    return {
        name: back[name] if name.startswith("layers.") and int(name.split(".")[1]) >= at else front[name]
        for name in front
    }


def cut_at(whole: Path, at: int, folder: Path) -> tuple[Path, Path]:
    with Package.open(whole) as package:
        front, back = cut(package, at, folder)
    return front.path, back.path


# What a half holds


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_is_in_its_half_byte_for_byte(tmp_path: Path, at: int, tied: bool) -> None:
    """Every kind of precision, with and without minima, fused and unfused."""
    whole = small_package(tmp_path / "whole.edgemem", model=small_model(tied_head=tied))
    halves = cut_at(whole, at, tmp_path / "halves")
    assert [half.name for half in halves] == ["whole-front.edgemem", "whole-back.edgemem"]
    seen: dict[str, bytes] = {}
    with Package.open(whole) as package:
        data = (whole / WEIGHTS_FILE).read_bytes()
        for half, layers in zip(halves, ((0, at), (at, 3)), strict=True):
            with Package.open(half) as part:
                assert part.manifest.part == Part(*layers, package.manifest.model_hash)
                assert part.manifest.model_hash == package.manifest.files[WEIGHTS_FILE].sha256
                assert part.manifest.quality == package.manifest.quality
                assert part.manifest.graphs == ()
                own = (half / WEIGHTS_FILE).read_bytes()
                seen.update({name: own[entry.start : entry.stop] for name, entry in part.tensors.items()})
        assert seen == {name: data[entry.start : entry.stop] for name, entry in package.tensors.items()}


@pytest.mark.parametrize("tied", [False, True])
def test_both_halves_hold_a_tied_embedding(tmp_path: Path, tied: bool) -> None:
    whole = small_package(tmp_path / "whole.edgemem", model=small_model(tied_head=tied))
    with Package.open(whole) as package:
        front, back = (half.manifest for half in cut(package, 1, tmp_path))
        embedding = package.precision("embedding").bytes_for(40, 64)
    assert shared_bytes(front, back) == (embedding if tied else 0)
    assert {name for name in front.precision if "." not in name} == {"embedding"}
    assert {name for name in back.precision if "." not in name} == {"embedding" if tied else "head"}


def test_the_front_has_the_tokenizer_and_the_back_has_none(tiny_package: Path, tmp_path: Path) -> None:
    front, back = cut_at(tiny_package, 1, tmp_path)
    with Package.open(tiny_package) as package, Package.open(front) as part:
        text = "Where was I?"
        assert Tokenizer.open(part).encode(text) == Tokenizer.open(package).encode(text)
    assert {file.name for file in back.iterdir()} == {WEIGHTS_FILE, MANIFEST_FILE}
    with Package.open(back) as part, pytest.raises(PackageError, match=r"tokenizer\.json(.|\n)*whole package"):
        Tokenizer.open(part)


@pytest.mark.parametrize("at", [0, 3, -1, True, 1.0, None])
def test_a_cut_leaves_layers_on_both_sides(tmp_path: Path, at: Any) -> None:
    with (
        Package.open(small_package(tmp_path / "whole.edgemem")) as package,
        pytest.raises(SettingsError, match="1 to 2"),
    ):
        cut(package, at, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.edgemem"]


def test_a_half_is_not_cut_again(tmp_path: Path) -> None:
    front, _ = cut_at(small_package(tmp_path / "whole.edgemem"), 2, tmp_path)
    with Package.open(front) as package, pytest.raises(PackageError, match="only a part"):
        cut(package, 1, tmp_path / "again")


# What a half gives


@pytest.fixture(scope="module", params=["untied", "tied", "rich"])
def runnable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two precisions, which part at layer 2."""
    models = {
        "untied": plain_model(layers=4),
        "tied": plain_model(layers=4, tied_head=True),
        "rich": rich_model(),
    }
    model = models[request.param]
    out = tmp_path_factory.mktemp("runnable") / "whole.edgemem"
    return runnable_package(out, model, two_precisions(model, 2), stages=[(0, 2), (2, 4)])


def joined(front: Path, back: Path, at: int) -> Iterator[NDArray[np.float32]]:
    """What both stages give for a prompt, and again for what comes after some of it was forgotten."""
    with (
        Package.open(front) as first,
        Package.open(back) as last,
        closing(NativeEngine(first, layers=(0, at), capacity=16, threads=1)) as near,
        closing(NativeEngine(last, layers=(at, last.model.layers), capacity=16, threads=1)) as far,
    ):
        for tokens in (TOKENS, TOKENS[:1], TOKENS[2:5]):
            hidden = near.extend(tokens).hidden
            assert hidden is not None
            yield hidden.copy()
            step = far.extend(hidden, surprisal=True, tokens=tokens)
            assert step.logits is not None
            assert step.surprisal is not None
            yield step.logits.copy()
            yield step.surprisal.copy()
            for engine in (near, far):
                engine.keep(np.array([0, 2, 3]))


@needs_native
@pytest.mark.parametrize("at", [1, 2, 3])
def test_both_halves_compute_what_the_whole_does_bit_for_bit(runnable: Path, tmp_path: Path, at: int) -> None:
    front, back = cut_at(runnable, at, tmp_path)
    found = list(joined(front, back, at))
    for got, wanted in zip(found, joined(runnable, runnable, at), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert len(found) == 9


@needs_native
def test_a_half_runs_fewer_layers_than_it_has(runnable: Path, tmp_path: Path) -> None:
    """A front of three layers and a back of three overlap: they meet at either of two."""
    front, _ = cut_at(runnable, 3, tmp_path / "3")
    _, back = cut_at(runnable, 1, tmp_path / "1")
    for got, wanted in zip(joined(front, back, 2), joined(runnable, runnable, 2), strict=True):
        np.testing.assert_array_equal(got, wanted)


# Where a half is not enough


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory, tiny_package: Path) -> tuple[Path, Path]:
    return cut_at(tiny_package, 1, tmp_path_factory.mktemp("halves"))


def refusal(call: Callable[..., object], *arguments: Any, **settings: Any) -> str:
    with pytest.raises(PackageError, match="only a part of the model") as caught:
        call(*arguments, **settings)
    assert "whole package" in str(caught.value)
    assert "--server" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("engine", [NativeEngine, OnnxEngine, open_engine])
@pytest.mark.parametrize(("half", "layers"), [(0, None), (0, (0, 2)), (0, (1, 3)), (1, None), (1, (0, 1)), (1, (0, 3))])
def test_engines_refuse_layers_that_are_not_here(
    halves: tuple[Path, Path], engine: Callable[..., object], half: int, layers: tuple[int, int] | None
) -> None:
    first, last = layers or (0, 3)
    with Package.open(halves[half]) as package:
        message = refusal(engine, package, layers=layers, capacity=8)
    assert f"wanted: layers [{first}, {last})" in message
    assert f"got: layers {('[0, 1)', '[1, 3)')[half]} of 3" in message


def test_a_half_has_no_graph(halves: tuple[Path, Path]) -> None:
    with Package.open(halves[0]) as package, pytest.raises(EngineError, match="native engine"):
        OnnxEngine(package, layers=(0, 1), capacity=8)


@pytest.mark.parametrize("half", [0, 1])
def test_a_session_over_a_half_says_what_to_do(halves: tuple[Path, Path], half: int) -> None:
    refusal(Session.open, halves[half])


@pytest.mark.parametrize("words", [["run", "-p", "x"], ["profile"], ["eval", "--text", __file__]])
def test_commands_that_need_the_whole_say_so(
    halves: tuple[Path, Path], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([words[0], str(halves[0]), *words[1:]]) == 1
    assert "only a part of the model" in capsys.readouterr().err


# Halves that lie


@pytest.fixture(params=["front", "back"])
def spoiled(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A half of layers [0, 2) or [1, 3) of three, to be spoiled."""
    at, index = {"front": (2, 0), "back": (1, 1)}[request.param]
    return cut_at(small_package(tmp_path / "whole.edgemem"), at, tmp_path)[index]


def refused(package: Path) -> str:
    with pytest.raises(PackageError) as caught:
        Package.open(package)
    assert str(package) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (0, 3),
        (1, 2),
        (0, 4),
        (2, 2),
        (2, 1),
        (3, 3),
        (-1, 2),
        (False, 2),
        (0, True),
        (0, 2.0),
        ("0", 2),
        (0, 1 << 80),
        (None, 2),
    ],
)
def test_a_range_that_is_no_half_is_refused(spoiled: Path, first: object, last: object) -> None:
    edit_manifest(spoiled, lambda plain: plain["part"].update(first=first, last=last))
    assert "wrong at part" in refused(spoiled)


@pytest.mark.parametrize(
    "part",
    [None, {}, [], "front", {"first": 0, "last": 2}, {"first": 0, "last": 2, "whole_sha256": "0" * 64, "extra": 1}],
)
def test_a_part_of_other_keys_is_refused(spoiled: Path, part: object) -> None:
    edit_manifest(spoiled, lambda plain: plain.update(part=part))
    assert "wrong at part" in refused(spoiled)


@pytest.mark.parametrize("whole", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 63 + "\n", 0, None, True])
def test_a_whole_of_no_hash_is_refused(spoiled: Path, whole: object) -> None:
    edit_manifest(spoiled, lambda plain: plain["part"].update(whole_sha256=whole))
    assert "wrong at part.whole_sha256" in refused(spoiled)


@pytest.mark.parametrize("move", [(0, 1), (1, 3), (2, 3), (0, 2)])
def test_a_half_of_other_layers_than_it_says_is_refused(spoiled: Path, move: tuple[int, int]) -> None:
    with Package.open(spoiled) as package:
        if package.manifest.layers == move:
            return
    edit_manifest(spoiled, lambda plain: plain["part"].update(first=move[0], last=move[1]))
    assert "wrong at precision" in refused(spoiled)


def test_precisions_and_layers_that_agree_need_the_tensors(spoiled: Path, tmp_path: Path) -> None:
    """The manifest of one half, sound in itself, over the weights of another."""
    other = cut_at(tmp_path / "whole.edgemem", 1 if "front" in spoiled.name else 2, tmp_path / "other")
    file = next(path for path in other if path.name == spoiled.name) / WEIGHTS_FILE
    replace_file(spoiled, WEIGHTS_FILE, file.read_bytes())
    assert "tensor" in refused(spoiled)


def test_a_half_without_its_part_is_no_whole(spoiled: Path) -> None:
    edit_manifest(spoiled, lambda plain: plain.pop("part"))
    assert "wrong at precision" in refused(spoiled)


def test_a_whole_that_calls_itself_a_half_is_refused(tmp_path: Path) -> None:
    whole = small_package(tmp_path / "whole.edgemem")
    edit_manifest(whole, lambda plain: plain.update(part={"first": 0, "last": 2, "whole_sha256": "0" * 64}))
    assert "wrong at precision" in refused(whole)


def test_each_missing_tensor_is_noticed(spoiled: Path) -> None:
    data = (spoiled / WEIGHTS_FILE).read_bytes()
    header, body = split_weights(data)
    for name in header:
        begin, end = header[name]["data_offsets"]
        rest = {key: dict(value) for key, value in header.items() if key != name}
        for entry in rest.values():
            entry["data_offsets"] = [place - (end - begin) * (place >= end) for place in entry["data_offsets"]]
        replace_file(spoiled, WEIGHTS_FILE, join_weights(rest, body[:begin] + body[end:]))
        assert name in refused(spoiled)


def test_a_tensor_of_the_other_half_is_one_too_many(spoiled: Path) -> None:
    header, body = split_weights((spoiled / WEIGHTS_FILE).read_bytes())
    name = "norm" if "front" in spoiled.name else "layers.0.mlp_norm"
    header[name] = {"dtype": "F32", "shape": [64], "data_offsets": [len(body), len(body) + 256]}
    replace_file(spoiled, WEIGHTS_FILE, join_weights(header, body + bytes(256)))
    assert f"{name!r}" in refused(spoiled)


@pytest.mark.parametrize(("first", "last"), [(0, 3), (1, 2), (2, 3), (0, 1)])
def test_a_graph_beyond_the_layers_is_refused(spoiled: Path, first: int, last: int) -> None:
    graph = {"file": WEIGHTS_FILE, "first": first, "last": last}
    with Package.open(spoiled) as package:
        start, stop = package.manifest.layers
    edit_manifest(spoiled, lambda plain: plain.update(graphs=[graph]))
    if start <= first < last <= stop:
        Package.open(spoiled).close()
    else:
        assert "graphs[0]" in refused(spoiled)


# The manifest and the commands


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layers", [(0, 1), (0, 2), (1, 3), (2, 3)])
def test_the_manifest_of_a_half_reads_back(layers: tuple[int, int], tied: bool) -> None:
    manifest = part_manifest(small_manifest(small_model(tied_head=tied)), *layers)
    assert load(dump(manifest), where="x") == manifest
    assert (manifest.layers, manifest.model_hash) == (layers, "0" * 64)


@pytest.mark.parametrize(
    "bad", [Part(0, 3, "0" * 64), Part(1, 1, "0" * 64), Part(0, 2, "no hash"), Part(0, 1, "0" * 64)]
)
def test_no_part_that_lies_is_written(bad: Part) -> None:
    manifest: Manifest = replace(small_manifest(), graphs=(), part=bad)
    with pytest.raises(PackageError):
        dump(manifest)


def test_a_whole_package_says_nothing_of_parts() -> None:
    assert b"\npart" not in dump(small_manifest())
    assert small_manifest().layers == (0, 3)


def test_inspect_shows_a_half(
    halves: tuple[Path, Path], tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(path: Path) -> dict[str, Any]:
        assert main(["inspect", str(path), "--bandwidth", "10", "--json"]) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    whole = shown(tiny_package)
    assert whole["part"] is None
    for path, first, last in ((halves[0], 0, 1), (halves[1], 1, 3)):
        half = shown(path)
        with Package.open(path) as package:
            stored = sum(entry.stop - entry.start for entry in package.tensors.values())
            whole_sha256 = package.manifest.model_hash
        assert half["part"] == {"first": first, "last": last, "whole_sha256": whole_sha256}
        assert sum(run["bytes"] for run in half["tensors"]) == half["weight_bytes"] == stored
        assert half["kv_read_bytes_per_token"] * 3 == whole["kv_read_bytes_per_token"] * (last - first)
    assert main(["inspect", str(halves[1]), "--bandwidth", "10"]) == 0
    assert "layers [1, 3), cut from weights of sha256" in capsys.readouterr().out


def test_the_verb_writes_beside_the_package_and_says_what_is_in_both(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = shutil.copytree(tiny_package, tmp_path / "model.edgemem")
    assert main(["split", "cut", str(whole), "--at", "2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    for half, layers in (("front", (0, 2)), ("back", (2, 3))):
        path = Path(answer[half]["path"])
        assert path == tmp_path / f"model-{half}.edgemem"
        assert (answer[half]["first"], answer[half]["last"]) == layers
        sizes = {file.name: file.stat().st_size for file in path.iterdir()}
        assert answer[half]["bytes"] == sum(sizes.values()) - sizes[MANIFEST_FILE]
    assert answer["shared_bytes"] > 0
    assert answer["front"]["bytes"] < answer["whole_bytes"]
    assert main(["split", "cut", str(whole), "--at", "1", "-o", str(tmp_path / "sub")]) == 0
    assert "in both" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "sub").iterdir()} == {"model-front.edgemem", "model-back.edgemem"}
