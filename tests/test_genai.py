"""The package folder opens in onnxruntime-genai and gives the same greedy tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from runnable_packages import plain_model, rich_model, runnable_package, same_precision

from edgemem.compiler.genai_config import GENAI_FILE, genai_config
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.onnx_engine import OnnxEngine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling

genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai has no wheel for this Python")


@pytest.mark.parametrize(
    ("model", "precision"),
    [(plain_model(), "fp32"), (plain_model(tied_head=True), "int4-g32-min"), (rich_model(), "int8-g32")],
    ids=["float", "int4", "rich"],
)
def test_greedy_tokens_are_the_same(tmp_path: Path, model: ModelSpec, precision: str) -> None:
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, precision))
    prompt = np.random.default_rng(1).integers(3, 97, 23).astype(np.int32)
    with Package.open(path) as package:
        engine = OnnxEngine(package, threads=1)
        engine.extend(prompt)
        wanted = [token.id for token in engine.decode(Sampler(Sampling()), 30)]
    never = next(token for token in range(97) if token not in wanted)
    (path / GENAI_FILE).write_bytes(genai_config(model, 96, {"bos_token_id": 0, "eos_token_id": never}))
    opened = genai.Model(str(path))
    settings = genai.GeneratorParams(opened)
    settings.set_search_options(max_length=23 + 30)
    generator = genai.Generator(opened, settings)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    assert list(generator.get_sequence(0)[23:]) == wanted


def test_token_ids_are_taken_from_the_generation_config() -> None:
    config = json.loads(genai_config(plain_model(), 96, {"bos_token_id": 0, "eos_token_id": [2, 5]}))["model"]
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, [2, 5], 2)
    config = json.loads(genai_config(plain_model(), 96, {"eos_token_id": 2, "pad_token_id": 7}))["model"]
    assert (config["eos_token_id"], config["pad_token_id"]) == (2, 7)
    assert "bos_token_id" not in config
