"""Chat templates: from messages to text whose control tokens are the template's alone.

A spelled-out control token inside a message is masked by private-use characters while the template runs, so that the
template sees real content, yet nothing a person writes can become a control token. Templates are foreign code: they
run in jinja2's sandbox with bounded steps and output; the memory of one hostile expression is not bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgemem.runtime.errors import ContextError, EdgememError, PackageError, SettingsError
from edgemem.runtime.tokenizer import MAX_TEXT_BYTES, Piece

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, str]

_MAX_SOURCE_CHARACTERS = 1 << 20
_MAX_OUTPUT_CHARACTERS = 2 * MAX_TEXT_BYTES
_MAX_STEPS = 100_000
_ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PRIVATE_USE = range(0xF0000, 0xFFFFE)
_DO = "use plain prompts, or recompile the package with a sound chat template"


class ChatTemplate:
    """A model's chat template, compiled at its first use."""

    def __init__(
        self,
        source: str,
        controls: Collection[str],
        named_tokens: Mapping[str, str],
        *,
        where: object = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """`controls`: the spellings of all control tokens; `named_tokens`: bos_token and such, for the template."""
        self._source, self._where, self._now = source, where, now
        self._named_tokens = {"bos_token": "", "eos_token": "", **named_tokens}
        self._spellings = _Spellings(controls)

    def render(self, messages: Sequence[Message], *, ask: bool = True) -> list[Piece]:
        """Pieces of the conversation; with `ask`, up to where the model's answer begins.

        Raises SettingsError for malformed messages or if the template refuses them, ContextError for too much text,
        PackageError if the template is broken or does not end.
        """
        plain = check_messages(messages)
        masks = _Masks({*self._source, *(letter for message in plain for letter in message["content"])})
        for message in plain:
            message["content"] = masks.apply(message["content"], self._spellings.openings(message["content"]))
        masked = self._run({"messages": plain, "add_generation_prompt": ask, "tools": None, "documents": None})
        return [Piece(masks.undo(text), control) for text, control in self._spellings.split(masked)]

    @cached_property
    def _template(self) -> jinja2.Template:
        if len(self._source) > _MAX_SOURCE_CHARACTERS:
            raise PackageError(
                "the chat template is too long", where=self._where, got=f"{len(self._source)} characters"
            )
        try:
            return _environment(self._now).from_string(self._source)
        except Exception as problem:
            raise PackageError(
                "the chat template is no valid jinja2 template", where=self._where, got=_shown(problem), do=_DO
            ) from problem

    def _run(self, variables: dict[str, Any]) -> str:
        template = self._template
        template.environment.steps = 0  # type: ignore[attr-defined]  # of the class made in _environment
        parts, size = [], 0
        try:
            for part in template.generate(**variables, **self._named_tokens):
                parts.append(part)
                size += len(part)
                if size > _MAX_OUTPUT_CHARACTERS:
                    raise PackageError("the chat template writes without end", where=self._where, do=_DO)
        except _Refusal as refusal:
            raise SettingsError(
                "the chat template refuses the conversation",
                where=self._where,
                got=str(refusal)[:200],
                do="change the roles or the order of the messages",
            ) from None
        except EdgememError:
            raise
        except Exception as problem:
            raise PackageError("the chat template failed", where=self._where, got=_shown(problem), do=_DO) from problem
        return "".join(parts)


def check_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Copies of the messages, each with exactly a role and a content, both text; else SettingsError."""
    checked, size = [], 0
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            got = f"keys {sorted(map(str, message))}" if isinstance(message, Mapping) else type(message).__name__
            raise SettingsError(f"message {index} is malformed", got=got, wanted="a dict with role and content")
        role, content = message["role"], message["content"]
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            raise SettingsError(
                f"message {index} has a bad role", got=repr(role)[:80], wanted="system, user, assistant"
            )
        if not isinstance(content, str):
            raise SettingsError(f"message {index} has no text", got=type(content).__name__, wanted="content as a str")
        checked.append({"role": role, "content": content})
        size += len(content)
    if not checked:
        raise SettingsError("there are no messages", wanted="at least one")
    if size > MAX_TEXT_BYTES:
        raise ContextError("the messages are too long", got=f"{size} characters", wanted=f"at most {MAX_TEXT_BYTES}")
    return checked


class _Spellings:
    """The spellings of control tokens, looked up by set, so that hostile text costs little more than its length."""

    def __init__(self, controls: Collection[str]) -> None:
        self._whole = frozenset(controls)
        self._lengths = sorted({len(text) for text in controls}, reverse=True)
        self._heads = {text[:cut] for text in controls for cut in range(1, len(text))}
        self._tails = {text[cut:] for text in controls for cut in range(1, len(text))}
        firsts = "".join(re.escape(first) for first in sorted({text[0] for text in controls}))
        self._first = re.compile(f"[{firsts}]" if firsts else r"(?!)")

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """(run of text, whether it is a control token's spelling), leftmost and longest first, as tokenizers match."""
        done = 0
        for match in self._first.finditer(text):
            start = match.start()
            length = self._longest(text, start) if start >= done else 0
            if length:
                if start > done:
                    yield text[done:start], False
                yield text[start : start + length], True
                done = start + length
        if done < len(text):
            yield text[done:], False

    def openings(self, content: str) -> set[int]:
        """Places in `content` where a spelling begins, or could begin or end across its edge, as is or stripped."""
        places = {match.start() for match in self._first.finditer(content) if self._longest(content, match.start())}
        stripped = content.strip()
        for text, offset in ((content, 0), (stripped, content.find(stripped))):
            if text:
                places.update(place + offset for place in self._edges(text))
        return places

    def _longest(self, text: str, start: int) -> int:
        return next((length for length in self._lengths if text[start : start + length] in self._whole), 0)

    def _edges(self, text: str) -> Iterator[int]:
        reach = min(len(text), max(self._lengths, default=0))
        yield from (place for place in range(len(text) - reach, len(text)) if text[place:] in self._heads)
        inside = len(text) == reach and any(text in control for control in self._whole)
        if inside or any(text[:cut] in self._tails for cut in range(1, reach + 1)):
            yield 0


class _Masks:
    """Private-use characters that stand for others while a template runs; none of them is in `taken`."""

    def __init__(self, taken: set[str]) -> None:
        self._free = (chr(number) for number in _PRIVATE_USE if chr(number) not in taken)
        self._mask_of: dict[str, str] = {}

    def apply(self, text: str, places: set[int]) -> str:
        if not places:
            return text
        letters = list(text)
        for place in places:
            letter = letters[place]
            if letter not in self._mask_of:
                mask = next(self._free, None)
                if mask is None:
                    raise SettingsError("the messages use every private-use character of Unicode")
                self._mask_of[letter] = mask
            letters[place] = self._mask_of[letter]
        return "".join(letters)

    def undo(self, text: str) -> str:
        return text.translate({ord(mask): letter for letter, mask in self._mask_of.items()})


class _Refusal(Exception):
    """The template called raise_exception."""


def _environment(now: Callable[[], datetime]) -> jinja2.Environment:
    """The sandbox with the settings, filters and functions that transformers gives to chat templates."""
    from jinja2 import nodes, parser
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlocks(Extension):
        """{% generation %} marks the assistant's text for training; here it is the text alone."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: parser.Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "*", "**"])
        steps = 0

        def step(self) -> None:
            self.steps += 1
            if self.steps > _MAX_STEPS:
                raise PackageError("the chat template does not end", got=f"over {_MAX_STEPS} steps", do=_DO)

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            """Every turn of a loop and every call of a macro counts a step first."""
            tree = super()._parse(source, name, filename)
            repeated: Iterator[Any] = tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))
            for node in repeated:
                call = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
                node.body.insert(0, nodes.ExprStmt(call).set_lineno(node.lineno))
            return tree

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if _result_size(operator, left, right) > _MAX_OUTPUT_CHARACTERS:
                raise PackageError("the chat template makes a value without end", got=f"operator {operator}", do=_DO)
            return super().call_binop(context, operator, left, right)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda layout: now().strftime(layout)
    return environment


def _result_size(operator: str, left: Any, right: Any) -> int:
    """Characters or entries of left + right or left * right, bits of a power; 0 where they stay small."""
    sizes = [len(value) for value in (left, right) if isinstance(value, (str, list, tuple))]
    if operator == "+":
        return sum(sizes)
    numbers = [value for value in (left, right) if isinstance(value, int)]
    if operator == "*":
        return sizes[0] * numbers[0] if sizes and numbers else sum(number.bit_length() for number in numbers)
    return numbers[0].bit_length() * abs(numbers[1]) if len(numbers) == 2 else 0


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: object) -> None:
    raise _Refusal(message)


def _shown(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}"[:200]
