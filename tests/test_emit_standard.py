"""The graph of standard operators means what the package's main graph means, on the CPU, and TensorRT-RTX builds it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from runnable_packages import plain_model, rich_model, runnable_package, same_precision

from edgemem.compiler.emit_standard import DATA_FILE, emit_standard
from edgemem.compiler.halves import cut
from edgemem.compiler.reference import ReferenceDecoder
from edgemem.kernels.formats import Precision
from edgemem.runtime.engine import KVState
from edgemem.runtime.errors import EngineError, PackageError
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.runtime.tokenizer import Tokenizer

CAPACITY = 48
MIXED = {"key": "int8-g32", "up": "bf16", "down": "int8-g64-min", "output": "fp32"}
SHORT = rich_model(layers=2, layer_ropes=(0, 1), windows=(9, 6))
Array = NDArray[np.float32]


class StandardRun:
    """The graph in ONNX Runtime, past and present of a layer in one buffer, as an engine binds them."""

    def __init__(self, graph: Path, model: ModelSpec, capacity: int, layers: tuple[int, int] | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 2
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # or every run dequantises all weights
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.capacity, self.length = capacity, 0
        self.cache = {
            f"{layer}.{part}": np.zeros((1, model.kv_heads, capacity, model.head_dim), dtype=np.float16)
            for layer in range(*layers or (0, model.layers))
            for part in ("key", "value")
        }
        self.inputs = {value.name for value in self.session.get_inputs()}

    def extend(self, rows: NDArray[Any], bucket: int | None = None, wanted: Sequence[int] = (-1,)) -> Array:
        """Logits of the `wanted` rows, or the hidden states (n, hidden) of a stage without the head."""
        count = len(rows)
        stop = self.length + count
        binding = self.session.io_binding()
        given = {
            "input_ids" if rows.ndim == 1 else "hidden_states": rows[None].astype("<i8" if rows.ndim == 1 else "<f4"),
            "position_ids": np.arange(self.length, stop)[None],
            "slots": np.arange(bucket or self.capacity),
        }
        if "logits_rows" in self.inputs:
            given["logits_rows"] = np.arange(count)[list(wanted)]
        for name, values in given.items():
            binding.bind_cpu_input(name, values)
        for name, buffer in self.cache.items():
            place = ("cpu", 0, np.float16, buffer.shape, buffer.ctypes.data)
            binding.bind_input(f"past_key_values.{name}", *place)
            binding.bind_output(f"present.{name}", *place)
        result = "logits" if "logits_rows" in self.inputs else "hidden_states_out"
        binding.bind_output(result, "cpu")
        self.session.run_with_iobinding(binding)
        self.length = stop
        outputs = dict(zip([o.name for o in self.session.get_outputs()], binding.get_outputs(), strict=True))
        values: Array = outputs[result].numpy()
        return values if result == "logits" else values[0]


def standard(package: Package, folder: Path, layers: tuple[int, int] | None = None) -> StandardRun:
    folder.mkdir()
    return StandardRun(emit_standard(folder, package, CAPACITY, layers), package.model, CAPACITY, layers)


def tiny(folder: Path, model: ModelSpec, precision: Mapping[str, Precision], **settings: Any) -> Package:
    return Package.open(runnable_package(folder / "p.edgemem", model, precision, **settings))


def exact_main(package: Package, tokens: NDArray[np.int32], folder: Path) -> tuple[Array, KVState]:
    """Logits of the last token and the cache by the main graph, where its products do not round x to int8."""
    model = package.model
    graph = onnx.load(package.path / "model.onnx", load_external_data=False)
    for node in graph.graph.node:
        kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
        del node.attribute[:]
        node.attribute.extend(kept)
    shutil.copy(package.path / "weights.safetensors", folder)
    (folder / "exact.onnx").write_bytes(graph.SerializeToString())
    session = onnxruntime.InferenceSession(str(folder / "exact.onnx"), providers=["CPUExecutionProvider"])
    names = [f"{layer}.{part}" for layer in range(model.layers) for part in ("key", "value")]
    empty = np.zeros((1, model.kv_heads, 0, model.head_dim), dtype=np.float32)
    given = {"input_ids": tokens[None].astype(np.int64), "attention_mask": np.ones((1, len(tokens)), dtype=np.int64)}
    given |= {f"past_key_values.{name}": empty for name in names}
    logits, *cache = session.run(["logits", *(f"present.{name}" for name in names)], given)
    return logits[0, 0], KVState(np.concatenate(cache[0::2]), np.concatenate(cache[1::2]), None)


def error(got: Array, wanted: NDArray[Any]) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def tokens_of(model: ModelSpec, count: int = 30) -> NDArray[np.int32]:
    return np.random.default_rng(5).integers(0, model.vocabulary, count).astype(np.int32)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int4-g32", "int4-g64-min", "int8-g32", "int8-g32-min"])
def test_every_precision_agrees_with_the_main_graph(tmp_path: Path, precision: str) -> None:
    model = plain_model()
    tokens = tokens_of(model)
    with tiny(tmp_path, model, same_precision(model, precision)) as package:
        logits, cache = exact_main(package, tokens, tmp_path)
        run = standard(package, tmp_path / "standard")
    assert error(run.extend(tokens)[0], logits) < 1e-2
    for part, wanted in (("key", cache.keys), ("value", cache.values)):
        got = np.concatenate([run.cache[f"{layer}.{part}"] for layer in range(model.layers)])
        assert error(got[:, :, : len(tokens)], wanted) < 1e-2
        assert not got[:, :, len(tokens) :].any()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_softcap": 0.0},
        {"qk_norm": False, "logit_softcap": 0.0, "tied_head": False},
        {"sandwich_norms": False, "activation": "silu", "qkv_bias": False},
    ],
    ids=["all", "no softcap", "no head norms", "silu"],
)
def test_every_feature_agrees_with_the_main_graph(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = rich_model(**changes)
    tokens = tokens_of(model)
    with tiny(tmp_path, model, same_precision(model, "int4-g32-min", **MIXED)) as package:
        logits, _ = exact_main(package, tokens, tmp_path)
        run = standard(package, tmp_path / "standard")
        reference = ReferenceDecoder(package).logits(tokens)
    every = run.extend(tokens, wanted=range(len(tokens)))
    assert error(every[-1], logits) < 1e-2
    assert error(every, reference) < 1e-2


@pytest.mark.parametrize("model", [plain_model(), rich_model()], ids=["plain", "rich"])
def test_chunks_steps_and_buckets_change_nothing(tmp_path: Path, model: ModelSpec) -> None:
    tokens = tokens_of(model)
    with tiny(tmp_path, model, same_precision(model, "int4-g32-min", **MIXED)) as package:
        whole, parts = (standard(package, tmp_path / name) for name in ("whole", "parts"))
    wanted = whole.extend(tokens, wanted=range(30))
    got = [parts.extend(tokens[:13], 16, range(13)), parts.extend(tokens[13:16], 16, range(3))]
    got += [parts.extend(tokens[i : i + 1], i + 1 if i % 2 else 32) for i in range(16, 30)]
    assert error(np.concatenate(got), wanted) < 3e-3
    for name, buffer in whole.cache.items():
        assert error(parts.cache[name], buffer) < 3e-3


def test_padded_rows_leave_no_trace(tmp_path: Path) -> None:
    model = rich_model()
    tokens = tokens_of(model)
    with tiny(tmp_path, model, same_precision(model, "fp16")) as package:
        padded, plain = (standard(package, tmp_path / name) for name in ("padded", "plain"))
    first = padded.extend(
        np.append(tokens[:9], [3] * 11), bucket=12, wanted=[8]
    )  # rows from 12 on see no slot of theirs
    assert error(first, plain.extend(tokens[:9])) < 3e-3
    padded.length = 9
    assert error(padded.extend(tokens[9:10]), plain.extend(tokens[9:10])) < 3e-3


def test_stages_joined_are_the_whole(tmp_path: Path) -> None:
    model = rich_model()
    tokens = tokens_of(model)
    with tiny(tmp_path, model, same_precision(model, "int8-g32-min")) as package:
        whole = standard(package, tmp_path / "whole")
        front, middle, back = (
            standard(package, tmp_path / f"{layers[0]}", layers) for layers in ((0, 1), (1, 3), (3, 4))
        )
        with pytest.raises(PackageError, match="layers"):
            emit_standard(tmp_path, package, CAPACITY, (1, 9))
    for rows in (tokens[:20], tokens[20:21]):
        states = middle.extend(front.extend(rows))
        assert states.dtype == np.float32
        assert error(back.extend(states), whole.extend(rows)) < 1e-4


def test_half_a_package_is_enough_for_its_stage(tmp_path: Path) -> None:
    model = rich_model()
    tokens = tokens_of(model)
    with tiny(tmp_path, model, same_precision(model, "int4-g32")) as package:
        whole = standard(package, tmp_path / "whole")
        halves = cut(package, 1, tmp_path)
    stages = []
    for half, layers in zip(halves, ((0, 1), (1, 4)), strict=True):
        with Package.open(half.path) as package:
            stages.append(standard(package, tmp_path / f"{layers[0]}", layers))
            with pytest.raises(PackageError, match="only a part"):
                emit_standard(tmp_path, package, CAPACITY)
    assert error(stages[1].extend(stages[0].extend(tokens)), whole.extend(tokens)) < 1e-4


def test_only_standard_operators_and_weights_once(tmp_path: Path) -> None:
    model = rich_model()
    precision = same_precision(model, "int4-g64-min", embedding="int8-g32")
    with tiny(tmp_path, model, precision) as package:
        standard(package, tmp_path / "standard")
        stored = sum(entry.stop - entry.start for entry in package.tensors.values())
        groups = sum(rows * columns // precision[name].group for name, (rows, columns) in model.matrices())
    graph = onnx.load(tmp_path / "standard" / "decoder.onnx", load_external_data=False)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 24)]
    assert not any(tensor.raw_data and len(tensor.raw_data) > 64 for tensor in graph.graph.initializer)
    lengths = [int(e.value) for t in graph.graph.initializer for e in t.external_data if e.key == "length"]
    waves = 4 * CAPACITY * 2 * sum(len(rope.inverse_frequencies) for rope in model.ropes)
    # A minimum is float32 here: two bytes more than stored, for all groups but the embedding's, which has none.
    embedding = model.vocabulary * model.hidden // 32
    assert sum(lengths) == stored + 2 * (groups - embedding) + waves
    assert (tmp_path / "standard" / DATA_FILE).stat().st_size < sum(lengths) + 4096 * len(lengths)


def test_a_weight_beyond_float16_is_refused(tmp_path: Path) -> None:
    model = plain_model()
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "bf16"))
    with Package.open(path) as package:
        place = package.tensors["layers.1.up.weight"].start
    with (path / "weights.safetensors").open("r+b") as file:
        file.seek(place)
        file.write(b"\x00\x48")  # 2**17
    with Package.open(path, verify=False) as package, pytest.raises(EngineError, match=r"float16 \(layers\.1\.gate"):
        emit_standard(tmp_path, package, CAPACITY)


_PEAK = """
import resource, sys
from pathlib import Path
from edgemem.compiler.halves import cut
from edgemem.compiler.emit_standard import emit_standard
from edgemem.runtime.package import Package
with Package.open(sys.argv[1], verify=False) as package:
    import onnx
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    emit_standard(Path(sys.argv[2]), package, 64)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    peaks = []
    for layers in (2, 12):
        model = plain_model(layers=layers, hidden=512, intermediate=1024)
        path = runnable_package(tmp_path / f"{layers}.edgemem", model, same_precision(model, "fp16"))
        out = tmp_path / f"out{layers}"
        out.mkdir()
        command = [sys.executable, "-c", _PEAK, str(path), str(out)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    weights_kib = 10 * 2 * 512 * (64 + 32 + 32 + 64 + 3 * 1024) // 1024  # of ten layers more
    assert peaks[1] - peaks[0] < 0.2 * weights_kib, peaks


def build_plan(graph: Path, profiles: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
    """The parsed network and the plan, strongly typed."""
    import tensorrt_rtx

    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt_rtx.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(graph))
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.clear_flag(tensorrt_rtx.BuilderFlag.TF32)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, (least, most) in shapes.items():
            profile.set_shape(name, least, most, most)
        config.add_optimization_profile(profile)
    return network, builder.build_serialized_network(network, config)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize(
    ("model", "layers"),
    [(plain_model(layers=1), None), (SHORT, None), (replace(SHORT, attention_softcap=0.0), (0, 1)), (SHORT, (1, 2))],
    ids=["plain", "rich", "front", "back"],
)
def test_tensorrt_builds_it(tmp_path: Path, model: ModelSpec, layers: tuple[int, int] | None) -> None:
    with tiny(tmp_path, model, same_precision(model, "int4-g32-min", **MIXED)) as package:
        graph = emit_standard(tmp_path, package, CAPACITY, layers)
    first, last = layers or (0, model.layers)
    rows: dict[str, Any] = {"position_ids": ((1, 1), (1, 1)), "slots": ((1,), (16,))}
    rows |= {"input_ids": ((1, 1), (1, 1))} if first == 0 else {"hidden_states": ((1, 1, 64), (1, 1, 64))}
    rows |= {"logits_rows": ((1,), (1,))} if last == model.layers else {}
    longer = {"position_ids": (1, 32), "input_ids": (1, 32), "hidden_states": (1, 32, 64), "logits_rows": (32,)}
    chunks = {name: (least, longer.get(name, (CAPACITY,))) for name, (least, _) in rows.items()}
    network, plan = build_plan(graph, [rows, chunks])
    assert plan is not None
    assert plan.nbytes > (tmp_path / DATA_FILE).stat().st_size // 2
    types = {network.get_layer(i).type.name for i in range(network.num_layers)}
    assert {"KV_CACHE_UPDATE", "DEQUANTIZE", "ROTARY_EMBEDDING"} <= types
    assert ("ATTENTION_INPUT" in types) == (model.attention_softcap == 0)


@pytest.mark.model
def test_smollm2_says_the_same(smollm2_package: Path, tmp_path: Path) -> None:
    """The main graph's 128 greedy tokens are those of the standard graph: whatever it is given of them, it says the
    next. Counting, since elsewhere some two tokens come within what the main graph's int8 activations round off."""
    with Package.open(smollm2_package) as package:
        tokenizer = Tokenizer.open(package)
        prompt, prose = (
            np.array(tokenizer.encode(text), dtype=np.int32)
            for text in ("1, 2, 3, 4, 5, 6,", "The water cycle begins when the sun warms the sea.")
        )
        engine = open_engine(package, "onnx", capacity=256)
        engine.extend(prompt)
        greedy = [token.id for token in engine.decode(Sampler(Sampling()), 128)]
        engine.close()
        logits, _ = exact_main(package, prose, tmp_path)
        run = StandardRun(emit_standard(tmp_path, package, 256), package.model, 256)
    given = np.concatenate([prompt, greedy])[:-1]
    chunk, first = len(prompt) + 99, len(prompt) - 1
    said = [*run.extend(given[:chunk], 128, range(first, chunk)).argmax(axis=1)]
    said += [run.extend(given[i : i + 1], 256)[0].argmax() for i in range(chunk, len(given))]
    assert said == greedy
    assert len(set(greedy)) > 10
    run.length = 0
    assert error(run.extend(prose, 64)[0], logits) < 1e-2
