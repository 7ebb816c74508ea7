"""Talk with a model, turn by turn; it remembers the conversation until /reset or its context is full.

example: edgemem chat -m smollm2-135m --temp 0.7
         edgemem chat -m smollm2-135m --memory entropy --budget 1024 --store ~/talk   (without end, and kept)
Ctrl-C stops an answer and keeps the conversation; Ctrl-C or Ctrl-D at the prompt leaves. Lines piped in are turns too;
then a turn that found no room makes the exit status 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from edgemem.tools.options import (
    add_engine,
    add_memory,
    add_model,
    add_sampling,
    in_flags,
    memory_of,
    model_name,
    open_session,
    package_of,
    positive,
    recall_of,
    sampling_of,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from edgemem.runtime.sampling import Sampling
    from edgemem.runtime.session import Chunk, Session
    from edgemem.tools.speed import Speed

_HELP = """/reset   forget the conversation
/speed   speed of the last answer
/memory  what is held of the conversation
/help    this text
//text   say /text
/exit    leave (or Ctrl-D)"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("-n", "--n-predict", type=positive, default=1024, metavar="N", help="tokens an answer (1024)")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the first turn")
    add_sampling(parser)
    add_memory(parser)
    add_engine(parser)


def run(args: argparse.Namespace) -> int:
    from edgemem.runtime.errors import SettingsError
    from edgemem.tools.console import progress_bar

    sampling, memory = sampling_of(args), memory_of(args)
    with progress_bar(quiet=args.store is None) as progress:
        session = open_session(args, memory=memory, recall=recall_of(args), store=args.store, progress=progress)
    with session:
        if session.tokenizer.chat_template is None:
            raise SettingsError(
                "the model has no chat template, so it cannot hold a conversation", do="edgemem run --raw -p TEXT"
            )
        talk = _Chat(args, session, sampling)
        talk.loop()
    return 1 if talk.refused and not sys.stdin.isatty() else 0


class _Chat:
    """The loop between the person and the session."""

    def __init__(self, args: argparse.Namespace, session: Session, sampling: Sampling) -> None:
        self._args, self._session = args, session
        self._settings: dict[str, Any] = {"sampling": sampling, "max_tokens": args.n_predict}
        self._speed: Speed | None = None
        self.refused = False  # a turn went without its answer
        self._told_problem = False
        self._begin()

    def loop(self) -> None:
        if sys.stdin.isatty():
            self._greet()
        self._come_back()
        for line in _lines():
            text = line.strip()
            if text in ("/exit", "/quit"):
                return
            if text == "/reset":
                self._session.reset()
                self._begin()
                print("forgotten")
            elif text == "/speed":
                self._show_speed()
            elif text == "/memory":
                self._show_memory()
            elif text.startswith("/") and not text.startswith("//"):
                print(_HELP)
            elif text:
                self._answer(self._session.stream(text.removeprefix("/"), **self._settings))

    def _greet(self) -> None:
        from rich.console import Console
        from rich.markup import escape

        name = escape(model_name(self._args))
        console = Console(highlight=False)
        console.print(f"[bold]{name}[/bold] [dim]with {self._session.engine.capacity} slots of context[/dim]")
        console.print("[dim]/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves[/dim]")

    def _begin(self) -> None:
        if self._args.system is not None and not self._session.messages:
            self._session.messages = [{"role": "system", "content": self._args.system}]

    def _come_back(self) -> None:
        """Where a stored conversation goes on, say so, and give the answer that was cut off."""
        from edgemem.tools.console import note

        session = self._session
        self._tell_problem()
        if not session.memory.table.position:
            return
        note(f"[going on with the conversation in {self._args.store}; /reset begins a new one]")
        if self._args.system is not None and session.messages[:1] != [{"role": "system", "content": self._args.system}]:
            note("[--system is for a new conversation: this one keeps its own]")
        if session.unfinished is not None:
            note("[the last answer was cut off]")
            self._answer(session.resume(**self._settings))

    def _answer(self, answer: Generator[Chunk, None, None]) -> None:
        from edgemem.runtime.errors import ContextError
        from edgemem.tools.console import note
        from edgemem.tools.speed import SpeedMeter

        session = self._session
        meter = SpeedMeter(session, package_of(session).manifest, self._args.threads)
        reason = None
        try:
            with _cancelled_by_interrupt(session), closing(answer):
                for chunk in answer:
                    meter.mark()
                    print(chunk.text, end="", flush=True)
                    reason = chunk.finish_reason
        except ContextError as error:
            flag = "-c" if self._args.budget is None else "--budget"
            note(f"{in_flags(error, session, flag=flag)}\n  or /reset to begin anew")
            self.refused = True
            return
        print()
        if reason in ("cancelled", "length"):
            note(f"[{'stopped' if reason == 'cancelled' else 'cut off: -n or the context was reached'}]")
        self._speed = meter.speed()
        self._tell_problem()

    def _tell_problem(self) -> None:
        """That the conversation is not stored any more, once."""
        from edgemem.tools.console import note

        problem = self._session.store_problem
        if problem is not None and not self._told_problem:
            self._told_problem = True
            note(f"[{problem}]")

    def _show_memory(self) -> None:
        memory = self._session.memory
        pinned = int(memory.table.rows["pinned"].sum())
        facts = [f"{memory.table.length} of {memory.settings.budget} slots held, {pinned} of them pinned"]
        if memory.evictions:
            each_ms = memory.eviction_ms / memory.evictions
            facts.append(f"{memory.evicted} evicted in {memory.evictions} evictions of {each_ms:.1f} ms")
        print(f"{memory.settings.policy}: {'; '.join(facts)}; {memory.table.position} tokens so far")

    def _show_speed(self) -> None:
        if self._speed is None:
            print("no answer yet")
            return
        if self._speed.read_bandwidth is None:
            self._speed = self._speed.measured()
        print(self._speed.line())


def _lines() -> Iterator[str]:
    """What the person types, with a prompt and line editing on a terminal, until the end or Ctrl-C."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401 - input() edits lines and remembers them once this is loaded

    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


@contextmanager
def _cancelled_by_interrupt(session: Session) -> Iterator[None]:
    """Ctrl-C asks the session to stop instead of tearing the engine's step apart."""
    before = signal.signal(signal.SIGINT, lambda *_: session.cancel())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
