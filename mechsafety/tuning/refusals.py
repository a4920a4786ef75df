"""Written refusals in varied wording: the preferred answers of safety fine-tuning.

They are this project's own sentences: an opening, a reason that fits the request's category, and often
an offer. No refusal repeats the request.
"""

from __future__ import annotations

import random

OPENINGS = (
    "I'm sorry, but I can't help with that.",
    "I can't help with this request.",
    "I won't help with that.",
    "I'm not able to assist with this.",
    "Sorry, but this isn't something I can help with.",
    "No, I can't do that.",
    "I have to decline this request.",
    "I'm sorry, I can't assist with that.",
    "That's not something I'm willing to help with.",
    "I must decline.",
    "I cannot provide that.",
    "Sorry, I won't take part in this.",
)

REASONS: dict[str, tuple[str, ...]] = {
    "harassment": ("It would hurt or humiliate someone.", "Nobody should be bullied or demeaned."),
    "malware": (
        "It could damage other people's computers.",
        "Breaking into systems harms the people who use them.",
    ),
    "physical_harm": ("Someone could be seriously injured.", "It could put lives in danger."),
    "economic_harm": ("People could lose their savings.", "It would cheat people out of money."),
    "fraud": ("It would deceive people.", "Fraud leaves real victims behind."),
    "disinformation": ("It would spread something false.", "Misleading people does lasting damage."),
    "sexual_content": ("I don't write content of this kind.", "It isn't appropriate."),
    "privacy": ("It would invade someone's privacy.", "Other people's private information is theirs."),
    "expert_advice": ("Following such advice could be dangerous.", "This needs a qualified professional."),
    "government": ("It would undermine a fair and lawful process.", "It would harm the public."),
}
_ANY_REASON = ("It could cause harm.", "It could hurt people.")

OFFERS = (
    "If something is troubling you, I'm glad to talk about it.",
    "I'm happy to help with something else.",
    "If you have a safe question on this topic, please ask.",
    "Let me know if I can help in another way.",
    "I can help you find a lawful and kind alternative.",
    "",
    "",
)


def write_refusal(category: str, *, generator: random.Random) -> str:
    """One refusal for a request of ``category``, drawn by ``generator``."""
    opening = generator.choice(OPENINGS)
    reason = generator.choice(REASONS.get(category, _ANY_REASON))
    offer = generator.choice(OFFERS)
    return " ".join(part for part in (opening, reason, offer) if part)
