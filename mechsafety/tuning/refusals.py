"""Written refusals in varied wording: the preferred answers of safety fine-tuning.

They are this project's own sentences: an opening, a reason that fits the request's category, and often
an offer. No refusal repeats the request.
"""

from __future__ import annotations

import random

from mechsafety.core.places import packaged_words

_WORDS = packaged_words("mechsafety.tuning", "sentences.toml")["refusals"]
OPENINGS = tuple(_WORDS["openings"])
REASONS: dict[str, list[str]] = _WORDS["reasons"]
_ANY_REASON: list[str] = _WORDS["any_reason"]


def write_refusal(category: str, *, generator: random.Random) -> str:
    """One refusal for a request of ``category``, drawn by ``generator``."""
    opening = generator.choice(OPENINGS)
    reason = generator.choice(REASONS.get(category, _ANY_REASON))
    offer = generator.choice(_WORDS["offers"])
    return " ".join(part for part in (opening, reason, offer) if part)
