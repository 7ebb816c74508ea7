"""SlotTable: what is known of each KV slot in use, row by row as the engine's slots lie. Memory is fixed when it opens.

It follows the engine and decides nothing: policies.py says which slots stay.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine_inputs import check_room, checked_slots
from edgemem.runtime.errors import NumericError, SettingsError, shown

SLOT = np.dtype(
    [
        ("position", "<i8"),  # of the token in the whole conversation, evicted ones counted
        ("token", "<i4"),
        ("score", "<f4"),  # as it was measured, undecayed
        ("turn", "<i4"),  # in which it entered
        ("pinned", "?"),
    ],
    align=True,
)
Rows = NDArray[np.void]  # of SLOT
_COLUMNS = ("position", "token", "score", "turn", "pinned")
_COUNTS = "counts"  # turn and position
_MOST_SCORE = float(np.finfo(np.float32).max)
_MOST_TURNS, _MOST_POSITIONS = (1 << 31) - 1, (1 << 62) - 1


class SlotTable:
    """Rows of SLOT for at most `capacity` slots; `length` are in use.

    turn: the number of the turn that is running. position: that of the next token appended.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = self.turn = self.position = 0
        self._rows = np.zeros(capacity, dtype=SLOT)

    @property
    def rows(self) -> Rows:
        """The slots in use, read-only; a view, so copy what must last."""
        used = self._rows[: self.length]
        used.flags.writeable = False
        return used

    def append(
        self,
        tokens: NDArray[np.integer],
        scores: NDArray[np.floating],
        *,
        pinned: bool | NDArray[np.bool_] = False,
    ) -> None:
        """A chunk of (n,) tokens with their (n,) scores enters the slots behind the last.

        A score that is nan (no token came before) becomes the highest of its chunk, SirLLM's rule for a chunk's first
        token; 0 where there is no other. Scores a rounding below 0 become 0.
        Raises ContextError if the slots are not there, NumericError for an infinite score, SettingsError for shapes
        that do not fit: then nothing has changed.
        """
        if tokens.ndim != 1 or scores.shape != tokens.shape or np.shape(pinned) not in ((), tokens.shape):
            got = f"{tokens.shape}, {scores.shape} and {np.shape(pinned)}"
            raise SettingsError("tokens, scores and pins do not fit", got=got, wanted="(n,) each")
        check_room(len(tokens), self.length, self.capacity)
        filled = _filled(scores)
        new = self._rows[self.length : self.length + len(tokens)]
        new["pinned"] = pinned
        new["token"], new["score"], new["turn"] = tokens, filled, self.turn
        new["position"] = np.arange(self.position, self.position + len(tokens))
        self.length += len(tokens)
        self.position += len(tokens)

    def keep(self, slots: NDArray[np.int64]) -> None:
        """Retain these slots, strictly rising, as Engine.keep does. Raises SettingsError for others."""
        slots = checked_slots(slots, self.length)
        self._rows[: len(slots)] = self._rows[slots]
        self.length = len(slots)

    def truncate(self, length: int) -> None:
        """Forget all slots from `length` on, as Engine.truncate does; the tokens' positions are not used again."""
        if type(length) is not int or not 0 <= length <= self.length:
            raise SettingsError("cannot truncate to this length", got=length, wanted=f"0 to {self.length} slots")
        self.length = length

    def insert(self, at: int, rows: Rows) -> None:
        """Recalled rows enter before slot `at`, as they are, but for their turn: they count as of the running one.

        Raises ContextError if the slots are not there, SettingsError for rows that are none or an `at` beyond the end.
        """
        if rows.dtype != SLOT or rows.ndim != 1 or not 0 <= at <= self.length:
            got = f"{rows.dtype}{rows.shape} at {at}"
            raise SettingsError("these rows cannot be inserted", got=got, wanted=f"SLOT (n,) at 0 to {self.length}")
        check_room(len(rows), self.length, self.capacity)
        behind, entered = self._rows[at : self.length], slice(at, at + len(rows))
        self.length += len(rows)
        self._rows[entered.stop : self.length] = behind
        self._rows[entered] = rows
        self._rows["turn"][entered] = self.turn

    def pin(self, first: int, last: int, pinned: bool = True) -> None:
        """Mark, or with pinned=False free, the slots [first, last). Raises SettingsError for slots not in use."""
        if not 0 <= first <= last <= self.length:
            raise SettingsError("no such slots", got=f"{first} to {last}", wanted=f"0 to {self.length}")
        self._rows["pinned"][first:last] = pinned

    def end_turn(self) -> None:
        """All slots grow a turn older."""
        self.turn += 1

    def effective_scores(self, decay: float) -> NDArray[np.float64]:
        """(length,) scores after `decay` at the end of each turn since the slot's own: score * decay ** age."""
        rows = self._rows[: self.length]
        ages = float(self.turn) - rows["turn"]
        return np.asarray(rows["score"] * np.power(decay, ages), dtype=np.float64)

    def tables(self) -> dict[str, NDArray[np.generic]]:
        """All that the table knows, as plain arrays to be saved: a column (length,) each, and turn and position."""
        columns: dict[str, NDArray[np.generic]] = {name: self.rows[name].copy() for name in _COLUMNS}
        columns[_COUNTS] = np.array([self.turn, self.position], dtype=np.int64)
        return columns

    def load(self, tables: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over what `tables` gave, e.g. read from a file: it is checked, and copied.

        Raises SettingsError for other names, types or shapes, more slots than the capacity, or values out of range;
        whether a token is of the model's vocabulary is the reader's to check. Then nothing has changed.
        """
        length = tables["position"].size if "position" in tables else 0
        wanted = {name: (SLOT[name], (length,)) for name in _COLUMNS} | {_COUNTS: (np.dtype(np.int64), (2,))}
        got = {name: (table.dtype, table.shape) for name, table in tables.items()}
        if got != wanted or length > self.capacity:
            raise SettingsError("the saved slots are none", got=shown(got), wanted=f"{SLOT}, at most {self.capacity}")
        rows = np.zeros(length, dtype=SLOT)
        for name in _COLUMNS:
            rows[name] = tables[name]
        turn, position = map(int, tables[_COUNTS])
        _check_ranges(rows, turn, position)
        self._rows[:length] = rows
        self.length, self.turn, self.position = length, turn, position


def _check_ranges(rows: Rows, turn: int, position: int) -> None:
    if not 0 <= turn <= _MOST_TURNS or not 0 <= position <= _MOST_POSITIONS:
        raise SettingsError("the saved slots count wrongly", got=f"turn {turn}, position {position}")
    limits = {"position": position - 1, "token": np.iinfo(np.int32).max, "score": _MOST_SCORE, "turn": turn}
    for name, limit in limits.items():
        sound = (rows[name] >= 0) & (rows[name] <= limit)  # false for nan
        if not sound.all():
            slot = int(np.argmin(sound))
            got, wanted = str(rows[name][slot]), f"0 to {limit}"
            raise SettingsError(f"a saved slot's {name} is out of range", where=f"slot {slot}", got=got, wanted=wanted)


def _filled(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    unknown = np.isnan(scores)
    if np.isinf(scores).any():
        raise NumericError("a score is infinite", where=f"token {int(np.argmax(np.isinf(scores)))} of its chunk")
    highest = np.max(scores, where=~unknown, initial=0.0)
    return np.maximum(np.where(unknown, highest, scores), 0.0)
