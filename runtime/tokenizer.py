"""Text to token ids and back, over the `tokenizers` library, and what the tokenizer files say of a model.

Text from people never becomes a control token: a spelled-out "<|im_end|>" stays text, unless `special` is asked for.
It renders no chat template (template.py) and streams no text (text_stream.py).
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from edgemem.runtime.errors import ContextError, SettingsError, TokenizerMismatch
from edgemem.runtime.limits import LIMITS
from edgemem.runtime.manifest import Probe, TokenizerRecord
from edgemem.runtime.package import Package
from edgemem.runtime.safe_files import read_at_most
from edgemem.runtime.tensor_file import parse_json_object

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
MAX_TEXT_BYTES = 4 << 20
_CONFIG_BYTES = 16 << 20
_PROBE_TEXTS = (
    "The quick brown fox jumps over 1,234,567 lazy dogs; isn't that so?",
    "Zwölf Boxkämpfer — 你好，世界! Привет 🌍🚀 naïve café",
    "def f(x):\n\tif x <= 0:\n        return {'a': [x, -x]}\n\n\n<|im_end|></s>  end",
)
_CONTROL_SHAPE = re.compile(r"<[|｜].+[|｜]>", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
# The library aborts the process where merges do not fit such a prefix; no decoder has one. The second pattern: a key
# that hides behind escaped ASCII, which no writer of JSON escapes.
_PREFIXED = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]|(?<!\\)(?:\\\\)*\\u00(?!7[fF])[2-7]')
_RECOMPILE = "recompile the package from the model's own tokenizer files"


class Piece(NamedTuple):
    """A run of text; `control` if it is the spelling of one control token and means that token."""

    text: str
    control: bool


class Tokenizer:
    """A model's tokenizer.

    vocabulary: the highest id + 1, at most the model's. bos_id: the id that begins a text, if the model has one;
    adds_bos: whether plain prompts begin with it. eos_ids: the ids that end an answer. controls: ids of the control
    tokens by spelling. chat_template: its source, if any. named_tokens: bos_token, eos_token and such, for templates.
    """

    def __init__(self, files: Mapping[str, bytes], vocabulary: int, *, where: object = None) -> None:
        """`files`: the content of TOKENIZER_FILES by name; `vocabulary`: the model's.

        Raises TokenizerMismatch where the files are malformed or of another model.
        """
        self._where = where
        self._library = _load(files["tokenizer.json"], where)
        self._lock = threading.Lock()  # the library's switch for special tokens is shared state
        self.vocabulary = max(self._library.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not 0 < self.vocabulary <= vocabulary:
            raise TokenizerMismatch(
                "the tokenizer is of another model: its ids do not fit",
                where=where,
                got=f"{self.vocabulary} ids",
                wanted=f"1 to {vocabulary}",
                do=_RECOMPILE,
            )
        settings = self._settings(files, "tokenizer_config.json")
        generation = self._settings(files, "generation_config.json")
        self.named_tokens = _named_tokens(settings)
        self.chat_template = _chat_template(settings, where)
        self.bos_id = next(iter(self._ids(generation.get("bos_token_id"), "bos_token")), None)
        self.eos_ids = frozenset(
            (*self._ids(generation.get("eos_token_id"), "eos_token"), *self._ids(None, "eos_token"))
        )
        with _panics("the tokenizer cannot encode a text", where):
            self.adds_bos = self.bos_id is not None and self._adds_bos(settings.get("add_bos_token"))
        with _panics("the tokenizer cannot decode its own tokens", where):
            self._find_special_ids()

    @classmethod
    def open(cls, package: Package) -> Tokenizer:
        """The package's tokenizer, checked against its model and its golden texts; TokenizerMismatch if they differ."""
        caps = (LIMITS.tokenizer_bytes, _CONFIG_BYTES, _CONFIG_BYTES)
        files = {}
        for name, cap in zip(TOKENIZER_FILES, caps, strict=True):
            path = package.file(name)
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                files[name] = read_at_most(descriptor, cap + 1)
            finally:
                os.close(descriptor)
            if len(files[name]) > cap:
                raise TokenizerMismatch("a tokenizer file is too large", where=path, wanted=f"at most {cap} bytes")
        tokenizer = cls(files, package.model.vocabulary, where=package.path)
        tokenizer.check_probes(package.manifest.tokenizer)
        return tokenizer

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, without a beginning-of-text token.

        With `special`, spelled control tokens become those tokens; else they stay text. Lone surrogates become U+FFFD.
        Raises ContextError for a text over 4 MiB.
        """
        text = _clean(text)
        with self._lock:
            self._library.encode_special_tokens = not special
            with _refusals("the tokenizer cannot encode a text", self._where):
                ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        if special or self._control_ids.isdisjoint(ids):
            return ids
        return [part for token in ids for part in (self._spelled(token) if token in self._control_ids else (token,))]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a whole plain text: `encode`, after the beginning-of-text token if the model's texts have it."""
        begin = [self.bos_id] if self.adds_bos and self.bos_id is not None else []
        return begin + self.encode(text)

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[int]:
        """Token ids of rendered pieces: exactly their control pieces become control tokens.

        Encoded in one go, as the model was trained, unless that would turn other text into a control token.
        """
        wanted = [self.controls[piece.text] for piece in pieces if piece.control]
        whole = self.encode("".join(piece.text for piece in pieces), special=True)
        if [token for token in whole if token in self._control_ids] == wanted:
            return whole
        ids: list[int] = []
        for piece in pieces:
            ids += [self.controls[piece.text]] if piece.control else self.encode(piece.text)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens and ids without a token give none. Invalid UTF-8 becomes U+FFFD."""
        ids = list(ids)
        try:
            with _panics("the tokenizer cannot decode tokens", self._where):
                return self._library.decode(ids, skip_special_tokens=True)
        except (OverflowError, TypeError) as problem:
            raise SettingsError(
                "token ids that cannot be decoded", got=problem, wanted="whole numbers from 0"
            ) from None

    def is_silent(self, token: int) -> bool:
        """Whether `token` gives no text wherever it stands."""
        return token in self._silent_ids or self._library.id_to_token(token) is None

    def is_raw_byte(self, token: int) -> bool:
        """Whether `token` is one byte whose text depends on the raw bytes around it (byte fallback)."""
        return token in self._byte_ids

    def same_ids(self, other: Tokenizer) -> bool:
        """Whether both have the same tokens with the same ids."""
        return bool(self._library.get_vocab(with_added_tokens=True) == other._library.get_vocab(with_added_tokens=True))

    def make_probes(self) -> tuple[Probe, ...]:
        """The golden texts and this tokenizer's ids for them."""
        return tuple(Probe(text, tuple(self.encode(text))) for text in _PROBE_TEXTS)

    def check_probes(self, record: TokenizerRecord) -> None:
        """Raise TokenizerMismatch unless this tokenizer gives what the record says."""
        if record.vocabulary != self.vocabulary:
            raise TokenizerMismatch(
                "the tokenizer is not the one that was compiled",
                where=self._where,
                got=f"{self.vocabulary} ids",
                wanted=f"{record.vocabulary} ids",
                do=_RECOMPILE,
            )
        for probe in record.probes:
            got = tuple(self.encode(probe.text))
            if got != probe.ids:
                raise TokenizerMismatch(
                    f"the tokenizer encodes a golden text otherwise than when it was compiled: {probe.text[:40]!a}",
                    where=self._where,
                    got=_short(got),
                    wanted=_short(probe.ids),
                    do=_RECOMPILE,
                )

    def _settings(self, files: Mapping[str, bytes], name: str) -> dict[str, Any]:
        try:
            return parse_json_object(files[name])
        except ValueError as problem:
            raise TokenizerMismatch(f"{name} is malformed", where=self._where, got=problem, do=_RECOMPILE) from problem

    def _ids(self, stored: Any, name: str) -> list[int]:
        """Checked ids from generation_config.json, or the id of the named token where that has none."""
        if stored is None:
            found = self._library.token_to_id(self.named_tokens.get(name, ""))
            return [] if found is None else [found]
        ids: list[int] = stored if isinstance(stored, list) else [stored]
        for token in ids:
            if type(token) is not int or not 0 <= token < self.vocabulary:
                raise TokenizerMismatch(
                    f"generation_config.json: {name}_id is no token",
                    where=self._where,
                    got=repr(token)[:80],
                    wanted=f"0 to {self.vocabulary - 1}",
                    do=_RECOMPILE,
                )
        return ids

    def _adds_bos(self, stored: Any) -> bool:
        """The setting if there is one, else what tokenizer.json's own post-processor does."""
        if isinstance(stored, bool):
            return stored
        return self._library.encode("", add_special_tokens=True).ids[:1] == [self.bos_id]

    def _find_special_ids(self) -> None:
        library = self._library
        added = library.get_added_tokens_decoder()
        unknown = getattr(library.model, "unk_token", None)
        self.controls: dict[str, int] = {
            token.content: number
            for number, token in added.items()
            if token.content != unknown and (token.special or _CONTROL_SHAPE.fullmatch(token.content))
        }
        for number in (*self.eos_ids, *(() if self.bos_id is None else (self.bos_id,))):
            spelling = library.id_to_token(number)
            if spelling is not None and number not in self.controls.values():
                self.controls[spelling] = number
        self._control_ids = frozenset(self.controls.values())
        self._silent_ids = frozenset(number for number, token in added.items() if token.special)
        first = library.token_to_id("<0x41>")
        fallback = first is not None and library.decode([first]) == "A"
        numbers = [library.token_to_id(f"<0x{value:02X}>") for value in range(256)] if fallback else []
        self._byte_ids = frozenset(number for number in numbers if number is not None)

    def _spelled(self, control: int) -> list[int]:
        """A control token's spelling, letter by letter: for models whose own vocabulary or merges reach the token."""
        from tokenizers.pre_tokenizers import ByteLevel

        spelling = next(text for text, number in self.controls.items() if number == control)
        space = self._library.token_to_id("Ġ")
        if space is not None and self._library.decode([space]) == " ":
            split = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(spelling)
            letters = "".join(text for text, _ in split)
        else:
            letters = spelling.replace(" ", "▁")
        ids = [token.id for letter in letters for token in self._library.model.tokenize(letter)]
        return [token for token in ids if token not in self._control_ids]


@contextmanager
def _panics(what: str, where: object) -> Iterator[None]:
    """A panic of the library, whose class has only its name to be known by, as TokenizerMismatch."""
    try:
        yield
    except BaseException as problem:
        if type(problem).__name__ != "PanicException":
            raise
        raise TokenizerMismatch(what, where=where, got=str(problem)[:200], do=_RECOMPILE) from problem


@contextmanager
def _refusals(what: str, where: object) -> Iterator[None]:
    """Panics, and the library's errors, of which none is narrower than Exception, as TokenizerMismatch."""
    with _panics(what, where):
        try:
            yield
        except Exception as problem:
            raise TokenizerMismatch(what, where=where, got=str(problem)[:200], do=_RECOMPILE) from problem


def _load(raw: bytes, where: object) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Library

    if _PREFIXED.search(raw):
        raise TokenizerMismatch(
            "tokenizer.json has a continuing_subword_prefix, or escaped ASCII letters", where=where, do=_RECOMPILE
        )
    with _refusals("tokenizer.json is malformed", where):
        library = Library.from_buffer(raw)
    if getattr(library.model, "dropout", None):
        do = "set model.dropout to null in tokenizer.json, which is for training alone, and compile again"
        raise TokenizerMismatch("the tokenizer encodes at random", where=where, got="a BPE dropout", do=do)
    library.no_truncation()
    library.no_padding()
    return library


def _named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, ... as texts; older files hold them as objects with a `content`."""
    named = {}
    for name, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            named[name] = _SURROGATE.sub("\ufffd", text)
    return named


def default_template(stored: Any) -> Any:
    """Of several named chat templates, as older files list them, the one named default or None; else `stored`."""
    if not isinstance(stored, list):
        return stored
    named = [item.get("template") for item in stored if isinstance(item, dict) and item.get("name") == "default"]
    return named[-1] if named else None


def _chat_template(settings: Mapping[str, Any], where: object) -> str | None:
    """The template's source; of several named ones, `default`."""
    stored = settings.get("chat_template")
    template = default_template(stored)
    if template is None and stored is not None:
        raise TokenizerMismatch("tokenizer_config.json: no chat template is named default", where=where, do=_RECOMPILE)
    if template is not None and not isinstance(template, str):
        raise TokenizerMismatch(
            "tokenizer_config.json: the chat template is no text",
            where=where,
            got=type(template).__name__,
            do=_RECOMPILE,
        )
    return template


def _clean(text: str) -> str:
    text = _SURROGATE.sub("\ufffd", text)
    size = len(text) if text.isascii() else len(text.encode())
    if size > MAX_TEXT_BYTES:
        raise ContextError("the text is too long", got=f"{size} bytes", wanted=f"at most {MAX_TEXT_BYTES}")
    return text


def _short(ids: Sequence[int]) -> str:
    return f"{len(ids)} ids: {list(ids[:8])}{' ...' if len(ids) > 8 else ''}"
