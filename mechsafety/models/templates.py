"""Chat templates for models that have none: by name, or a file of the user's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from mechsafety.core.days import today
from mechsafety.core.errors import MechsafetyError, first_lines, way
from mechsafety.models.rendering import BARE_TEMPLATES, HELLO, OWN_OR, rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN = "the model's own"
"""What a model's own template is called in its record."""
NAMES = (*BARE_TEMPLATES, *(OWN_OR + name for name in BARE_TEMPLATES))
"""What ``template`` can be beside a file; ``own-or-plain`` is plain for models without a template of their own."""

UNREAD_TEMPLATE = "_mechsafety_unread_template"
"""Where a tokenizer keeps why it is not known whether a chat template lies beside it."""


def set_template(spec: str, tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    """Give ``tokenizer`` the template; what it is called in the record."""
    own = template is None or template.startswith(OWN_OR)
    if own and isinstance(tokenizer.chat_template, dict):
        raise MechsafetyError(
            f"model {spec!r} has several chat templates ({', '.join(sorted(tokenizer.chat_template))}) and none that "
            f"is its default: give one as {way('--template FILE.jinja')}"
        )
    if tokenizer.chat_template is not None and own:
        return OWN
    if own and (why := tokenizer.__dict__.get(UNREAD_TEMPLATE)):
        raise MechsafetyError(
            f"whether a chat template lies beside the tokenizer of {spec!r} is not known ({why}): go online, or give "
            f"{way('--template FILE.jinja')}; {way('--template plain')} is for models without one"
        )
    if template is None:
        raise MechsafetyError(
            f"model {spec!r} has no chat template (a base model?): give {way('--template plain')} for a simple "
            f"question-and-answer form, {way('--template few-shot')} for the same behind some answered questions, or "
            f"{way('--template FILE.jinja')} for your own; own-or-plain and own-or-few-shot are for such models alone"
        )
    if template in NAMES:
        name = template.removeprefix(OWN_OR)
        tokenizer.chat_template = BARE_TEMPLATES[name]
        return name
    text = template_text(template)
    try:
        tokenizer.chat_template = text
        rendered(tokenizer, HELLO, day=today())
    except Exception as error:
        raise MechsafetyError(
            f"template {_shown(template)} is no Jinja chat template: {first_lines(error)}"
        ) from None
    return _shown(template) if is_jinja(template) else Path(template).name


def is_jinja(template: str) -> bool:
    """Whether ``template`` is a Jinja text itself, and no name or file."""
    return "{{" in template or "{%" in template


def template_text(template: str) -> str:
    """The Jinja text that ``template`` names: one of :data:`NAMES`, a file, or itself.

    Raises :class:`MechsafetyError` for anything else.
    """
    if is_jinja(template):
        return template
    if (name := template.removeprefix(OWN_OR)) in BARE_TEMPLATES:
        return BARE_TEMPLATES[name]
    path = Path(template).expanduser()
    if not path.is_file():
        raise MechsafetyError(
            f"template {template!r} is neither one of {', '.join(NAMES)}, nor a file that exists, nor a Jinja text"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MechsafetyError(
            f"template {template!r} is no Jinja chat template: {first_lines(error)}"
        ) from None


def _shown(template: str) -> str:
    """A template for messages and records: a Jinja text by its hash."""
    return f"jinja-{hashlib.sha256(template.encode()).hexdigest()[:8]}" if is_jinja(template) else template
