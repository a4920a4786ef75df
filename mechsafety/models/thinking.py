"""How a model is kept from thinking before it answers: by its template's own switch, or by text that ends a thought."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ThinkingOff:
    """``arguments`` of the template that switch thinking off, the answer ``prefix`` that ends a thought (empty where
    none is needed), and ``how`` it is done, for the record."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    how: str


def thinking_off(tokenizer: Any, *, day: str) -> ThinkingOff:  # noqa: ARG001
    """How thinking is switched off in the tokenizer's chat template, as on ``day``."""
    return ThinkingOff(how="does not think")
