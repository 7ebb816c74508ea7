"""Session: one conversation with one engine, from text to a stream of text.

It knows prompts, messages, stop strings and cancelling, and what each turn adds to the memory: all that is not in the
slots yet, or, where the memory evicts, all that was not said yet. It does not know how tokens are computed or kept.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from edgemem.runtime.answer import Chunk, FinishReason, Request, Timings, Writer, answer_tokens
from edgemem.runtime.dialogue import Dialogue
from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import EdgememError, SettingsError, StoreError
from edgemem.runtime.memory.keeper import SnapshotKeeper
from edgemem.runtime.memory.memory import Memory, checked_settings
from edgemem.runtime.memory.waking import Progress, identity_of
from edgemem.runtime.package import Package
from edgemem.runtime.prompt import Prompt, PromptReader
from edgemem.runtime.retention.recall import RecallSettings
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.sampling import Sampling
from edgemem.runtime.store import NOTE, Store, Unfinished
from edgemem.runtime.template import Message, check_messages
from edgemem.runtime.text_stream import TextStream
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.runtime.turn import TurnReader

__all__ = ["GREEDY", "Chunk", "FinishReason", "Session", "Timings"]

GREEDY = Sampling()
_USUAL_CONTEXT = 4096


class Session:
    """A conversation. Answers run one at a time; `cancel` may be called from any thread.

    timings: of the last answer, or of the one that runs.
    memory: what the engine holds. Where it evicts, the conversation is append-only: a turn adds its own tokens, what
    was evicted is not read again, and the system prompt is pinned. A turn that ends before its first token leaves none
    of its own. Other messages, given as a list or put in place of `messages`, begin anew; raw texts and token ids are
    added as they are.
    note_problem: why the last note that was to be read was not; None where it was.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        package: Package | None = None,
        memory: RetentionSettings | None = None,
        store: Store | None = None,
        recall: RecallSettings | None = None,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """The session closes `engine`, and `package` and `store` if given, but not if this raises.

        store: its conversation is taken up, told to `progress`, and StoreError raised where that cannot be. clock:
        seconds.
        """
        self.engine, self.tokenizer, self.package = engine, tokenizer, package
        self.memory = Memory(engine, memory, store=store, recall=recall, clock=clock)
        self.timings = Timings()
        self.note_problem: EdgememError | None = None
        where = None if package is None else package.path / "tokenizer_config.json"
        prompts = PromptReader(tokenizer, engine.model.vocabulary, where=where)
        self._dialogue = Dialogue(self.memory, tokenizer, TurnReader(prompts, append_only=self.memory.endless))
        self._clock = clock
        cut = None if store is None else self._dialogue.wake(store, progress)
        self._keeper = None if store is None else SnapshotKeeper(self.memory, store, clock=clock)
        self._notes = deque(() if cut is None else [_noted(cut, pinned=False)])  # that wait for an answer's end
        self._busy, self._noting = threading.Lock(), threading.Lock()  # the second: while a note is read
        self._cancelled = self._newest = threading.Event()  # of the answer that runs, of the one last asked for
        self._closing: Future[None] | None = None  # of the last astream, in its thread
        self._closed = False
        self._take_notes()

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        engine: str | None = None,
        context: int | None = None,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        kv: str | None = None,
        memory: RetentionSettings | None = None,
        store: Path | str | None = None,
        recall: RecallSettings | None = None,
        progress: Progress | None = None,
    ) -> Session:
        """A session over the package at `path`.

        context: KV slots, by default the memory's budget, or without one the package's max_context but at most 4096,
        as they cost memory. engine, threads, providers and kv: as open_engine has them. memory: what stays of a
        conversation that outgrows its budget; by default nothing goes and the context is the end. store: a folder
        where the conversation is kept, and found again. recall: put away what is evicted, and bring back what is like
        a question before it is answered, for which that is read twice; not with a store. progress: told how far a
        stored conversation is read.
        Raises what Package.open, Tokenizer.open, open_engine and Store.open raise.
        """
        from edgemem.runtime.open import open_engine

        with ExitStack() as opened:
            package = Package.open(path)
            opened.callback(package.close)
            package.require()
            if context is None:
                context = min(package.manifest.max_context, _USUAL_CONTEXT) if memory is None else memory.budget
            tokenizer = Tokenizer.open(package)
            runs = open_engine(package, engine, capacity=context, threads=threads, providers=providers, kv=kv)
            opened.callback(runs.close)
            kept, settings = (
                None,
                checked_settings(memory, runs.capacity, recalls=recall is not None, stored=store is not None),
            )
            if store is not None:
                kept = Store.open(store, identity_of(package, runs), settings.to_dict())
                opened.callback(kept.close)
            session = cls(runs, tokenizer, package=package, memory=memory, store=kept, recall=recall, progress=progress)
            opened.pop_all()
        return session

    @property
    def messages(self) -> list[Message]:
        """The conversation so far, as {"role", "content"} dicts, notes with the role "note". An answer adds its
        question and itself when it ends, also when it was cancelled or failed half-way; not if it ended before its
        first token."""
        return self._dialogue.messages

    @messages.setter
    def messages(self, messages: list[Message]) -> None:
        if not isinstance(messages, list):
            raise SettingsError("messages are a list", got=type(messages).__name__, wanted="[] for none")
        if messages:
            check_messages(messages)
        self._dialogue.messages = messages

    @property
    def unfinished(self) -> Unfinished | None:
        """The turn that was cut off when the process ended, in a session that came back from a store: `resume` goes on
        with it, and any other prompt leaves it as if it had been cancelled there."""
        return self._dialogue.unfinished

    @property
    def store_problem(self) -> StoreError | None:
        """Why the conversation, or its last snapshot, is not being stored; None while it is, or where none is asked."""
        store = self.memory.store
        return None if store is None else store.problem or store.snapshot_problem

    def stream(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling = GREEDY,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        raw: bool = False,
        pinned: bool = False,
    ) -> Generator[Chunk, None, None]:
        """The answer, chunk by chunk; work begins when the first is asked for, and only as far as is asked for.

        prompt: a text is the next turn of the conversation, or, with `raw` or where the model has no chat template,
        the text that the model goes on with. A list of messages is a whole conversation, which becomes the session's.
        Token ids are taken as they are. pinned: the memory is to keep the prompt, whatever else goes. The last chunk
        alone has a finish_reason. The same prompt and sampling give the
        same text again on the same engine and threads; one with an answer in it may differ in rounding, by whether that
        answer was still in the slots from being generated or had to be read.
        Raises SettingsError for bad arguments, a closed or a busy session, ContextError if the prompt is longer than
        the context, or what is pinned fills the memory: then nothing has changed. An engine's error is raised after a
        last chunk with what there was.
        """
        cancelled = self._newest = threading.Event()
        return self._answer(Request(prompt, raw, sampling, max_tokens, stop, ignore_eos, pinned), cancelled)

    def resume(
        self,
        *,
        sampling: Sampling = GREEDY,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        pinned: bool = False,
    ) -> Generator[Chunk, None, None]:
        """Go on with the unfinished turn: its answer from the beginning, what there was of it at once.

        With the arguments that `stream` had, the same answer comes as if it had never been cut off. Raises
        SettingsError where no turn is unfinished, and what `stream` raises.
        """
        cancelled = self._newest = threading.Event()
        return self._answer(Request("", False, sampling, max_tokens, stop, ignore_eos, pinned, resumes=True), cancelled)

    async def astream(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling = GREEDY,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        raw: bool = False,
        pinned: bool = False,
    ) -> AsyncIterator[Chunk]:
        """`stream` for asyncio, run in a thread of its own, which computes a chunk only when one is awaited.

        Cancelling the task, or leaving the loop, cancels the answer; one asked for next waits until that has ended.
        """
        cancelled = self._newest = threading.Event()
        for _ in range(3):  # a loop that was left: asyncio begins to close its iterator some turns later
            if self._busy.locked():
                await asyncio.sleep(0)
        if self._closing is not None:
            await asyncio.wait([asyncio.wrap_future(self._closing)])
        answer = self._answer(Request(prompt, raw, sampling, max_tokens, stop, ignore_eos, pinned), cancelled)
        loop = asyncio.get_running_loop()
        worker = ThreadPoolExecutor(1, "edgemem-answer")
        try:
            while (chunk := await loop.run_in_executor(worker, next, answer, None)) is not None:
                yield chunk
        finally:
            cancelled.set()
            closing = self._closing = worker.submit(answer.close)  # after the step that may be under way
            worker.shutdown(wait=False)
            await asyncio.shield(asyncio.wrap_future(closing))

    def note(self, text: str, *, pinned: bool = False) -> None:
        """Add to the conversation what nobody asks about, for later questions. It is read at once, by any thread, or
        waits for the end of the answer that runs, or of the one that was cut off.

        Notes are the beginning of the next question's message, a line each. pinned: as `stream` has it. Raises
        SettingsError for what is no text, a closed session and a model without a chat template; what goes wrong while
        it is read is `note_problem`, and the conversation then stays without it.
        """
        if self._closed:
            raise SettingsError("the session is closed", do="open another")
        if self.tokenizer.chat_template is None:
            raise SettingsError("the model has no chat template, so it takes no notes", do="use a model that chats")
        check_messages([{"role": NOTE, "content": text}])
        self._notes.append(_noted(text, pinned=pinned))
        self._take_notes()

    def cancel(self) -> None:
        """End the answer that is running at its next token, or its next part of the prompt, and the one last asked
        for before its first. With neither, it does nothing."""
        self._cancelled.set()
        self._newest.set()

    def reset(self) -> None:
        """Forget the conversation, on disk too, and empty the slots. Raises SettingsError while an answer runs."""
        self._begin(threading.Event())
        try:
            self._notes.clear()
            self._dialogue.reset()
        finally:
            self._end()

    def close(self) -> None:
        """Write a last snapshot, and free the engine, and store and package if the session owns them. An answer that is
        running is cancelled first and frees them as it ends."""
        self._closed = True
        self.cancel()
        self._free()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, request: Request, cancelled: threading.Event) -> Generator[Chunk, None, None]:
        """One answer's life. However it ends, memory, store and messages agree afterwards, and the session is free."""
        self._begin(cancelled)
        try:
            timings = self.timings = Timings(started=self._clock())
            ends = self._checked_ends(request)
            writer = Writer(TextStream(self.tokenizer, request.stop), self.engine)
            turn = self._dialogue.begin(request)
            generated = answer_tokens(self.memory, turn, request, timings, cancelled.is_set, self._clock)
            began = ended = False
            problem: EdgememError | None = None
            try:
                for token in generated:
                    began = True
                    if token in ends:
                        ended = True
                        break
                    if chunk := writer.take(token):
                        yield chunk
                    if writer.stopped:
                        break
            except EdgememError as error:
                problem = error
            finally:
                generated.close()
                rest = writer.finish()
                whole = not (ended or writer.stopped or problem)
                said = writer.text if began else None
                problem = self._dialogue.end(turn.conversation, said, whole=whole) or problem
            yield Chunk(*rest, _reason(problem, ended or writer.stopped, cancelled.is_set()), writer.route)
            if self._keeper is not None:
                self._keeper.after_turn()
            if problem is not None:
                raise problem
        finally:
            self._end()

    def _take_notes(self) -> None:
        """Read the notes that wait, while no answer runs and none that was cut off may still be gone on with."""
        while self._notes and self.unfinished is None:
            with self._noting:
                if not self._busy.acquire(blocking=False):
                    break
                try:
                    if self._notes:
                        self._read_note(self._notes.popleft())
                finally:
                    self._busy.release()
        if self._closed:
            self._free()

    def _read_note(self, request: Request) -> None:
        self.note_problem, answer = None, None
        try:
            turn = self._dialogue.begin(request)
            try:
                list(answer_tokens(self.memory, turn, request, Timings(), lambda: False, self._clock))
                answer = ""
            finally:
                self._dialogue.end(turn.conversation, answer, whole=False)
        except EdgememError as problem:
            self.note_problem = problem
        if self._keeper is not None:
            self._keeper.after_turn()

    def _checked_ends(self, request: Request) -> frozenset[int]:
        if not isinstance(request.sampling, Sampling):
            raise SettingsError("sampling is no Sampling", got=type(request.sampling).__name__)
        if type(request.max_tokens) is not int or request.max_tokens < 1:
            raise SettingsError("max_tokens is out of range", got=repr(request.max_tokens), wanted="1 or more")
        return frozenset() if request.ignore_eos else self.tokenizer.eos_ids

    def _begin(self, cancelled: threading.Event) -> None:
        with self._noting:  # a note takes no longer to be read than a question, and is waited for
            free = self._busy.acquire(blocking=False)
        if free:
            self._cancelled = cancelled  # before the look at _closed: close() sets that first and cancels second
        if self._closed:
            if free:
                self._end()
            raise SettingsError("the session is closed", do="open another")
        if not free:
            raise SettingsError(
                "the session is answering already",
                do="read that answer to its end, close() its iterator, or use a second session",
            )

    def _end(self) -> None:
        self._busy.release()
        self._take_notes()

    def _free(self) -> None:
        """Close all that is owned unless an answer still uses it; `_busy` then stays taken for good."""
        if not self._busy.acquire(blocking=False):
            return
        with ExitStack() as closing:
            if self.package is not None:
                closing.callback(self.package.close)
            if self.memory.store is not None:
                closing.callback(self.memory.store.close)
            closing.callback(self.engine.close)
            if self._keeper is not None:
                self._keeper.take()


def _noted(text: str, *, pinned: bool) -> Request:
    return Request(text, False, GREEDY, 0, (), False, pinned, notes=True)


def _reason(problem: EdgememError | None, stopped: bool, cancelled: bool) -> FinishReason:
    if problem is not None:
        return "error"
    if stopped:
        return "stop"
    return "cancelled" if cancelled else "length"
