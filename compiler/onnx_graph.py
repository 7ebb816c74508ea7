"""OnnxGraph: an ONNX graph under construction, node by node, whose weights stay in the package's weights file.

Knows ONNX and external data; knows no transformer (that is emit_onnx).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import EngineError
from edgemem.runtime.tensor_file import TensorEntry

# onnx.TensorProto.DataType
FLOAT, FLOAT16, BFLOAT16, UINT8, INT8, INT32, INT64, DOUBLE, INT4 = 1, 10, 16, 2, 3, 6, 7, 11, 22
CONTRIB = "com.microsoft"
_DTYPES = {"F32": FLOAT, "F16": FLOAT16, "BF16": BFLOAT16, "U8": UINT8}
_OPSET, _IR_VERSION = 21, 10  # the newest that ONNX Runtime 1.23 reads in full

Shape = Sequence[int | str]


class OnnxGraph:
    """Values are named by strings; every method that makes one returns its name."""

    def __init__(self, weights: Mapping[str, TensorEntry], location: str = "weights.safetensors") -> None:
        self._weights, self._location = weights, location
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._initializers: dict[str, Any] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._derived: dict[tuple[str, tuple[str, ...], str], str] = {}

    def input(self, name: str, dtype: int, shape: Shape) -> str:
        from onnx import helper

        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def default_input(self, name: str, values: NDArray[np.int64]) -> str:
        """An input that a caller may leave out; it is then `values`."""
        from onnx import numpy_helper

        self._initializers[name] = numpy_helper.from_array(values, name)
        return self.input(name, INT64, values.shape)

    def output(self, name: str, dtype: int, shape: Shape) -> None:
        from onnx import helper

        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def node(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str] = (), *, domain: str = "", **attributes: Any
    ) -> str:
        """Append a node and return its first output, named after the node where `outputs` is left out."""
        from onnx import helper

        name = f"{op}_{len(self._nodes)}"
        outputs = list(outputs) or [name]
        self._nodes.append(helper.make_node(op, list(inputs), outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def derived(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """node() for what is computed from initializers alone, or shared: made once for the same arguments."""
        key = (op, tuple(inputs), repr(sorted(attributes.items())))
        if key not in self._derived:
            self._derived[key] = self.node(op, inputs, **attributes)
        return self._derived[key]

    def constant(self, values: NDArray[Any]) -> str:
        """A small constant stored inside the graph, once for equal values."""
        from onnx import numpy_helper

        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._constants:
            name = self._constants[key] = f"constant_{len(self._constants)}"
            self._initializers[name] = numpy_helper.from_array(values, name)
        return self._constants[key]

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def adjacent(self, names: Sequence[str]) -> bool:
        """Whether these tensors of the weights file lie one behind the other, so that one initializer can span them."""
        entries = [self._entry(name) for name in names]
        return all(a.stop == b.start and a.dtype == b.dtype for a, b in pairwise(entries))

    def weight(self, names: Sequence[str], shape: Sequence[int] | None = None) -> str:
        """An initializer over the bytes of adjacent tensors, stacked along axis 0 or seen as `shape`."""
        entries = [self._entry(name) for name in names]
        if shape is None:
            shape = (sum(entry.shape[0] for entry in entries), *entries[0].shape[1:])
        name = f"{'+'.join(names)}:{'x'.join(map(str, shape))}"
        if name not in self._initializers:
            self.external(name, _DTYPES[entries[0].dtype], shape, entries[0].start, entries[-1].stop)
        return name

    def external(self, name: str, dtype: int, shape: Sequence[int], start: int, stop: int) -> str:
        """An initializer over the bytes [start, stop) of the file that the graph points into."""
        from onnx import StringStringEntryProto, TensorProto

        tensor = TensorProto(name=name, data_type=dtype, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self._location), ("offset", start), ("length", stop - start)):
            tensor.external_data.append(StringStringEntryProto(key=key, value=str(value)))
        self._initializers[name] = tensor
        return name

    def weight_shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def write(self, path: Path, producer: str, opset: int = _OPSET) -> None:
        """Write the graph to `path`. It opens only beside the weights file."""
        from onnx import helper

        graph = helper.make_graph(
            self._nodes, "decoder", self._inputs, self._outputs, list(self._initializers.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[
                helper.make_opsetid(domain, 1 if domain == CONTRIB else opset)
                for domain in sorted({node.domain for node in self._nodes})
            ],
            ir_version=_IR_VERSION,
            producer_name=producer,
        )
        path.write_bytes(model.SerializeToString(deterministic=True))

    def _entry(self, name: str) -> TensorEntry:
        if name not in self._weights:
            raise EngineError("the weights file lacks a tensor that the graph needs", where=name)
        return self._weights[name]
