"""The cost model against byte counts worked out elsewhere, and against plain sums.

The published table's conventions: bf16 everywhere or int4 g128 symmetric (4.125 bits a weight) with the head in bf16,
int8 or int4; its int8 head has a scale a group of 64 (8.25 bits); norms count as two bytes, ours as four, which is
below its last digit. GB are 10**9 bytes. An untied embedding streams one row, a tied one the whole matrix, once.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem.kernels.cost import kv_slot_bytes, step_cost
from edgemem.kernels.formats import Precision
from edgemem.profiles.shapes import SHAPES
from edgemem.runtime.model import ModelSpec, Rope

INT4 = Precision("int4", 128)
BF16 = Precision("bf16")


def model_of(
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    vocabulary: int,
    tied: bool,
    bias: bool = False,
    windows: tuple[int, ...] | None = None,
) -> ModelSpec:
    return ModelSpec(
        architecture="llama",
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        trained_context=4096,
        norm_epsilon=1e-5,
        activation="silu",
        tied_head=tied,
        ropes=(Rope((1.0,)),),
        layer_ropes=(0,) * layers,
        windows=windows or (0,) * layers,
        attention_scale=0.1,
        qkv_bias=bias,
    )


QWEN_7B = SHAPES["qwen2.5-7b"]
QWEN_1_5B = SHAPES["qwen2.5-1.5b"]
QWEN_0_5B = SHAPES["qwen2.5-0.5b"]
SMOLLM_135M = SHAPES["smollm2-135m"]
LLAMA_1B = SHAPES["llama-3.2-1b"]
LLAMA_8B = SHAPES["llama-3.1-8b"]


@pytest.mark.parametrize(
    ("model", "parameters", "gigabytes", "kv_slot"),
    [
        (QWEN_7B, 7.616e9, 14.14, 57_344),
        (QWEN_1_5B, 1.544e9, 3.087, 28_672),
        (QWEN_0_5B, 0.494e9, 0.988, 12_288),
        (SMOLLM_135M, 0.1345e9, 0.269, 23_040),
        (LLAMA_1B, 1.236e9, 2.472, 32_768),
        (LLAMA_8B, 8.030e9, 15.01, 131_072),
    ],
    ids=["qwen-7b", "qwen-1.5b", "qwen-0.5b", "smollm-135m", "llama-1b", "llama-8b"],
)
def test_bf16_figures(model: ModelSpec, parameters: float, gigabytes: float, kv_slot: int) -> None:
    cost = step_cost(model, lambda name: BF16, 0, kv_element_bytes=2)
    assert cost.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=5e-4)
    assert cost.footprint_bytes / 2 == pytest.approx(parameters, rel=5e-4)
    assert kv_slot_bytes(model, 2) == kv_slot


@pytest.mark.parametrize(
    ("model", "head", "gigabytes"),
    [
        (QWEN_7B, BF16, 4.455),
        (QWEN_7B, Precision("int8", 64), 3.927),
        (QWEN_7B, INT4, 3.646),
        (QWEN_1_5B, BF16, 1.143),
        (QWEN_1_5B, Precision("int8", 64), 0.917),
        (QWEN_1_5B, INT4, 0.796),
        (QWEN_0_5B, BF16, 0.457),
        (QWEN_0_5B, Precision("int8", 64), 0.325),
        (QWEN_0_5B, INT4, 0.255),
        (LLAMA_1B, BF16, 1.027),
        (LLAMA_1B, Precision("int8", 64), 0.773),
        (LLAMA_1B, INT4, 0.637),
        (LLAMA_8B, BF16, 4.650),
        (LLAMA_8B, Precision("int8", 64), 4.141),
        (LLAMA_8B, INT4, 3.870),
    ],
)
def test_int4_figures(model: ModelSpec, head: Precision, gigabytes: float) -> None:
    cost = step_cost(model, lambda name: head if name in ("embedding", "head") else INT4, 0, kv_element_bytes=2)
    # The table leaves out norms and biases, which are float32 here: up to 0.6 MB.
    assert cost.weight_bytes / 1e9 == pytest.approx(gigabytes, abs=1.2e-3)


def test_the_whole_file_overstates_an_untied_model() -> None:
    cost = step_cost(QWEN_7B, lambda name: BF16, 0, kv_element_bytes=2)
    assert cost.footprint_bytes / cost.weight_bytes == pytest.approx(1.077, abs=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_phases_are_the_products_that_wait_for_one_another(tied: bool) -> None:
    model = model_of(3, 64, 96, 4, 2, 16, 320, tied=tied, bias=True)
    cost = step_cost(model, lambda name: BF16, 5, kv_element_bytes=2)
    assert cost.phases == 3 * len(("query key value", "attention", "output", "gate up", "down")) + len(("head",))
    parts = [step_cost(model, lambda name: BF16, 5, kv_element_bytes=2, layers=span) for span in ((0, 2), (2, 3))]
    assert [part.phases for part in parts] == [10, 6]


def test_scales_beside_keys_and_values_are_counted() -> None:
    model = model_of(2, 64, 96, 4, 2, 16, 320, tied=True)
    assert kv_slot_bytes(model, 1, scale_bytes=4) == 2 * 2 * 2 * (16 + 4)
    cost = step_cost(model, lambda name: BF16, 10, kv_element_bytes=1, kv_scale_bytes=4)
    assert (cost.kv_read_bytes, cost.kv_write_bytes) == (10 * 160, 160)


@pytest.mark.parametrize(("slots", "seen"), [(0, 0), (6, 6), (7, 7), (8, 7), (100, 7)])
def test_a_window_bounds_what_is_read(slots: int, seen: int) -> None:
    model = model_of(2, 64, 96, 4, 2, 16, 320, tied=True, windows=(8, 0))
    ops = {op.name: op for op in step_cost(model, lambda name: BF16, slots, kv_element_bytes=4).ops}
    slot = 2 * 2 * 16 * 4
    assert ops["layers.0.attention"].kv_read_bytes == seen * slot
    assert ops["layers.1.attention"].kv_read_bytes == slots * slot
    assert ops["layers.0.attention"].kv_write_bytes == slot
    assert ops["layers.0.attention"].operations == 2 * 4 * 16 * (seen + 1)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.booleans(), st.integers(0, 100), st.data())
def test_a_split_costs_what_the_whole_costs(layers: int, tied: bool, slots: int, data: st.DataObject) -> None:
    model = model_of(layers, 64, 96, 4, 2, 16, 320, tied=tied, bias=True)
    whole = step_cost(model, lambda name: INT4 if "down" in name else BF16, slots, kv_element_bytes=2)
    if layers == 1:
        return
    cut = data.draw(st.integers(1, layers - 1))
    parts = [
        step_cost(model, lambda name: INT4 if "down" in name else BF16, slots, kv_element_bytes=2, layers=span)
        for span in ((0, cut), (cut, layers))
    ]
    for name in ("weight_bytes", "kv_read_bytes", "kv_write_bytes", "operations", "streamed_bytes"):
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name)
    twice = BF16.bytes_for(320, 64) if tied else 0  # both sides of a split hold a tied embedding
    assert sum(part.footprint_bytes for part in parts) == whole.footprint_bytes + twice


def test_operations_are_the_weights_multiplied() -> None:
    model = model_of(1, 64, 96, 4, 2, 16, 320, tied=False)
    cost = step_cost(model, lambda name: BF16, 0, kv_element_bytes=2)
    matrices = sum(rows * columns for name, (rows, columns) in model.matrices() if name != "embedding")
    vectors, attention = 3 * 64, 2 * 4 * 16
    assert cost.operations == matrices + vectors + attention


@pytest.mark.parametrize(("slots", "element", "layers"), [(-1, 2, None), (0, 0, None), (0, 2, (1, 1)), (0, 2, (0, 3))])
def test_impossible_steps_are_refused(slots: int, element: int, layers: tuple[int, int] | None) -> None:
    model = model_of(2, 64, 96, 4, 2, 16, 320, tied=True)
    with pytest.raises(ValueError, match="layers"):
        step_cost(model, lambda name: BF16, slots, kv_element_bytes=element, layers=layers)
