"""How a matrix-vector product is cut into programs: by arithmetic over its size and the GPU's processors.

The aim: enough bytes in flight for the memory's latency (24 KB a processor on an H200), and few instructions a weight.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgemem.kernels.formats import Precision

CHUNK_BYTES = 16  # the widest load of a thread
WARPS = 8
REGISTERS = 128  # of a thread
RESIDENT = 2  # programs of so many warps and registers that a processor of any generation holds
_CHUNKS_IN_FLIGHT = 8  # of a thread: 64 KB a processor, and 32 registers
_X_REGISTERS = 32  # of a thread, for its part of x
_SPLIT_BYTES = 6 << 20  # what a fast memory streams while the last program of a range adds the splits' sums


@dataclass(frozen=True)
class TileShape:
    """A program has blocks * lanes chunks of `tile` rows at a time (twice with an activation), and outputs_each
    outputs in all; grid is (workers, splits)."""

    tile: int
    blocks: int
    lanes: int
    splits: int
    workers: int
    outputs_each: int


def chunk_weights(precision: Precision) -> int:
    """Weights in a chunk."""
    return CHUNK_BYTES * 8 // precision.bits


def tile_shape(precision: Precision, rows: int, columns: int, paired: bool, slots: int) -> TileShape:
    """The shape for a (rows, columns) matrix on a GPU that holds so many programs at once."""
    chunks = -(-columns // chunk_weights(precision))
    side_by_side = 2 if paired else 1
    blocks, lanes, splits = _slices(precision, chunks, rows, _CHUNKS_IN_FLIGHT // side_by_side)
    outputs = rows // side_by_side
    row_warps = WARPS * 32 // lanes
    deepest = _CHUNKS_IN_FLIGHT // (blocks * side_by_side)
    # A small matrix is one tile a program, all of it in flight at once; a large one is walked through.
    tile = next(
        (
            depth * row_warps
            for depth in (1, 2, 4, 8)
            if depth <= deepest and -(-outputs // (depth * row_warps)) * splits <= slots
        ),
        deepest * row_warps,
    )
    workers = min(-(-outputs // tile), max(1, slots // splits))
    outputs_each = -(-outputs // workers)
    return TileShape(tile, blocks, lanes, splits, -(-outputs // outputs_each), outputs_each)


def _slices(precision: Precision, chunks: int, rows: int, most_blocks: int) -> tuple[int, int, int]:
    """(blocks, lanes, splits): few idle lanes, and one split where the matrix is too small to pay for adding sums."""
    # int4 has two 16-bit halves of x for each code and is near the limit of instructions, floats are far from it.
    registers = {4: 16, 8: 8, 16: 8, 32: 4}[precision.bits]
    idle_cost = {4: 1.0, 8: 0.5, 16: 0.2, 32: 0.1}[precision.bits]
    total = chunks * rows * CHUNK_BYTES
    choices = []
    for blocks in (1, 2, 4, 8):
        for lanes in (32, 64, 128, 256):
            if blocks <= most_blocks and blocks * registers <= _X_REGISTERS:
                splits = -(-chunks // (blocks * lanes))
                cost = idle_cost * splits * blocks * lanes / chunks + 0.01 * splits
                cost += _SPLIT_BYTES / total if splits > 1 else 0.0
                choices.append((cost, lanes, blocks, splits))
    _, lanes, blocks, splits = min(choices)
    return blocks, lanes, splits
