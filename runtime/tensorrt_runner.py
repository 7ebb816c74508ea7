"""TensorRtRunner: a plan executed by TensorRT on torch's device memory, a decode step as one CUDA graph a bucket.

Each profile has an execution context of its own, so that a captured graph stays valid; all share one scratch memory,
as they run one after the other on one stream. TensorRT-RTX captures by itself, native TensorRT is captured here.
"""

from __future__ import annotations

from typing import Any

from edgemem.runtime.errors import EngineError
from edgemem.runtime.plan_buffers import PlanBuffers
from edgemem.runtime.plan_cache import import_torch
from edgemem.runtime.tensorrt_library import Library


class TensorRtRunner:
    """PlanRunner over an ICudaEngine. Not for several threads at once."""

    def __init__(self, library: Library, engine: Any, buffers: PlanBuffers) -> None:
        """engine: see tensorrt_library.load_plan; built for the shape of the buffers, which are on "cuda"."""
        self._torch = import_torch()
        self.buffers = buffers
        self._library, self._engine = library, engine
        self._stream = self._torch.cuda.Stream()
        sizes = [engine.get_device_memory_size_for_profile_v2(i) for i in range(engine.num_optimization_profiles)]
        self._scratch = self._torch.empty(max(1, *sizes), dtype=self._torch.uint8, device="cuda")
        self._contexts: dict[int, Any] = {}
        self._graphs: dict[int, Any] = {}  # of decode steps, by bucket

    def run(self, count: int, bucket: int, rows: int) -> None:
        torch, step = self._torch, count == rows == 1
        before = torch.cuda.current_stream()
        self._stream.wait_stream(before)
        if step and bucket in self._graphs:
            with torch.cuda.stream(self._stream):
                self._graphs[bucket].replay()
        else:
            context = self._prepared(count, bucket, rows)
            self._enqueue(context)
            if step and not self._library.rtx:  # once run, so that nothing is left to be set up under capture
                self._graphs[bucket] = self._captured(context)
        before.wait_stream(self._stream)

    def close(self) -> None:
        if self._engine is None:
            return
        self._stream.synchronize()
        self._graphs.clear()  # they point into the contexts, and those into the engine
        self._contexts.clear()
        self._engine = self._scratch = None

    def _prepared(self, count: int, bucket: int, rows: int) -> Any:
        """The context of the run's profile, with shapes and addresses set. Raises EngineError."""
        context = self._context(self.buffers.shape.profile(count, rows, bucket))
        inputs, outputs = self.buffers.inputs(count, bucket, rows), self.buffers.outputs(count, rows)
        for name, tensor in inputs.items():
            self._require(context.set_input_shape(name, tuple(tensor.shape)), f"a shape of {name}")
        for name, tensor in {**inputs, **outputs}.items():
            self._require(context.set_tensor_address(name, tensor.data_ptr()), f"an address of {name}")
        missing = context.infer_shapes()
        self._require(not missing, f"a run without {', '.join(missing)}")
        return context

    def _context(self, profile: int) -> Any:
        context = self._contexts.get(profile)
        if context is None:
            context = self._new_context(step=profile < len(self.buffers.shape.buckets))
            self._require(context is not None, "an execution context")
            context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
            handle = self._stream.cuda_stream
            self._require(context.set_optimization_profile_async(profile, handle), f"profile {profile}")
            self._contexts[profile] = context
        return context

    def _new_context(self, *, step: bool) -> Any:
        trt = self._library.module
        by_user = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._library.rtx:
            return self._engine.create_execution_context(by_user)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(by_user)
        if step:  # of one shape; all others come in many, each of which would be captured
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self._engine.create_execution_context(config)

    def _enqueue(self, context: Any) -> None:
        self._require(context.execute_async_v3(self._stream.cuda_stream), "a run")

    def _captured(self, context: Any) -> Any:
        graph = self._torch.cuda.CUDAGraph()
        with self._torch.cuda.graph(graph, stream=self._stream):
            self._enqueue(context)
        return graph

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise EngineError(
                f"TensorRT refused {what}",
                do="build the plan again: edgemem compile PACKAGE --engine tensorrt",
            )
