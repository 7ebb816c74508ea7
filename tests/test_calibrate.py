"""GPTQ against its formula and against plain rounding, on matrices and on a whole tiny model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tiny_models import VOCABULARY, tiny_folder

from edgemem.compiler.calibrate import calibrated_blocks, gptq, inverse_root
from edgemem.compiler.checkpoint import open_checkpoint
from edgemem.compiler.overlay import Overlay, QuantizedOnRead, WholeMatrix
from edgemem.compiler.quality import QualityMeter
from edgemem.compiler.quantize import join_rows, quantize
from edgemem.compiler.reference import ReferenceDecoder
from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.runtime.errors import NumericError
from edgemem.runtime.weights import WeightSource

FORMS = [Precision("int4", group, low) for group in (32, 128) for low in (False, True)] + [Precision("int8", 64)]


def correlated_inputs(tokens: int, columns: int, seed: int = 0) -> np.ndarray:
    """Inputs in which few directions carry most of the energy, as in a decoder."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((columns // 8, columns)).astype(np.float32)
    noise = 0.1 * random.standard_normal((tokens, columns)).astype(np.float32)
    return random.standard_normal((tokens, columns // 8)).astype(np.float32) @ mixing + noise


def gaussian(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(9).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("columns", [32, 64, 65, 300])
def test_the_root_is_an_upper_factor_of_the_damped_inverse(columns: int) -> None:
    inputs = correlated_inputs(500, columns)
    hessian = inputs.T @ inputs
    root = inverse_root(hessian).astype(np.float64)
    damped = hessian.astype(np.float64) * columns / np.trace(hessian) + 0.01 * np.eye(columns)
    assert np.array_equal(root, np.triu(root))
    assert np.allclose(root.T @ root @ damped, np.eye(columns), atol=2e-3)


@pytest.mark.parametrize("precision", FORMS, ids=str)
def test_products_change_less_than_by_rounding_alone(precision: Precision) -> None:
    weights, inputs, others = gaussian(48, 256), correlated_inputs(1000, 256), correlated_inputs(300, 256)
    root = inverse_root(inputs.T @ inputs)
    rounded, chosen = quantize(weights, precision), gptq(weights, root, precision)
    assert chosen.precision == precision
    for sample in (inputs, others):  # the second was not calibrated on, and is of other directions
        assert np.isfinite(sample @ chosen.dequantize().T).all()
    errors = [np.square(inputs @ (weights - matrix.dequantize()).T).sum() for matrix in (rounded, chosen)]
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("precision", FORMS, ids=str)
def test_independent_inputs_leave_nothing_to_make_up_for(precision: Precision) -> None:
    weights = gaussian(16, 128)
    chosen = gptq(weights, inverse_root(np.eye(128, dtype=np.float32)), precision)
    difference = np.abs(chosen.dequantize() - quantize(weights, precision, search=True).dequantize())
    assert np.mean(difference > 1e-6) < 0.01  # but for ties, which float32 may break either way


@pytest.mark.parametrize(
    "inputs",
    [np.zeros((4, 64)), np.ones((4, 64)), np.eye(64)[:3] * 1e-20, np.ones((1, 64)) * 1e15],
    ids=["nothing", "one direction", "tiny", "huge"],
)
def test_inputs_that_say_little_still_give_a_rounding(inputs: np.ndarray) -> None:
    inputs = inputs.astype(np.float32)
    weights = gaussian(8, 64)
    chosen = gptq(weights, inverse_root(inputs.T @ inputs), Precision("int4", 32, True))
    assert np.abs(chosen.dequantize() - weights).max() < 2


def test_inputs_that_are_not_finite_are_refused() -> None:
    inputs = np.full((2, 64), np.nan, dtype=np.float32)
    with pytest.raises(NumericError, match=r"layers\.0\.up"):
        inverse_root(inputs.T @ inputs, "layers.0.up")


def test_weights_that_are_not_finite_are_refused_with_their_place() -> None:
    weights = gaussian(4, 64)
    weights[3, 40] = np.nan
    with pytest.raises(NumericError, match=r"layers\.0\.up .*\n?.*row 3, group 1, column 40"):
        gptq(weights, inverse_root(np.eye(64, dtype=np.float32)), Precision("int4", 32), "layers.0.up")


def collected(source: WeightSource, precision: Mapping[str, Precision], tokens: np.ndarray) -> Overlay:
    parts: dict[str, list[QuantizedMatrix]] = {}
    for name, block in calibrated_blocks(source, precision, tokens):
        assert isinstance(block, QuantizedMatrix)
        parts.setdefault(name, []).append(block)
    overlay = Overlay(source)
    for name, blocks in parts.items():
        matrix = join_rows(blocks)
        assert matrix.precision == precision[name]
        assert matrix.shape == source.matrix(name).shape
        overlay.put(name, WholeMatrix(matrix))
    assert sorted(parts) == sorted(precision)
    return overlay


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3"])
def test_a_calibrated_model_is_nearer_the_reference(tmp_path: Path, family: str) -> None:
    random = np.random.default_rng(0)
    tokens, fresh = random.integers(0, VOCABULARY, (16, 64)), random.integers(0, VOCABULARY, (4, 64))
    with open_checkpoint(tiny_folder(tmp_path, family, tied=False)) as source:
        precision = {name: Precision("int4", 32, True) for name, _ in source.model.matrices()}
        precision |= {name: Precision("int8", 32) for name in ("embedding", "head")}
        plain = Overlay(source)
        for name, kind in precision.items():
            plain.put(name, QuantizedOnRead(source.matrix(name), kind))
        wanted = ReferenceDecoder(source).logits(fresh).reshape(-1, VOCABULARY)
        divergence = []
        for candidate in (plain, collected(source, precision, tokens)):
            meter = QualityMeter()
            got = ReferenceDecoder(candidate).logits(fresh).reshape(wanted.shape)
            meter.update(wanted, got, fresh.ravel())
            divergence.append(meter.result().kl_mean)
    assert divergence[1] < 0.9 * divergence[0]


def test_only_what_must_be_rounded_is(tmp_path: Path) -> None:
    tokens = np.arange(64).reshape(2, 32)
    with open_checkpoint(tiny_folder(tmp_path, "llama", tied=True)) as source:
        stored = quantize(source.matrix("layers.1.up").rows(), Precision("int8", 32))
        overlay = Overlay(source)
        overlay.put("layers.1.up", WholeMatrix(stored))
        precision = {name: Precision("int4", 32) for name, _ in source.model.matrices()}
        precision |= {"layers.1.up": stored.precision, "layers.0.down": Precision("fp16")}
        blocks = dict(calibrated_blocks(overlay, precision, tokens))
        kept, untouched = blocks["layers.1.up"], blocks["layers.0.down"]
        assert isinstance(kept, QuantizedMatrix)
        assert np.array_equal(kept.codes, stored.codes)
        assert np.array_equal(untouched, source.matrix("layers.0.down").rows())
        assert sorted(blocks) == sorted(precision)


def test_later_layers_see_the_losses_of_earlier_ones(tmp_path: Path) -> None:
    tokens = np.arange(128).reshape(2, 64)
    with open_checkpoint(tiny_folder(tmp_path, "llama", tied=True)) as source:
        fine = {name: Precision("int8", 32) for name, _ in source.model.matrices()}
        coarse = fine | {name: Precision("int4", 32) for name in fine if name.startswith("layers.0.")}
        last = [dict(calibrated_blocks(source, table, tokens))["layers.2.up"] for table in (fine, coarse)]
        assert not np.array_equal(last[0].codes, last[1].codes)  # type: ignore[union-attr]
