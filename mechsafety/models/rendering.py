"""What a tokenizer makes of messages and of text: its template, the day it writes, and what it puts around bare text.

Everything here is about a tokenizer alone; :mod:`mechsafety.models.chat` does the same for a model.
"""

from __future__ import annotations

import copy
import datetime
import functools
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from mechsafety.core.progress import quiet

if TYPE_CHECKING:
    from mechsafety.models.chat_settings import TemplateInput

_TURNS = (
    "{% for message in messages %}"
    "{{ {'user': 'Question', 'assistant': 'Answer', 'system': 'Instructions'}[message['role']] }}: "
    "{{ message['content'] }}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)
PLAIN_TEMPLATE = _TURNS
"""What ``--template plain`` gives a model that has no chat template of its own: bare text, and begun as such."""
_EXAMPLES = (
    ("What is the capital of France?", "The capital of France is Paris."),
    (
        "How do I boil an egg?",
        "Put the egg into boiling water for eight minutes, then cool it under cold water.",
    ),
    ("Name three colours.", "Red, green and blue."),
    ("Why does ice float on water?", "Ice floats because it is less dense than liquid water."),
)
FEW_SHOT_TEMPLATE = "".join(f"Question: {q}\n\nAnswer: {a}\n\n" for q, a in _EXAMPLES) + _TURNS
"""What ``--template few-shot`` gives: the same with answered questions in front, which show a base model what it is to
do. None is about safety, and none of the answers declines."""
BARE_TEMPLATES = {"plain": PLAIN_TEMPLATE, "few-shot": FEW_SHOT_TEMPLATE}
"""The templates that are known by name; they write bare text."""
OWN_OR = "own-or-"
"""Before such a name: for models alone that have no template of their own."""
NEXT_QUESTION = "\nQuestion:"
"""With what a base model that is shown a bare template goes on behind its answer."""

HELLO = ({"role": "user", "content": "Hello"},)
SYSTEM_ROLES = ("system", "developer")


# -- the day that templates write ---------------------------------------------------------------------


_PINNED = (
    "{%- macro strftime_now(format) -%}"
    "{%- for piece in format.replace('%%', '\\x01').split('%') -%}"
    "{%- set n = 2 if piece[:2] in pinned_day else 1 -%}"
    "{%- set text = piece if loop.first else pinned_day.get(piece[:n], '%' ~ piece[:n]) ~ piece[n:] -%}"
    "{{- text.replace('\\x01', '%') -}}"
    "{%- endfor -%}"
    "{%- endmacro %}\n"
)
"""Put before a template, this writes the pinned day where the template asks for the present one.

Transformers hands templates no functions of ours, only plain values; the line break is eaten with the block before it.
"""
_DIRECTIVES = "aAbBcCdDeFgGhHIjklmMnpPrRsSTuUVwWxXyYzZ"
_FLAGS = ("", "-", "_", "0", "^", "#")


@functools.cache
def _directives(day: str) -> dict[str, str]:
    """What each directive of ``strftime`` gives at the beginning of ``day``."""
    moment = datetime.datetime.fromisoformat(day)
    return {f"{flag}{one}": moment.strftime(f"%{flag}{one}") for flag in _FLAGS for one in _DIRECTIVES}


def rendered(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    *,
    day: str,
    answer_next: bool = True,
    last_turn_open: bool = False,
    given: TemplateInput | None = None,
) -> str:
    """``messages`` in the tokenizer's chat template, as on ``day``, ready for the answer or with the last turn open.

    ``given`` is what the template gets beside the messages; its prefix stands where the answer begins.
    """
    template = tokenizer.get_chat_template()
    messages = list(messages)
    options: dict[str, Any] = {}
    if given is not None:
        options |= given.arguments
        if given.system_prompt is not None and (not messages or messages[0]["role"] not in SYSTEM_ROLES):
            messages.insert(0, {"role": "system", "content": given.system_prompt})
    if "strftime_now" in template:
        options |= {"chat_template": _PINNED + template, "pinned_day": _directives(day)}
    blocks = roles_in_blocks(tokenizer)
    text = tokenizer.apply_chat_template(
        [_as_blocks(message) if message["role"] in blocks else dict(message) for message in messages],
        tokenize=False,
        add_generation_prompt=answer_next,
        continue_final_message=last_turn_open,
        **options,
    )
    return cast("str", text) + (given.prefix if given is not None and answer_next else "")


_SAID = "Sandstone"
_READS_BLOCKS = re.compile(r"""\[\s*['"]text['"]\s*\]|\.text\b""")


def roles_in_blocks(tokenizer: Any) -> frozenset[str]:
    """The roles whose messages the chat template reads as a list of blocks, ``{type: text, text: ...}``, alone.

    It would write nothing of plain text. None in most templates, which take text.
    """
    template = tokenizer.get_chat_template()
    return _roles_in_blocks(tokenizer, template) if _READS_BLOCKS.search(template) else frozenset()


@functools.lru_cache(maxsize=16)
def _roles_in_blocks(tokenizer: Any, template: str) -> frozenset[str]:
    def shown(*messages: dict[str, Any]) -> bool:
        options = {"pinned_day": _directives("2001-02-03"), "chat_template": _PINNED + template}
        try:
            return _SAID in tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
        except Exception:  # templates raise errors of their own making
            return False

    user: dict[str, Any] = {"role": "user", "content": _SAID}
    if shown(user) or not shown(_as_blocks(user)):
        return frozenset()
    hello, said = _as_blocks(HELLO[0]), {"role": "assistant", "content": _SAID}
    told = [{"role": role, "content": _SAID} for role in SYSTEM_ROLES]
    talks = [(hello, said), *((system, hello) for system in told)]
    asked = zip(("assistant", *SYSTEM_ROLES), talks, strict=True)
    return frozenset({"user", *(role for role, talk in asked if not shown(*talk))})


def _as_blocks(message: Mapping[str, str]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def writes_the_day(tokenizer: Any, given: TemplateInput | None = None) -> bool:
    """Whether the chat template writes the day it is rendered on."""
    days = ("2001-02-03", "2034-11-25")
    return len({rendered(tokenizer, HELLO, day=day, given=given) for day in days}) == len(days)


# -- text to tokens -----------------------------------------------------------------------------------


def exact_tokens(tokenizer: Any, text: str) -> list[int]:
    """The tokens of ``text``, and none that the tokenizer would put before or after it."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def inner_tokens(tokenizer: Any, text: str) -> list[int]:
    """The tokens of ``text`` behind other text: without the blank that some tokenizers put before every text."""
    ids = exact_tokens(tokenizer, text)
    if not puts_a_blank(tokenizer):
        return ids
    for mark in ":\n":  # of which one may make a token together with what follows
        behind, before = exact_tokens(tokenizer, mark + text), exact_tokens(tokenizer, mark)
        if behind[: len(before)] == before:
            return behind[len(before) :]
    return ids


def puts_a_blank(tokenizer: Any) -> bool:
    """Whether a text has other tokens behind a line break than by itself, where a blank stands before it."""
    return exact_tokens(tokenizer, "\na") != exact_tokens(tokenizer, "\n") + exact_tokens(tokenizer, "a")


def around_bare_text(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before and after text that is no chat."""
    whole, inner = list(tokenizer("a")["input_ids"]), exact_tokens(tokenizer, "a")
    starts = range(len(whole) - len(inner) + 1)
    at = next((i for i in starts if inner and whole[i : i + len(inner)] == inner), None)
    if at is None:  # the tokens of a text depend on what stands before it
        special = set(tokenizer.all_special_ids)
        at = next((i for i, token in enumerate(whole) if token not in special), 0)
        return whole[:at], []
    return whole[:at], whole[at + len(inner) :]


def bare_tokens(tokenizer: Any, text: str) -> list[int]:
    """The tokens of ``text`` begun as the tokenizer begins any text, without the end that some put after it.

    A continuation does not follow an end.
    """
    ids, (_, end) = list(tokenizer(text)["input_ids"]), around_bare_text(tokenizer)
    return ids[: -len(end)] if end and ids[-len(end) :] == end else ids


def chat_tokens(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a rendered chat: its own, the template having written all of them.

    :data:`BARE_TEMPLATES` write bare text, which is begun as the tokenizer begins it.
    """
    return chat_start(tokenizer) + exact_tokens(tokenizer, text)


def chat_start(tokenizer: Any) -> list[int]:
    """The tokens that stand before what the chat template writes."""
    return around_bare_text(tokenizer)[0] if is_bare(tokenizer) else []


def is_bare(tokenizer: Any) -> bool:
    """Whether the chat template is one of :data:`BARE_TEMPLATES`."""
    return getattr(tokenizer, "chat_template", None) in BARE_TEMPLATES.values()


# -- control tokens -----------------------------------------------------------------------------------


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that are no language, by their text: special ones, and added marks that the chat template writes."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    found = dict(zip(map(str, tokenizer.all_special_tokens), tokenizer.all_special_ids, strict=True))
    for token, added in tokenizer.added_tokens_decoder.items():
        text = added.content
        if added.special or (text in template and text.strip() and not text.isalnum()):
            found[text] = int(token)
    return {text: int(token) for text, token in found.items() if text}


_MARK = re.compile(r"<[^<>\s]{1,60}>|\[[^\[\]\s]{1,60}\]|\S{2,60}:(?=\s|$)")


def control_strings(tokenizer: Any) -> tuple[str, ...]:
    """All text that could end a turn or begin one: control tokens, other added tokens that are no words, and what the
    chat template writes around messages."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    marks = {*control_tokens(tokenizer), *(text for text in added if text.strip() and not text.isalnum())}
    return tuple(sorted(marks | _written_around(tokenizer)))


def _written_around(tokenizer: Any) -> set[str]:
    """Lines and marks that the chat template writes around messages; nothing where there is no template."""
    if not getattr(tokenizer, "chat_template", None):
        return set()
    said = ("Sandstone", "Quicksilver", "Buttercup")
    turns = [{"role": r, "content": c} for r, c in zip(("user", "assistant", "user"), said, strict=True)]
    try:
        text = rendered(tokenizer, turns, day="2001-02-03")
    except Exception:  # a template of another kind of chat; templates raise errors of their own making
        return set()
    pieces = re.split("|".join(said), text)
    lines = {line.strip() for piece in pieces for line in piece.splitlines()}
    marks = {mark for piece in pieces for mark in _MARK.findall(piece)}
    return {text for text in lines | marks if len(text) > 1 and not text.isalnum()}


def holding_control_tokens(tokenizer: Any, texts: Sequence[str]) -> list[bool]:
    """For each of ``texts``, whether some of it becomes a control token."""
    marks = control_tokens(tokenizer)

    def holds(text: str) -> bool:
        written = {token for mark, token in marks.items() if mark in text}
        return bool(written) and not written.isdisjoint(exact_tokens(tokenizer, text))

    return [holds(text) for text in texts]


def broken(text: str, marks: Iterable[str]) -> str:
    """``text`` in which none of ``marks`` stands whole: a blank follows its first character."""
    for mark in sorted({m for m in marks if len(m) > 1}, key=len, reverse=True):
        text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    return text


# -- the tokenizer of a model that the user booted ----------------------------------------------------


def unaltered(tokenizer: Any) -> Any:
    """A copy of ``tokenizer`` without what TransformerLens changes in it while a model boots, as far as that is known.

    It loads a tokenizer that has a BOS anew so that it puts one before every text, and gives one without a BOS or an
    EOS another token's. The first is undone where the tokenizer can be loaded again from this machine.
    """
    own = _reloaded(tokenizer) or copy.deepcopy(tokenizer)
    own.chat_template = tokenizer.chat_template
    if own.bos_token is not None and own.bos_token == own.eos_token and not _declared(own, "bos_token"):
        own.bos_token = None
    if own.eos_token == "<|endoftext|>" and not _declared(own, "eos_token"):
        own.eos_token = None
    return own


def _declared(tokenizer: Any, name: str) -> Any:
    """The special token with which the tokenizer was made: its file's, or its class's default."""
    if name in tokenizer.init_kwargs:
        return tokenizer.init_kwargs[name]
    parameter = inspect.signature(type(tokenizer).__init__).parameters.get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _reloaded(tokenizer: Any) -> Any:
    """The tokenizer as its files give it, where it was loaded so that it adds a BOS; else None."""
    from transformers import AutoTokenizer

    where = str(tokenizer.init_kwargs.get("name_or_path") or "")
    if not where or not tokenizer.init_kwargs.get("add_bos_token"):
        return None
    try:
        with quiet():
            found = AutoTokenizer.from_pretrained(where, local_files_only=True)
    except Exception:  # its files are gone, or need code of their own: what TransformerLens made of it stays
        return None
    if found.get_vocab() != tokenizer.get_vocab():
        return None
    if found.pad_token is None:
        found.pad_token = tokenizer.pad_token
    return found
