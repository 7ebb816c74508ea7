"""Looks through an ONNX graph before ONNX Runtime may see it.

A bounded reader of the protobuf wire format: only the fields, operators and data types that the compiler writes, no
subgraph, no function, no sparse tensor, and external data only inside the weights file. What is not known is refused.
Of values it checks those by which Range and Concat could ask for any memory; shapes and types ONNX Runtime checks.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from edgemem.runtime.errors import PackageError, UnsafePathError, shown
from edgemem.runtime.limits import LIMITS, checked_product

_DO = "recompile the package, and trust no graph from elsewhere"
_GRAPH_BYTES = 64 << 20
_INT64 = 7  # of TensorProto.DataType
_JOINED = 3  # the most that a Concat joins: biases of query, key and value
_FIELDS = 2_000_000
_STANDARD, _CONTRIB = b"", b"com.microsoft"
_OPERATORS = {
    _STANDARD: frozenset(
        b"Add Cast Concat Cos Div Gather GatherElements Gelu Gemm Mul Neg Range ReduceLogSumExp ReduceSum Reshape "
        b"Shape SimplifiedLayerNormalization Sin Slice Split Sub Tanh Unsqueeze".split()
    ),
    _CONTRIB: frozenset(
        b"GatherBlockQuantized GroupQueryAttention MatMulNBits QuickGelu SkipSimplifiedLayerNormalization".split()
    ),
}
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 10: 2, 11: 8, 16: 2}  # of TensorProto.DataType, those the compiler uses

_VARINT, _BYTES, _FIXED32 = 0, 2, 5
_ONCE, _MANY = False, True
# message -> field number -> (wire type, repeated?). onnx.proto's numbers; what is missing here is refused.
_SCHEMA: dict[str, dict[int, tuple[int, bool]]] = {
    "model": {
        **dict.fromkeys((1, 5), (_VARINT, _ONCE)),  # ir_version, model_version
        **dict.fromkeys((2, 3, 4, 6, 7), (_BYTES, _ONCE)),  # producer, its version, domain, doc_string, graph
        **dict.fromkeys((8, 14), (_BYTES, _MANY)),  # opset_import, metadata_props
    },
    "opset": {1: (_BYTES, _ONCE), 2: (_VARINT, _ONCE)},  # domain, version
    "graph": {
        **dict.fromkeys((2, 10), (_BYTES, _ONCE)),  # name, doc_string
        **dict.fromkeys((1, 5, 11, 12, 13, 16), (_BYTES, _MANY)),  # node, initializer, input, output, value_info, meta
    },
    "node": {
        **dict.fromkeys((3, 4, 6, 7), (_BYTES, _ONCE)),  # name, op_type, doc_string, domain
        **dict.fromkeys((1, 2, 5, 9), (_BYTES, _MANY)),  # input, output, attribute, metadata_props
    },
    "attribute": {
        1: (_BYTES, _ONCE),  # name
        2: (_FIXED32, _ONCE),  # f
        3: (_VARINT, _ONCE),  # i
        4: (_BYTES, _ONCE),  # s
        5: (_BYTES, _ONCE),  # t
        7: (_FIXED32, _MANY),  # floats
        8: (_VARINT, _MANY),  # ints
        9: (_BYTES, _MANY),  # strings
        20: (_VARINT, _ONCE),  # type
    },
    "tensor": {
        1: (_VARINT, _MANY),  # dims
        2: (_VARINT, _ONCE),  # data_type
        4: (_FIXED32, _MANY),  # float_data
        5: (_VARINT, _MANY),  # int32_data
        7: (_VARINT, _MANY),  # int64_data
        8: (_BYTES, _ONCE),  # name
        9: (_BYTES, _ONCE),  # raw_data
        13: (_BYTES, _MANY),  # external_data
        14: (_VARINT, _ONCE),  # data_location
    },
    "entry": {1: (_BYTES, _ONCE), 2: (_BYTES, _ONCE)},  # key, value
}
_Values = dict[int, list["int | memoryview"]]


def check_graph(descriptor: int, path: Path, weights_file: str, weights_bytes: int, max_context: int) -> None:
    """Raises PackageError unless the graph in the open file is one that the compiler could have written.

    Its external data may lie only in `weights_file`, which is `weights_bytes` long: UnsafePathError if elsewhere.
    `max_context`: the number of positions it may count up to.
    """
    size = os.fstat(descriptor).st_size
    if not 0 < size <= _GRAPH_BYTES:
        raise PackageError("a graph of impossible size", where=path, got=size, wanted=f"1 to {_GRAPH_BYTES} bytes")
    view = memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))
    try:
        _Check(path, weights_file.encode(), weights_bytes, max_context).model(view)
    except ValueError as problem:
        raise PackageError(
            "the graph holds what no edgemem graph may hold", where=path, got=problem, do=_DO
        ) from problem


class _Check:
    """One pass over one model. Methods raise ValueError."""

    def __init__(self, path: Path, weights_file: bytes, weights_bytes: int, max_context: int) -> None:
        self.path, self.weights_file, self.weights_bytes = path, weights_file, weights_bytes
        self.max_context = max_context
        self.initializers: dict[bytes, _Values] = {}
        self.fields_left = _FIELDS

    def model(self, view: memoryview) -> None:
        values = self._read("model", view)
        for opset in values[8]:
            domain = _text(self._read("opset", opset)[1])
            if domain not in _OPERATORS:
                raise ValueError(f"operator domain {shown(domain)}")
        if not values[7]:
            raise ValueError("no graph")
        graph = self._read("graph", values[7][0])
        for tensor in graph[5]:
            initializer = self._tensor(tensor)
            self.initializers[_text(initializer[8])] = initializer
        if len(self.initializers) != len(graph[5]):
            raise ValueError("two tensors of one name")
        for node in graph[1]:
            self._node(node)

    def _node(self, view: int | memoryview) -> None:
        values = self._read("node", view)
        domain, operator = _text(values[7]), _text(values[4])
        if operator not in _OPERATORS.get(domain, ()):
            raise ValueError(f"operator {shown(operator)} of domain {shown(domain)}")
        for attribute in values[5]:
            for tensor in self._read("attribute", attribute)[5]:
                self._tensor(tensor)
        inputs = [_text([name]) for name in values[1]]
        if any(_text([name]) in self.initializers for name in values[2]):
            raise ValueError("two values of one name")
        if operator == b"Range":
            self._range(inputs)
        if operator == b"Concat" and not (len(inputs) <= _JOINED and self.initializers.keys() >= set(inputs)):
            raise ValueError(f"Concat of {shown(inputs)}, wanted at most {_JOINED} tensors of the file")

    def _range(self, inputs: list[bytes]) -> None:
        """Only 0, 1, 2, ... to at most max_context: it is computed, and held, as the session opens."""
        numbers = [_scalar(self.initializers.get(name)) for name in inputs]
        stop = numbers[1] if len(numbers) == 3 else None
        if stop is None or numbers != [0, stop, 1] or not 0 < stop <= self.max_context:
            raise ValueError(f"Range of {shown(numbers)}, wanted 0, at most {self.max_context}, 1")

    def _tensor(self, view: int | memoryview) -> _Values:
        values = self._read("tensor", view)
        name = shown(_text(values[8]))
        data_type = _number(values[2])
        if data_type not in _ITEM_BYTES:
            raise ValueError(f"tensor {name} of data type {data_type}")
        if not values[13] and not values[14]:
            return values
        if _number(values[14]) != 1 or any(values[field] for field in (4, 5, 7, 9)):
            raise ValueError(f"tensor {name} is half external")
        dims = self._whole_numbers(values[1])
        if len(dims) > LIMITS.dimensions:
            raise ValueError(f"tensor {name} of {len(dims)} dimensions")
        wanted = checked_product(dims) * _ITEM_BYTES[data_type]
        offset, length = self._place(values[13], name)
        if length != wanted or offset + length > self.weights_bytes:
            raise ValueError(
                f"tensor {name} takes {length} bytes at {offset}, wanted {wanted} within {self.weights_bytes}"
            )
        return values

    def _place(self, entries: list[int | memoryview], name: str) -> tuple[int, int]:
        """(offset, length) of external data; exactly location, offset and length, once each."""
        external: dict[bytes, bytes] = {}
        for entry in entries:
            pair = self._read("entry", entry)
            external[_text(pair[1])] = _text(pair[2])
        if len(entries) != 3 or set(external) != {b"location", b"offset", b"length"}:
            raise ValueError(f"tensor {name} has external data keys {shown(list(external))}")
        if external[b"location"] != self.weights_file:
            raise UnsafePathError(
                f"tensor {name} of the graph lies in another file",
                where=self.path,
                got=shown(external[b"location"]),
                wanted=shown(self.weights_file),
                do=_DO,
            )
        offset, length = external[b"offset"], external[b"length"]
        if not all(text.isdigit() and len(text) < 20 for text in (offset, length)):
            raise ValueError(f"tensor {name} lies at {shown(offset)}, {shown(length)} bytes")
        return int(offset), int(length)

    def _whole_numbers(self, values: list[int | memoryview]) -> list[int]:
        """A repeated varint field, packed or not."""
        numbers: list[int] = []
        for value in values:
            if isinstance(value, int):
                numbers.append(value)
                continue
            position = 0
            while position < len(value):
                number, position = _varint(value, position)
                self._spend()
                numbers.append(number)
        return numbers

    def _read(self, message: str, view: int | memoryview) -> _Values:
        """The fields of a message by number; every known number is there, with an empty list if it did not occur."""
        if isinstance(view, int):
            raise ValueError(f"{message} is no message")
        schema = _SCHEMA[message]
        values: _Values = {number: [] for number in schema}
        for number, wire, value in self._fields(view):
            if number not in schema:
                raise ValueError(f"field {number} in a {message}")
            wanted, repeated = schema[number]
            if wire != wanted and not (repeated and wire == _BYTES):  # numbers may be packed
                raise ValueError(f"field {number} of a {message} of wire type {wire}")
            if values[number] and not repeated:
                raise ValueError(f"field {number} of a {message} twice")
            values[number].append(value)
        return values

    def _fields(self, view: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
        position, end = 0, len(view)
        while position < end:
            self._spend()
            key, position = _varint(view, position)
            number, wire = key >> 3, key & 7
            if wire == _VARINT:
                value, position = _varint(view, position)
                yield number, wire, value
                continue
            if wire == _BYTES:
                length, position = _varint(view, position)
            elif wire == _FIXED32:
                length = 4
            else:
                raise ValueError(f"wire type {wire}")
            if length > end - position:
                raise ValueError(f"field {number} of {length} bytes where {end - position} are left")
            yield number, wire, view[position : position + length]
            position += length

    def _spend(self) -> None:
        self.fields_left -= 1
        if self.fields_left < 0:
            raise ValueError(f"more than {_FIELDS} fields")


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """(value, position behind it), below 2^64."""
    value = shift = 0
    while position < len(view) and shift < 64:
        byte = view[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64 or (byte == 0 and shift):
                break
            return value, position
        shift += 7
    raise ValueError("a number that is cut off, too long or padded")


def _text(values: list[int | memoryview]) -> bytes:
    value = values[0] if values else b""
    if isinstance(value, int) or len(value) > LIMITS.name_bytes * 8:
        raise ValueError("a name that is too long")
    return bytes(value)


def _number(values: list[int | memoryview]) -> int:
    value = values[0] if values else 0
    if not isinstance(value, int):
        raise ValueError("bytes where a number should be")
    return value


def _scalar(tensor: _Values | None) -> int | None:
    """The value of an int64 tensor without dimensions that lies in the graph as the compiler writes it, else None."""
    if tensor is None or _number(tensor[2]) != _INT64 or any(tensor[field] for field in (1, 4, 5, 7, 13)):
        return None
    raw = _text(tensor[9])
    return int.from_bytes(raw, "little", signed=True) if len(raw) == 8 else None
