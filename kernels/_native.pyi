import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Bytes = NDArray[np.uint8]
_Halves = NDArray[np.uint16]
_Tokens = NDArray[np.int32]

def cpu_features() -> dict[str, bool]: ...

class Sweep:
    """A buffer that `threads` threads read or copy: seconds of each pass. Raises ValueError, MemoryError."""

    def __init__(self, bytes: int, threads: int) -> None: ...
    @property
    def bytes(self) -> int: ...
    def read(self, passes: int) -> list[float]: ...
    def copy(self, passes: int) -> list[float]: ...

# Kernels one by one, for tests. path: one of paths(). Results are written into the last argument.
def paths() -> list[str]: ...
def matmul(path: str, table: Table, x: _Floats, out: _Floats) -> None: ...
def attend(
    path: str,
    keys: _Floats,
    values: _Floats,
    queries: _Floats,
    ranges: _Tokens,
    softcap: float,
    as_bytes: bool,
    out: _Floats,
) -> None: ...
def rms_norm(path: str, x: _Floats, weight: _Floats, epsilon: float, out: _Floats) -> None: ...
def rotate(path: str, x: _Floats, cosines: _Floats, sines: _Floats) -> None: ...
def gated(path: str, gate: _Floats, up: _Floats, gelu: bool) -> None: ...
def exponentials(path: str, x: _Floats, shift: float, divisor: float, out: _Floats) -> None: ...
def softcap(path: str, x: _Floats, cap: float) -> None: ...
def log_sum_exp(path: str, x: _Floats) -> float: ...
def finite(path: str, x: _Floats) -> bool: ...
def halves(path: str, x: _Floats, out: _Halves, back: _Floats) -> None: ...

class Table:
    """A matrix in the package's layout. kind: 0 int4, 1 int8, 2 fp16, 3 bf16, 4 fp32. Raises ValueError."""

    def __init__(
        self,
        kind: int,
        rows: int,
        columns: int,
        group: int,
        codes: _Bytes,
        scales: _Bytes | None = None,
        minima: _Bytes | None = None,
    ) -> None: ...

class Shape:
    """Dimensions of a decoder; as in runtime/model.py."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    norm_epsilon: float
    attention_scale: float
    embedding_scale: float
    attention_softcap: float
    logit_softcap: float
    gelu: bool
    has_embedding: bool
    has_head: bool

class Sampler:
    """runtime/sampling.py, natively. Raises ValueError for values out of range."""

    def __init__(
        self,
        vocabulary: int,
        path: str,
        temperature: float,
        top_k: int,
        top_p: float,
        log_min_p: float,
        repetition_penalty: float,
        seed: int,
        draws: int,
        seen: _Tokens,
    ) -> None: ...
    def sample(self, logits: _Floats) -> int: ...

class Conversation:
    """Slots and logits of a conversation that is not under way."""

    @property
    def length(self) -> int: ...
    @property
    def capacity(self) -> int: ...

class Decoder:
    """A range of layers over one KV cache. Raises ValueError for what does not fit, RuntimeError when it is closed, in
    use by another thread, or in a forked process. Methods that give a bool give False where the result is not finite;
    then nothing has changed.
    """

    def __init__(
        self,
        shape: Shape,
        ropes: list[tuple[list[float], float]],
        layers: list[tuple[dict[str, Table], dict[str, _Floats], int, int]],  # matrices, vectors, rope, window
        embedding: Table | None,
        head: Table | None,
        norm: _Floats | None,
        capacity: int,
        kv_as_bytes: bool,
        processors: list[int],  # one a thread, -1 for any
        path: str,
    ) -> None: ...
    def extend_tokens(self, tokens: _Tokens, surprisal: _Floats | None = None) -> bool: ...
    def tokens_to_states(self, tokens: _Tokens, out: _Floats) -> bool: ...
    def extend_states(
        self,
        states: _Floats,
        out: _Floats | None = None,
        tokens: _Tokens | None = None,
        surprisal: _Floats | None = None,
    ) -> bool: ...
    def conversation(self, capacity: int) -> Conversation: ...
    def exchange(self, other: Conversation) -> None: ...
    def extend_together(
        self,
        conversations: list[Conversation],
        tokens: _Tokens | None,
        states: _Floats | None,
        outs: list[_Floats],
    ) -> list[bool]: ...
    def decode(
        self, sampler: Sampler, pending: int, limit: int, milliseconds: float, surprisal: bool
    ) -> tuple[list[int], list[float], bool]: ...
    def copy_logits(self, out: _Floats) -> None: ...
    def truncate(self, length: int) -> None: ...
    def keep(self, slots: NDArray[np.int64]) -> None: ...
    def read_state(self, keys: _Floats, values: _Floats) -> None: ...
    def write_state(self, keys: _Floats, values: _Floats, length: int, logits: _Floats | None) -> None: ...
    def close(self) -> None: ...
    @property
    def length(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def has_logits(self) -> bool: ...
    @property
    def path(self) -> str: ...
