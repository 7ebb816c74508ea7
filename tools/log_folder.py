"""Where the event log of `edgemem listen` lies, unless another is given. All that is logged stays there."""

from __future__ import annotations

import os
from pathlib import Path

from edgemem.tools.source import expanded


def default_log_folder() -> Path:
    """$XDG_STATE_HOME/edgemem/listen, else ~/.local/state/edgemem/listen; SettingsError where ~ is not known."""
    shared = os.environ.get("XDG_STATE_HOME")
    state = Path(shared) if shared and Path(shared).is_absolute() else expanded("~/.local/state")
    return state / "edgemem" / "listen"
