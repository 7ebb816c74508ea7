"""Plans built by TensorRT-RTX on a machine without a GPU. That they run, and give what they should, needs one."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import psutil
import pytest
from onnx import TensorProto, helper
from runnable_packages import plain_model, rich_model, rope, runnable_package, same_precision

from edgemem.compiler import tensorrt_child
from edgemem.compiler.tensorrt_build import build_graph, build_plan, profiles, timing_cache
from edgemem.runtime import tensorrt_engine
from edgemem.runtime.engine_plan import check_record, plan_name, read_plan, read_record
from edgemem.runtime.errors import BudgetError, EngineError, FileError, SettingsError
from edgemem.runtime.manifest import WEIGHTS_FILE
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import ENGINES_FOLDER, Package
from edgemem.runtime.plan_shape import PlanShape, plan_shape
from edgemem.runtime.tensorrt_library import Library, library_for, load_plan, open_library, what_is_missing
from edgemem.tools.cli import main

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    """Not to be written to but in engines/."""
    model = plain_model(layers=1)
    path = tmp_path_factory.mktemp("small") / "small.edgemem"
    with Package.open(runnable_package(path, model, same_precision(model, "int4-g32"))) as package:
        yield package


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    """SmolLM2-135M's shape, but 2 of its 30 layers."""
    model = plain_model(
        layers=2, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, vocabulary=49152, tied_head=True,
        ropes=(rope(32, 1e5),), attention_scale=0.125,
    )  # fmt: skip
    precision = same_precision(model, "int4-g32-min", embedding="int8-g32")
    path = tmp_path_factory.mktemp("smollm2") / "smollm2.edgemem"
    with Package.open(runnable_package(path, model, precision, max_context=512)) as package:
        yield package


@pytest.fixture(scope="module", params=["int4-g128", "fp16"])
def qwen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    """One layer of Qwen2.5-7B's shape, with a vocabulary of almost nothing."""
    model = plain_model(
        layers=1, hidden=3584, intermediate=18944, heads=28, kv_heads=4, head_dim=128, vocabulary=128,
        ropes=(rope(64, 1e6),), attention_scale=128**-0.5, qkv_bias=True,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("qwen") / "qwen.edgemem"
    with Package.open(
        runnable_package(path, model, same_precision(model, request.param), max_context=1024), verify=False
    ) as package:
        yield package


def built(package: Package, shape: PlanShape, target: str, keys: Path) -> tuple[Any, Any]:
    """The record and the facts of a plan that then lies, sealed and whole, in the package."""
    path, record, facts = build_plan(package, shape, library_for(target), target=target, keys=keys)
    found = read_record(package, path.stem, keys)
    check_record(package, found, library="tensorrt_rtx", version=library_for(target).version, target=target)
    assert found == record
    assert len(read_plan(package, found)) == path.stat().st_size == record.plan_bytes
    return record, facts


def shapes(tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (tensor["dtype"], tuple(tensor["shape"])) for name, tensor in tensors.items()}


@pytest.mark.parametrize("target", ["sm86", "sm89", "sm120"])
def test_a_small_model_builds_for_every_target(smollm2: Package, keys: Path, target: str) -> None:
    shape = plan_shape(smollm2.model, (0, 2), 512)
    record, facts = built(smollm2, shape, target, keys)
    assert (record.target, record.layers, record.capacity, record.buckets) == (target, (0, 2), 512, (256, 512))
    assert "STRONGLY_TYPED" in record.flags
    assert "TF32" not in record.flags
    names = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    cache = ("half", (1, 3, 512, 64))
    assert shapes(facts.inputs) == {
        "input_ids": ("int64", (1, -1)),
        "position_ids": ("int64", (1, -1)),
        "slots": ("int64", (-1,)),
        "logits_rows": ("int64", (-1,)),
        **{f"past_key_values.{name}": cache for name in names},
    }
    assert shapes(facts.outputs) == {
        "logits": ("float", (-1, 49152)),
        **{f"present.{name}": cache for name in names},
    }


@pytest.mark.parametrize("target", ["sm86", "sm120"])
def test_a_layer_of_seven_billion_is_hardly_more_than_its_weights(qwen: Package, keys: Path, target: str) -> None:
    record, _ = built(qwen, plan_shape(qwen.model, (0, 1), 1024, (1024,)), target, keys)
    weights = qwen.manifest.files[WEIGHTS_FILE].bytes
    assert 0.98 < record.plan_bytes / weights < 1.06
    (qwen.path / ENGINES_FOLDER / f"{record.name}.plan").unlink()


def test_stages_take_and_give_hidden_states(tmp_path: Path, keys: Path) -> None:
    model = rich_model()
    precision = same_precision(model, "int4-g32-min", embedding="int8-g32", down="int8-g64")
    with Package.open(runnable_package(tmp_path / "rich.edgemem", model, precision)) as package:
        _, front = built(package, plan_shape(model, (0, 2), 64), "sm86", keys)
        _, back = built(package, plan_shape(model, (2, 4), 64), "sm86", keys)
    assert "input_ids" in front.inputs
    assert front.outputs["hidden_states_out"]["shape"] == [1, -1, 64]
    assert back.inputs["hidden_states"]["shape"] == [1, -1, 64]
    assert back.outputs["logits"]["shape"] == [-1, 97]


def test_profiles_are_a_step_a_bucket_and_one_for_the_rest() -> None:
    model = plain_model(layers=3)
    shape = PlanShape(layers=(0, 3), capacity=64, buckets=(8, 64), chunk=32, rows=16)
    one, chunk = [(1, 1)] * 3, [(1, 1), (1, 32), (1, 32)]
    assert profiles(model, shape) == [
        {"input_ids": one, "position_ids": one, "slots": [(8,)] * 3, "logits_rows": [(1,)] * 3},
        {"input_ids": one, "position_ids": one, "slots": [(64,)] * 3, "logits_rows": [(1,)] * 3},
        {"input_ids": chunk, "position_ids": chunk, "slots": [(8,), (64,), (64,)], "logits_rows": [(1,), (1,), (16,)]},
    ]
    assert [shape.profile(1, 1, 8), shape.profile(1, 1, 64), shape.profile(5, 1, 8), shape.profile(2, 2, 64)] == [
        0, 1, 2, 2,
    ]  # fmt: skip
    middle = PlanShape(layers=(1, 2), capacity=64, buckets=(64,), chunk=32, rows=16)
    assert profiles(model, middle)[1]["hidden_states"] == [(1, 1, 64), (1, 32, 64), (1, 32, 64)]


@pytest.mark.parametrize(
    ("capacity", "buckets"), [(4096, (256, 512, 1024, 2048, 4096)), (300, (256, 300)), (256, (256,)), (7, (7,))]
)
def test_buckets_double_up_to_the_capacity(capacity: int, buckets: tuple[int, ...]) -> None:
    shape = plan_shape(plain_model(), (0, 3), capacity)
    assert shape.buckets == buckets
    assert shape.chunk == min(512, capacity)
    assert [shape.bucket(slots) for slots in (1, buckets[0], capacity)] == [buckets[0], buckets[0], capacity]


@pytest.mark.parametrize("buckets", [(8, 4), (0, 4), (4, 4), (128,)])
def test_buckets_that_do_not_rise_are_refused(buckets: tuple[int, ...]) -> None:
    with pytest.raises(SettingsError, match="buckets"):
        plan_shape(plain_model(), (0, 3), 64, buckets)


def test_what_the_parser_refuses_is_told_operator_by_operator(tmp_path: Path, keys: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y", "z")]
    nodes = [
        helper.make_node("Unique", ["x"], ["y"], name="the unique one"),
        helper.make_node("FusedMatMul", ["x", "x"], ["z"], name="the fused one", domain="com.microsoft"),
    ]
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:]), opset_imports=opsets, ir_version=11
    )
    onnx.save(model, tmp_path / "refused.onnx")
    with pytest.raises(EngineError, match="refused 2 of the graph's nodes") as caught:
        build_graph(tmp_path / "refused.onnx", tmp_path / "x.plan", [], library_for("sm86"), target="sm86", keys=keys)
    for words in ("Unique (node the unique one): the parser has no such operator", "FusedMatMul (node the fused one)"):
        assert words in str(caught.value)
    assert not (tmp_path / "x.plan").exists()


def test_a_build_that_needs_more_memory_than_it_may_take_ends(small: Package, keys: Path) -> None:
    with pytest.raises(BudgetError, match="more memory"):
        build_plan(
            small, plan_shape(small.model, (0, 1), 64), library_for("sm86"), target="sm86", keys=keys,
            memory_bytes=64 << 20,
        )  # fmt: skip
    assert os.listdir(small.path / ENGINES_FOLDER) == ["lock"]


def test_the_user_s_own_memory_limit_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: given.append(limits))
    for most in (resource.RLIM_INFINITY, 500, 2000):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, most=most: (most, most))
        tensorrt_child._limit_memory(1000)
    assert given == [(1000, 1000), (500, 500), (1000, 1000)]


def test_a_disk_without_room_is_told_and_keeps_nothing(small: Package, keys: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, hard))  # what TensorRT adds to any plan is more
    try:
        with pytest.raises(FileError, match="the plan cannot be written"):
            built(small, plan_shape(small.model, (0, 1), 64), "sm86", keys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(small.path / ENGINES_FOLDER) == ["lock"]


def test_a_key_that_cannot_be_used_is_told_before_the_build(small: Package, keys: Path) -> None:
    keys.mkdir(mode=0o700)
    (keys / "device.key").touch(mode=0o600)
    heard: list[str] = []
    with pytest.raises(FileError, match="a key is damaged"):
        build_plan(
            small, plan_shape(small.model, (0, 1), 64), library_for("sm86"), target="sm86", keys=keys,
            progress=lambda stage, share: heard.append(stage),
        )  # fmt: skip
    assert not heard


def test_an_interrupted_build_leaves_no_process_and_no_file(small: Package, keys: Path) -> None:
    heard: list[str] = []

    def interrupt(stage: str, share: float) -> None:
        heard.append(stage)
        if stage == "build":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_plan(
            small, plan_shape(small.model, (0, 1), 64), library_for("sm86"), target="sm86", keys=keys,
            progress=interrupt,
        )  # fmt: skip
    assert heard == ["emit", "parse", "build"]
    assert os.listdir(small.path / ENGINES_FOLDER) == ["lock"]
    assert not [child for child in psutil.Process().children() if "edgemem.compiler.tensorrt_child" in child.cmdline()]


def test_the_command_builds_the_whole_and_its_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    model = plain_model(layers=2)
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "fp16"))
    words = ["compile", str(path), "--engine", "tensorrt", "--target", "sm89", "--stages", "1", "--max-context", "64"]
    assert main([*words, "--sign", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [plan["layers"] for plan in answer["plans"]] == [[0, 2], [0, 1], [1, 2]]
    assert all(plan["capacity"] == 64 and plan["target"] == "sm89" for plan in answer["plans"])
    assert all(Path(plan["path"]).stat().st_size == plan["plan_bytes"] for plan in answer["plans"])
    seal = Path(answer["plans"][0]["path"]).with_suffix(".seal").read_text()
    assert seal.startswith(f"ed25519 {answer['builder']} ")
    assert main([*words[:4], "--target", "sm89", "--stages", "2"]) == 2
    assert main([*words[:4], "--weights", "int4"]) == 2
    assert "--weights is for model files" in capsys.readouterr().err
    for alone in (["--target", "sm89"], ["--sign"]):  # which would compile the model, and no plan
        assert main(["compile", str(path), *alone]) == 2
        assert "--target and --sign are for --engine tensorrt" in capsys.readouterr().err


@pytest.mark.skipif(what_is_missing() is None, reason="there is a GPU that runs it")
def test_without_a_gpu_it_is_said_what_is_missing(small: Package, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineError, match=r"cannot run here(.|\n)*GPU"):
        open_engine(small, "tensorrt")
    assert main(["compile", str(small.path), "--engine", "tensorrt"]) == 1
    assert "--target sm75|sm80|sm86" in capsys.readouterr().err


@pytest.mark.skipif(what_is_missing() is None, reason="there is a GPU that loads it")
def test_a_plan_that_does_not_load_is_an_error(small: Package, keys: Path) -> None:
    record, _ = built(small, plan_shape(small.model, (0, 1), 64), "sm120", keys)
    with pytest.raises(EngineError, match="cannot load the plan"):
        load_plan(open_library("tensorrt_rtx"), read_plan(small, record))


def test_timings_of_native_tensorrt_are_kept_for_the_next_build(tmp_path: Path, keys: Path) -> None:
    native, path = Library("tensorrt", "11", None), tmp_path / "x.timing"
    for known in (None, b"first", b"second"):
        with timing_cache(path, native, None, keys):
            assert (path.read_bytes() if path.exists() else None) == known
            path.write_bytes(b"first" if known is None else b"second")
        assert not path.exists()
    with timing_cache(path, Library("tensorrt", "12", None), None, keys):
        assert not path.exists()
    assert (keys / "timing-11-own").stat().st_mode & 0o077 == 0


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)
    with pytest.raises(EngineError, match=r"tensorrt_rtx(.|\n)*pip install") as caught:
        open_library("tensorrt_rtx")
    assert "edgemem-runtime[tensorrt]" in str(caught.value)
    for bad in (lambda: open_library("cublas"), lambda: library_for("sm90")):
        with pytest.raises(SettingsError):
            bad()


@pytest.mark.model
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", ["sm86", "sm120"])
def test_smollm2_builds_whole(smollm2_package: Path, keys: Path, target: str) -> None:
    with Package.open(smollm2_package) as package:
        record, _ = built(package, plan_shape(package.model, (0, 30), 512, (512,)), target, keys)
        weights = package.manifest.files[WEIGHTS_FILE].bytes
    assert 0.98 < record.plan_bytes / weights < 2  # the embedding is there twice: as the head's codes, and looked up


def test_a_plan_whose_library_is_missing_does_not_hide_another(small: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    there = small.path / ENGINES_FOLDER
    there.mkdir(exist_ok=True)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    native, rtx = (there / f"{plan_name(name, 'sm86', (0, 1))}.json" for name in ("tensorrt", "tensorrt_rtx"))
    native.touch()
    try:
        with pytest.raises(EngineError, match="cannot be imported"):
            tensorrt_engine._plan_here(small, "sm86", (0, 1))
        rtx.touch()
        assert tensorrt_engine._plan_here(small, "sm86", (0, 1))[0].rtx
    finally:
        native.unlink()
        rtx.unlink()
