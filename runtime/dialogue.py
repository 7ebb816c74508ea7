"""Dialogue: what was said in a session, and how a turn begins and ends in its memory.

It knows messages, notes and the turn that was cut off; it generates nothing, and one caller at a time may use it.
"""

from __future__ import annotations

from dataclasses import replace

from edgemem.runtime.answer import Request
from edgemem.runtime.errors import EdgememError, SettingsError
from edgemem.runtime.memory.memory import Memory
from edgemem.runtime.memory.waking import Progress, wake
from edgemem.runtime.store import NOTE, Store, Unfinished
from edgemem.runtime.template import Message
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.runtime.turn import Turn, TurnReader


class Dialogue:
    """messages, unfinished: as Session has them."""

    def __init__(self, memory: Memory, tokenizer: Tokenizer, reader: TurnReader) -> None:
        self.messages: list[Message] = []
        self.unfinished: Unfinished | None = None
        self._memory, self._tokenizer, self._reader = memory, tokenizer, reader
        self._said: list[Message] = []  # the messages whose tokens the memory was given
        self._read_before = 0  # tokens of the unfinished turn's prompt

    def wake(self, store: Store, progress: Progress | None) -> str | None:
        """Take up the store's conversation. Gives the note that was being read when the process ended, which is not
        in it. Raises what `wake` raises."""
        woken, recovered = wake(self._memory, store, progress), store.recovered
        store.let_go_of_snapshot()
        self.messages = [*recovered.messages]
        self._said = list(self.messages)
        self._read_before = woken.read or 0
        cut = self.unfinished = recovered.unfinished
        noted = cut is not None and bool(cut.messages) and cut.messages[-1]["role"] == NOTE
        if cut is not None and (noted or woken.read is None or not (cut.messages or cut.generated)):
            self._leave_unfinished()
        if cut is None or not noted:
            return None
        if cut.whole:
            self.messages = [*cut.messages[:-1]]
        return cut.messages[-1]["content"]

    def begin(self, request: Request) -> Turn:
        """The turn, which has begun when this returns. Raises what Session.stream raises: then it has not."""
        if request.resumes:
            return self._resumed()
        self._leave_unfinished()
        memory, prompt, changed = self._memory, request.prompt, self.messages != self._said
        if request.notes:
            turn = self._reader.note(str(prompt), self.messages, changed=changed)
        else:
            begins = memory.table.length == 0
            turn = self._reader.turn(prompt, self.messages, raw=request.raw, changed=changed, begins=begins)
            if memory.recalls:
                turn = replace(turn, words=self._reader.own_words(prompt, turn))
        count = len(turn.tokens)
        memory.check(count, count if request.pinned else turn.opening, anew=turn.whole)
        memory.begin_turn(turn.asked, whole=turn.whole)
        return turn

    def end(self, conversation: list[Message] | None, answer: str | None, *, whole: bool) -> EdgememError | None:
        """answer: None if there was no token of it. whole: its last token is part of it. Gives what went wrong."""
        memory, problem = self._memory, None
        if memory.endless and answer is None:
            memory.forget_turn()
        elif memory.endless and whole:
            try:
                memory.consume_pending()
            except EdgememError as error:
                problem = error
        if conversation is None or answer is None:
            memory.end_turn(None)
            return problem
        self.messages = list(conversation)
        if conversation[-1]["role"] != NOTE:
            self.messages.append({"role": "assistant", "content": answer})
        self._said = list(self.messages)
        memory.end_turn(answer)
        return problem

    def reset(self) -> None:
        """Forget it, on disk too."""
        self.messages, self._said, self.unfinished = [], [], None
        self._memory.reset()

    def _resumed(self) -> Turn:
        if self.unfinished is None:
            raise SettingsError("no turn was cut off", do="ask something")
        turn = self._reader.unfinished_turn(self.unfinished, self.messages, self._read_before)
        self.unfinished = None
        return turn

    def _leave_unfinished(self) -> None:
        """The turn that was cut off ends as if it had been cancelled there."""
        cut, self.unfinished = self.unfinished, None
        if cut is None:
            return
        said = [*(() if cut.whole else self.messages), *cut.messages]
        answer = self._tokenizer.decode(cut.generated) if cut.generated else None
        self.end(said if cut.messages else None, answer, whole=False)
