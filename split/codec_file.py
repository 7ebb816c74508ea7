"""CodecFile: calibrated codec settings on disk, as YAML that says which package and split they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgemem.runtime.errors import EdgememError, FileError, SettingsError, shown
from edgemem.runtime.strict_yaml import parse_yaml
from edgemem.split.codec import CodecSettings

FORMAT = 1
_FILE_BYTES = 1 << 16
_KEYS = ("format", "package", "model_hash", "split", "codec", "measured")


@dataclass(frozen=True)
class CodecFile:
    """package: its name, for people. split: the first layer behind it. measured: how the settings did, for people."""

    package: str
    model_hash: str
    split: int
    settings: CodecSettings
    measured: Mapping[str, Any]

    def settings_for(self, model_hash: str, split: int) -> CodecSettings:
        """The settings, if they are of this model at this split. Raises SettingsError for another."""
        if (self.model_hash, self.split) != (model_hash, split):
            raise SettingsError(
                "the codec was calibrated for another model or split",
                got=f"{shown(self.package)} ({shown(self.model_hash[:12])}), split {self.split}",
                wanted=f"model {model_hash[:12]}, split {split}",
                do="edgemem split calibrate",
            )
        return self.settings

    def dump(self) -> str:
        plain = {
            "format": FORMAT,
            "package": self.package,
            "model_hash": self.model_hash,
            "split": self.split,
            "codec": self.settings.to_dict(),
            "measured": dict(self.measured),
        }
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def read_codec_file(path: Path) -> CodecFile:
    """Raises FileError for a file that is missing, too long, or none that `dump` wrote."""
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_BYTES + 1)
        if len(raw) > _FILE_BYTES:
            raise ValueError(f"longer than {_FILE_BYTES} bytes")
        return _parsed(parse_yaml(raw.decode()))
    except (OSError, ValueError, EdgememError) as problem:
        got = problem.strerror if isinstance(problem, OSError) else problem
        raise FileError("no calibrated codec", where=path, got=got, do="edgemem split calibrate") from problem


def _parsed(plain: Any) -> CodecFile:
    if not isinstance(plain, dict) or tuple(plain) != _KEYS:
        raise ValueError(f"{shown(plain)} in place of the keys {', '.join(_KEYS)}")
    kinds = {"format": int, "package": str, "model_hash": str, "split": int, "codec": dict, "measured": dict}
    for name, kind in kinds.items():
        if type(plain[name]) is not kind:
            raise ValueError(f"{name} is {shown(plain[name])}, no {kind.__name__}")
    if plain["format"] != FORMAT:
        raise ValueError(f"format {plain['format']}, not {FORMAT}")
    settings = CodecSettings.from_dict(plain["codec"])
    return CodecFile(plain["package"], plain["model_hash"], plain["split"], settings, plain["measured"])
