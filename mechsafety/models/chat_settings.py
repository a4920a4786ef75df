"""What is asked of a chat template beyond the messages: a system prompt, arguments, an answer prefix, no thinking."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from mechsafety.core.errors import MechsafetyError, first_lines, way
from mechsafety.models import rendering
from mechsafety.models.thinking import thinking_off

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Thinking = Literal["off", "model"]
"""Whether a model is kept from thinking before it answers, or left as its template has it."""
NOT_OFF = "not switched off"
"""How the record of a model begins that could not be kept from thinking."""
_SET_BY_US = frozenset({"messages", "add_generation_prompt", "pinned_day", "strftime_now", "raise_exception"})
_MARK = "Sandstone"

LEFT_THINKING = "chat={'thinking': 'model'}"
"""How a model is left thinking in Python."""


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """How prompts are put to a model.

    ``system_prompt`` is the first message of role system where the messages have none (None: the template's own);
    ``template_arguments`` are passed to the template by name; every answer begins with ``answer_prefix``, which stands
    behind the generation prompt; a model that is left thinking may think for ``max_thought_tokens`` before each answer,
    whose own length does not count them. Raises :class:`MechsafetyError` for an answer prefix of a model that is left
    thinking, and for arguments that JSON does not have.
    """

    system_prompt: str | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    answer_prefix: str | None = None
    thinking: Thinking = "off"
    max_thought_tokens: int = 1024

    def __post_init__(self) -> None:
        object.__setattr__(self, "template_arguments", dict(self.template_arguments))
        try:
            json.dumps(self.template_arguments)
        except TypeError:
            raise MechsafetyError(
                f"template arguments {self.template_arguments!r}: text, numbers, true, false, null, lists and objects"
            ) from None
        if self.thinking not in get_args(Thinking):
            raise MechsafetyError(f"thinking {self.thinking!r} is not one of {', '.join(get_args(Thinking))}")
        if self.max_thought_tokens < 1:
            raise MechsafetyError(f"max_thought_tokens is {self.max_thought_tokens}; 1 at least")
        if self.answer_prefix and self.thinking == "model":
            raise MechsafetyError(
                "an answer prefix leaves no thought before the answer: leave out the prefix, or thinking: model"
            )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        """What differs from the default settings, as JSON; empty where nothing does."""
        default = ChatSettings().as_dict()
        other = {name: value for name, value in self.as_dict().items() if value != default[name]}
        return json.dumps(other, sort_keys=True) if other else ""

    @property
    def is_default(self) -> bool:
        return self == ChatSettings()


def chat_settings(given: ChatSettings | Mapping[str, Any] | None) -> ChatSettings:
    """``given`` as settings. Raises :class:`MechsafetyError` for a key that there is none of."""
    if given is None or isinstance(given, ChatSettings):
        return given or ChatSettings()
    if unknown := sorted(set(given) - set(ChatSettings.__dataclass_fields__)):
        raise MechsafetyError(
            f"chat setting {unknown[0]!r} is not one of {', '.join(ChatSettings.__dataclass_fields__)}"
        )
    return ChatSettings(**given)


def chat_of(model: TransformerBridge) -> ChatSettings:
    """The settings that a model was loaded with; the default ones of a model that the user booted."""
    return _kept(model).get("_mechsafety_chat") or ChatSettings()


def chat_text(model: TransformerBridge) -> str:
    """What of a model's settings differs from the default ones, as JSON; empty where nothing does."""
    return chat_of(model).as_text()


def chat_bound(model: TransformerBridge) -> dict[str, str]:
    """The same as facts of what is made with a model; none where nothing differs."""
    text = chat_text(model)
    return {"chat": text} if text else {}


@contextmanager
def chatting(model: TransformerBridge, settings: ChatSettings) -> Iterator[None]:
    """``model`` under other settings for as long as the block runs, such as those of a judge's question."""
    kept = _kept(model)
    before = kept.get("_mechsafety_chat")
    kept["_mechsafety_chat"] = settings
    try:
        yield
    finally:
        kept["_mechsafety_chat"] = before


def judging(model: TransformerBridge) -> AbstractContextManager[None]:
    """``model`` as a judge: its own question is put to it with none of the settings that it is studied under."""
    return chatting(model, ChatSettings())


def _kept(model: Any) -> dict[str, Any]:
    """Where what belongs to a model is kept, also of one that ``torch.compile`` was given."""
    return model.__dict__.get("_modules", {}).get("_orig_mod", model).__dict__


# -- what becomes of them in a tokenizer's template ---------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TemplateInput:
    """What a template is given beside the messages, and the ``prefix`` put behind its generation prompt.

    ``thinking`` says what came of that setting, for the record.
    """

    system_prompt: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    thinking: str = "model"


def template_input(settings: ChatSettings, tokenizer: Any, *, day: str) -> TemplateInput:
    """``settings`` in the chat template of ``tokenizer``, as on ``day``."""
    return _template_input(
        json.dumps(settings.as_dict(), sort_keys=True), tokenizer, tokenizer.get_chat_template(), day
    )


@functools.lru_cache(maxsize=16)
def _template_input(settings_json: str, tokenizer: Any, _template: str, day: str) -> TemplateInput:
    settings = ChatSettings(**json.loads(settings_json))
    given = dict(settings.template_arguments)
    if settings.thinking == "model":
        return TemplateInput(system_prompt=settings.system_prompt, arguments=given)
    off = thinking_off(tokenizer, day=day)
    return TemplateInput(
        system_prompt=settings.system_prompt,
        arguments={**given, **off.arguments},
        prefix=off.prefix + (settings.answer_prefix or ""),
        thinking=f"off: {off.how}" if off.certain else f"{NOT_OFF}: {off.how}",
    )


def record_of(settings: ChatSettings, tokenizer: Any, *, day: str) -> dict[str, Any]:
    """What was asked of the template, and what came of it."""
    return settings.as_dict() | {"thinking": template_input(settings, tokenizer, day=day).thinking}


def require_taken(settings: ChatSettings, tokenizer: Any, *, source: str, day: str) -> None:
    """Raise :class:`MechsafetyError` where the chat template has no such argument, one with which a model that shall
    not think thinks, takes no system prompt, or does not write what a user asks."""
    known = template_variables(tokenizer.get_chat_template()) - _SET_BY_US
    if unknown := sorted(set(settings.template_arguments) - known):
        raise MechsafetyError(
            f"chat argument {unknown[0]!r}: the chat template of {source!r} has no such variable; it has "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    found = template_input(settings, tokenizer, day=day)
    for name, value in settings.template_arguments.items():
        if found.arguments[name] != value:
            raise MechsafetyError(
                f"chat argument {name}={json.dumps(value)} switches thinking on, which thinking: off forbids: leave "
                f"out the argument, or give {way('--thinking model', LEFT_THINKING)}"
            )
    plain = TemplateInput(arguments=found.arguments)
    if settings.system_prompt is not None:
        _require_system_prompt(tokenizer, plain, source=source, day=day)
    _require_asked(tokenizer, replace(plain, system_prompt=settings.system_prompt), source=source, day=day)


def _require_asked(tokenizer: Any, given: TemplateInput, *, source: str, day: str) -> None:
    """Raise where the template does not write what a user asks, alone behind the system prompt that was given."""
    with_them = f" with arguments {json.dumps(given.arguments)}" if given.arguments else ""
    try:
        asked = [{"role": "user", "content": _MARK}]
        if _MARK in rendering.rendered(tokenizer, asked, day=day, given=given):
            return
        why = "leaves it out"
    except Exception as error:  # templates raise errors of their own making
        why = f"fails: {first_lines(error)}"
    raise MechsafetyError(
        f"the chat template of {source!r} does not write what a user asks{with_them}: it {why}. Give another "
        f"{way('--template')}"
    )


def _require_system_prompt(tokenizer: Any, given: TemplateInput, *, source: str, day: str) -> None:
    try:
        told = [{"role": "system", "content": _MARK}, *rendering.HELLO]
        why = (
            "leaves it out" if _MARK not in rendering.rendered(tokenizer, told, day=day, given=given) else ""
        )
    except Exception as error:  # templates raise errors of their own making
        why = f"refuses it: {first_lines(error)}"
    if why:
        raise MechsafetyError(
            f"system prompt: the chat template of {source!r} {why}. Put it into the prompts, or give another "
            f"{way('--template')}"
        )


@functools.cache
def template_variables(template: str) -> frozenset[str]:
    """The variables of a chat template that it does not set itself: what it can be given."""
    import jinja2.ext
    import jinja2.meta
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """The block in which transformers' templates put the model's own words."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    try:
        return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(template)))
    except jinja2.TemplateSyntaxError as error:
        raise MechsafetyError(
            f"line {error.lineno} of the chat template is no Jinja: {first_lines(error)}"
        ) from None
