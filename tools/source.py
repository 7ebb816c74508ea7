"""The names a user may give for a model, and where in the cache each one lives. Touches no network."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgemem.runtime.errors import SettingsError
from edgemem.tools.registry import KNOWN_MODELS, WheelModel

_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_HUB = re.compile(rf"hf:({_PART}/{_PART})(?:@([\w./-]{{1,255}}))?(?::([\w./ -]{{1,255}}\.gguf))?", re.ASCII)
HUB_FORM = "hf:ORG/MODEL, hf:ORG/MODEL@REVISION or hf:ORG/MODEL:FILE.gguf"


@dataclass(frozen=True)
class HubModel:
    """A model of the Hugging Face hub: its safetensors, or one GGUF file of it."""

    repo: str
    revision: str = "main"
    file: str | None = None

    @property
    def name(self) -> str:
        parts = [self.repo.replace("/", "--")]
        if self.revision != "main":
            parts.append(self.revision.replace("/", "-"))
        if self.file is not None:
            parts.append(self.file.removesuffix(".gguf").replace("/", "--"))
        return "--".join(parts)

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf:{self.repo}{revision}{f':{self.file}' if self.file else ''}"


def named_model(text: str) -> WheelModel | HubModel | None:
    """The model that a short or hf: name stands for, None for any other text; SettingsError for a bad hf: name."""
    if text in KNOWN_MODELS:
        return KNOWN_MODELS[text]
    if not text.startswith("hf:"):
        return None
    match = _HUB.fullmatch(text)
    if match is None or ".." in text:
        raise SettingsError("this is no name of a hub model", got=repr(text), wanted=HUB_FORM)
    return HubModel(match[1], match[2] or "main", match[3])


def is_path(text: str) -> bool:
    """Whether a text that is no model's name can only be a path."""
    return os.sep in text or text.startswith("~") or text in (os.curdir, os.pardir)


def expanded(text: str) -> Path:
    """The path, `~` being the user's home; SettingsError where that home is not known."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise SettingsError(
            "the home folder is not known", got=repr(text), do="give a path without ~, or set HOME or EDGEMEM_CACHE"
        ) from error


def cache_folder() -> Path:
    """$EDGEMEM_CACHE, else $XDG_CACHE_HOME/edgemem, else ~/.cache/edgemem; SettingsError where ~ is not known."""
    if own := os.environ.get("EDGEMEM_CACHE"):
        return expanded(own).absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared and Path(shared).is_absolute() else expanded("~/.cache")) / "edgemem"


def package_in_cache(text: str) -> Path:
    """Where `edgemem compile TEXT` writes when it is given no -o: by the model's name, or the file's."""
    model = named_model(text)
    name = model.name if model is not None else _model_name(os.path.abspath(os.path.expanduser(text)))
    return cache_folder() / "packages" / f"{name}.edgemem"


def _model_name(path: str) -> str:
    """The last part without `.gguf`; any other dot belongs to the name, as in Qwen3-0.6B."""
    return Path(path).name.removesuffix(".gguf")


def locate_package(text: str) -> Path:
    """The compiled package that -m names: a known model's in the cache, a path, or the name of another in the cache.

    Raises SettingsError saying what to compile or what there is.
    """
    named = named_model(text) is not None
    if not named:
        path = expanded(text)
        if os.path.isdir(path) and os.path.exists(path / "manifest.yaml"):
            return path
        if os.path.exists(path):
            raise SettingsError("this is no compiled package", where=path, do=f"edgemem compile {text} -o NAME.edgemem")
    cached = package_in_cache(text)
    if os.path.isdir(cached) and (named or not is_path(text)):
        return cached
    if named:
        raise SettingsError(f"{text} is not compiled yet", wanted=cached, do=f"edgemem compile {text}")
    compiled = sorted(entry.stem for entry in cached.parent.glob("*.edgemem"))
    raise SettingsError(
        "there is no such package",
        got=repr(text),
        wanted=f"a folder, or a compiled model: {', '.join(compiled) or 'none yet'}",
        do="edgemem compile SOURCE -o NAME.edgemem, then give its path",
    )
