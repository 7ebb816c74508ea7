"""GraphData: the tensors of a graph, in a file beside it, written block by block as they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from edgemem.compiler.onnx_graph import OnnxGraph

_ALIGNMENT = 4096  # so that a reader can map a tensor instead of copying it


class GraphData:
    """Use it as a context manager. The graph must point into the file at `path`, which must not exist."""

    def __init__(self, path: Path, graph: OnnxGraph) -> None:
        self._graph, self._file, self._names = graph, path.open("xb"), set[str]()

    def tensor(self, name: str, dtype: int, shape: Sequence[int], blocks: Iterable[NDArray[Any]]) -> str:
        """The initializer `name` of an ONNX data type, its bytes those of the blocks one behind the other; once."""
        if name in self._names:
            return name
        self._names.add(name)
        start = self._file.seek(-self._file.tell() % _ALIGNMENT, 1)
        for block in blocks:
            self._file.write(block.tobytes())
        return self._graph.external(name, dtype, shape, start, self._file.tell())

    def __enter__(self) -> GraphData:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._file.close()
