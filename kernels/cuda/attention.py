"""Decode attention: one new token against the cache, in one kernel whose grid does not depend on the length.

It norms and turns query and key, writes the new slot, and attends in pieces of the slots, all query heads of a KV head
at once; the piece that ends last puts them together, always in the same order.
"""

from __future__ import annotations

from typing import Any

import torch

from edgemem.kernels.cuda.attention_kernels import attend
from edgemem.kernels.cuda.device_cache import DeviceCache
from edgemem.kernels.cuda.launching import Target, capability, interpreted, launch, processors
from edgemem.kernels.cuda.workspace import Workspace

import triton.language as tl  # isort: skip  # after launching, which sets the environment that triton reads

_TILE_BYTES = 16 << 10  # of keys, and of values, that a program reads at once
_MOST_PIECES = 128
_PROGRAMS_A_PROCESSOR = 2
_WARPS = 4
_STORED = {"fp16": "fp16", "bf16": "bf16", "int8": "i8", "fp8": "fp8e4nv"}  # as Triton names them


def decode_attention(
    qkv: torch.Tensor,
    cache: DeviceCache,
    layer: int,
    position: torch.Tensor,
    out: torch.Tensor,
    *,
    frequencies: torch.Tensor,
    amplitude: float,
    query_norm: torch.Tensor | None = None,
    key_norm: torch.Tensor | None = None,
    epsilon: float,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    workspace: Workspace,
    pdl: bool = False,
) -> None:
    """Write the new token's key and value into slot `position`, and attend to slots 0..position.

    qkv: ((heads + 2 * kv_heads) * head_dim,) float32, queries, keys, values: biases added, neither normed nor turned.
    layer: of the cache, from 0. position: int32 (1,) in device memory, below the capacity, read by the kernel.
    out: (heads * head_dim,) float32. frequencies: (pairs,) float64; the first 2 * pairs of each head are turned.
    query_norm, key_norm: (head_dim,) float32. window: slots seen, the new one among them, 0 for all.
    workspace: see attention_workspace. Raises ValueError for sizes that do not fit.
    """
    kv_heads, head_dim = cache.kv_heads, cache.head_dim
    group = out.numel() // (kv_heads * head_dim)
    if group < 1 or out.numel() != group * kv_heads * head_dim or qkv.numel() != (group + 2) * kv_heads * head_dim:
        raise ValueError(f"{qkv.numel()} and {out.numel()} do not fit {kv_heads} KV heads of {head_dim}")
    if frequencies.dtype != torch.float64 or 2 * frequencies.numel() > head_dim:
        raise ValueError(f"{frequencies.dtype}({frequencies.numel()},) frequencies do not fit heads of {head_dim}")
    if (query_norm is None) != (key_norm is None):
        raise ValueError("both norms are wanted, or none")
    pieces = _pieces(cache.capacity, kv_heads, head_dim)
    if workspace.counters.numel() < kv_heads or workspace.partials.numel() < kv_heads * pieces * group * (head_dim + 2):
        raise ValueError("the workspace is too small for this attention")
    launch(
        attend,
        (pieces, kv_heads),
        qkv,
        cache.keys[layer],
        cache.values[layer],
        cache.key_scales[layer],
        cache.value_scales[layer],
        position,
        out,
        frequencies,
        qkv if query_norm is None else query_norm,
        qkv if key_norm is None else key_norm,
        workspace.partials,
        workspace.counters,
        cache.capacity,
        amplitude,
        epsilon,
        scale,
        **_constants(cache.kind, group, kv_heads, head_dim, frequencies.numel(), pieces),
        NORMED=query_norm is not None,
        WINDOW=window,
        SOFTCAP=softcap,
        pdl=pdl,
        warps=_WARPS,
        stages=_stages(),
    )


def attention_workspace(heads: int, kv_heads: int, head_dim: int, capacity: int) -> Workspace:
    """Large enough for `decode_attention` of these dimensions, any layer."""
    pieces = _pieces(capacity, kv_heads, head_dim)
    return Workspace.of(pieces * heads * (head_dim + 2), kv_heads)


def _pieces(capacity: int, kv_heads: int, head_dim: int) -> int:
    """Programs of each KV head: as many as keep all processors busy, no more than have something to do."""
    slots = _tile_slots(head_dim)
    return max(1, min(-(-capacity // slots), _PROGRAMS_A_PROCESSOR * processors() // kv_heads, _MOST_PIECES))


def _tile_slots(head_dim: int) -> int:
    """Slots that a program reads at once."""
    if interpreted():
        return 16  # so that short contexts already have several pieces and tiles
    return max(16, min(128, _TILE_BYTES // (2 * _power_of_two(head_dim))))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _stages() -> int:
    """Tiles in flight: as many as the shared memory holds."""
    return 3 if capability() in ((8, 0), (8, 7), (9, 0), (10, 0), (10, 3)) else 2


def _math(kind: str) -> Any:
    """What keys and values are multiplied as: a type that holds each exactly."""
    if kind == "bf16":
        return tl.float32 if interpreted() else tl.bfloat16  # the interpreter has no products of bfloat16
    return tl.float16


def _constants(kind: str, group: int, kv_heads: int, head_dim: int, pairs: int, pieces: int) -> dict[str, Any]:
    return {
        "KIND": kind,
        "MATH": _math(kind),
        "GROUP": group,
        "ROWS": max(16, _power_of_two(group)),  # the least that a matrix product takes
        "KV_HEADS": kv_heads,
        "DIM": head_dim,
        "WIDE": max(16, _power_of_two(head_dim)),
        "PAIRS": pairs,
        "SLOTS": _tile_slots(head_dim),
        "PIECES": pieces,
        "PIECES_WIDE": _power_of_two(pieces),
    }


def targets() -> list[Target]:
    """The variants that an engine uses, the first one fit for every GPU."""
    floats = ("qkv", "key_scales", "value_scales", "out", "query_norm", "key_norm", "partials")
    signature = {**dict.fromkeys(floats, "*fp32"), "position": "*i32", "frequencies": "*fp64", "counters": "*i32"}
    signature |= {"capacity": "i32", **dict.fromkeys(("amplitude", "epsilon", "scale"), "fp32")}
    plain = {"NORMED": False, "WINDOW": 0, "SOFTCAP": 0.0}
    rich = {"NORMED": True, "WINDOW": 4096, "SOFTCAP": 50.0}
    made = []
    for kind, group, head_dim, flags in (
        ("fp16", 7, 128, plain),
        ("bf16", 4, 64, rich),
        ("int8", 3, 96, plain),
        ("fp8", 4, 256, rich),
    ):
        types = {**signature, **dict.fromkeys(("keys", "values"), f"*{_STORED[kind]}")}
        constants = {**_constants(kind, group, 4, head_dim, head_dim // 2, 66), **flags}
        made.append(Target(attend, types, constants, _WARPS, stages=3))
    return made
