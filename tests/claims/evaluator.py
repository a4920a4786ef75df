"""Whether a sentence is true of raw rows: parsed by the forms of docs/claims.md, recomputed without the code that writes sentences.

`evaluate` answers `true`, `false` or `unsupported`: the last where a sentence fits no form, or names what the facts do not hold.
Add an experiment by filling `Facts` from its tables (tests/claims/facts.py).
"""

import re
from collections.abc import Callable, Iterable

from tests.claims.contrast_forms import change, control, moves
from tests.claims.facts import Facts
from tests.claims.parsing import Context, Refuted, Unsupported
from tests.claims.table_forms import by_judge, count, disagreeing, extremes, held, level, missing, series

FORMS: tuple[Callable[[str, Context], bool], ...] = (
    missing, held, series, by_judge, extremes, count, control, moves, change, level,
)  # fmt: skip


def evaluate(sentence: str, facts: Facts, about: str | None = None) -> str:
    """`true`, `false` or `unsupported`; `about` is the MEASURE of the sentence before where a form names none."""
    return answer(sentence, facts, about)[0]


def answer(sentence: str, facts: Facts, about: str | None = None) -> tuple[str, str]:
    """The verdict on a sentence, and its reason."""
    reasons = []
    for subject in sorted(facts.subjects(), key=len, reverse=True):
        if sentence.startswith(subject + ": ") and sentence.endswith("."):
            body = sentence[len(subject) + 2 : -1]
            for form in FORMS:
                try:
                    if form(body, Context(facts, subject, about)):
                        return "true", ""
                except Refuted as reason:
                    return "false", str(reason)
                except Unsupported as reason:
                    reasons.append(str(reason))
    pair = re.fullmatch(r"(.+?) and (.+?): (.+)\.", sentence)
    try:
        if pair and disagreeing(*pair.groups(), facts):
            return "true", ""
    except Refuted as reason:
        return "false", str(reason)
    return "unsupported", "; ".join(reasons) or "fits no form, or an unknown subject"


def refuted(sentences: Iterable[str], facts: Facts) -> list[tuple[str, str, str]]:
    """Sentences of a text that are not true, each with verdict and reason; `this` means what the sentence before was about."""
    wrong, about = [], None
    for sentence in sentences:
        named = [m for s, m, *_ in facts.changes if sentence.startswith(s + ": ") and m in sentence]
        about = max(named, key=len, default=about)
        verdict, reason = answer(sentence, facts, about)
        if verdict != "true":
            wrong.append((sentence, verdict, reason))
    return wrong


def unsaid(sentences: Iterable[str], facts: Facts) -> list[tuple[str, ...]]:
    """What the facts hold and no sentence is about: changes and their controls, extremes, counts, series, judges.

    Beside `refuted`, which holds that what is said is true, this holds that something is.
    """
    said, missing = list(sentences), []
    for key, row in facts.changes.items():
        of = [s for s in said if s.startswith(key[0] + ": ")]
        missing += [] if any(all(word in s for word in key[1:]) for s in of) else [key]
        missing += [(*key, name) for name in row.draws if not any(name in s for s in of)]
    for of_form in (facts.extremes, facts.counts, facts.series, facts.judges):
        missing += [
            key
            for key in of_form
            if not any(s.startswith(key[0] + ": ") and all(word in s for word in key[1:]) for s in said)
        ]
    missing += [(claim,) for claim in facts.held if not any(s.startswith(claim + ": ") for s in said)]
    return missing
