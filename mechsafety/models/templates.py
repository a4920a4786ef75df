"""Chat templates for models that have none: by name, or a file of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mechsafety.core.days import today
from mechsafety.core.errors import MechsafetyError, first_lines
from mechsafety.models.rendering import BARE_TEMPLATES, HELLO, OWN_OR, rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN = "the model's own"
"""What a model's own template is called in its record."""
NAMES = (*BARE_TEMPLATES, *(OWN_OR + name for name in BARE_TEMPLATES))
"""What ``template`` can be beside a file; ``own-or-plain`` is plain for models without a template of their own."""


def set_template(spec: str, tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    """Give ``tokenizer`` the template; what it is called in the record."""
    own = template is None or template.startswith(OWN_OR)
    if tokenizer.chat_template is not None and own:
        return OWN
    if template is None:
        raise MechsafetyError(
            f"model {spec!r} has no chat template (a base model?): pass --template plain for a simple "
            "question-and-answer form, --template few-shot for the same behind some answered questions, or --template "
            "FILE.jinja for your own; own-or-plain and own-or-few-shot are for such models alone"
        )
    if template in NAMES:
        name = template.removeprefix(OWN_OR)
        tokenizer.chat_template = BARE_TEMPLATES[name]
        return name
    path = Path(template).expanduser()
    if not path.is_file():
        raise MechsafetyError(
            f"template {template!r} is neither one of {', '.join(NAMES)} nor a file that exists"
        )
    try:
        tokenizer.chat_template = path.read_text(encoding="utf-8")
        rendered(tokenizer, HELLO, day=today())
    except Exception as error:
        raise MechsafetyError(
            f"template {template!r} is no Jinja chat template: {first_lines(error)}"
        ) from None
    return path.name
