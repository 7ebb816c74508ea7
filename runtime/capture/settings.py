"""CaptureSettings: all that can be chosen about a Capture, joined."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgemem.runtime.capture.log_settings import LogSettings
from edgemem.runtime.capture.pending_takes import ShutterSettings
from edgemem.runtime.capture.trigger import TriggerSettings
from edgemem.runtime.errors import SettingsError, shown

_LEAST_AUDIO_BYTES = 1 << 20


@dataclass(frozen=True)
class CaptureSettings:
    """Raises SettingsError for a value out of range.

    store_audio: keep a short recording of each opening, as a WAV file beneath the log's folder. Nothing else ever
        stores sound. audio_cap_bytes: of all recordings, beyond which the oldest go; from 1 MiB.
    """

    trigger: TriggerSettings = field(default_factory=TriggerSettings)
    shutter: ShutterSettings = field(default_factory=ShutterSettings)
    log: LogSettings = field(default_factory=LogSettings)
    store_audio: bool = False
    audio_cap_bytes: int = 1 << 27

    def __post_init__(self) -> None:
        if type(self.store_audio) is not bool:
            raise SettingsError("store_audio is out of range", got=shown(self.store_audio), wanted="True or False")
        cap = self.audio_cap_bytes
        if type(cap) is not int or cap < _LEAST_AUDIO_BYTES:
            wanted = f"a whole number from {_LEAST_AUDIO_BYTES}"
            raise SettingsError("audio_cap_bytes is out of range", got=shown(cap), wanted=wanted)
