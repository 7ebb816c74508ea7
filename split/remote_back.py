"""RemoteBack: a Back on a paired server, which outlives links and servers; with a local back stage, without a pause.

What was done is in a History first, and the stages follow it, each from where it is: so a server that comes back, one
that has forgotten, or this device goes on at the same token. Which of them answers, a Switch says.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import KVState, Route
from edgemem.runtime.errors import BudgetError, EdgememError, EngineError, LinkError
from edgemem.split.back import Answer, Ask, Back
from edgemem.split.history import BEGINNING, Extended, History, Kept, Operation, Place
from edgemem.split.remote_session import RemoteSession
from edgemem.split.switching import Event, Switch, SwitchSettings

# What ends a server's part in an operation that another stage may do all the same.
_FAILURES = (LinkError, EngineError, BudgetError)
_MOMENT_S = 1e-3
_GOODBYE_S = 0.1  # a probe that is answered by then leaves a link to say goodbye over


class RemoteBack:
    """The Back protocol. Its user is one thread; `probe` is for another, which alone uses the session while this device
    answers.

    keep and truncate are remembered, and done with the next extend: they cannot fail.
    problem: why the server does not answer, or no answer of its counts as good yet; None where it does.
    """

    def __init__(
        self,
        session: RemoteSession,
        history: History,
        *,
        capacity: int,
        local: Back | None = None,
        settings: SwitchSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """history: empty. local: the same layers here, or a smaller model in their place; it closes with this. clock:
        seconds."""
        self.capacity = capacity
        self.problem: EdgememError | None = None
        self._session, self._history, self._local = session, history, local
        self._settings, self._clock, self._sleep = settings or SwitchSettings(), clock, sleep
        self._switch = Switch()
        self._local_place = BEGINNING
        self._local_lock = threading.Lock()  # of the local back stage and its place
        self._lock = threading.Lock()  # of history and switch
        self._closing = threading.Event()
        self._probing: threading.Thread | None = None

    @property
    def length(self) -> int:
        return self._history.length

    @property
    def route(self) -> Route:
        switch = self._switch
        return switch.route if self._local is None or not switch.here else self._local.route

    def sync(self) -> None:
        """Bring the server to the present, now. Raises LinkError, or the server's own error, where that cannot be;
        with a local back stage all goes on there."""
        try:
            self._follow(0, lambda: self._settings.stall_s)
        except _FAILURES as problem:
            self.problem = problem
            self._note("lost")
            raise
        self._note("answered")

    def extend(self, payload: bytes, count: int, ask: Ask) -> Answer:
        """See Back. Raises LinkError where the server was tried again for long enough, and the errors of a stage; then
        it counts as not done."""
        settings, start = self._settings, self._history.length
        try:
            with self._lock:
                self._history.extend(payload, count, ask.tokens, ask.ids)
            answer = self._answer(ask.logits, settings.deadline_s if count == 1 else settings.prompt_deadline_s)
        except BaseException:
            self.truncate(start)
            raise
        with self._lock:
            self._history.trim()
        return answer

    def logits(self, count: int) -> Answer:
        return self._answer(count, self._settings.deadline_s)

    def keep(self, slots: NDArray[np.int64]) -> None:
        with self._lock:
            self._history.keep(slots)

    def truncate(self, length: int) -> None:
        with self._lock:
            if length < self._history.length:
                self._history.truncate(length)

    def state(self) -> KVState:
        """See Back. The local back stage has a cache of its own, while it answers."""
        if self._local is None or not self._switch.here:
            raise EngineError("the server's memory cannot be copied", do="copy it from an engine that is all here")
        self._follow_here(self._local, 0)
        return self._local.state()

    def restore(self, state: KVState) -> None:
        raise EngineError("a server's memory cannot be replaced", do="restore into an engine that is all here")

    def probe(self) -> None:
        """While this device answers: look whether the server does, and once it has for a while, let it catch up.

        While the server answers: let a local back stage that is to be warm catch up.
        """
        try:
            if self._switch.here:
                self._session.connect(deadline_s=self._settings.connect_s)
                self._session.ping(deadline_s=self._settings.deadline_s)
                self._note("probed")
                if self._switch.mode == "returning":
                    self._follow(0, lambda: self._settings.prompt_deadline_s)
            elif self._local is not None and self._settings.warm:
                self._warm_up(self._local)
        except EdgememError as problem:  # whoever answers goes on
            self.problem = problem
            self._note("missed")

    def start_probing(self) -> None:
        """Probe from a thread of its own, until it is closed."""
        self._probing = threading.Thread(target=self._probe_on, name="edgemem-probe", daemon=True)
        self._probing.start()

    def interrupt(self) -> None:
        """From another thread, before `close`: what waits for the server fails, and is not tried again."""
        self._closing.set()
        self._session.interrupt()

    def close(self) -> None:
        self._closing.set()
        if self._probing is not None:
            self._probing.join(_GOODBYE_S)
            if self._probing.is_alive():
                self._session.interrupt()
                self._probing.join()
        self._session.close()
        if self._local is not None:
            self._local.close()

    def _probe_on(self) -> None:
        while not self._closing.wait(self._settings.probe_s):
            self.probe()

    def _answer(self, logits: int, deadline_s: float) -> Answer:
        """Bring a stage to the present; so many logits after that."""
        while True:
            if self._local is not None and self._switch.here:
                answer = self._follow_here(self._local, logits)
                return answer or self._local.logits(logits)
            mark = self._clock()
            left = self._until(mark + deadline_s) if self._local is not None else lambda: self._settings.stall_s
            try:
                answer = self._follow(logits, left) or self._session.logits(logits, deadline_s=left())
            except _FAILURES as problem:
                self.problem = problem
                if self._local is None and not isinstance(problem, LinkError):
                    raise
                self._note("lost")
                if not self._switch.here:
                    if self._closing.is_set() or self._switch.given_up(self._clock(), self._settings):
                        raise
                    self._sleep(max(0.0, self._switch.due - self._clock()))
            else:
                late = self._local is None and self._clock() - mark > deadline_s
                self._note("late" if late else "answered")
                return answer

    def _until(self, time_s: float) -> Callable[[], float]:
        """The seconds that are left; a moment, when none are."""
        return lambda: max(_MOMENT_S, time_s - self._clock())

    def _follow(self, logits: int, left: Callable[[], float]) -> Answer | None:
        """Let the server do all that was done; its answer, with so many logits, if the last was an extend.

        left: seconds that the next message to the server may take.
        """
        session = self._session
        session.connect(deadline_s=min(self._settings.connect_s, left()))
        answer = session.settle(deadline_s=left())
        while True:
            with self._lock:
                step, present = self._history.next_after(session.place, session.length), self._history.place
                if step is None:  # from here on the session is the user's again, whose next call comes after this
                    self._switch = self._after("current")
                    return answer
            answer = session.do(*step, logits if step[1] == present else 0, deadline_s=left())

    def _follow_here(self, local: Back, logits: int) -> Answer | None:
        """The same in the local back stage."""
        answer = None
        while True:
            with self._local_lock:
                step, present = self._next_here(local)
                if step is None:
                    return answer
                answer = _do_here(local, step[0], logits if step[1] == present else 0)
                self._local_place = step[1]

    def _warm_up(self, local: Back) -> None:
        """All but the last, for whose answer somebody may be waiting."""
        while not self._closing.is_set():
            with self._local_lock:
                step, present = self._next_here(local)
                if step is None or step[1] == present:
                    return
                _do_here(local, step[0], 0)
                self._local_place = step[1]

    def _next_here(self, local: Back) -> tuple[tuple[Operation, Place] | None, Place]:
        with self._lock:
            return self._history.next_after(self._local_place, local.length), self._history.place

    def _note(self, event: Event) -> None:
        with self._lock:
            self._switch = self._after(event)

    def _after(self, event: Event) -> Switch:
        switch = self._switch.after(event, self._clock(), self._settings, local=self._local is not None)
        if switch.mode == "remote":
            self.problem = None
        elif event == "late":
            deadline_s = self._settings.deadline_s
            self.problem = LinkError("the server's answer came late", wanted=f"{deadline_s:.3g} s for a token")
        return switch


def _do_here(local: Back, operation: Operation, logits: int) -> Answer | None:
    if isinstance(operation, Extended):
        return local.extend(operation.payload, operation.count, Ask(logits, operation.tokens, operation.ids))
    if isinstance(operation, Kept):
        local.keep(operation.slots)
    else:
        local.truncate(operation.length)
    return None
