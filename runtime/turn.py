"""Turn: what one turn of a conversation adds to the memory, from a prompt or from a turn that was cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.prompt import Prompt, PromptReader
from edgemem.runtime.store import Role, Unfinished
from edgemem.runtime.template import Message
from edgemem.runtime.token_prefix import common_prefix


@dataclass(frozen=True, eq=False)
class Turn:
    """tokens: (n,) int32 of the prompt, `opening` of them before the first question; role: of the others.

    conversation: with the question; None where the prompt is none. asked: what of it is new, or with `whole` all of it,
    as it takes the place of the one before. read: how many tokens had been read before the turn was cut off; answer:
    the tokens that had been generated. words: where in the tokens the question's own ones are; empty if not looked for.
    """

    tokens: NDArray[np.int32]
    conversation: list[Message] | None
    opening: int = 0
    role: Role = Role.USER
    asked: tuple[Message, ...] = ()
    whole: bool = False
    words: range = range(0)
    read: int = 0
    answer: tuple[int, ...] = ()


class TurnReader:
    """Reads turns for one model. append_only: turns are added to what was said, and that is not read again."""

    def __init__(self, prompts: PromptReader, *, append_only: bool) -> None:
        self._prompts, self._append_only = prompts, append_only

    def turn(self, prompt: Prompt, history: Sequence[Message], *, raw: bool, changed: bool, begins: bool) -> Turn:
        """The turn that `prompt` is after `history`. Raises what PromptReader.read raises.

        changed: the history is not the one that was said. begins: nothing has been said at all.
        """
        text = isinstance(prompt, str) and not raw and self._prompts.chats
        if isinstance(prompt, str) and text and self._append_only and history and not changed:
            tokens, conversation = self._prompts.read_next(prompt, history)
            return Turn(_ids(tokens), conversation, asked=tuple(conversation[-1:]))
        tokens, read = self._prompts.read(prompt, history, raw=raw, begins=begins or not self._append_only)
        if read is None:
            return Turn(_ids(tokens), None, role=Role.TEXT)
        whole = changed or not text
        asked = tuple(read) if whole else tuple(read[-1:])
        return Turn(_ids(tokens), read, self._opening(tokens, read), asked=asked, whole=whole)

    def note(self, text: str, history: Sequence[Message], *, changed: bool) -> Turn:
        """A note after `history`. Raises what PromptReader.read_note raises."""
        goes_on = self._append_only and bool(history) and not changed
        tokens, conversation = self._prompts.read_note(text, history, goes_on=goes_on)
        opening = 0 if goes_on else self._opening(tokens, conversation)
        asked = tuple(conversation if changed else conversation[-1:])
        return Turn(_ids(tokens), conversation, opening, asked=asked, whole=changed)

    def own_words(self, prompt: Prompt, turn: Turn) -> range:
        """Where in the turn's tokens those of its text are, without the template's; all of them where that cannot be
        told."""
        tokens = turn.tokens.tolist()
        words = self._prompts.encode(prompt) if isinstance(prompt, str) else tokens
        for start in range(len(tokens) - len(words) + 1):
            if tokens[start : start + len(words)] == words:
                return range(start, start + len(words))
        return range(len(tokens))

    def unfinished_turn(self, cut: Unfinished, history: Sequence[Message], read: int) -> Turn:
        """The turn that was cut off after `read` tokens of its prompt and what it had generated."""
        if not cut.messages:
            return Turn(_ids([]), None, role=Role.TEXT, answer=cut.generated)
        if cut.whole or not history or not self._append_only:
            conversation = [*(() if cut.whole else history), *cut.messages]
            tokens, _ = self._prompts.read(conversation, (), raw=False)
            opening = self._opening(tokens, conversation)
        else:
            tokens, conversation = self._prompts.read_next(cut.messages[-1]["content"], history)
            opening = 0
        return Turn(_ids(tokens), conversation, opening, whole=cut.whole, read=read, answer=cut.generated)

    def _opening(self, tokens: Sequence[int], conversation: Sequence[Message]) -> int:
        return common_prefix(self._prompts.read_opening(conversation), tokens) if self._append_only else 0


def _ids(tokens: Sequence[int]) -> NDArray[np.int32]:
    return np.array(tokens, dtype=np.int32)
