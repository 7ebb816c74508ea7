"""Memory: an engine and the table of its slots, which change together, and in which the retention settings make room.

All that happens to them is told to the store, if there is one, in the order and the portions in which it happens: so
that to play the store back gives the same slots, bit for bit. It knows no text, and does not decide what is consumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemem.runtime.engine import Engine, Token
from edgemem.runtime.errors import ContextError, EdgememError, SettingsError
from edgemem.runtime.memory.recall import Recall
from edgemem.runtime.retention.policies import slots_to_keep
from edgemem.runtime.retention.recall import RecallSettings
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.retention.slots import SlotTable
from edgemem.runtime.sampling import Sampler
from edgemem.runtime.store import Role, Store
from edgemem.runtime.template import Message
from edgemem.runtime.token_prefix import common_prefix

# Consumed at once; without eviction from slots 0, 128, 256 ... on. Engines round by how many tokens come together, so
# there a prompt is taken up again only at multiples of the second number within those parts, and never by its last
# token alone: then what was in the slots already makes no difference to the logits.
PART_TOKENS, _PART_STEP = 128, 24


class Memory:
    """evictions, evicted, eviction_ms: how often room was made, of how many slots, and how long that took in all.

    pending: the last decoded token while the engine has not consumed it. turn_start: the position in the conversation
    with which the turn that runs began, or the last one.
    """

    def __init__(
        self,
        engine: Engine,
        settings: RetentionSettings | None = None,
        *,
        store: Store | None = None,
        recall: RecallSettings | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """settings: as checked_settings has them. recall: put away what is evicted, for `bring_back`. clock: seconds.
        The engine's slots are empty. Raises SettingsError for recall with a store, whose journal does not know it, and
        BudgetError as storage_shape does."""
        self.engine, self.store = engine, store
        self.settings = checked_settings(
            settings, engine.capacity, recalls=recall is not None, stored=store is not None
        )
        self._recall = None if recall is None else Recall(engine, recall)
        self._recalled = range(0)  # the slots of what this turn brought back
        self.table = SlotTable(engine.capacity)
        self.pending: Token | None = None
        self.turn_start = self.evictions = self.evicted = 0
        self.eviction_ms = 0.0
        self._clock = clock

    @property
    def endless(self) -> bool:
        """Whether room is made for whatever comes; else the conversation ends where the budget does."""
        return self.settings.policy != "full"

    @property
    def recalls(self) -> bool:
        """Whether what is evicted is put away."""
        return self._recall is not None

    @property
    def tokens(self) -> list[int]:
        """The token in each slot."""
        tokens: list[int] = self.table.rows["token"].tolist()
        return tokens

    def check(self, count: int, pins: int, *, anew: bool) -> None:
        """Raises ContextError if a prompt of `count` tokens does not fit, besides what is there or `anew`: it is to be
        no longer than the budget where nothing is evicted, else its `pins` are to leave room for other tokens."""
        sinks, budget = self.settings.sinks, self.settings.budget
        if not self.endless:
            if count > budget:
                raise self._too_long(count)
            return
        length, fixed = (0, sinks) if anew else (self.table.length, self._fixed)
        if fixed + pins - max(0, min(pins, sinks - length)) >= budget:
            raise ContextError(
                "what is to stay leaves no room in the memory",
                got=f"{sinks} sinks, {fixed - sinks} pinned slots, {pins} more",
                wanted=f"fewer than {budget} together",
                do="shorten the system prompt, pin less, or choose a larger budget",
            )

    def begin_turn(self, messages: Sequence[Message], *, whole: bool) -> None:
        """`messages`: what is asked; `whole`: they are the whole conversation, in place of the one so far."""
        if self.engine.length > self.table.length:  # a step was torn apart by an exception from outside
            self.engine.truncate(self.table.length)
        self.pending, self.turn_start = None, self.table.position
        if self.store is not None:
            self.store.begin_turn(messages, whole=whole)

    def end_turn(self, answer: str | None) -> None:
        """answer: None where there is none, or where it is no conversation. What is stored is on disk afterwards."""
        self.table.pin(self._recalled.start, self._recalled.stop, False)
        self._recalled = range(0)
        self.table.end_turn()
        if self.store is not None:
            self.store.end_turn(answer)

    def make_room_for_turn(self, incoming: int) -> None:
        """Where room is made once a turn: for all the tokens that it may add, if there can be room for so many."""
        if self.endless and self.settings.when == "turn" and self._fixed + incoming <= self.settings.budget:
            self.make_room(incoming)

    def make_room(self, incoming: int) -> None:
        """Evict what the settings say so that `incoming` tokens fit. Raises ContextError as slots_to_keep does."""
        mark = self._clock()
        kept = slots_to_keep(self.table, self.settings, incoming)
        gone = self.table.length - len(kept)
        if gone:
            if self._recall is not None:
                self._recall.put_away(self.table.rows, kept)
            self.engine.keep(kept)
            self._follow_keep(kept)
            self.evictions += 1
            self.evicted += gone
            self.eviction_ms += 1e3 * (self._clock() - mark)

    def bring_back(self, words: range) -> bool:
        """Bring back what was put away and is like some words of the turn that runs, by their place in its prompt;
        whether there was anything. It goes behind sinks and pins and is pinned itself until the turn ends; the turn is
        forgotten: its prompt is to be consumed again."""
        table, start = self.table, self.turn_start
        if self._recall is None:
            return False
        positions = table.rows["position"]
        asked = np.flatnonzero((positions >= start + words.start) & (positions < start + words.stop))
        recalled = self._recall.find(asked, (self.settings.budget - self._fixed) // 2)
        if recalled is None:
            return False
        self.forget_turn()
        self.make_room(len(recalled.rows))
        moves = (np.arange(table.length) >= self.settings.sinks) & ~table.rows["pinned"]
        at = int(np.argmax(moves)) if moves.any() else table.length
        self._recall.put_back(at, recalled)
        table.insert(at, recalled.rows)
        self._recalled = range(at, at + len(recalled.rows))
        table.pin(self._recalled.start, self._recalled.stop)
        self.turn_start = table.position
        return True

    def take_up(self, tokens: Sequence[int]) -> int:
        """Keep what the slots and a prompt have in common, and forget the rest; how many of its tokens are there."""
        kept = _kept(common_prefix(self.tokens, tokens), len(tokens))
        self.truncate(kept)
        return kept

    def consume(self, tokens: NDArray[np.int32], role: Role, *, pinned: bool = False) -> int:
        """Consume the first of the tokens, as many as come at once, after making room; gives how many those were.

        Without eviction parts end at slots 128, 256 ...; with it they are as large as sinks and pins allow, up to 128.
        """
        part = PART_TOKENS - self.table.length % PART_TOKENS
        if self.endless:
            part = max(1, min(PART_TOKENS, self.settings.budget - self._fixed))
        tokens = tokens[:part]
        self.make_room(len(tokens))
        scores = self.engine.extend(tokens, surprisal=self._scored).surprisal
        if scores is not None and self.table.position == self.turn_start:
            # Whether the engine still knew what it expected here depends on how the last answer ended, and a journal
            # does not tell: so it counts as not known, always.
            scores = np.concatenate([[np.float32("nan")], scores[1:]])
        self._enter(tokens, scores, role, pinned=pinned, generated=False)
        return len(tokens)

    def decode(self, sampler: Sampler, limit: int) -> Generator[int, None, None]:
        """Engine.decode over and over, making room in between; it stops early only where nothing is to be evicted.

        Afterwards the last token is `pending`, and all others are in slots.
        """
        budget = self.settings.budget
        while limit > 0:
            if self.pending is not None:
                if not self.endless:
                    return
                self.consume_pending()
            # The last one needs no slot; a conversation of a larger budget may have come back with more than this one.
            count = max(1, min(limit, budget - self.table.length + 1))
            yield from self._decode(sampler, count)
            limit -= count

    def consume_pending(self) -> None:
        """Put the pending token into a slot, after making room for it."""
        if self.pending is not None:
            self.make_room(1)
            self.engine.extend(np.array([self.pending.id], dtype=np.int32))
            self._enter_pending()

    def truncate(self, length: int) -> None:
        """Forget all slots from `length` on."""
        if length < self.table.length:
            self.engine.truncate(length)
            self._follow_keep(np.arange(length))

    def forget_turn(self) -> None:
        """Forget the tokens of the turn that runs, which are the last. What was evicted for them does not come back."""
        self.truncate(int(np.count_nonzero(self.table.rows["position"] < self.turn_start)))

    def reset(self) -> None:
        """Forget everything, also on disk."""
        self.engine.truncate(0)
        self.table = SlotTable(self.engine.capacity)
        if self._recall is not None:
            self._recall = Recall(self.engine, self._recall.settings)
        self.pending = None
        if self.store is not None:
            self.store.forget()

    @property
    def _scored(self) -> bool:
        return self.settings.policy == "entropy"

    @property
    def _fixed(self) -> int:
        """Slots that are never evicted: sinks, there already or not, and pins beyond them."""
        return self.settings.sinks + int(np.count_nonzero(self.table.rows["pinned"][self.settings.sinks :]))

    def _too_long(self, count: int) -> ContextError:
        return ContextError(
            "the prompt is longer than the context",
            got=f"{count} tokens",
            wanted=f"at most {self.settings.budget}",
            do="shorten the prompt or leave out earlier messages, or open the session with a larger context "
            f"(the model was trained for {self.engine.model.trained_context})",
        )

    def _decode(self, sampler: Sampler, count: int) -> Generator[int, None, None]:
        decoded = self.engine.decode(sampler, count, surprisal=self._scored)
        try:
            for token in decoded:
                self._enter_pending()  # the engine has consumed it, or it could not have given the next
                self.pending = token
                yield token.id
        finally:
            decoded.close()
            if self.engine.length > self.table.length:
                self._enter_pending()

    def _enter_pending(self) -> None:
        if self.pending is not None:
            scores = np.array([self.pending.surprisal], dtype=np.float32) if self._scored else None
            self._enter([self.pending.id], scores, Role.ASSISTANT, pinned=False, generated=True)
            self.pending = None

    def _enter(
        self, tokens: ArrayLike, scores: NDArray[np.float32] | None, role: Role, *, pinned: bool, generated: bool
    ) -> None:
        """Tokens that the engine has consumed, into the table and the store."""
        ids = np.asarray(tokens, dtype=np.int32)
        try:
            known = np.zeros(len(ids), dtype=np.float32) if scores is None else scores
            self.table.append(ids, known, pinned=pinned)
        except EdgememError:
            self.engine.truncate(self.table.length)
            raise
        if self.store is not None:
            entered = None if scores is None else self.table.rows["score"][-len(ids) :]
            self.store.append_tokens(ids, role, generated=generated, scores=entered, pinned=pinned)

    def _follow_keep(self, slots: NDArray[np.int64]) -> None:
        """What the engine has done, in the table and the store."""
        self.table.keep(slots)
        if self.store is not None:
            self.store.append_keep(slots)


def checked_settings(
    settings: RetentionSettings | None, capacity: int, *, recalls: bool = False, stored: bool = False
) -> RetentionSettings:
    """The settings, by default "full" over all of an engine's slots. Raises SettingsError for a budget beyond those,
    for a score that engines do not give, and for recall where nothing is evicted, or with a store."""
    settings = settings or RetentionSettings(policy="full", budget=capacity)
    if settings.budget > capacity:
        raise SettingsError(
            "the memory's budget is more than the engine's slots",
            got=settings.budget,
            wanted=f"at most {capacity}",
            do="choose a smaller budget, or open with a larger context",
        )
    if settings.policy == "entropy" and settings.score != "paper":
        raise SettingsError("engines do not give this score", got=settings.score, wanted="paper")
    if recalls and (stored or settings.policy == "full"):
        wanted = "a policy that evicts, and no store: its journal does not know what was recalled"
        raise SettingsError("recall does not go with this memory", got=settings.policy, wanted=wanted)
    return settings


def _kept(common: int, count: int) -> int:
    """How many of the `common` tokens stay in their slots for a prompt of `count` tokens."""
    kept = min(common, count - 1)  # the last is always consumed anew: the engine's logits are those of the last extend
    inside = kept % PART_TOKENS
    kept -= inside % _PART_STEP
    alone = kept == count - 1 and kept % PART_TOKENS > 0
    return kept - _PART_STEP if alone else kept
