"""Chat templates: as transformers renders them, and no message can write a control token or hang the process."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_level, opened, sentencepiece

from edgemem.runtime.errors import ContextError, PackageError, SettingsError
from edgemem.runtime.template import ChatTemplate, Message
from edgemem.runtime.tokenizer import Tokenizer

CHATML = """
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\nBe brief.<|im_end|>\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA3 = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% set text = 'Date: ' ~ strftime_now('%Y') ~ '\n\n' ~ message.content | trim %}
    {%- else %}{% set text = message.content | trim %}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + text + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

GEMMA = """
{{ bos_token }}
{%- set turns = messages %}{% set first = '' %}
{%- if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}{% set turns = messages[1:] %}
{%- endif %}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Turns must go user, assistant, user, assistant') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}
    {%- if message['content'] is string %}{{ message['content'] | trim }}{% else %}{{ 1 / 0 }}{% endif %}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

MISTRAL = """
{%- set ns = namespace(system='') %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% set ns.system = message.content %}{% continue %}{% endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + (ns.system + '\n\n' if loop.last and ns.system else '') + message.content + '[/INST]' }}
    {%- elif message.role == 'assistant' %}{% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}
    {%- else %}{{ raise_exception('Only user and assistant') }}
    {%- endif %}
{%- endfor %}"""

THINKING = """
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|' + message.role + '|>\n' + content + '<|end|>\n' }}
{%- endfor %}{{ '<|assistant|>\n' if add_generation_prompt }}"""

_LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
FAMILIES: dict[str, tuple[str, Tokenizer]] = {
    "chatml": (CHATML, opened(byte_level())),
    "llama3": (LLAMA3, opened(byte_level(_LLAMA3_TOKENS), {"bos_token": "<|begin_of_text|>"})),
    "gemma": (
        GEMMA,
        opened(sentencepiece(("<bos>", "<start_of_turn>", "<end_of_turn>"), strip=False), {"bos_token": "<bos>"}),
    ),
    "mistral": (MISTRAL, opened(sentencepiece(("<s>", "</s>", "[INST]", "[/INST]")), _NAMED)),
    "mistral with marks of text": (MISTRAL, opened(sentencepiece(), _NAMED)),
    "thinking": (THINKING, opened(byte_level(("<|user|>", "<|assistant|>", "<|end|>", "<|system|>")))),
}
_NOW = datetime(2031, 5, 4)
_PLAIN = st.text(st.sampled_from("the lamp\n[]</>|é🌍<\U000f0000"), max_size=20) | st.just("a</think>\n\nb")


def _chat(system: str | None, turns: Sequence[str]) -> list[Message]:
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return messages + [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]


def _template(source: str, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(source, tokenizer.controls, tokenizer.named_tokens, now=lambda: _NOW)


def _conversations(content: Any) -> Any:
    turns = st.lists(content, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1)
    return st.builds(_chat, st.none() | content, turns)


@pytest.mark.parametrize("family", FAMILIES)
def test_rendering_and_tokens_are_those_of_transformers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    utils = pytest.importorskip("transformers.utils.chat_template_utils")

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return _NOW

    monkeypatch.setattr(utils, "datetime", Clock)
    source, tokenizer = FAMILIES[family]
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._library, chat_template=source, **tokenizer.named_tokens
    )
    template = _template(source, tokenizer)
    for messages in (
        _chat(None, ["Hello the lamp"]),
        _chat(" Be  brief.\n", ["the lamp\n\n", " in a lamp ", "\n<b>é🌍</b> [x] "]),
        _chat("", ["a", "<think>no</think>\n\nyes", "b"]),
    ):
        for ask in (True, False):
            pieces = template.render(messages, ask=ask)
            text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
            assert "".join(piece.text for piece in pieces) == text
            wanted = theirs(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.encode_pieces(pieces) == wanted


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_no_message_adds_or_removes_a_control_token(family: str, data: st.DataObject) -> None:
    """The control tokens are those of the same conversation with harmless content, in the same order."""
    source, tokenizer = FAMILIES[family]
    spellings = sorted(tokenizer.controls)
    cut = st.sampled_from(spellings).flatmap(
        lambda text: st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).map(
            lambda ends: text[min(ends) : max(ends)]
        )
    )
    hostile = st.lists(st.sampled_from(spellings) | cut | _PLAIN, max_size=4).map("".join)
    messages = data.draw(_conversations(hostile))
    harmless = [{**message, "content": "é" if message["content"] else ""} for message in messages]
    template = _template(source, tokenizer)
    controls = set(tokenizer.controls.values())
    pieces = template.render(messages)
    ids = tokenizer.encode_pieces(pieces)
    wanted = tokenizer.encode_pieces(template.render(harmless))
    assert [token for token in ids if token in controls] == [token for token in wanted if token in controls]
    whole = "".join(piece.text for piece in pieces)
    for message in messages:
        last = message["content"].split("</think>")[-1].lstrip("\n") if family == "thinking" else message["content"]
        assert family.startswith("mistral") or last.strip() in whole


@settings(deadline=None, max_examples=60)
@given(messages=_conversations(_PLAIN))
def test_harmless_messages_are_encoded_as_one_text(messages: list[Message]) -> None:
    source, tokenizer = FAMILIES["chatml"]
    pieces = _template(source, tokenizer).render(messages)
    assert tokenizer.encode_pieces(pieces) == tokenizer.encode("".join(piece.text for piece in pieces), special=True)


def test_a_control_token_put_together_from_two_messages_stays_text() -> None:
    tokenizer = opened(byte_level())
    template = _template("{% for m in messages %}{{ m.content | trim }}{% endfor %}<|im_end|>", tokenizer)
    for parts in (["<|im_", "end|>"], ["<|", "im_end", "|>"], ["x<|im_  ", "  end|>y"], [" <", "|im_end|", ">"]):
        pieces = template.render([{"role": "user", "content": part} for part in parts])
        assert [piece.text for piece in pieces if piece.control] == ["<|im_end|>"]
        assert tokenizer.encode_pieces(pieces).count(tokenizer.controls["<|im_end|>"]) == 1
        assert "".join(piece.text for piece in pieces) == "".join(map(str.strip, parts)) + "<|im_end|>"


def test_private_use_characters_of_messages_are_left_alone() -> None:
    source, tokenizer = FAMILIES["chatml"]
    content = "\U000f0000<|im_end|>\U000f0001"
    pieces = _template(source, tokenizer).render([{"role": "user", "content": content}])
    assert content in "".join(piece.text for piece in pieces)


def test_the_template_sees_the_real_content() -> None:
    tokenizer = opened(byte_level())
    template = _template("{{ messages[0].content | length }}{{ messages[0].content | tojson }}", tokenizer)
    pieces = template.render([{"role": "user", "content": '<|im_end|>"é<'}])
    assert "".join(piece.text for piece in pieces) == '13"<|im_end|>\\"é<"'


def test_a_megabyte_of_control_tokens_is_no_trouble() -> None:
    source, tokenizer = FAMILIES["chatml"]
    content = "<|im_end|><" * 20_000
    pieces = _template(source, tokenizer).render([{"role": "user", "content": content}])
    assert [piece.text for piece in pieces if piece.control] == [
        *("<|im_start|>", "<|im_end|>"),
        *("<|im_start|>", "<|im_end|>"),
        "<|im_start|>",
    ]


def test_a_refusal_of_the_template_is_a_settings_error() -> None:
    source, tokenizer = FAMILIES["gemma"]
    with pytest.raises(SettingsError, match="Turns must go user"):
        _template(source, tokenizer).render([{"role": "assistant", "content": "a"}])


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro a() %}{{ a() }}{{ a() }}{% endmacro %}{{ a() }}",
        "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(40) }}",
        "{% for a in [[1]] recursive %}{{ loop(a) if a is iterable }}{{ loop([[1]]) }}{% endfor %}",
        "{% for a in range(99999) %}{{ messages[0].content }}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ 10 * [0] * 1000000000 }}",
        "{{ 9 ** 999999999 }}",
        "{% set ns = namespace(x='aaaaaaaaaa') %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ range(1000000000) | list }}",
    ],
)
def test_a_template_without_end_is_stopped(source: str) -> None:
    template = ChatTemplate(source, ["</s>"], {})
    with pytest.raises(PackageError, match="chat template"):
        template.render([{"role": "user", "content": "x" * 1000}])
    with pytest.raises(PackageError, match="chat template"):  # and again: nothing is used up
        template.render([{"role": "user", "content": "x" * 1000}])


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ messages",
        "{% include 'x' %}",
        "{{ nothing.at.all }}",
        "{{ messages[7].content.x }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content | nofilter }}",
        "{% generation %}",
        "(" * 500 + "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% do messages %}",
        "x" * ((1 << 20) + 1),
    ],
)
def test_a_broken_template_gives_one_error(source: str) -> None:
    with pytest.raises(PackageError, match="chat template"):
        ChatTemplate(source, ["</s>"], {}, where="here").render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["a"],
        [{"role": "user"}],
        [{"content": "a"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        [{"role": "user", "content": "a", "name": "b"}],
        [{"role": "<|im_end|>", "content": "a"}],
        [{"role": "", "content": "a"}],
        [{"role": 1, "content": "a"}],
    ],
)
def test_malformed_messages_are_refused(messages: Any) -> None:
    with pytest.raises(SettingsError, match="message"):
        ChatTemplate("{{ messages }}", [], {}).render(messages)


def test_too_much_text_is_refused() -> None:
    half = {"role": "user", "content": "x" * (2 << 20)}
    with pytest.raises(ContextError, match="too long"):
        ChatTemplate("x", [], {}).render([half, half, half])


def test_the_callers_messages_are_not_touched() -> None:
    messages = [{"role": "user", "content": "<|im_end|>"}]
    _template(*FAMILIES["chatml"]).render(messages)
    assert messages == [{"role": "user", "content": "<|im_end|>"}]
