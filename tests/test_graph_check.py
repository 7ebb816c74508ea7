"""What an ONNX graph may hold: all that the compiler writes, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from runnable_packages import plain_model, runnable_package, same_precision
from small_packages import replace_file, small_model, small_precision

from edgemem.compiler.emit_onnx import emit_graph
from edgemem.compiler.weights_writer import WeightsPlan
from edgemem.kernels.formats import Precision
from edgemem.runtime.errors import FileError, PackageError, UnsafePathError
from edgemem.runtime.graph_check import check_graph
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.package import Package

WEIGHTS, WEIGHTS_BYTES = "weights.safetensors", 1000


def check(raw: bytes, weights_bytes: int = WEIGHTS_BYTES, max_context: int = 256) -> None:
    descriptor = os.memfd_create("graph")
    try:
        os.write(descriptor, raw)
        check_graph(descriptor, Path("here/model.onnx"), WEIGHTS, weights_bytes, max_context)
    finally:
        os.close(descriptor)


def external(**changes: str) -> TensorProto:
    """(10,) float32 at bytes 100 to 140 of the weights file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[10], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": WEIGHTS, "offset": "100", "length": "40", **changes}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(*initializers: TensorProto, nodes: tuple[Any, ...] = (), **more: Any) -> onnx.ModelProto:
    nodes = nodes or (helper.make_node("Add", ["x", "w"], ["y"], name="add"),)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [10]) for name in "xy")
    made = helper.make_graph(nodes, "g", [x], [y], initializers or [external()], **more)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)])


def refused(model: onnx.ModelProto | bytes, pattern: str) -> None:
    raw = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(FileError, match=pattern) as caught:
        check(raw)
    assert "here/model.onnx" in str(caught.value)


def test_a_plain_graph_passes() -> None:
    check(graph().SerializeToString())
    check(graph(numpy_helper.from_array(np.ones(10, np.float32), "w")).SerializeToString())
    check(graph(TensorProto(name="w", data_type=1, dims=[2], float_data=[1, 2])).SerializeToString())


FEATURES: list[dict[str, Any]] = [
    {},
    {"tied_head": True, "qkv_bias": False, "activation": "gelu_tanh"},
    {"qk_norm": True, "sandwich_norms": True, "embedding_scale": 8.0, "windows": (4, 0, 4)},
    {"logit_softcap": 30.0, "attention_softcap": 50.0, "output_bias": True},
]


@pytest.mark.parametrize("changes", FEATURES)
@pytest.mark.parametrize("kind", ["mixed", "int4-g32", "int8-g64-min", "fp16", "bf16", "fp32"])
@pytest.mark.parametrize("layers", [(0, 3), (0, 1), (1, 2), (1, 3)])
def test_every_graph_of_the_compiler_passes(
    tmp_path: Path, changes: dict[str, Any], kind: str, layers: tuple[int, int]
) -> None:
    model: ModelSpec = small_model(**changes)
    precision = small_precision(model)
    if kind != "mixed":
        precision = dict.fromkeys(precision, Precision.parse(kind))
    plan = WeightsPlan(model, precision)
    emit_graph(tmp_path / "model.onnx", model, precision.__getitem__, plan.entries, 128, layers)
    raw = (tmp_path / "model.onnx").read_bytes()
    check(raw, plan.file_bytes)
    with pytest.raises(PackageError):
        check(raw, plan.file_bytes - 1 if layers[1] == 3 else len(plan.header))


def test_a_compiled_package_gives_its_graphs(tiny_package: Path) -> None:
    with Package.open(tiny_package) as package:
        for record in package.manifest.graphs:
            assert package.graph(record.first, record.last).name == record.file


@pytest.mark.parametrize(
    "location",
    [
        *(
            "../secret",
            "/etc/passwd",
            "",
            ".",
            "weights.safetensors/",
            "./weights.safetensors",
            "x/weights.safetensors",
        ),
        *(
            "weights.safetensors\0",
            "WEIGHTS.safetensors",
            "*/_ORT_MEM_ADDR_/*",
            "model.onnx",
            "file:weights.safetensors",
        ),
    ],
)
def test_data_in_any_other_file_is_unsafe(location: str) -> None:
    raw = graph(external(location=location)).SerializeToString()
    with pytest.raises(UnsafePathError, match="b'w'"):
        check(raw)


@pytest.mark.parametrize(
    "place",
    [
        {"offset": "961"},
        {"offset": "-1"},
        {"offset": "18446744073709551516"},
        {"offset": "1e2"},
        {"offset": " 100"},
        {"offset": "0x64"},
        {"offset": "²"},
        {"offset": ""},
        {"length": "0"},
        {"length": "39"},
        {"length": "41"},
        {"length": "-40"},
        {"length": "4" * 30},
        {"checksum": "00"},
        {"prepacked_0": "x"},
        {"basepath": "/etc"},
    ],
    ids=str,
)
def test_a_place_outside_the_file_or_of_another_size_is_refused(place: dict[str, str]) -> None:
    refused(graph(external(**place)), "tensor b'w'")


def test_incomplete_or_repeated_places_are_refused() -> None:
    for missing in ("location", "offset", "length"):
        tensor = external()
        kept = [entry for entry in tensor.external_data if entry.key != missing]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)
        refused(graph(tensor), "external data keys")
    repeated = external()
    repeated.external_data.add(key="location", value="/etc/passwd")
    refused(graph(repeated), "external data keys")
    hidden = external(location="/etc/passwd")
    hidden.data_location = TensorProto.DEFAULT  # ONNX ignores the data then; it has no business here
    refused(graph(hidden), "half external")
    both = external()
    both.raw_data = bytes(40)
    refused(graph(both), "half external")
    empty = TensorProto(name="w", data_type=1, dims=[10], data_location=TensorProto.EXTERNAL)
    refused(graph(empty), "external data keys")


@pytest.mark.parametrize("dims", [[0], [-10], [5, -2], [1 << 62, 1 << 62], [1] * 9, [11]])
def test_impossible_dimensions_are_refused(dims: list[int]) -> None:
    tensor = external()
    tensor.ClearField("dims")
    tensor.dims.extend(dims)
    refused(graph(tensor), "size|sizes|dimensions|takes")


@pytest.mark.parametrize("data_type", [0, 8, 9, 12, 14, 17, 22, 99])
def test_other_data_types_are_refused(data_type: int) -> None:
    tensor = external()
    tensor.data_type = data_type
    refused(graph(tensor), f"data type {data_type}")


def _node(operator: str, domain: str = "", **attributes: Any) -> tuple[Any, ...]:
    return (helper.make_node(operator, ["x", "w"], ["y"], domain=domain, **attributes),)


@pytest.mark.parametrize(
    ("operator", "domain"),
    [
        *(("Loop", ""), ("If", ""), ("Scan", ""), ("Constant", ""), ("EPContext", "com.microsoft"), ("PyOp", "my")),
        *(("Add", "com.microsoft"), ("MatMulNBits", ""), ("Add", "ai.onnx.ml"), ("", ""), ("add", ""), ("Add ", "")),
    ],
)
def test_unknown_operators_are_refused(operator: str, domain: str) -> None:
    refused(graph(nodes=_node(operator, domain)), "operator")


def _counting(start: Any, stop: Any, step: Any) -> onnx.ModelProto:
    """A graph that holds Range(start, stop, step)."""
    values = [numpy_helper.from_array(np.array(v), name) for v, name in ((start, "a"), (stop, "b"), (step, "c"))]
    return graph(*values, nodes=(helper.make_node("Range", ["a", "b", "c"], ["y"]),))


@pytest.mark.parametrize(
    "numbers",
    [
        *((0, 257, 1), (0, 1 << 62, 1), (-1, 256, 1), (0, 256, 0), (0, -1, 1), (256, 0, -1), (0, 0, 1)),
        *((0.0, 256.0, 1.0), ([0], [256], [1]), (np.int32(0), np.int32(256), np.int32(1))),
    ],
    ids=str,
)
def test_a_range_counts_positions_of_the_context_and_nothing_else(numbers: tuple[Any, ...]) -> None:
    check(_counting(0, 256, 1).SerializeToString())
    refused(_counting(*numbers), "Range of")


def test_a_range_over_computed_or_hidden_numbers_is_refused() -> None:
    refused(graph(nodes=(helper.make_node("Range", ["x", "x", "x"], ["y"]),)), "Range of")
    refused(graph(nodes=(helper.make_node("Range", [], ["y"]),)), "Range of")
    shadowed = _counting(0, 256, 1)
    shadowed.graph.node.insert(0, helper.make_node("Cast", ["x"], ["b"], to=TensorProto.INT64))
    refused(shadowed, "two values of one name")
    twice = _counting(0, 256, 1)
    twice.graph.initializer.append(numpy_helper.from_array(np.array(1 << 40), "b"))
    refused(twice, "two tensors of one name")


def test_joining_what_was_joined_is_refused() -> None:
    node = helper.make_node
    check(graph(nodes=(node("Concat", ["w", "w"], ["y"], axis=0),)).SerializeToString())
    doubling = [node("Concat", [f"v{i}"] * 2, [f"v{i + 1}"], axis=0) for i in range(40)]
    refused(graph(nodes=(node("Concat", ["w"], ["v0"], axis=0), *doubling)), "Concat of")
    refused(graph(nodes=(node("Concat", ["w"] * 4, ["y"], axis=0),)), "Concat of")


def test_a_package_whose_graph_asks_for_any_memory_gives_none(tmp_path: Path) -> None:
    model = plain_model(layers=1)
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "fp32"))
    hostile = onnx.load_from_string((path / "model.onnx").read_bytes())
    stop = next(node for node in hostile.graph.node if node.op_type == "Range").input[1]
    next(tensor for tensor in hostile.graph.initializer if tensor.name == stop).raw_data = np.int64(1 << 36).tobytes()
    replace_file(path, "model.onnx", hostile.SerializeToString())
    with Package.open(path) as package, pytest.raises(PackageError, match=f"Range of .*{1 << 36}"):
        package.graph()


def test_attributes_may_hold_no_graph_and_no_hidden_tensor() -> None:
    inner = graph().graph
    refused(graph(nodes=_node("Add", body=inner)), "field 6 of|field 6 in")
    refused(graph(nodes=_node("Add", bodies=[inner])), "field 11 in")
    refused(graph(nodes=_node("Add", value=external(location="/etc/passwd"))), "another file")
    refused(graph(nodes=_node("Add", values=[external()])), "field 10 in")
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "v"), numpy_helper.from_array(np.zeros(1, np.int64), "i"), [4]
    )
    refused(graph(nodes=_node("Add", value=sparse)), "field 22 in")
    refused(graph(sparse_initializer=[sparse]), "field 15 in")
    reference = helper.make_node("Add", ["x", "w"], ["y"])
    reference.attribute.add(name="a", ref_attr_name="b", type=1)
    refused(graph(nodes=(reference,)), "field 21 in")


def test_functions_training_and_foreign_domains_are_refused() -> None:
    with_function = graph()
    opset = [helper.make_opsetid("", 21)]
    with_function.functions.append(helper.make_function("my", "f", ["x"], ["y"], [], opset))
    refused(with_function, "field 25 in")
    training = graph()
    training.training_info.add()
    refused(training, "field 20 in")
    foreign = graph()
    foreign.opset_import.append(helper.make_opsetid("my.ops", 1))
    refused(foreign, r"my\.ops")


def _field(number: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([number << 3 | 2, len(body)]) + body


def _wire_tricks() -> Iterator[tuple[str, bytes, str]]:
    yield "two graphs, which protobuf would merge", graph().SerializeToString() * 2, "twice"
    yield "no graph", b"\x08\x0a", "no graph"
    yield "a cut field", b"\x3a\x05\x0a", "field 7 of 5 bytes"
    yield "a length past the end", b"\x3a\xff\xff\xff\xff\x7f", "bytes where"
    yield "an endless number", b"\x08" + b"\xff" * 20, "too long"
    yield "a padded number", b"\x08\x8a\x00", "padded"
    yield "a number past 64 bits", b"\x08" + b"\xff" * 9 + b"\x7f", "too long"
    yield "a group", b"\x3b\x3c", "wire type 3"
    yield "a 64-bit value", b"\x39" + bytes(8), "wire type 1"
    yield "field 0", b"\x02\x00", "field 0"
    yield "an unknown field", _field(15, b""), "field 15"
    yield "a graph that is a number", b"\x38\x01", "wire type 0"
    yield "nodes within nodes", _field(7, _field(1, _field(5, _field(6, _field(1, b""))))), "operator"
    named = _field(4, b"Add")
    yield "two operator names, the last of which wins", _field(7, _field(1, named + _field(4, b"Loop"))), "twice"
    yield "a packed name", _field(7, _field(5, b"\x40\x01")), "wire type 0"


TRICKS = list(_wire_tricks())


@pytest.mark.parametrize(("raw", "pattern"), [trick[1:] for trick in TRICKS], ids=[trick[0] for trick in TRICKS])
def test_tricks_on_the_wire_are_refused(raw: bytes, pattern: str) -> None:
    refused(raw, pattern)


def test_a_graph_of_too_many_fields_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemem.runtime.graph_check._FIELDS", 50)
    refused(
        graph(*[numpy_helper.from_array(np.ones(1, np.float32), f"w{i}") for i in range(20)]), "more than 50 fields"
    )
    many = TensorProto(name="w", data_type=1, dims=[1] * 60)
    many.external_data.extend(external().external_data)
    many.data_location = TensorProto.EXTERNAL
    refused(graph(many), "more than 50 fields")


@pytest.mark.parametrize("size", [0, (64 << 20) + 1])
def test_an_empty_or_giant_file_is_not_read(size: int) -> None:
    descriptor = os.memfd_create("graph")
    os.truncate(descriptor, size)
    with pytest.raises(PackageError, match="impossible size"):
        check_graph(descriptor, Path("x"), WEIGHTS, WEIGHTS_BYTES, 256)
    os.close(descriptor)


def test_cut_anywhere_it_is_refused_or_harmless() -> None:
    raw = graph().SerializeToString()
    passed = [length for length in range(1, len(raw)) if _passes(lambda: check(raw[:length]))]  # noqa: B023
    assert all(onnx.load_from_string(raw[:length]).graph.node for length in passed)


def _passes(action: Callable[[], None]) -> bool:
    try:
        action()
    except PackageError:
        return False
    return True
