"""The compile flow: read a checkpoint, choose precisions, quantise, write, emit graphs, reopen and compare.

Each step is a function of its own module; this one only puts them in order and reports progress.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from edgemem.compiler.calibrate import calibrated_blocks
from edgemem.compiler.checkpoint import Checkpoint, open_checkpoint
from edgemem.compiler.compare import compare
from edgemem.compiler.emit_onnx import emit_graph
from edgemem.compiler.genai_config import GENAI_FILE, genai_config
from edgemem.compiler.plan import PrecisionPlan, read_plan_file
from edgemem.compiler.quality import calibration_text, fixed_text
from edgemem.compiler.quantize import matrix_blocks
from edgemem.compiler.token_sequences import token_sequences
from edgemem.compiler.weights_writer import Block
from edgemem.compiler.writer import PackageWriter
from edgemem.kernels.formats import Kind, Precision
from edgemem.runtime.errors import BudgetError, NumericError, SettingsError
from edgemem.runtime.manifest import GraphRecord, Manifest, Quality, TokenizerRecord
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.tokenizer import Tokenizer

Progress = Callable[[str, float], None]

_LONGEST_DEFAULT_CONTEXT = 32768
_MOST_PERPLEXITY = 1e30  # far beyond any vocabulary: what is not text at all
_CALIBRATION_LENGTH, _CALIBRATION_TOKENS, _CALIBRATION_BYTES = 512, 8192, 1 << 20


@dataclass(frozen=True)
class CompileOptions:
    """What to make of a checkpoint. `weights=None` keeps quantised tensors as they are stored and makes floats int4.

    stages: layers at which front and back graphs are written beside the whole one. check_tokens: how many tokens of the
    fixed text the finished package is compared on with the float32 reference, 0 for no comparison.
    """

    name: str | None = None
    weights: Kind | None = None
    group: int = 32
    head: Kind | None = None
    front_layers: int | None = None
    front_weights: Kind | None = None
    back_weights: Kind | None = None
    plan: Path | None = None
    calibrate: Path | bool = False
    stages: tuple[int, ...] = ()
    max_context: int | None = None
    check_tokens: int = 512


def compile_model(
    source: Path, out: Path, options: CompileOptions, progress: Progress = lambda stage, share: None
) -> Manifest:
    """Compile `source` (Hugging Face folder or GGUF) into the package `out`; gives its manifest.

    `progress(stage, share)` hears of each stage from 0 to 1. A package that stood at `out` is replaced only when the
    new one is complete. Raises CheckpointError, SettingsError, NumericError, PackageError, BudgetError.
    """
    for path in (source, out):
        _require_text(path)
    progress("read", 0.0)
    with open_checkpoint(source, max_context=options.max_context) as checkpoint, PackageWriter(out) as writer:
        model = checkpoint.model
        context = _context(model, options.max_context)
        graphs = _graphs(model, options.stages)
        tokenizer = Tokenizer(checkpoint.tokenizer_files, model.vocabulary, where=source)
        precision = _plan(checkpoint, options).table(checkpoint)
        entries = writer.write_weights(model, precision, _blocks(checkpoint, tokenizer, precision, options, progress))
        for graph in graphs:
            layers = (graph.first, graph.last)
            with writer.disk_errors():
                emit_graph(writer.path(graph.file), model, precision.__getitem__, entries, context, layers)
            writer.adopt(graph.file)
        for name, data in checkpoint.tokenizer_files.items():
            writer.add_file(name, data)
        generation = json.loads(checkpoint.tokenizer_files["generation_config.json"])
        writer.add_file(GENAI_FILE, genai_config(model, context, generation))
        manifest = Manifest(
            name=options.name or out.name.removesuffix(".edgemem"),
            model=model,
            max_context=context,
            precision=precision,
            files={},
            graphs=graphs,
            tokenizer=TokenizerRecord(tokenizer.vocabulary, tokenizer.make_probes()),
            origin=checkpoint.origin,
        )
        quality = _compare(writer.staged(manifest), checkpoint, tokenizer, options.check_tokens, progress)
        return writer.finish(replace(manifest, quality=quality))


def _require_text(path: Path) -> None:
    """Source and package are named in the manifest, which is UTF-8."""
    try:
        os.path.realpath(path).encode("utf-8")
    except UnicodeEncodeError as problem:
        raise SettingsError("the path is not valid UTF-8", where=ascii(str(path)), do="rename it") from problem


def _plan(checkpoint: Checkpoint, options: CompileOptions) -> PrecisionPlan:
    return PrecisionPlan(
        weights=options.weights,
        group=options.group,
        head=options.head,
        front_layers=options.front_layers,
        front_weights=options.front_weights,
        back_weights=options.back_weights,
        exact={} if options.plan is None else read_plan_file(options.plan, checkpoint.model),
    )


def _context(model: ModelSpec, asked: int | None) -> int:
    if asked is None:
        return min(model.trained_context, _LONGEST_DEFAULT_CONTEXT)
    if not 1 < asked <= model.trained_context:
        raise SettingsError(
            "the model was not trained for this context" if asked > 1 else "this context holds no answer",
            got=asked,
            wanted=f"2 to {model.trained_context}",
            do="choose another --max-context",
        )
    return asked


def _blocks(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    precision: Mapping[str, Precision],
    options: CompileOptions,
    progress: Progress,
) -> Iterator[tuple[str, Block]]:
    """Every tensor of the package, a block of rows at a time."""
    model = checkpoint.model
    for name, _ in model.vectors():
        yield name, checkpoint.vector(name)
    if options.calibrate:
        length = min(model.trained_context, _CALIBRATION_LENGTH)
        tokens = token_sequences(_calibration_text(options.calibrate), tokenizer, length, _CALIBRATION_TOKENS)
        yield from calibrated_blocks(checkpoint, precision, tokens, lambda share: progress("calibrate", share))
        return
    names = [name for name, _ in model.matrices()]
    for index, name in enumerate(names):
        progress("quantise", index / len(names))
        for block in matrix_blocks(name, checkpoint.matrix(name), precision[name]):
            yield name, block


def _calibration_text(given: Path | bool) -> str:
    """The text in the file given, or the one that comes with the compiler."""
    if not isinstance(given, Path):
        return calibration_text()
    try:
        with given.open("rb") as file:
            return file.read(_CALIBRATION_BYTES).decode("utf-8", errors="replace")
    except OSError as problem:
        raise SettingsError("the calibration text cannot be read", where=given, got=problem.strerror) from problem


def _graphs(model: ModelSpec, stages: tuple[int, ...]) -> tuple[GraphRecord, ...]:
    """The whole graph, and a front and a back at each of `stages`."""
    graphs = [GraphRecord("model.onnx", 0, model.layers)]
    for layer in stages:
        if not 0 < layer < model.layers:
            raise SettingsError("a stage boundary is out of range", got=layer, wanted=f"1 to {model.layers - 1}")
        graphs.append(GraphRecord(f"front-{layer}.onnx", 0, layer))
        graphs.append(GraphRecord(f"back-{layer}.onnx", layer, model.layers))
    return tuple(graphs)


def _compare(
    package_path: Path, checkpoint: Checkpoint, tokenizer: Tokenizer, count: int, progress: Progress
) -> Quality | None:
    """Reopen what was written and compare it with the checkpoint in float32.

    None for a count of 0, and on a machine that can hold the package while it is written but not run it.
    """
    if count == 0:
        return None
    progress("compare", 0.0)
    with Package.open(package_path) as package:
        count = min(count, package.manifest.max_context)
        tokens = np.array(tokenizer.encode_text(fixed_text())[:count], dtype=np.int32)
        try:
            engine = open_engine(package, "onnx", capacity=len(tokens))
        except BudgetError as error:
            progress(f"not compared: {error.what}", 1.0)
            return None
        try:
            result = compare(engine, checkpoint, tokens, lambda share: progress("compare", share))
        finally:
            engine.close()
    if max(result.perplexity, result.reference_perplexity) > _MOST_PERPLEXITY:
        raise NumericError(
            "the model's answers are no text: its weights or their compression are unsound",
            where=checkpoint.origin.source,
            got=f"perplexity {result.perplexity:g}, reference {result.reference_perplexity:g}",
            do="check the source weights for outliers, or compile with --weights fp32",
        )
    return Quality(text="fixed_text.txt of the compiler", **asdict(result))
