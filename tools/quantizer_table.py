"""Measures the quantisers side by side: KL divergence and perplexity of each on one model, as a table.

python -m edgemem.tools.quantizer_table SOURCE [--text FILE] [--groups 32 128] [--forms symmetric minimum] [--json]

The source is taken as float32 with its channels shuffled: the same function, but a source that is itself quantised no
longer lies on its own grid, which plain rounding would find again without a loss.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.calibrate import calibrated_blocks
from edgemem.compiler.checkpoint import Checkpoint, open_checkpoint
from edgemem.compiler.overlay import Overlay, QuantizedOnRead, WholeMatrix
from edgemem.compiler.plan import PrecisionPlan
from edgemem.compiler.quality import NO_NEXT, Comparison, QualityMeter, calibration_text, fixed_text
from edgemem.compiler.quantize import join_rows
from edgemem.compiler.reference import ReferenceDecoder
from edgemem.compiler.token_sequences import token_sequences
from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.runtime.weights import WeightSource
from edgemem.tools.console import note, print_json, print_table

METHODS = ("round-to-nearest", "scale search", "calibrated")
Tokens = NDArray[np.int32]


class ShuffledMatrix:
    """A matrix with rows and columns in another order, as float32 of no stored form."""

    stored = None

    def __init__(self, values: NDArray[np.float32]) -> None:
        self._values = values
        self.shape = (int(values.shape[0]), int(values.shape[1]))

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        return self._values[start:stop]

    def quantized(self, start: int = 0, stop: int | None = None) -> QuantizedMatrix | None:
        return None


class ShuffledSource:
    """The same function as `source` with hidden, value and intermediate channels in random order, held in memory."""

    def __init__(self, source: WeightSource, seed: int = 0) -> None:
        self.model, self._source = source.model, source
        random = np.random.default_rng(seed)
        model = self.model
        self._hidden = random.permutation(model.hidden)
        self._intermediate = [random.permutation(model.intermediate) for _ in range(model.layers)]
        self._head = random.permutation(model.head_dim)
        self._matrices = {name: ShuffledMatrix(self._shuffled(name)) for name, _ in model.matrices()}

    def matrix(self, name: str) -> ShuffledMatrix:
        return self._matrices[name]

    def vector(self, name: str) -> NDArray[np.float32]:
        values = self._source.vector(name)
        kind = name.rpartition(".")[2]
        if kind == "value_bias":
            return values[self._heads(self.model.kv_heads)]
        return values if kind in ("query_bias", "key_bias", "query_norm", "key_norm") else values[self._hidden]

    def _shuffled(self, name: str) -> NDArray[np.float32]:
        values = self._source.matrix(name).rows()
        _, layer, kind = f"..{name}".rsplit(".", 2)
        if kind == "output":
            return values[self._hidden][:, self._heads(self.model.heads)]
        if kind == "down":
            return values[self._hidden][:, self._intermediate[int(layer)]]
        if kind == "value":
            values = values[self._heads(self.model.kv_heads)]
        elif kind in ("gate", "up"):
            values = values[self._intermediate[int(layer)]]
        return values[:, self._hidden]

    def _heads(self, heads: int) -> NDArray[np.intp]:
        return (np.arange(heads)[:, None] * self.model.head_dim + self._head).ravel()


def choose_precisions(model: ModelSpec, group: int, minimum: bool, head: Precision) -> dict[str, Precision]:
    """int4 for the layers, `head` for embedding and head; narrower groups where `group` does not divide."""
    fitting = PrecisionPlan(weights="int4", group=group)
    table = {}
    for name, (_, columns) in model.matrices():
        table[name] = head
        if name.startswith("layers."):
            fitted = fitting.precision(name, columns, None)
            table[name] = Precision("int4", fitted.group, minimum) if fitted.quantized else fitted
    return table


def quantized_source(
    source: WeightSource, precision: Mapping[str, Precision], method: str, calibration: Tokens
) -> WeightSource:
    """The source with its matrices in `precision` by `method`, held in memory as they would be stored."""
    overlay = Overlay(source)
    if method == "calibrated":
        parts: dict[str, list[QuantizedMatrix]] = {}
        for name, block in calibrated_blocks(source, precision, calibration):
            if isinstance(block, QuantizedMatrix):
                parts.setdefault(name, []).append(block)
        whole = {name: join_rows(blocks) for name, blocks in parts.items()}
    else:
        search = method == "scale search"
        pairs = ((name, QuantizedOnRead(source.matrix(name), kind, search=search)) for name, kind in precision.items())
        whole = {name: values for name, matrix in pairs if (values := matrix.quantized()) is not None}
    for name, values in whole.items():
        overlay.put(name, WholeMatrix(values))
    return overlay


def compare(
    reference: WeightSource, hidden: NDArray[np.float32], candidate: WeightSource, tokens: Tokens
) -> Comparison:
    """The candidate against the reference, whose hidden states for `tokens` (sequences, n) are given."""
    following = np.concatenate([tokens[:, 1:], np.full((len(tokens), 1), NO_NEXT)], axis=1).ravel()
    head = ReferenceDecoder(reference)
    meter = QualityMeter()
    start = 0
    states = hidden.reshape(-1, reference.model.hidden)
    for logits in ReferenceDecoder(candidate).logit_chunks(tokens):
        stop = start + len(logits)
        meter.update(head.head(states[start:stop]), logits, following[start:stop])
        start = stop
    return meter.result()


def measure(checkpoint: Checkpoint, settings: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One row a quantiser: form, group, method, seconds, and for each text KL, perplexity and top-1 agreement."""
    source = ShuffledSource(checkpoint)
    tokenizer = Tokenizer(checkpoint.tokenizer_files, source.model.vocabulary, where=settings.source)
    texts = {"fixed": fixed_text()}
    if settings.text is not None:
        texts[settings.text.name] = settings.text.read_text(encoding="utf-8")[: 1 << 20]
    samples = {name: token_sequences(text, tokenizer, settings.length, settings.tokens) for name, text in texts.items()}
    calibration = token_sequences(calibration_text(), tokenizer, settings.length, settings.calibration_tokens)
    hidden = {name: ReferenceDecoder(source).hidden(tokens) for name, tokens in samples.items()}
    for form in settings.forms:
        for group in settings.groups:
            precision = choose_precisions(source.model, group, form == "minimum", Precision.parse(settings.head))
            for method in settings.methods:
                began = time.monotonic()
                candidate = quantized_source(source, precision, method, calibration)
                row: dict[str, object] = {"form": form, "group": group, "method": method}
                row["seconds"] = round(time.monotonic() - began, 1)
                for name, tokens in samples.items():
                    row[name] = vars(compare(source, hidden[name], candidate, tokens))
                note(f"{form} g{group} {method}: {row}")
                yield row


def main() -> None:
    parser = argparse.ArgumentParser(prog="quantizer_table", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, help="Hugging Face folder or GGUF file")
    parser.add_argument("--text", type=Path, help="a second text to measure on")
    parser.add_argument("--groups", type=int, nargs="+", default=[32, 128], choices=(32, 64, 128))
    parser.add_argument("--forms", nargs="+", default=["minimum"], choices=("symmetric", "minimum"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--head", default="int8-g32", help="precision of embedding and head")
    parser.add_argument("--tokens", type=int, default=2048, help="most tokens measured of each text")
    parser.add_argument("--calibration-tokens", type=int, default=8192)
    parser.add_argument("--length", type=int, default=512, help="tokens a sequence")
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    with open_checkpoint(settings.source) as checkpoint:
        rows = list(measure(checkpoint, settings))
    if settings.json:
        print_json({"rows": rows})
        return
    texts = [key for key in rows[0] if key not in ("form", "group", "method", "seconds")]
    headers = [
        "form",
        "group",
        "method",
        "s",
        *(f"{text}: {what}" for text in texts for what in ("KL", "ppl", "top-1")),
    ]
    print_table("", headers, [_cells(row, texts) for row in rows])


def _cells(row: Mapping[str, object], texts: list[str]) -> list[object]:
    cells: list[object] = [row["form"], row["group"], row["method"], row["seconds"]]
    for text in texts:
        result = row[text]
        if isinstance(result, dict):
            cells += [f"{result['kl_mean']:.4f}", f"{result['perplexity']:.2f}", f"{result['top1_agreement']:.3f}"]
    return cells


if __name__ == "__main__":
    main()
