"""The device side: packages, engines, sessions. Public names are imported lazily, so that import is quick."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemem.runtime.engine import Engine, KVState, Step, Token, Traffic
    from edgemem.runtime.errors import EdgememError
    from edgemem.runtime.model import ModelSpec
    from edgemem.runtime.open import open_engine
    from edgemem.runtime.package import Package
    from edgemem.runtime.retention.recall import RecallSettings
    from edgemem.runtime.retention.settings import RetentionSettings
    from edgemem.runtime.sampling import Sampling
    from edgemem.runtime.session import Chunk, Session

_HOME = {
    "Chunk": "session",
    "EdgememError": "errors",
    "Engine": "engine",
    "KVState": "engine",
    "ModelSpec": "model",
    "Package": "package",
    "RecallSettings": "retention.recall",
    "RetentionSettings": "retention.settings",
    "Sampling": "sampling",
    "Session": "session",
    "Step": "engine",
    "Token": "engine",
    "Traffic": "engine",
    "open_engine": "open",
}

__all__ = [
    "Chunk",
    "EdgememError",
    "Engine",
    "KVState",
    "ModelSpec",
    "Package",
    "RecallSettings",
    "RetentionSettings",
    "Sampling",
    "Session",
    "Step",
    "Token",
    "Traffic",
    "open_engine",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgemem.runtime' has no attribute {name!r}")
    return getattr(import_module(f"edgemem.runtime.{_HOME[name]}"), name)
