"""Inverse frequencies of rotary embeddings from their parameters: default, linear, Llama 3, YaRN and LongRoPE.

All arithmetic is float32, in the order transformers uses, so that angles agree over a long context.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.fields import Fields
from edgemem.runtime.errors import UnsupportedModel
from edgemem.runtime.limits import LIMITS
from edgemem.runtime.model import Rope

SCALINGS = ("default", "linear", "llama3", "yarn", "longrope")
_LARGEST_HEAD = 1 << 16


def build_rope(parameters: Fields, head_dim: int, trained_context: int, max_context: int | None = None) -> Rope:
    """The Rope of one table of parameters (rope_type, rope_theta, partial_rotary_factor, factor, ...).

    `trained_context` is what the configuration claims to reach; `max_context` only chooses LongRoPE's factors.
    Raises UnsupportedModel for another rope_type, CheckpointError for missing or wrong parameters.
    """
    kind = parameters.text("rope_type", parameters.text("type", "default"))
    if kind not in SCALINGS:
        raise UnsupportedModel(
            f"rope scaling {ascii(kind)[:60]} is not supported",
            where=parameters.where,
            wanted=f"one of {', '.join(SCALINGS)}",
        )
    if parameters.has("mrope_section"):
        raise UnsupportedModel("multi-axis rope (mrope_section) is not supported", where=parameters.where)
    dim = _rotated_dimensions(parameters, head_dim)
    # Absurd parameters overflow to 0 or infinity here; ModelSpec refuses such frequencies.
    with np.errstate(all="ignore"):
        periods = _periods(parameters.number("rope_theta", 10_000.0), dim)
        amplitude = 1.0
        if kind == "linear":
            inverse = (np.float32(1) / periods) / np.float32(parameters.number("factor"))
        elif kind == "llama3":
            inverse = _llama3(parameters, np.float32(1) / periods, trained_context)
        elif kind == "yarn":
            inverse, amplitude = _yarn(parameters, periods, trained_context)
        elif kind == "longrope":
            inverse, amplitude = _longrope(parameters, periods, trained_context, max_context)
        else:
            inverse = np.float32(1) / periods
    return Rope(tuple(float(value) for value in inverse), amplitude)


def _rotated_dimensions(parameters: Fields, head_dim: int) -> int:
    partial = parameters.number("partial_rotary_factor", 1.0)
    if partial > 1:
        raise parameters.wrong("partial_rotary_factor", "at most 1")
    dim = int(head_dim * partial)
    if dim % 2 or not 2 <= dim <= min(head_dim, _LARGEST_HEAD):
        raise UnsupportedModel(
            "this number of rotated dimensions is not supported",
            where=parameters.where,
            got=dim,
            wanted=f"an even number from 2 to {min(head_dim, _LARGEST_HEAD)}",
        )
    return dim


def original_context(parameters: Fields, trained_context: int) -> int:
    """The context before scaling, which Llama 3, YaRN and LongRoPE measure from."""
    return parameters.integer("original_max_position_embeddings", trained_context, most=LIMITS.context)


def _periods(base: float, dim: int) -> NDArray[np.float32]:
    # The exponent is rounded to float32 first, as the reference does; the power itself is then correctly rounded.
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (base ** exponents.astype(np.float64)).astype(np.float32)


def _llama3(parameters: Fields, inverse: NDArray[np.float32], trained_context: int) -> NDArray[np.float32]:
    """Long waves divided by the factor, short ones kept, a ramp between (Llama 3.1's scaling)."""
    factor = parameters.number("factor")
    low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
    if high <= low:
        raise parameters.wrong("high_freq_factor", f"more than low_freq_factor, {low}")
    context = original_context(parameters, trained_context)
    wavelengths = np.float32(2 * math.pi) / inverse
    ramp = (np.float32(context) / wavelengths - np.float32(low)) / np.float32(high - low)
    blended = (np.float32(1) - ramp) * inverse / np.float32(factor) + ramp * inverse
    scaled = np.where(wavelengths > np.float32(context / low), inverse / np.float32(factor), blended)
    return np.where(wavelengths < np.float32(context / high), inverse, scaled).astype(np.float32)


def _yarn(parameters: Fields, periods: NDArray[np.float32], trained_context: int) -> tuple[NDArray[np.float32], float]:
    """YaRN (arXiv 2309.00071): interpolate slow pairs, keep fast ones, and warm up attention by the amplitude."""
    dim = 2 * len(periods)
    base = parameters.number("rope_theta", 10_000.0)
    if base <= 1:
        raise parameters.wrong("rope_theta", "more than 1 for YaRN")
    context = original_context(parameters, trained_context)
    factor = parameters.number("factor", trained_context / context)

    def pair_turning(rotations: float) -> float:
        return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = pair_turning(parameters.number("beta_fast", 32.0))
    high = pair_turning(parameters.number("beta_slow", 1.0))
    if not math.isfinite(low) or not math.isfinite(high):
        raise parameters.wrong("beta_fast", "a number of rotations, as 32")
    if parameters.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(width), 0, 1)
    keep = np.float32(1) - ramp
    one = np.float32(1)
    inverse = one / (np.float32(factor) * periods) * (one - keep) + one / periods * keep
    return inverse.astype(np.float32), _yarn_amplitude(parameters, factor)


def _yarn_amplitude(parameters: Fields, factor: float) -> float:
    def warmth(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    weight, weight_all = (
        parameters.number("mscale", 0.0, zero=True),
        parameters.number("mscale_all_dim", 0.0, zero=True),
    )
    inferred = warmth(weight) / warmth(weight_all) if weight and weight_all else warmth(1.0)
    return parameters.number("attention_factor", inferred)


def _longrope(
    parameters: Fields, periods: NDArray[np.float32], trained_context: int, max_context: int | None
) -> tuple[NDArray[np.float32], float]:
    """LongRoPE (arXiv 2402.13753): a factor for every pair, one set for the original context, one for a longer one."""
    context = original_context(parameters, trained_context)
    wanted = context if max_context is None else max_context
    factors = parameters.numbers("short_factor" if wanted <= context else "long_factor", len(periods))
    factor = parameters.number("factor", trained_context / context)
    inferred = 1.0 if factor <= 1 or context == 1 else math.sqrt(1 + math.log(factor) / math.log(context))
    inverse = np.float32(1) / (np.array(factors, dtype=np.float32) * periods)
    return inverse, parameters.number("attention_factor", inferred)
