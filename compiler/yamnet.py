"""Google's int8 YAMNet from TFLite to ONNX: 16 kHz wave in, 521 scores and the 1024-d embedding out.

    python -m edgemem.compiler.yamnet lite-model_yamnet_classification_tflite_1.tflite -o yamnet.onnx

Takes that one file, known by its hash: tensors are named by their numbers in it. The same file gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

from edgemem.compiler.onnx_graph import FLOAT, OnnxGraph
from edgemem.compiler.quantised_nodes import QuantisedNodes
from edgemem.compiler.tflite_graph import Convolution, TfliteGraph
from edgemem.compiler.yamnet_front_end import BANDS, FRAMES, add_log_mel
from edgemem.runtime.capture.audio import WINDOW_SAMPLES
from edgemem.runtime.capture.yamnet import CLASSES, EMBEDDING
from edgemem.runtime.errors import CheckpointError, EdgememError

SOURCE_SHA256 = "10c95ea3eb9a7bb4cb8bddf6feb023250381008177ac162ce169694d05c317de"
SOURCE_BYTES = 4_126_810

_WINDOW, _MEL, _FLOOR, _FEATURES = 11, 22, 23, 28  # constants of the front end, and the quantised log-mel
_EMBEDDING, _SCORES = 115, 119
_CLASSIFIER = Convolution(input=_EMBEDDING, weights=116, bias=117, output=118)  # of one pixel, 1x1


def convert(source: Path, target: Path) -> None:
    """Write the ONNX form of `source`: input `wave` (15600,), outputs `scores` (521,) and `embedding` (1024,), float32.

    Raises CheckpointError if `source` cannot be read or is another file, EngineError where `tflite` is missing.
    """
    tflite = TfliteGraph(_read(source))
    graph = OnnxGraph({})
    nodes = QuantisedNodes(graph, tflite)
    wave = graph.input("wave", FLOAT, [WINDOW_SAMPLES])
    log_mel = add_log_mel(graph, wave, *(tflite.constant(number) for number in (_WINDOW, _MEL, _FLOOR)))
    value, last = nodes.quantised(log_mel, _FEATURES), _FEATURES
    value = graph.node("Reshape", [value, graph.integers(1, 1, FRAMES, BANDS)])
    for convolution in tflite.convolutions():
        value, last = nodes.convolved(value, convolution), convolution.output
    pooled = graph.node("ReduceMean", [nodes.real(value, last), graph.integers(2, 3)], keepdims=1)
    value = nodes.quantised(pooled, _EMBEDDING)
    nodes.real(graph.node("Reshape", [value, graph.integers(EMBEDDING)]), _EMBEDDING, "embedding")
    logits = graph.node("Reshape", [nodes.convolved(value, _CLASSIFIER), graph.integers(CLASSES)])
    scores = graph.node("Sigmoid", [nodes.real(logits, _CLASSIFIER.output)])
    nodes.real(nodes.quantised(scores, _SCORES), _SCORES, "scores")
    graph.output("scores", FLOAT, [CLASSES])
    graph.output("embedding", FLOAT, [EMBEDDING])
    graph.write(target, producer="edgemem")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m edgemem.compiler.yamnet",
        description="Convert Google's int8 YAMNet, lite-model_yamnet_classification_tflite_1.tflite, to ONNX.",
    )
    parser.add_argument("source", type=Path, metavar="FILE.tflite")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.onnx")
    chosen = parser.parse_args(arguments)
    try:
        convert(chosen.source, chosen.output)
    except (EdgememError, OSError) as problem:
        parser.exit(1, f"{problem}\n")


def _read(source: Path) -> bytes:
    try:
        with source.open("rb") as file:
            content = file.read(SOURCE_BYTES + 1)
    except OSError as problem:
        raise CheckpointError("cannot read the TFLite file", where=source, got=problem) from problem
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != SOURCE_SHA256:
        raise CheckpointError(
            "this is not the TFLite file that the converter knows",
            where=source,
            got=f"sha256 {sha256}" if len(content) <= SOURCE_BYTES else f"more than {SOURCE_BYTES} bytes",
            wanted=f"sha256 {SOURCE_SHA256}",
            do="take Google's lite-model_yamnet_classification_tflite_1.tflite",
        )
    return content


if __name__ == "__main__":
    main()
