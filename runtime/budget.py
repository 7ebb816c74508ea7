"""How many bytes an engine will take, computed from the package before anything is allocated, and refused if too many.

The total is an upper bound; the tests measure a running engine between it and the lines that are certain. Pages of a
mapped file are shown but not counted, as the system takes them back on demand. This file allocates nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgemem.kernels.cost import kv_slot_bytes
from edgemem.runtime.errors import BudgetError
from edgemem.runtime.kv_cache import KV_ELEMENT_BYTES
from edgemem.runtime.package import Package

_FLOAT, _HALF, _DOUBLE = 4, 2, 8
_ROTARY_STEPS = 6  # float64 arrays held while cos and sin are folded: angles, shifted, two sines, two amplitudes
_LANES = 16
_NATIVE_CHUNK, _NATIVE_HEAD_ROWS = 128, 512  # kChunk and kHeadRows of kernels/cpu/decoder
_NATIVE_PIECE, _NATIVE_QUERY_BYTES = 512, 48  # kPieceSlots, and the size of Query
_NATIVE_BYTES, _NATIVE_THREAD_BYTES = 8 << 20, 1 << 20
_RUNTIME_BYTES = 48 << 20  # ONNX Runtime's own code, arenas and threads


@dataclass(frozen=True)
class Budget:
    """Bytes by what takes them: `lines` make the total, `mapped` are pages of files, which need no free memory."""

    lines: tuple[tuple[str, int], ...]
    mapped: tuple[tuple[str, int], ...] = ()

    @property
    def total(self) -> int:
        return sum(size for _, size in self.lines)

    def check(self, available: int, *, of: str = "machine") -> None:
        """Raises BudgetError, holding the whole table, if `available` bytes are less than the total."""
        if self.total > available:
            raise BudgetError(
                f"this {of} has too little free memory for the engine",
                got=f"{available:,} bytes available",
                wanted=f"{self.total:,} bytes\n{self.table()}",
                do="open with a smaller context, free memory, or compile to fewer bits",
            )

    def table(self) -> str:
        rows = [*self.lines, ("total", self.total), *((f"not counted: {name}", size) for name, size in self.mapped)]
        return "\n".join(f"    {name:<36}{size:>18,} bytes" for name, size in rows)


def onnx_budget(package: Package, capacity: int, layers: tuple[int, int], chunk: int, scored_chunk: int) -> Budget:
    """What ONNX Runtime on a CPU holds for `capacity` slots of layers [first, last).

    A run takes `chunk` tokens, or `scored_chunk` where surprisal is asked for and every row has logits."""
    model, (first, last) = package.model, layers
    stored = packed = largest = lookup = 0
    has_embedding, has_head = first == 0, last == model.layers
    for name, (rows, columns) in model.matrices(first, last):
        size = package.precision(name).bytes_for(rows, columns)
        stored += size
        if name == "embedding" and has_embedding:
            lookup = _lookup_bytes(package, rows, columns)
        if name != "embedding" or (has_head and model.tied_head):
            copy = _packed_bytes(package, name, rows, columns)
            packed += copy
            largest = max(largest, copy)
    angles = sum(package.manifest.max_context * rope.rotary_dim // 2 for rope in model.ropes)
    width = (model.heads + 2 * model.kv_heads) * model.head_dim
    return Budget(
        (
            ("weights packed by ONNX Runtime", packed),
            ("embedding table", lookup),
            # Not at the same time: tables are computed before matrices are packed, one by one.
            ("matrix or tables, while opening", max(largest, _ROTARY_STEPS * angles * _DOUBLE)),
            ("KV cache", capacity * kv_slot_bytes(model, KV_ELEMENT_BYTES, layers)),
            ("logits", (2 * scored_chunk + 3) * model.vocabulary * _FLOAT if has_head else 0),
            ("attention scores, at most", model.heads * chunk * capacity * _FLOAT),
            ("activations of a chunk", chunk * (4 * model.hidden + 2 * width + 4 * model.intermediate) * _FLOAT),
            ("cos and sin tables", 2 * angles * _FLOAT),
            ("ONNX Runtime itself", _RUNTIME_BYTES),
        ),
        mapped=(("weights file, mapped", stored),),
    )


def native_budget(
    package: Package, capacity: int, layers: tuple[int, int], threads: int, *, kv_as_bytes: bool = False
) -> Budget:
    """What the native engine holds for `capacity` slots of layers [first, last). Of the mapped file it needs single
    rows of the embedding while it runs; what it packs is read once, and the system may take those pages back."""
    model, (first, last) = package.model, layers
    has_head = last == model.layers
    packed = 0
    for name, (rows, columns) in model.matrices(first, last):
        if name != "embedding" or (has_head and model.tied_head):
            packed += package.precision(name).bytes_for(_whole(rows), columns)
    elements = model.head_dim + _whole(model.head_dim)  # a key and a value, which lies in whole lanes
    slot = model.kv_heads * (elements + 2 * _FLOAT if kv_as_bytes else elements * _HALF)
    logits = (2 * model.vocabulary + threads * _NATIVE_CHUNK * _NATIVE_HEAD_ROWS) * _FLOAT
    pieces = capacity // _NATIVE_PIECE + 1
    # Of one token all heads, of rows of several conversations a thread's group of them; or some lanes a thread.
    seats = pieces * max(model.heads, threads * (model.heads // model.kv_heads)) + _LANES * threads * model.heads
    inputs, queries = 2 * model.hidden + model.intermediate, model.heads * model.head_dim
    # Floats of a row, and what it is quantised to: codes, and three numbers for every 32 of them, perhaps twice.
    row = (4 * inputs + 4 * queries + 2 * model.kv_heads * model.head_dim) * _FLOAT
    return Budget(
        (
            ("weights, packed", packed),
            ("KV cache", (last - first) * _whole(capacity) * slot),
            ("logits", logits if has_head else 0),
            ("activations of a chunk", (_NATIVE_CHUNK + threads) * row),
            (
                "attention, piece by piece",
                seats * (_whole(model.head_dim) * _FLOAT + _NATIVE_QUERY_BYTES),
            ),
            ("threads and code", _NATIVE_BYTES + threads * _NATIVE_THREAD_BYTES),
        )
    )


def _whole(count: int) -> int:
    """In whole lanes of 16."""
    return -(-count // _LANES) * _LANES


def _packed_bytes(package: Package, name: str, rows: int, columns: int) -> int:
    """A matrix as MatMulNBits keeps it: codes, and in float32 scales, their code sums and the centred minima.

    A float matrix is kept in float32. Measured on SmolLM2-135M (int4 with minima, int8 head): 160.7 MB of memory after
    opening for 160.1 MB by this formula and that of the embedding table.
    """
    precision = package.precision(name)
    if not precision.quantized:
        return rows * columns * _FLOAT
    numbers_a_group = 3 if precision.minimum else 2
    return rows * columns * precision.bits // 8 + rows * (columns // precision.group) * numbers_a_group * _FLOAT


def _lookup_bytes(package: Package, rows: int, columns: int) -> int:
    """The embedding table as stored, its scales and minima in float32."""
    precision = package.precision("embedding")
    size = rows * columns * precision.bits // 8
    if not precision.quantized:
        return size
    return size + rows * (columns // precision.group) * (2 if precision.minimum else 1) * _FLOAT
