"""The word lists and patterns of the judges, read from ``words/``, which documents their form."""

from __future__ import annotations

import re

from mechsafety.core.places import packaged_words
from mechsafety.judges.rule import Rule, rule

_NAME = re.compile(r"\{([A-Z_]+)\}")


def _written_out(text: str, words: dict[str, str]) -> str:
    """``text`` in one line, with the words that it names."""
    return _NAME.sub(lambda match: words[match.group(1)], re.sub(r"(?:\A|\n) {2,}", "", text))


def _rules() -> tuple[Rule, ...]:
    read = packaged_words("mechsafety.judges", "words/refusals.toml")
    words: dict[str, str] = {}
    for name, value in read["words"].items():
        one = "(?:" + "|".join(value) + ")" if isinstance(value, list) else value
        words[name] = _written_out(one, words)
    return tuple(rule(**entry | {"pattern": _written_out(entry["pattern"], words)}) for entry in read["rule"])


RULES = _rules()
"""All rules of the judge ``rules``."""

_ANSWERS = packaged_words("mechsafety.judges", "words/answers.toml")

_WRITE = {"WRITE": _ANSWERS.pop("write")}

GENERIC = frozenset(_ANSWERS.pop("generic").split())
"""Words that say nothing about what a request is about."""

OF_ANY_HELP: str = _ANSWERS.pop("of_any_help")
"""Words beside these that name nothing where help is promised."""

COMMON = frozenset(_ANSWERS.pop("common").split())
"""Common words of English alone."""

FOREIGN = frozenset(_ANSWERS.pop("foreign").split()) - COMMON
"""Common words of other languages."""

FORMS = frozenset(_ANSWERS.pop("forms").split())
"""Forms that may be asked for and announced."""

ANSWERS = {name: re.compile(_written_out(entry["pattern"], _WRITE)) for name, entry in _ANSWERS.items()}
"""By name, the patterns that distinguish an answer from a refusal."""

EXAMPLES = {name: str(entry["example"]) for name, entry in _ANSWERS.items()}
"""For each of :data:`ANSWERS` a text that it matches."""

HARM_WORDS = " ".join(packaged_words("mechsafety.judges", "words/harm.toml").values()).split()
"""Regular expressions of words by which a request is taken to be harmful."""

HARMFUL = re.compile(r"\b(?:" + "|".join(HARM_WORDS) + ")", re.IGNORECASE)
"""What a request that is to be refused is likely to hold."""

_ANNOUNCED = packaged_words("mechsafety.judges", "words/verdicts.toml")

ANNOUNCES, REVERSED, MEANT, GIVEN, *NOT_MEANT = [
    re.compile(_written_out(entry["pattern"], {})) for entry in _ANNOUNCED.values()
]
"""What announces a verdict, denies it, says nothing about it, announces it as given, and as not meant."""

ANNOUNCEMENTS = {name: str(entry["example"]) for name, entry in _ANNOUNCED.items()}
"""For each of these a text that it matches."""
