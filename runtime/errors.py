"""The one tree of exceptions, and how they show a stranger's value.

EdgememError
├── SettingsError        a bad argument or setting
├── ContextError         a prompt or conversation longer than the context
├── BudgetError          more memory than the machine or the limit has; refused before allocating
├── NumericError         NaN or Inf where a number was needed
├── EngineError          an engine that is missing, failed, or was asked for what it cannot do
├── DownloadError        a model that could not be fetched
├── DeviceError          a microphone or camera that is missing, busy, silent or lost
├── LinkError            a paired server that cannot be reached, does not answer in time, or is none
│   └── ProtocolError        what came over the wire breaks the rules; the link is closed
└── FileError            a file that is not what it should be
    ├── CheckpointError      model files in (Hugging Face folder, GGUF)
    │   └── UnsupportedModel     an architecture or tensor type that is not built
    ├── PackageError         a compiled package
    ├── StoreError           a conversation on disk: damaged, of another model, in use, or not to be written
    ├── TokenizerMismatch    a tokenizer that is missing, altered, or of another model
    └── UnsafePathError      a path that leaves its folder, or is no regular file
"""

from __future__ import annotations


class EdgememError(Exception):
    """One clear error: what went wrong, where, what was got and wanted, and what to do next."""

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        wanted: object = None,
        do: str | None = None,
    ) -> None:
        self.what, self.where, self.got, self.wanted, self.do = what, where, got, wanted, do
        lines = [what if where is None else f"{what} ({where})"]
        if got is not None:
            lines.append(f"got: {got}")
        if wanted is not None:
            lines.append(f"wanted: {wanted}")
        if do is not None:
            lines.append(f"do: {do}")
        super().__init__("\n  ".join(lines))


class SettingsError(EdgememError):
    pass


class ContextError(EdgememError):
    pass


class BudgetError(EdgememError):
    pass


class NumericError(EdgememError):
    pass


class EngineError(EdgememError):
    pass


class DownloadError(EdgememError):
    pass


class DeviceError(EdgememError):
    pass


class LinkError(EdgememError):
    pass


class ProtocolError(LinkError):
    pass


class FileError(EdgememError):
    pass


class CheckpointError(FileError):
    pass


class UnsupportedModel(CheckpointError):
    pass


class PackageError(FileError):
    pass


class StoreError(FileError):
    pass


class TokenizerMismatch(FileError):
    pass


class UnsafePathError(FileError):
    pass


def shown(value: object) -> str:
    """For messages: safe to print, and short, as values come from strangers."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
