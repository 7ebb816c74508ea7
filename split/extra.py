"""The modules that need the extra `split` to be installed, imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from edgemem.runtime.errors import SettingsError


def adapter(name: str) -> ModuleType:
    """edgemem.split.`name`. Raises SettingsError where its library is not installed."""
    try:
        return import_module(f"edgemem.split.{name}")
    except ImportError as problem:
        do = 'pip install "edgemem-runtime[split]"'
        raise SettingsError("a library for split computing is missing", got=problem, do=do) from problem
