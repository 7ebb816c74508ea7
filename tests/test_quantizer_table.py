"""The quantisers' table: its source is the same function, and its rows hold what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import FAMILIES, VOCABULARY, tiny_folder

from edgemem.compiler.checkpoint import open_checkpoint
from edgemem.compiler.reference import ReferenceDecoder
from edgemem.tools.quantizer_table import ShuffledSource, main


@pytest.mark.parametrize("family", FAMILIES)
def test_shuffled_channels_are_the_same_function(tmp_path: Path, family: str) -> None:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 20)
    with open_checkpoint(tiny_folder(tmp_path, family, tied=False)) as checkpoint:
        shuffled = ShuffledSource(checkpoint)
        for name in ("layers.1.down", "layers.1.output", "layers.1.query", "head"):
            assert not np.array_equal(shuffled.matrix(name).rows(), checkpoint.matrix(name).rows())
        wanted, got = ReferenceDecoder(checkpoint).logits(tokens), ReferenceDecoder(shuffled).logits(tokens)
    assert np.abs(wanted - got).max() < 1e-4 * np.abs(wanted).max()


def test_the_table_has_a_row_a_quantiser(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(tmp_path, "llama", tied=True)
    options = [
        "--groups",
        "32",
        "--forms",
        "minimum",
        "--tokens",
        "256",
        "--length",
        "64",
        "--calibration-tokens",
        "256",
    ]
    monkeypatch.setattr("sys.argv", ["quantizer_table", str(folder), *options, "--json"])
    main()
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["method"] for row in rows] == ["round-to-nearest", "scale search", "calibrated"]
    assert all(row["fixed"]["tokens"] == 256 for row in rows)
    assert all(0 < row["fixed"]["kl_mean"] < 1 for row in rows)
