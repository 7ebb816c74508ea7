"""Capture: the camera sleeps until the microphone hears hands at work.

audio source -> windows -> ear -> head -> trigger -> camera -> event log -> whoever asked, each behind its own seam.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemem.runtime.capture.capture import Capture
    from edgemem.runtime.capture.event import Event
    from edgemem.runtime.capture.notes import SessionNotes
    from edgemem.runtime.capture.settings import CaptureSettings
    from edgemem.runtime.capture.trigger import TriggerSettings

_HOME = {
    "Capture": "capture",
    "CaptureSettings": "settings",
    "Event": "event",
    "SessionNotes": "notes",
    "TriggerSettings": "trigger",
}

__all__ = ["Capture", "CaptureSettings", "Event", "SessionNotes", "TriggerSettings"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgemem.runtime.capture' has no attribute {name!r}")
    return getattr(import_module(f"edgemem.runtime.capture.{_HOME[name]}"), name)
