"""Any description of a decoder is refused by the native kernels or runs: sizes, types, groups, ranges, tokens, slots.

The input is JSON; arrays are made of the lengths it says. Run it over a sanitized build to see what a check missed:
`make native-sanitize`.
"""

from __future__ import annotations

import json
from typing import Any

import driver
import numpy as np

from edgemem.kernels.native import native

_native: Any = native()
_REFUSED = (ValueError, TypeError, KeyError, OverflowError, MemoryError, AttributeError, IndexError)
_MOST_BYTES = 1 << 20


def _table(kind: int, group: int, minimum: bool, rows: int, columns: int) -> list[int]:
    bits = (4, 8, 16, 16, 32)[kind]
    halves = 2 * rows * columns // group if group else 0
    return [kind, rows, columns, group, rows * columns * bits // 8, halves, halves if minimum else 0]


def _plan(kind: int, group: int, minimum: bool, **shape: Any) -> bytes:
    hidden, wide, heads, kv_heads, dim, vocabulary = 32, 64, 2, 1, 16, 40
    sizes = {"hidden": hidden, "intermediate": wide, "heads": heads, "kv_heads": kv_heads, "head_dim": dim}
    rows = {"query": (32, 32), "key": (16, 32), "value": (16, 32), "output": (32, 32), "gate": (64, 32)}
    rows |= {"up": (64, 32), "down": (32, 64), "embedding": (40, 32), "head": (40, 32)}
    return json.dumps(
        {
            "shape": {**sizes, "vocabulary": vocabulary, "norm_epsilon": 1e-5, "attention_scale": 0.25, **shape},
            "matrices": {name: _table(kind, group, minimum, *shape) for name, shape in rows.items()},
            "vectors": {"attention_norm": hidden, "mlp_norm": hidden, "query_bias": 32, "query_norm": dim},
            "norm": hidden,
            "ropes": [[[1.0, 0.5, 0.1], 1.0]],
            "rope": 0,
            "window": 3,
            "capacity": 20,
            "kv_as_bytes": minimum,
            "threads": 2,
            "path": "auto",
            "tokens": [1, 2, 39],
            "slots": [0, 2],
            "truncate": 1,
            "state": [1, 16, 16],
            "sampler": [40, 1.0, 3, 0.9, -2.0, 1.1, 7, 0],
            "limit": 4,
            "together": [1, 20, 2],
            "results": [40, 40, 40],
        }
    ).encode()


SEEDS = [
    _plan(0, 32, True),
    _plan(0, 32, False, gelu=True),
    _plan(1, 32, True, attention_softcap=3.0, logit_softcap=4.0),
    _plan(2, 0, False),
    _plan(3, 0, False, embedding_scale=2.0),
    _plan(4, 0, False),
]


def fuzz_one_input(data: bytes) -> bool:
    try:
        plan = json.loads(data)
    except (ValueError, RecursionError):
        return False
    try:
        _run(plan)
    except _REFUSED:
        return False
    return True


def _run(plan: Any) -> None:
    tables = {name: _made(parts) for name, parts in plan["matrices"].items()}
    decoder = _native.Decoder(
        shape=_shape(plan["shape"]),
        ropes=[tuple(rope) for rope in plan["ropes"]],
        layers=[
            (tables, {name: _floats(size) for name, size in plan["vectors"].items()}, plan["rope"], plan["window"])
        ],
        embedding=tables["embedding"],
        head=tables["head"],
        norm=_floats(plan["norm"]),
        capacity=plan["capacity"],
        kv_as_bytes=plan["kv_as_bytes"],
        processors=[-1] * min(plan["threads"], 3),
        path=plan["path"],
    )
    tokens = np.array(plan["tokens"], dtype=np.int32)
    decoder.extend_tokens(tokens, np.empty(len(tokens), dtype=np.float32))
    decoder.keep(np.array(plan["slots"], dtype=np.int64))
    decoder.truncate(plan["truncate"])
    length, keys, values = plan["state"]
    decoder.write_state(_zeros(keys, np.float32), _zeros(values, np.float32), length, None)
    decoder.extend_tokens(tokens)
    vocabulary, temperature, top_k, top_p, log_min_p, penalty, seed, draws = plan["sampler"]
    sampler = _native.Sampler(vocabulary, "auto", temperature, top_k, top_p, log_min_p, penalty, seed, draws, tokens)
    ids, _, _ = decoder.decode(sampler, -1, plan["limit"], 5.0, True)
    if not all(0 <= token < decoder_vocabulary(plan) for token in ids):
        raise AssertionError(f"tokens {ids}")
    conversations = [decoder.conversation(capacity) for capacity in plan["together"]]
    decoder.extend_together(conversations, tokens, None, [_zeros(size, np.float32) for size in plan["results"]])
    decoder.close()


def decoder_vocabulary(plan: Any) -> int:
    return int(plan["shape"]["vocabulary"])


def _shape(fields: Any) -> Any:
    shape = _native.Shape()
    for name, value in fields.items():
        setattr(shape, name, value)
    return shape


def _made(parts: Any) -> Any:
    kind, rows, columns, group, *lengths = parts
    codes, scales, minima = (_zeros(length, np.uint8) if length else None for length in lengths)
    return _native.Table(kind, rows, columns, group, codes, scales, minima)


def _floats(size: Any) -> Any:
    return _zeros(size, np.float32) + np.float32(0.5)


def _zeros(size: Any, dtype: Any) -> Any:
    if not isinstance(size, int) or size > _MOST_BYTES:
        raise ValueError(f"an array of {size}")
    return np.zeros(size, dtype=dtype)


if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
