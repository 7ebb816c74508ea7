"""Opens the onnx engine over the standard-operator graph, for providers that know no contrib operators: TensorRT's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgemem.runtime.engine_inputs import context_slots, layer_range, setting
from edgemem.runtime.engine_plan import check_data, check_record, plan_name, read_plan, read_record
from edgemem.runtime.machine import usable_cores
from edgemem.runtime.onnx_plugins import PLUGINS, plugin_devices
from edgemem.runtime.onnx_session import check_providers, import_onnxruntime
from edgemem.runtime.package import ENGINES_FOLDER, Package
from edgemem.runtime.plan_buffers import PlanBuffers
from edgemem.runtime.plan_engine import PlanEngine
from edgemem.runtime.plan_runner import OnnxRunner
from edgemem.runtime.plan_seal import default_keys

LIBRARY, VERSION, TARGET = "onnxruntime", "opset 24", "any"  # of the record of such a graph


def open_onnx_plan(
    package: Package,
    *,
    capacity: int | None = None,
    layers: tuple[int, int] | None = None,
    threads: int | None = None,
    providers: Sequence[str],
    keys: Path | None = None,
) -> PlanEngine:
    """The onnx engine over the graph that `edgemem compile PACKAGE --engine onnx` put into engines/.

    The cache lies on the GPU, unless `providers` begin with the CPU's. keys: see open_tensorrt.
    Raises SettingsError for a value out of range, EngineError where a provider or the graph is missing, or the graph is
    not one that this device trusts.
    """
    onnxruntime = import_onnxruntime()
    check_providers(providers, onnxruntime.get_available_providers())
    if providers[0] in PLUGINS:
        plugin_devices(onnxruntime, providers[0])  # before memory of its device is asked for
    layers = layer_range(layers, package)
    if capacity is not None:
        context_slots(capacity, package)
    threads = setting("threads", threads, default=usable_cores(), highest=1024)
    record = read_record(package, plan_name(LIBRARY, TARGET, layers), default_keys() if keys is None else keys)
    check_record(package, record, library=LIBRARY, version=VERSION, target=TARGET)
    check_data(package, record)
    buffers = PlanBuffers(package.model, record, "cpu" if providers[0] == "CPUExecutionProvider" else "cuda")
    graph = package.path / ENGINES_FOLDER / record.file
    runner = OnnxRunner(graph, buffers, providers=providers, threads=threads, content=bytes(read_plan(package, record)))
    return PlanEngine(package, runner, name="onnx", capacity=capacity)
