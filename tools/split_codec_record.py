"""What was measured of the codec: at each split its calibration, and bytes against KL for each of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgemem.runtime.errors import SettingsError

FORMAT = 1
FLOATS, BYTES = "fp32", "int8"
SPLITTING, BITS, BOTH = "threshold splitting", "adaptive bits", "both"
PARTS = (SPLITTING, BITS, BOTH)


@dataclass(frozen=True)
class Point:
    """One setting on text that was not calibrated on. tau and delta: None where there is none. kl_error: standard
    error of the mean KL, nats. error: mean relative error of a token. outliers: share of all values.
    packed_bytes, rans_bytes: of a token, without and with the entropy coder; None where the mode has none."""

    part: str
    tau: float | None
    delta: float | None
    kl: float
    kl_error: float
    error: float
    outliers: float
    packed_bytes: float
    rans_bytes: float | None


@dataclass(frozen=True)
class SplitCurve:
    """calibrated: the setting that was found on the text before. encode_ms, decode_ms: its median for one token.
    fp16_bytes: 2 for each value."""

    split: int
    fp16_bytes: int
    calibrated: Point
    encode_ms: float
    decode_ms: float
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Record:
    """subject: package and text. conditions: machine, versions, date. limit: of KL, nats a token."""

    format: int
    subject: Mapping[str, str]
    conditions: Mapping[str, str]
    limit: float
    curves: tuple[SplitCurve, ...]

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise SettingsError("a record of another format", got=self.format, wanted=FORMAT)
