"""Written rephrasings: harmful requests answered by a harmless transformation of their topic.

The data intervention "rephrase" of Safety Pretraining (arXiv 2504.16980), here on the level of answers: instead of a
refusal, the reader gets information on how to recognise, prevent or report the harm. All sentences are this project's
own. None describes how a harm is done, and none repeats the request.
"""

from __future__ import annotations

import random

from mechsafety.core.places import packaged_words

_WORDS = packaged_words("mechsafety.tuning", "sentences.toml")["rephrasings"]
OPENINGS = tuple(_WORDS["openings"])
SENTENCES = {category: tuple(aspects.values()) for category, aspects in _WORDS["about"].items()}
"""By category: how the harm is recognised, prevented and reported."""


def write_rephrasing(category: str, *, generator: random.Random) -> str:
    """One rephrasing for a request of ``category``: an opening and two of: recognise, prevent, report."""
    recognise, prevent, report = (
        generator.choice(sentences) for sentences in SENTENCES.get(category, tuple(_WORDS["any"].values()))
    )
    two = generator.choice(((recognise, prevent), (recognise, report), (prevent, report)))
    return " ".join((generator.choice(OPENINGS), *two))


def opens_as_rephrasing(text: str) -> bool:
    """Whether an answer opens with one of the written openings: what the rung's share of redirections counts.

    A rephrasing in other words is missed, so such a share is a lower bound.
    """
    return text.lstrip().startswith(OPENINGS)
