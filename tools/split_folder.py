"""Where this user's keys and paired peers lie."""

from __future__ import annotations

import os
from pathlib import Path

from edgemem.tools.source import expanded


def split_folder() -> Path:
    """$XDG_CONFIG_HOME/edgemem/split, else ~/.config/edgemem/split; SettingsError where ~ is not known."""
    shared = os.environ.get("XDG_CONFIG_HOME")
    config = Path(shared) if shared and Path(shared).is_absolute() else expanded("~/.config")
    return config / "edgemem" / "split"
