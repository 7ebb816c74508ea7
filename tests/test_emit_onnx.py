"""The graph points into the weights file, copies nothing, and fuses what lies together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from runnable_packages import plain_model, rich_model, rope, runnable_package, same_precision

from edgemem.compiler.emit_onnx import emit_graph
from edgemem.kernels.formats import Precision
from edgemem.runtime.errors import EngineError
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.package import Package


def graph_of(tmp_path: Path, model: ModelSpec, precision: dict[str, Precision], **settings: Any) -> onnx.GraphProto:
    path = runnable_package(tmp_path / "p.edgemem", model, precision, **settings)
    return onnx.load(path / "model.onnx", load_external_data=False).graph


def count(graph: onnx.GraphProto, operator: str) -> int:
    return sum(node.op_type == operator for node in graph.node)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def test_every_weight_lies_in_the_weights_file_and_none_twice(tmp_path: Path) -> None:
    model = plain_model(qkv_bias=True)
    precision = same_precision(model, "int4-g32-min", embedding="int8-g32", head="fp16", key="int4-g64")
    graph = graph_of(tmp_path, model, precision)
    with Package.open(tmp_path / "p.edgemem") as package:
        entries = {(entry.start, entry.stop) for entry in package.tensors.values()}
    covered = []
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            assert len(tensor.raw_data) <= 256
            continue
        external = {entry.key: entry.value for entry in tensor.external_data}
        assert external.pop("location") == "weights.safetensors"
        start = int(external["offset"])
        stop = start + int(external["length"])
        parts = sorted(entry for entry in entries if start <= entry[0] and entry[1] <= stop)
        assert (parts[0][0], parts[-1][1]) == (start, stop)
        covered += parts
    # The embedding's codes are seen once; a tied head would see them a second time, as three-dimensional.
    assert sorted(covered) == sorted(entries)


@pytest.mark.parametrize(
    ("precision", "products"),
    [({"text": "int4-g32"}, 4), ({"text": "int4-g32", "key": "int4-g64"}, 6), ({"text": "int8-g64", "up": "fp32"}, 4)],
    ids=["alike", "key differs", "up differs"],
)
def test_matrices_that_are_stored_alike_are_one_product(
    tmp_path: Path, precision: dict[str, str], products: int
) -> None:
    model = plain_model(layers=1)
    graph = graph_of(tmp_path, model, same_precision(model, embedding="fp32", head="fp32", **precision))
    assert count(graph, "MatMulNBits") == products


def test_group_sums_are_shared_by_what_reads_the_same_input(tmp_path: Path) -> None:
    model = plain_model(layers=1)
    precision = same_precision(model, "int4-g32-min", key="int4-g64-min", embedding="fp32", head="fp32")
    graph = graph_of(tmp_path, model, precision)
    # Query and value share theirs, key has groups of 64; then output, gate and up together, down.
    assert count(graph, "ReduceSum") == 5


def test_zero_points_are_never_given(tmp_path: Path) -> None:
    model = plain_model()
    graph = graph_of(tmp_path, model, same_precision(model, "int8-g32-min", embedding="int4-g32-min"))
    products = [node for node in graph.node if node.op_type in ("MatMulNBits", "GatherBlockQuantized")]
    assert len(products) == 3 * 4 + 2
    assert all(len(node.input) == 3 for node in products)


def test_a_window_is_written_only_where_it_can_matter(tmp_path: Path) -> None:
    model = rich_model(windows=(0, 6, 96, 95))
    graph = graph_of(tmp_path, model, same_precision(model, "fp32"))
    windows = [attributes(n).get("local_window_size") for n in graph.node if n.op_type == "GroupQueryAttention"]
    assert windows == [None, 6, None, 95]


def test_the_graph_stays_small_for_a_long_context(tmp_path: Path) -> None:
    model = plain_model(trained_context=1 << 20, ropes=(rope(8), rope(4)), layer_ropes=(0, 1, 0))
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "int4-g32"), max_context=1 << 20)
    assert (path / "model.onnx").stat().st_size < 40_000


def test_names_of_inputs_and_outputs_are_those_of_onnxruntime_genai(tmp_path: Path) -> None:
    model = plain_model(layers=2)
    graph = graph_of(tmp_path, model, same_precision(model, "fp32"))
    cache = [f"{i}.{part}" for i in range(2) for part in ("key", "value")]
    given = {tensor.name for tensor in graph.initializer}
    assert {value.name for value in graph.input} - given == {
        "input_ids",
        "attention_mask",
        *(f"past_key_values.{name}" for name in cache),
    }
    assert {value.name for value in graph.output} == {"logits", "surprisal", *(f"present.{name}" for name in cache)}
    assert "logits_rows" in given


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    model = plain_model()
    with pytest.raises(EngineError, match=r"embedding\.codes"):
        emit_graph(tmp_path / "model.onnx", model, lambda name: Precision.parse("int4-g32"), {}, 96)
    assert not (tmp_path / "model.onnx").exists()


def test_the_same_model_gives_the_same_file(tmp_path: Path) -> None:
    model = rich_model()
    paths = [runnable_package(tmp_path / name, model, same_precision(model, "int4-g32-min")) for name in ("a", "b")]
    assert (paths[0] / "model.onnx").read_bytes() == (paths[1] / "model.onnx").read_bytes()
