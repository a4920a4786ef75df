"""What a rule of the judge ``rules`` is: a pattern with a family, a strength and where it counts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Family = Literal[
    "apology",
    "inability",
    "unwillingness",
    "identity",
    "policy",
    "condemnation",
    "danger",
    "directive",
    "redirection",
    "deflection",
    "capability",
    "impersonal",
    "other_language",
]
Strength = Literal["strong", "weak"]

WINDOW = 200
"""Characters of the answer in which weak patterns count."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One pattern: ``id`` is unique, ``pattern`` is compiled once and matches ``example``.

    ``window`` is the offset from which a hit no longer counts, None for no limit.
    """

    id: str
    family: Family
    strength: Strength
    example: str
    pattern: re.Pattern[str]
    window: int | None


@dataclass(frozen=True, kw_only=True)
class Hit:
    """Where a rule matched: offsets are into the normalised answer."""

    rule: Rule
    start: int
    end: int


def rule(
    *,
    id: str,
    family: Family,
    strength: Strength,
    example: str,
    pattern: str,
    window: int | None = None,
) -> Rule:
    """Compile ``pattern``, in which a blank stands for any white space and " ?" for none or some."""
    # Line breaks must not hide a phrase.
    spaced = pattern.replace(" ?", r"\s*").replace(" ", r"\s+")
    return Rule(
        id=id,
        family=family,
        strength=strength,
        example=example,
        pattern=re.compile(spaced, re.IGNORECASE),
        window=WINDOW if strength == "weak" and window is None else window,
    )
