"""Talk with a model, turn by turn; it remembers the conversation until /reset or its context is full.

example: edgemem chat -m smollm2-135m --temp 0.7
Ctrl-C stops an answer and keeps the conversation; Ctrl-C or Ctrl-D at the prompt leaves. Lines piped in are turns too;
then a turn that found no room makes the exit status 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgemem.tools.options import (
    add_engine,
    add_model,
    add_sampling,
    in_flags,
    model_name,
    open_session,
    package_of,
    positive,
    sampling_of,
)

if TYPE_CHECKING:
    from edgemem.runtime.sampling import Sampling
    from edgemem.runtime.session import Session
    from edgemem.tools.speed import Speed

_HELP = """/reset   forget the conversation
/speed   speed of the last answer
/help    this text
//text   say /text
/exit    leave (or Ctrl-D)"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("-n", "--n-predict", type=positive, default=1024, metavar="N", help="tokens an answer (1024)")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the first turn")
    add_sampling(parser)
    add_engine(parser)


def run(args: argparse.Namespace) -> int:
    from edgemem.runtime.errors import SettingsError

    sampling = sampling_of(args)
    with open_session(args) as session:
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
        self._args, self._session, self._sampling = args, session, sampling
        self._speed: Speed | None = None
        self.refused = False  # a turn went without its answer
        self._reset()

    def loop(self) -> None:
        if sys.stdin.isatty():
            self._greet()
        for line in _lines():
            text = line.strip()
            if text in ("/exit", "/quit"):
                return
            if text == "/reset":
                self._session.reset()
                self._reset()
                print("forgotten")
            elif text == "/speed":
                self._show_speed()
            elif text.startswith("/") and not text.startswith("//"):
                print(_HELP)
            elif text:
                self._answer(text.removeprefix("/"))

    def _greet(self) -> None:
        from rich.console import Console
        from rich.markup import escape

        name = escape(model_name(self._args))
        console = Console(highlight=False)
        console.print(f"[bold]{name}[/bold] [dim]with {self._session.engine.capacity} slots of context[/dim]")
        console.print("[dim]/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves[/dim]")

    def _reset(self) -> None:
        if self._args.system is not None:
            self._session.messages = [{"role": "system", "content": self._args.system}]

    def _answer(self, text: str) -> None:
        from edgemem.runtime.errors import ContextError
        from edgemem.tools.console import note
        from edgemem.tools.speed import SpeedMeter

        session = self._session
        meter = SpeedMeter(session, package_of(session).manifest, self._args.threads)
        reason = None
        try:
            with _cancelled_by_interrupt(session):
                for chunk in session.stream(text, sampling=self._sampling, max_tokens=self._args.n_predict):
                    meter.mark()
                    print(chunk.text, end="", flush=True)
                    reason = chunk.finish_reason
        except ContextError as error:
            note(f"{in_flags(error, session)}\n  or /reset to begin anew")
            self.refused = True
            return
        print()
        if reason in ("cancelled", "length"):
            note(f"[{'stopped' if reason == 'cancelled' else 'cut off: -n or the context was reached'}]")
        self._speed = meter.speed()

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
