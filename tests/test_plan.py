"""PrecisionPlan: the default rule, the options, group fallback, and the plan file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import tiny_folder

from edgemem.compiler.checkpoint import open_checkpoint
from edgemem.compiler.plan import INT4_HAS_MINIMUM, PrecisionPlan, read_plan_file
from edgemem.kernels.formats import Precision
from edgemem.runtime.errors import SettingsError
from edgemem.runtime.model import ModelSpec

parse = Precision.parse
INT4 = Precision("int4", 32, INT4_HAS_MINIMUM)
DOWN = "layers.1.down"


@pytest.fixture
def untied(tmp_path: Path) -> ModelSpec:
    with open_checkpoint(tiny_folder(tmp_path, "llama", tied=False)) as checkpoint:
        return checkpoint.model


@pytest.fixture
def tied(tmp_path: Path) -> ModelSpec:
    with open_checkpoint(tiny_folder(tmp_path, "llama", tied=True)) as checkpoint:
        return checkpoint.model


def test_without_options_quantised_matrices_stay_and_floats_are_rounded() -> None:
    plan = PrecisionPlan()
    for text in ("int4-g32", "int4-g32-min", "int8-g32", "int4-g64"):
        assert plan.precision(DOWN, 128, parse(text)) == parse(text)
        assert plan.precision("head", 128, parse(text)) == parse(text)
    for text in ("fp16", "bf16", "fp32"):
        assert plan.precision(DOWN, 128, parse(text)) == INT4
        assert plan.precision("embedding", 128, parse(text)) == parse("int8-g32")
    assert plan.precision(DOWN, 128, None) == parse("int8-g32")  # such as Q6_K


@pytest.mark.parametrize(
    ("group", "columns", "wanted"),
    [(128, 1536, 128), (128, 576, 64), (128, 96, 32), (64, 576, 64), (64, 96, 32), (32, 96, 32)],
)
def test_a_group_that_does_not_divide_becomes_the_widest_that_does(group: int, columns: int, wanted: int) -> None:
    assert PrecisionPlan(weights="int8", group=group).precision(DOWN, columns, parse("fp32")) == Precision(
        "int8", wanted
    )


def test_rows_that_no_group_divides_stay_half_precision() -> None:
    assert PrecisionPlan(weights="int4").precision(DOWN, 48, parse("fp32")) == parse("fp16")


@pytest.mark.parametrize("kind", ["int8", "fp16", "fp32"])
def test_weights_rule_every_matrix(kind: str) -> None:
    plan = PrecisionPlan(weights=kind)  # type: ignore[arg-type]
    for name in ("embedding", "head", DOWN):
        assert plan.precision(name, 64, parse("bf16")).kind == kind


def test_int4_leaves_embedding_and_head_at_eight_bits_unless_told() -> None:
    assert PrecisionPlan(weights="int4").precision("head", 64, parse("fp32")) == parse("int8-g32")
    assert PrecisionPlan(weights="int4", head="int4").precision("head", 64, parse("fp32")) == INT4
    assert PrecisionPlan(weights="int4", head="fp16").precision("embedding", 64, parse("fp32")) == parse("fp16")
    assert PrecisionPlan(head="fp16").precision(DOWN, 64, parse("fp32")) == INT4


def test_what_is_stored_as_asked_is_not_rounded_again() -> None:
    plan = PrecisionPlan(weights="int4")
    for text in ("int4-g32", "int4-g32-min"):
        assert plan.precision(DOWN, 64, parse(text)) == parse(text)
    assert plan.precision(DOWN, 64, parse("int4-g64")) == INT4
    assert plan.precision(DOWN, 64, parse("int8-g32")) == INT4


def test_front_and_back_part_at_one_layer() -> None:
    plan = PrecisionPlan(front_layers=2, front_weights="int4", back_weights="int8")
    kinds = [plan.precision(f"layers.{layer}.up", 64, parse("fp32")).kind for layer in range(4)]
    assert kinds == ["int4", "int4", "int8", "int8"]
    half = PrecisionPlan(weights="fp16", front_layers=2, front_weights="int4")
    assert [half.precision(f"layers.{layer}.up", 64, None).kind for layer in (1, 2)] == ["int4", "fp16"]
    assert half.precision("head", 64, None) == parse("fp16")


@pytest.mark.parametrize(
    "options",
    [
        {"group": 16},
        {"group": True},
        {"weights": "int2"},
        {"head": "int4-g32"},
        {"front_weights": "int4"},
        {"back_weights": "int8"},
        {"front_layers": 0},
        {"front_layers": 1},
        {"front_layers": True},
    ],
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        PrecisionPlan(**options)  # type: ignore[arg-type]


def test_the_table_names_every_matrix(tmp_path: Path) -> None:
    with open_checkpoint(tiny_folder(tmp_path, "llama", tied=False)) as checkpoint:
        exact = {DOWN: parse("fp16")}
        table = PrecisionPlan(exact=exact).table(checkpoint)
        assert list(table) == [name for name, _ in checkpoint.model.matrices()]
        assert table[DOWN] == parse("fp16")
        assert table["layers.0.down"] == INT4
        with pytest.raises(SettingsError, match="no layer behind"):
            PrecisionPlan(front_layers=3, front_weights="int8").table(checkpoint)
        with pytest.raises(SettingsError, match=r"layers\.9\.down"):
            PrecisionPlan(exact={"layers.9.down": parse("fp16")}).table(checkpoint)


def write_plan(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_last_matching_line_of_a_plan_file_wins(tmp_path: Path, untied: ModelSpec) -> None:
    path = write_plan(
        tmp_path, "layers.*.*: int4-g32\nlayers.0-1.down: int8-g32\nlayers.1.*: fp16  # a comment\nhead: bf16\n"
    )
    exact = read_plan_file(path, untied)
    assert exact["layers.0.down"] == parse("int8-g32")
    assert exact["layers.1.down"] == parse("fp16")
    assert exact["layers.2.down"] == parse("int4-g32")
    assert exact["head"] == parse("bf16")
    assert "embedding" not in exact


def test_a_tied_head_is_the_embedding(tmp_path: Path, tied: ModelSpec) -> None:
    assert read_plan_file(write_plan(tmp_path, "head: int8-g64"), tied) == {"embedding": parse("int8-g64")}


@pytest.mark.parametrize(
    "line",
    [
        "layers.3.down: int8-g32",
        "layers.0-3.down: int8-g32",
        "layers.2-1.down: int8-g32",
        "layers.0.dwon: int8-g32",
        "layers.down: int8-g32",
        "norm: fp16",
        "'*': fp16",
        "layers.0.down: int8",
        "layers.0.down: int5-g32",
        "layers.0.down: 8",
        "layers.0.down: null",
        "layers.0.down: {kind: int8}",
        "layers.0.down: int8-g64",  # its rows are 96 wide
        "[layers.0.down, fp16]",
        "head: fp16\nhead: bf16",
        "head: &x fp16",
        "",
    ],
)
def test_bad_plan_files_are_refused(tmp_path: Path, untied: ModelSpec, line: str) -> None:
    with pytest.raises(SettingsError, match="plan"):
        read_plan_file(write_plan(tmp_path, line), untied)


def test_plan_files_that_cannot_be_read_are_refused(tmp_path: Path, untied: ModelSpec) -> None:
    with pytest.raises(SettingsError, match="cannot be used"):
        read_plan_file(tmp_path / "missing.yaml", untied)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe: fp16")
    with pytest.raises(SettingsError, match="cannot be used"):
        read_plan_file(tmp_path / "bytes.yaml", untied)
    with pytest.raises(SettingsError, match="more than"):
        read_plan_file(write_plan(tmp_path, "#" * (1 << 21)), untied)
