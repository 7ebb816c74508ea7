"""Measures the codec at one split: calibrates it on some text, then walks its parts' settings over other windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

from edgemem.split.calibration import DELTAS, OUTLIER_SHARES, calibrate, measure, outlier_threshold
from edgemem.split.codec import Codec, CodecSettings
from edgemem.tools.split_codec_record import BITS, BOTH, BYTES, FLOATS, SPLITTING, Point, SplitCurve
from edgemem.tools.split_states import SplitDivergence, States

_DELTAS = tuple(DELTAS[place] for place in (2, 4, 6, 7, 8, 9, 10, 12, 14))  # densest around the usual limit
_TIMED = 100


class CodecBench:
    """calibration, held_out: states at the split, of different windows, with what measures their KL."""

    def __init__(
        self,
        calibration: tuple[States, SplitDivergence],
        held_out: tuple[States, SplitDivergence],
        limit: float,
        clock: Callable[[], float],
    ) -> None:
        """limit: of KL, nats a token. clock: seconds."""
        self._calibration, self._limit, self._clock = calibration, limit, clock
        self._states, self._divergence = held_out
        self._hidden = self._states[0].shape[1]

    def curve(self, split: int, progress: Callable[[float], None]) -> SplitCurve:
        """Raises what calibrate does."""
        best = calibrate(*self._calibration, self._limit, lambda share: progress(share / 2)).best.settings
        tau = best.tau if math.isfinite(best.tau) else self._threshold(OUTLIER_SHARES[1])
        settings = list(_settings(tau, [self._threshold(share) for share in OUTLIER_SHARES]))
        points = []
        for done, (part, one) in enumerate(settings):
            progress(0.5 + done / len(settings) / 2)
            points.append(self._point(part, one))
        encode_ms, decode_ms = self._times_ms(Codec(best, self._hidden))
        return SplitCurve(split, 2 * self._hidden, self._point("calibrated", best), encode_ms, decode_ms, tuple(points))

    def _threshold(self, share: float) -> float:
        return outlier_threshold(self._calibration[0], share)

    def _point(self, part: str, settings: CodecSettings) -> Point:
        found = measure(settings, self._states, self._divergence)
        adaptive, packed = settings.mode == "adaptive", found.token_bytes
        if adaptive:
            packed = self._token_bytes(Codec(replace(settings, rans=False), self._hidden))
        return Point(
            part=part,
            tau=settings.tau if adaptive and math.isfinite(settings.tau) else None,
            delta=settings.delta if adaptive and settings.delta else None,
            kl=found.kl,
            kl_error=found.kl_error,
            error=found.error,
            outliers=found.outliers,
            packed_bytes=packed,
            rans_bytes=found.token_bytes if adaptive else None,
        )

    def _token_bytes(self, codec: Codec) -> float:
        return sum(len(codec.encode(window)) for window in self._states) / sum(map(len, self._states))

    def _times_ms(self, codec: Codec) -> tuple[float, float]:
        """Medians for payloads of one token."""
        encoding, decoding = [], []
        for row in self._states[0][:_TIMED]:
            start = self._clock()
            payload = codec.encode(row[None])
            middle = self._clock()
            codec.decode(payload, 1)
            encoding.append(1e3 * (middle - start))
            decoding.append(1e3 * (self._clock() - middle))
        return median(encoding), median(decoding)


def _settings(tau: float, taus: list[float]) -> Iterator[tuple[str, CodecSettings]]:
    yield FLOATS, CodecSettings("fp32")
    yield BYTES, CodecSettings("int8")
    for one in taus:
        yield SPLITTING, CodecSettings("adaptive", one, delta=0)
    for delta in _DELTAS:
        yield BITS, CodecSettings("adaptive", math.inf, delta)
        yield BOTH, CodecSettings("adaptive", tau, delta)
