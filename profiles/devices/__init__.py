"""What datasheets say of devices: peak bandwidth, memory, cache, power. One YAML file a device, and the user's own.

Nothing here is computed: a peak that no datasheet states is None, and then only the measured peak counts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal, cast

from edgemem.profiles.device_file import DeviceFields, parse_device
from edgemem.runtime.errors import FileError, SettingsError, shown

Kind = Literal["gpu", "jetson", "cpu"]

_FILE_LIMIT_BYTES = 64 << 10
# What a driver reports of the nominal size: less for error correction and firmware, a little more by rounding.
_MEMORY_LEAST, _MEMORY_MOST = 0.88, 1.02


@dataclass(frozen=True)
class Device:
    """A part as its datasheet describes it; None where it says nothing, or where we are not certain."""

    name: str
    kind: Kind
    datasheet_bandwidth: float | None  # bytes/s; `note` says which where it depends on the SKU
    memory_bytes: tuple[int, ...]  # the sizes it is sold with
    l2_bytes: int | None
    compute_capability: str | None
    power_w: tuple[int, int] | None  # lowest and highest stated power limit
    source: str
    aliases: tuple[str, ...] = ()  # as NVML or the device tree report it
    note: str | None = None

    def holds(self, memory_bytes: int) -> bool:
        """Whether a reported memory size is one of this part's."""
        return any(_MEMORY_LEAST * size <= memory_bytes <= _MEMORY_MOST * size for size in self.memory_bytes)


@dataclass(frozen=True)
class DeviceTable:
    """Every known device, by name."""

    devices: tuple[Device, ...]

    @classmethod
    def load(cls, extra: Sequence[Path] = ()) -> DeviceTable:
        """The shipped devices and those of `extra`: files, or folders of *.yaml.

        A name is there once. A user's file takes a shipped device's place only if it says `replaces_shipped: true`.
        Raises FileError for a file that cannot be read, or is no device.
        """
        shipped = files("edgemem.profiles.devices")
        known: dict[str, Device] = {}
        for entry in shipped.iterdir():
            if entry.name.endswith(".yaml"):
                _add(known, _device(parse_device(entry.read_bytes(), entry.name)), entry.name)
        built_in = frozenset(known)
        for path in _yaml_files(extra):
            fields = parse_device(_read(path), path)
            if fields.replaces_shipped:
                if fields.name not in built_in:
                    raise FileError(
                        f"there is no shipped device {fields.name} to replace",
                        where=path,
                        do="drop replaces_shipped from the file",
                    )
                built_in -= {fields.name}
                del known[fields.name]
            _add(known, _device(fields), path)
        return cls(tuple(known[name] for name in sorted(known)))

    def named(self, text: str) -> Device:
        """The device with this name or alias. Raises SettingsError, with the nearest names, where there is none."""
        wanted = _plain(text)
        for device in self.devices:
            if wanted == _plain(device.name):
                return device
        found = self.candidates(text, None)
        if len(found) == 1:
            return found[0]
        names = [device.name for device in self.devices]
        near = [device.name for device in found] or difflib.get_close_matches(wanted, names, n=4, cutoff=0.4)
        raise SettingsError(
            f"device {shown(text)} is {'more than one' if found else 'not in the table'}",
            wanted=f"one of {', '.join(near or names)}",
            do="name one of these, or describe yours in a YAML file and give it with --devices",
        )

    def match(self, reported_name: str, memory_bytes: int | None = None) -> Device | None:
        """The one device that reports itself so; None where there is none, or several."""
        found = self.candidates(reported_name, memory_bytes)
        return found[0] if len(found) == 1 else None

    def candidates(self, reported_name: str, memory_bytes: int | None) -> tuple[Device, ...]:
        """Devices with this alias and, where it is known, this memory size. Names match as a whole: a laptop's GPU
        is another part than the desktop's of the same number."""
        wanted = _plain(reported_name)
        named = [device for device in self.devices if any(wanted == _plain(alias) for alias in device.aliases)]
        return tuple(device for device in named if memory_bytes is None or device.holds(memory_bytes))


def _plain(name: str) -> str:
    """For comparing: older drivers leave out the maker, and people write blanks, dashes and capitals as they like."""
    return re.sub(r"[\s_-]+", "-", name.strip().lower()).removeprefix("nvidia-")


def _device(fields: DeviceFields) -> Device:
    return Device(
        name=fields.name,
        kind=cast(Kind, fields.kind),
        datasheet_bandwidth=None if fields.bandwidth_gb_s is None else fields.bandwidth_gb_s * 1e9,
        memory_bytes=tuple(size << 30 for size in fields.memory_gib or ()),
        l2_bytes=None if fields.l2_mib is None else fields.l2_mib << 20,
        compute_capability=fields.compute_capability,
        power_w=fields.power_w,
        source=fields.source,
        aliases=fields.aliases,
        note=fields.note,
    )


def _add(known: dict[str, Device], device: Device, where: object) -> None:
    if device.name in known:
        raise FileError(
            f"device {device.name} is described twice",
            where=where,
            do="choose another name, or, to take a shipped device's place, add `replaces_shipped: true`",
        )
    known[device.name] = device


def _yaml_files(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        if path.is_dir():
            found = sorted(path.glob("*.yaml"))
            if not found:
                raise FileError("the folder holds no device files", where=path, wanted="files named *.yaml")
            yield from found
        else:
            yield path


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_LIMIT_BYTES + 1)
    except OSError as problem:
        raise FileError("cannot read a device file", where=path, got=problem.strerror or problem) from problem
    if len(data) > _FILE_LIMIT_BYTES:
        raise FileError("too long for a device file", where=path, wanted=f"at most {_FILE_LIMIT_BYTES} bytes")
    return data
