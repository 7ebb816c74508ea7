"""Fixtures that several test files share: real packages, small and not so small."""

from __future__ import annotations

from pathlib import Path

import interpreted_cuda  # noqa: F401  # before whatever imports triton
import pytest
from hypothesis import settings
from tiny_models import tiny_folder

from edgemem.compiler.build import CompileOptions, compile_model

# The same examples on every run: what fails in one place fails in all. `fuzz/` looks for new ones.
settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: a random Llama of three layers with a real tokenizer and a chat template."""
    return tiny_folder(tmp_path_factory.mktemp("source"), "llama", tied=True, seed=1)


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory: pytest.TempPathFactory, tiny_source: Path) -> Path:
    """`tiny_source` compiled in float32, with front and back graphs at layer 1. Not to be written to."""
    out = tmp_path_factory.mktemp("package") / "tiny.edgemem"
    compile_model(tiny_source, out, CompileOptions(weights="fp32", stages=(1,), check_tokens=0))
    return out


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real SmolLM2-135M file, fetched once into the user's cache."""
    from edgemem.tools.download import pull

    return pull("smollm2-135m")


@pytest.fixture(scope="session")
def smollm2_package(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    """SmolLM2-135M compiled as its file stores it, compared with the float32 reference. Not to be written to."""
    out = tmp_path_factory.mktemp("smollm2") / "smollm2.edgemem"
    compile_model(smollm2_gguf, out, CompileOptions())
    return out
