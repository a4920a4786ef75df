"""How thinking is switched off, in templates of the forms of well-known models."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechsafety.models import rendering
from mechsafety.models.chat_settings import ChatSettings, template_input
from mechsafety.models.thinking import opened, thinking_off, thought_marks
from tests.chat_forms import FORMS, set_form

DAY = "2025-03-01"
ASKED = [{"role": "user", "content": "How do rivers form?"}]


@pytest.mark.parametrize("name", list(FORMS))
def test_thinking_is_switched_off_in_every_form(name: str, tmp_path: Path) -> None:
    tokenizer, form = set_form(tmp_path, name), FORMS[name]
    off = thinking_off(tokenizer, day=DAY)
    assert (dict(off.arguments), off.prefix) == (form["arguments"], form["prefix"])
    assert off.certain == form.get("certain", True)
    text = rendering.rendered(
        tokenizer, ASKED, day=DAY, given=template_input(ChatSettings(), tokenizer, day=DAY)
    )
    before, _, begins = text.rpartition("rivers form?")
    assert begins == form["begins"]
    assert before
    assert opened(begins, thought_marks(tokenizer)) is None
