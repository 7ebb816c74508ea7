"""Both floors against the published table of arXiv 2605.30571, and against plain sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runnable_packages import plain_model, rich_model, same_precision

from edgemem.kernels.cost import Stored
from edgemem.kernels.formats import Precision
from edgemem.profiles.floors import Floors, KvFormat, kv_format, model_floors
from edgemem.profiles.shapes import parameters, shape
from edgemem.runtime.errors import SettingsError

QWEN = shape("qwen2.5-7b")
BF16 = Precision("bf16")
HALVES = KvFormat(2)
CONTEXT = 2048
L4, L40S, A100, H100 = 300e9, 864e9, 2039e9, 3350e9


class FourBits:
    """Stored as ExLlamaV2 does: groups of 128, each with an fp16 scale and a 4-bit zero."""

    def bytes_for(self, rows: int, columns: int) -> int:
        return round(rows * columns * (4 / 8 + 2.5 / 128))


def everywhere(stored: Stored) -> Callable[[str], Stored]:
    return lambda name: stored


def at(bandwidth: float, stored: Callable[[str], Stored]) -> tuple[float, float]:
    """Milliseconds: streamed and footprint floor of the paper's model and context."""
    shown = model_floors(QWEN, stored, CONTEXT, HALVES).milliseconds(bandwidth)
    return shown["streamed_floor_ms"] or 0.0, shown["footprint_floor_ms"] or 0.0


@pytest.mark.parametrize(("bandwidth", "published"), [(L4, 51.16), (L40S, 17.76), (A100, 7.53), (H100, 4.58)])
def test_footprint_floor_is_the_papers(bandwidth: float, published: float) -> None:
    assert at(bandwidth, everywhere(BF16))[1] == pytest.approx(published, abs=0.006)


def test_footprint_is_all_weights_and_the_cache_of_the_context() -> None:
    """The paper counts each of the 7,615,616,512 parameters as two bytes; norms and biases here are float32."""
    vectors = sum(length for _, length in QWEN.vectors())
    held = 2 * parameters(QWEN) + 2 * vectors + CONTEXT * 57_344
    assert model_floors(QWEN, everywhere(BF16), CONTEXT, HALVES).footprint_bytes == held


def test_streamed_floor_leaves_the_untied_embedding_out() -> None:
    streamed, footprint = at(L4, everywhere(BF16))
    assert streamed == pytest.approx(47.5, abs=0.05)
    rows = 2 * (QWEN.vocabulary - 1) * QWEN.hidden  # all of the embedding but one row
    assert footprint - streamed == pytest.approx(1e3 * (rows - 57_344) / L4)


def test_a_published_speed_is_possible_by_one_floor_and_not_by_the_other() -> None:
    """ExLlamaV2 at 17.36 ms a step on an L4."""
    four_bits = FourBits()
    streamed, footprint = at(L4, lambda name: BF16 if name in ("embedding", "head") else four_bits)
    assert streamed == pytest.approx(15.33, abs=0.005)
    assert footprint == pytest.approx(18.96, abs=0.005)
    assert streamed / 17.36 == pytest.approx(0.88, abs=0.005)
    assert footprint / 17.36 == pytest.approx(1.09, abs=0.005)


@given(st.integers(0, 5000), st.booleans(), st.sampled_from([KvFormat(2), KvFormat(1, 4), KvFormat(4)]))
def test_what_is_streamed_is_held_but_for_one_row_and_what_is_written(slots: int, tied: bool, kv: KvFormat) -> None:
    model = plain_model(tied_head=tied)
    stored = same_precision(model, "int4-g32-min", embedding="int8-g32", head="fp16")
    floors = model_floors(model, stored.__getitem__, slots, kv)
    row = stored["embedding"].bytes_for(1, model.hidden)
    slot = model.layers * 2 * model.kv_heads * (model.head_dim * kv.element_bytes + kv.scale_bytes)
    embedding = 0 if tied else stored["embedding"].bytes_for(model.vocabulary, model.hidden)
    assert floors.footprint_bytes - floors.streamed_bytes == embedding - row - slot


def test_a_window_shortens_what_is_streamed_but_not_what_is_held() -> None:
    stored = same_precision(rich_model(), "int8-g32").__getitem__
    some, all_ = (model_floors(rich_model(windows=windows), stored, 50, HALVES) for windows in ((6,) * 4, (0,) * 4))
    assert some.footprint_bytes == all_.footprint_bytes
    slot = 2 * 1 * 32 * 2
    assert all_.streamed_bytes - some.streamed_bytes == 4 * (50 - 5) * slot


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("nan")])
def test_no_floor_without_a_bandwidth(bandwidth: float) -> None:
    with pytest.raises(SettingsError, match="bandwidth"):
        Floors(1e6, 2e6).milliseconds(bandwidth)
    assert set(Floors(1e6, 2e6).milliseconds(None).values()) == {None}


@pytest.mark.parametrize(
    ("engine", "kv", "expected"),
    [
        ("native", None, KvFormat(2)),
        ("native", "int8", KvFormat(1, 4)),
        ("onnx", None, KvFormat(4)),
        ("onnx", "fp32", KvFormat(4)),
    ],
)
def test_engines_keep_keys_and_values(engine: str, kv: str | None, expected: KvFormat) -> None:
    assert kv_format(engine, kv) == expected


@pytest.mark.parametrize("given_", [("native", "fp32"), ("onnx", "int8"), ("abacus", None), ("abacus", "fp16")])
def test_other_engines_and_caches_are_refused(given_: tuple[str, Any]) -> None:
    with pytest.raises(SettingsError, match="native int8"):
        kv_format(*given_)
