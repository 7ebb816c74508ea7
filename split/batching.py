"""Batching: the thread that computes for all sessions, first come, first served.

A step is one row of one session. When a step's turn has come, those that other sessions wait with at that moment are
computed with it, in one pass over the weights; each comes out as it would alone. Nothing waits for others to come, and
what is no step is passed only by steps that go with one that was before it. It knows no links.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgemem.split.answering import Logits
from edgemem.split.frames import Extend, Message
from edgemem.split.metrics import Metrics
from edgemem.split.server_session import ServerSession
from edgemem.split.stage_pool import StagePool

T = TypeVar("T")


class Operated(NamedTuple):
    """waited_s: until its turn. took_s: from there to the reply, with all that was computed together."""

    reply: Message
    waited_s: float
    took_s: float


@dataclass(eq=False)
class _Asked:
    session: ServerSession
    message: Message
    asked_s: float
    done: Future[Operated] = field(default_factory=Future)


@dataclass(eq=False)
class _Step(_Asked):
    message: Extend


class Batching:
    """Operations are asked for in one thread, and done in another."""

    def __init__(self, most: int, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        """most: rows of one pass. clock: seconds."""
        self._most, self._metrics, self._clock = most, metrics, clock
        self._waiting: defaultdict[StagePool, deque[_Step]] = defaultdict(deque)
        self._thread = ThreadPoolExecutor(1, "edgemem-back")

    def run(self, work: Callable[[], T]) -> Future[T]:
        """Work that is no session's operation."""
        return self._thread.submit(work)

    def operate(self, pool: StagePool, session: ServerSession, message: Message) -> Future[Operated]:
        """An operation of a session over this pool. It fails with what ServerSession.do raises."""
        if isinstance(message, Extend) and message.count == 1 and message.tokens is None:
            step = _Step(session, message, self._clock())
            self._waiting[pool].append(step)
            self._thread.submit(self._do_steps, pool, step)
            return step.done
        asked = _Asked(session, message, self._clock())
        self._thread.submit(self._do_alone, asked)
        return asked.done

    def close(self) -> None:
        """When all that was asked for is done."""
        self._thread.shutdown(wait=True)

    def _do_alone(self, asked: _Asked) -> None:
        if asked.done.set_running_or_notify_cancel():
            self._settle(asked, self._clock(), partial(asked.session.do, asked.message))

    def _do_steps(self, pool: StagePool, first: _Step) -> None:
        """What goes with the step whose turn it is, unless it went with another. All before it are done."""
        waiting = self._waiting[pool]
        if not waiting or waiting[0] is not first:
            return
        steps = self._taken(waiting)
        if not steps:
            return
        self._metrics.computed_together(len(steps))
        began_s = self._clock()
        results = _logits_together(pool, steps) if len(steps) > 1 else {}
        compute_ms = 1e3 * (self._clock() - began_s)
        for step in steps:
            work = partial(step.session.do, step.message)
            if step in results:
                work = partial(step.session.stepped, step.message, results[step], compute_ms)
            self._settle(step, began_s, work)

    def _taken(self, waiting: deque[_Step]) -> list[_Step]:
        """Of a session one at most: another of its steps would follow from the first."""
        steps: list[_Step] = []
        while waiting and len(steps) < self._most and all(step.session is not waiting[0].session for step in steps):
            step = waiting.popleft()
            if step.done.set_running_or_notify_cancel():
                steps.append(step)
        return steps

    def _settle(self, asked: _Asked, began_s: float, work: Callable[[], Message]) -> None:
        try:
            reply = work()
        except BaseException as problem:  # noqa: BLE001 - whoever waits for it is to be told
            asked.done.set_exception(problem)
        else:
            asked.done.set_result(Operated(reply, began_s - asked.asked_s, self._clock() - began_s))


def _logits_together(pool: StagePool, steps: Sequence[_Step]) -> Mapping[_Step, Logits]:
    """Of those that can be computed so. What is the matter with another, its session says when it does it alone."""
    rows = {step: row for step in steps if (row := _row_of(step)) is not None}
    if not rows:
        return {}
    conversations = [step.session.conversation for step in rows]
    try:
        results = pool.engine.extend_together(conversations, np.concatenate(list(rows.values())))
    except Exception:  # noqa: BLE001 - none has moved
        return {}
    return {
        step: result.logits for step, result in zip(rows, results, strict=True) if result and result.logits is not None
    }


def _row_of(step: _Step) -> NDArray[Any] | None:
    try:
        return step.session.row(step.message)
    except Exception:  # noqa: BLE001 - one that breaks a rule harms no other
        return None
