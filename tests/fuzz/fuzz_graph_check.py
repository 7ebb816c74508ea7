"""Any bytes are a harmless graph or a PackageError; the onnx library must see in an accepted one what was checked."""

from __future__ import annotations

from pathlib import Path

import driver
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgemem.runtime.errors import FileError
from edgemem.runtime.graph_check import check_graph

_WEIGHTS, _WEIGHTS_BYTES = "weights.safetensors", 4096


def _seed() -> bytes:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 5], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", _WEIGHTS), ("offset", "100"), ("length", "40")):
        tensor.external_data.add(key=key, value=value)
    axes = numpy_helper.from_array(np.array([0, 1], dtype=np.int64), "axes")
    nodes = [
        helper.make_node("Add", ["x", "w"], ["s"], name="add"),
        helper.make_node("QuickGelu", ["s"], ["g"], domain="com.microsoft", alpha=1.0),
        helper.make_node("ReduceSum", ["g", "axes"], ["y"], keepdims=0),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, "n"]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [tensor, axes])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())


SEEDS = [_seed()]


def fuzz_one_input(data: bytes) -> bool:
    with driver.in_memory_file(data) as descriptor:
        try:
            check_graph(descriptor, Path("fuzz"), _WEIGHTS, _WEIGHTS_BYTES, 256)
        except FileError:
            return False
    try:
        model = onnx.load_from_string(data)
    except Exception:  # noqa: BLE001  # protobuf's own refusal of what is cut or no UTF-8: nothing reaches a runtime
        return True
    for tensor in model.graph.initializer:
        places = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.external_data and (places["location"] != _WEIGHTS or int(places["offset"]) > _WEIGHTS_BYTES):
            raise AssertionError(f"external data at {places}")
    if model.functions or model.training_info or model.graph.sparse_initializer:
        raise AssertionError("what must be refused was accepted")
    if any(attribute.HasField("g") or attribute.graphs for node in model.graph.node for attribute in node.attribute):
        raise AssertionError("a subgraph was accepted")
    return True


if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
