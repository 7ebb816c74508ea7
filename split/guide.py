"""Guide: tells a conversation when to go on at another split, by the planner's costs at the speeds that it sees.

What a split would take is planner.cost_of, and what must be caught up with there is counted. It neither opens nor moves
anything; splits that turned out not to be had are not offered again for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from edgemem.runtime.errors import EdgememError
from edgemem.split.engine import StepTimes
from edgemem.split.history import Work
from edgemem.split.measuring import WireTimes
from edgemem.split.moves import Moves, MoveSettings, Offer
from edgemem.split.planner import Choice, Constraints, Problem, Width, cost_of, excesses
from edgemem.split.sides import StageTimes
from edgemem.split.speeds import Speeds

_NO_TIME = StageTimes(0.0)
_REFUSED_S = 300.0


@dataclass(frozen=True)
class News:
    """What came of an offer, when a token took here_ms. dear: to move takes longer than tokens_left tokens gain.
    problem: why there is no moving there."""

    kind: Literal["moved", "dear", "refused"]
    offer: Offer
    here_ms: float
    tokens_left: int = 0
    problem: EdgememError | None = None


class Guide:
    """split: where the conversation is."""

    def __init__(
        self,
        problem: Problem,
        head_layers: float,
        at: int,
        splits: Iterable[int],
        limits: Constraints,
        *,
        settings: MoveSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """problem: of one width and one activation; the times in it and its link are not looked at. head_layers: as
        Speeds has it. at: where the conversation begins, from 1, and looks are taken. splits: that it may move to.
        limits: of memory, and the least split. clock: seconds."""
        self.settings, self.split, self.news = settings or MoveSettings(), at, list[News]()
        self._problem, self._limits, self._clock = problem, limits, clock
        (states,) = problem.activations.values()
        self._speeds = Speeds(problem.layers, head_layers, at, states.token_bytes)
        self._splits, self._refused = {at, *splits}, dict[int, float]()
        self._moves = Moves()
        self._told = set[int]()  # to which splits it is too dear to move from here
        self._here_ms = 0.0  # when the last offer was worth a move

    def looked(self, found: WireTimes | None) -> None:
        """From beside, by any thread; None where the server does not answer."""
        self._speeds.looked(found)

    def stepped(self, times: StepTimes, tokens_left: int, work: Work) -> Offer | None:
        """After one token here; where to move, if that is due. work: to be caught up with elsewhere."""
        self._speeds.stepped(self.split, times)
        here_ms = self._speeds.here_ms
        if here_ms is None:
            return None
        offers, now_s = self._offers(work), self._clock()
        self._moves = moves = self._moves.after(here_ms, offers, tokens_left, now_s, self.settings)
        if moves.towards is None or moves.verdict == "stay":
            return None
        if moves.verdict == "move":
            self._here_ms = here_ms
            return moves.towards
        if moves.towards.split not in self._told:
            self._told.add(moves.towards.split)
            self.news.append(News("dear", moves.towards, here_ms, tokens_left))
        return None

    def moved(self, offer: Offer) -> None:
        """The conversation is there now."""
        self.news.append(News("moved", offer, self._here_ms))
        self._begin(offer.split)

    def refused(self, offer: Offer, problem: EdgememError) -> None:
        """It cannot be."""
        self.news.append(News("refused", offer, self._here_ms, problem=problem))
        self._refused[offer.split] = self._clock() + _REFUSED_S
        self._begin(self.split)

    def _begin(self, split: int) -> None:
        self.split, self._moves = split, Moves(moved_s=self._clock())
        self._told.clear()
        self._speeds.moved()

    def _offers(self, work: Work) -> Iterator[Offer]:
        device, server, link = self._speeds.device, self._speeds.server, self._speeds.link
        layers, now_s = self._problem.layers, self._clock()
        ((name, width),) = self._problem.widths.items()
        width = Width(width.weights, device or _NO_TIME, server or _NO_TIME)
        problem = replace(self._problem, widths={name: width}, link=link or self._problem.link)
        for split in self._splits - {self.split}:
            known = (device or not split) and ((server and link) or split == layers)
            if not known or self._refused.get(split, now_s) > now_s:
                continue
            point = cost_of(problem, choice_at(problem, split), 0.0)
            if not excesses(point, self._limits):
                trip_ms = problem.link.round_trip_ms if split < layers else 0.0
                caught_up_ms = work.rows * (point.token_ms - trip_ms) + work.operations * trip_ms
                yield Offer(split, point.token_ms, caught_up_ms)


def choice_at(problem: Problem, split: int) -> Choice:
    """The only one at this split, of a problem of one width, one activation and one context."""
    (width,), (states,), layers = problem.widths, problem.activations, problem.layers
    front, back = width if split else None, width if split < layers else None
    return Choice(split, front, back, states if 0 < split < layers else None, problem.contexts[0])
