"""The seam between a plan's engine and whoever executes the plan, and the runner that is ONNX Runtime.

ONNX Runtime runs the graph that a plan is built from: on the CPU it is the truth that TensorRT is compared with, and
with a TensorRT provider another way to run it. tensorrt_runner.py is the other side of the seam.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from edgemem.runtime.onnx_session import open_session, run_session
from edgemem.runtime.plan_buffers import PlanBuffers, Tensors
from edgemem.runtime.plan_cache import import_torch

_ELEMENT = {"torch.int64": 7, "torch.float16": 10, "torch.float32": 1}  # onnx.TensorProto


class PlanRunner(Protocol):
    """Executes one plan over buffers that it was opened with."""

    buffers: PlanBuffers

    def run(self, count: int, bucket: int, rows: int) -> None:
        """Compute what the buffers were filled with, `count` tokens that look at `bucket` slots, with logits of `rows`.

        What torch does next on the device finds it done. Raises EngineError.
        """
        ...

    def close(self) -> None:
        """Free the plan."""
        ...


class OnnxRunner:
    """PlanRunner by ONNX Runtime over the standard graph."""

    def __init__(
        self,
        graph: Path,
        buffers: PlanBuffers,
        *,
        providers: Sequence[str],
        threads: int,
        content: bytes | None = None,
    ) -> None:
        """Takes and raises what open_session does."""
        self.buffers = buffers
        self._session: Any = open_session(graph, providers=providers, threads=threads, content=content)

    def run(self, count: int, bucket: int, rows: int) -> None:
        binding = self._session.io_binding()
        self._bind(binding.bind_input, self.buffers.inputs(count, bucket, rows))
        self._bind(binding.bind_output, self.buffers.outputs(count, rows))
        if self.buffers.device == "cuda":  # ONNX Runtime works on a stream of its own
            import_torch().cuda.current_stream().synchronize()
        run_session(self._session, binding)
        binding.synchronize_outputs()

    def close(self) -> None:
        self._session = None

    def _bind(self, bind: Any, tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            bind(name, self.buffers.device, 0, _ELEMENT[str(tensor.dtype)], tuple(tensor.shape), tensor.data_ptr())
