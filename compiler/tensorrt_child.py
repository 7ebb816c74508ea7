"""The process that builds a plan: TensorRT's builder under a memory limit, spoken to in lines of JSON.

Its job comes on stdin as one document. Lines out: {"stage", "share"} as it goes on, and last {"refused": [...]},
{"failed": text}, {"unwritten": text} or what tensorrt_build.BuiltPlan is made of. It writes the plan where the job
says, and seals nothing.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgemem.profiles.process import private_stdout
from edgemem.runtime.tensorrt_library import Library, new_logger, open_library

_STAGE = "build"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # even where the parent is killed
    job = json.load(sys.stdin)
    channel = private_stdout()

    def say(**line: Any) -> None:
        channel.write(json.dumps(line) + "\n")
        channel.flush()

    _limit_memory(int(job["memory_bytes"]))
    try:
        say(**_built(job, say))
    except MemoryError:
        say(failed="out of memory")
    except OSError as problem:
        say(unwritten=problem.strerror or str(problem))
    return 0


def _limit_memory(limit: int) -> None:
    """At most what the user's own limit leaves, which none but root may raise."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _built(job: dict[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    """The last line: what was built, or why not."""
    library = open_library(job["library"])
    trt, logger = library.module, new_logger(library)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    say(stage="parse", share=0.0)
    refused = _refused(trt, network, logger, Path(job["graph"]))
    if refused:
        return {"refused": refused}
    say(stage=_STAGE, share=0.0)
    config = builder.create_builder_config()
    config.progress_monitor = _monitor(trt, say)
    for shapes in job["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            profile.set_shape(name, least, usual, most)
        if config.add_optimization_profile(profile) < 0:
            return {"failed": f"a profile was refused: {'; '.join(logger.said[-3:])}"}
    _configure(library, config, job)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"failed": "; ".join(logger.said[-3:]) or "no reason given"}
    with open(job["plan"], "xb") as file:
        file.write(plan)
    if not library.rtx:
        Path(job["timing_cache"]).write_bytes(config.get_timing_cache().serialize())
    say(stage=_STAGE, share=1.0)
    flags = [name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)]
    said = [text for text in logger.said if "Int64 binding" not in text][:20]  # which is as it should be
    return {**_facts(network), "flags": ["STRONGLY_TYPED", *flags], "said": said}


def _configure(library: Library, config: Any, job: dict[str, Any]) -> None:
    trt = library.module
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 products are there because float16 is not enough
    if library.rtx:
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # else a step may not be captured in a CUDA graph
        target = job["target"]
        config.num_compute_capabilities = 1
        capability = trt.ComputeCapability.CURRENT if target is None else getattr(trt.ComputeCapability, target.upper())
        config.set_compute_capability(capability, 0)
        return  # TensorRT-RTX times nothing when it builds: it has no timing cache
    cache = Path(job["timing_cache"])
    config.set_timing_cache(config.create_timing_cache(cache.read_bytes() if cache.exists() else b""), False)


def _refused(trt: Any, network: Any, logger: Any, graph: Path) -> list[dict[str, str]]:
    """Parse the graph into the network; what the parser cannot take: operator, node and reason of each."""
    import onnx

    parser = trt.OnnxParser(network, logger)
    nodes = onnx.load(graph, load_external_data=False).graph.node
    refused = {
        node.name: {"operator": node.op_type, "node": node.name, "reason": "the parser has no such operator"}
        for node in nodes
        if not parser.supports_operator(node.op_type)
    }
    if not parser.parse_from_file(str(graph)):
        for error in map(parser.get_error, range(parser.num_errors)):
            found = {"operator": error.node_operator(), "node": error.node_name(), "reason": error.desc().strip()}
            refused.setdefault(found["node"], found)
        if not refused:
            refused[""] = {"operator": "", "node": "", "reason": "; ".join(logger.said[-3:])}
    return list(refused.values())


def _facts(network: Any) -> dict[str, Any]:
    """Names, types and shapes of what goes in and out; -1 is what a profile decides."""

    def described(tensor: Any) -> dict[str, Any]:
        return {"dtype": str(tensor.dtype).rpartition(".")[2].lower(), "shape": list(tensor.shape)}

    inputs = (network.get_input(index) for index in range(network.num_inputs))
    outputs = (network.get_output(index) for index in range(network.num_outputs))
    return {
        "inputs": {tensor.name: described(tensor) for tensor in inputs},
        "outputs": {tensor.name: described(tensor) for tensor in outputs},
        "layers": network.num_layers,
    }


def _monitor(trt: Any, say: Callable[..., None]) -> Any:
    """An IProgressMonitor that says how much of the nested phases is done, never less than before."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, done
            self.share = 0.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases[name] = (parent, max(1, steps), 0)

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.phases:
                parent, steps, _ = self.phases[name]
                self.phases[name] = (parent, steps, step + 1)
                self._tell(name)
            return True

        def phase_finish(self, name: str) -> None:
            self.phases.pop(name, None)

        def _tell(self, name: str) -> None:
            share, at = 0.0, name
            while at in self.phases:
                parent, steps, done = self.phases[at]
                share = min(1.0, (done + share) / steps)
                if parent is None:
                    break
                at = parent
            if share >= self.share + 0.01:
                self.share = share
                say(stage=_STAGE, share=share)

    return Monitor()


if __name__ == "__main__":
    sys.exit(main())
