"""The columns of prompts: what they are called, what may stand in them, and how texts are told apart and divided."""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from mechsafety.core.arguments import nearest
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.prompts.files import cell_text

PromptLabel = Literal["harmful", "harmless"]
Split = Literal["fit", "validation", "report"]
LABELS: tuple[PromptLabel, ...] = get_args(PromptLabel)
SPLITS: tuple[Split, ...] = get_args(Split)
Purpose = Literal["estimate", "choose", "judge"]
PURPOSES: Mapping[Purpose, Split] = {"estimate": "fit", "choose": "validation", "judge": "report"}
"""What the prompts of a split are for: directions, probes and scores of weights are estimated on one, layers and
settings chosen on another, and what is reported of an edit is measured on the third."""
_SENTENCE_MARKS = re.compile(r"[.,;:!?…'\"“”‘’«»¿¡()]+")
TEXT_COLUMNS = ("text", "prompt", "question", "instruction", "goal", "behavior")
_ASKED = (*TEXT_COLUMNS, "messages")
_NEVER_TEXT = ("id", "label", "category", "split", "source", "licence")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table hold what, what fills those that it lacks, and what its labels mean."""

    text: str | None = None
    label: str | None = None
    labels: Mapping[Any, str] | None = None
    category: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        if strange := [value for value in (self.labels or {}).values() if value not in LABELS]:
            raise MechsafetyError(f"labels: {strange[0]!r} is not one of {', '.join(LABELS)}")

    def renamed(
        self, rows: Iterable[tuple[str, dict[str, Any]]], *, where: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Rows in this project's columns."""
        named = {
            "text": self.text,
            "label": None if self.label in LABELS else self.label,
            "category": self.category,
            "split": None if self.split in SPLITS else self.split,
        }
        for place, row in rows:
            at = f"{where}, {place}"
            new = dict(row)
            for name, column in named.items():
                if column is None:
                    continue
                if column not in row:
                    near = nearest(column, [*row, *(LABELS if name == "label" else ())])
                    raise MechsafetyError(
                        f"{at}: no column {column!r}{near}; have {', '.join(row) or 'none'}"
                    )
                new[name] = row[column]
            if self.labels is not None and "label" in new:
                if new["label"] not in self.labels:
                    known = ", ".join(map(repr, self.labels))
                    raise MechsafetyError(f"{at}: label {new['label']!r} is not in labels, which has {known}")
                new["label"] = self.labels[new["label"]]
            yield place, new


AS_THEY_ARE = Columns()


@lru_cache(maxsize=2**16)
def folded(text: str) -> str:
    """By which two prompts are the same: case, blanks, sentence marks and the encoding of a letter do not count."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_SENTENCE_MARKS.sub(" ", plain).split()) or plain.strip()


def divided(
    texts: Sequence[tuple[str, str]], shares: Mapping[Split, float], *, seed: int
) -> dict[str, Split]:
    """A split for each text of (text, label), drawn by ``seed`` within each label.

    Raises :class:`MechsafetyError` for shares that are negative or do not add up to 1.
    """
    if not all(0 <= share <= 1 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        given = ", ".join(f"{name}={share}" for name, share in shares.items())
        raise MechsafetyError(f"shares {given}: they are between 0 and 1 and add up to 1")
    generator, places = random.Random(seed), dict[str, Split]()
    for label in dict.fromkeys(label for _, label in texts):
        own = list(dict.fromkeys(text for text, its in texts if its == label))
        generator.shuffle(own)
        ends = [round(sum(list(shares.values())[: k + 1]) * len(own)) for k in range(len(shares))]
        for split, start, end in zip(shares, [0, *ends], ends, strict=False):
            places |= dict.fromkeys(own[start:end], split)
    return places


def label_counts(labels: Sequence[str]) -> str:
    """How many there are of each label: ``3 harmful, 2 harmless``; prompts may have none."""
    found = {label: labels.count(label) for label in (*LABELS, "")}
    return ", ".join(f"{n} {label or 'without label'}" for label, n in found.items() if n)


def content_id(asked: str) -> str:
    """The id of a prompt without one of its own: the same for the same text."""
    return f"p-{hashlib.sha256(asked.strip().encode(errors='replace')).hexdigest()[:10]}"


def in_known_names(row: Mapping[str, Any], *groups: Sequence[str], at: str) -> Mapping[str, Any]:
    """``row`` with, for each of ``groups`` of names of which it has none, those that differ in case alone (``Goal``).

    Raises :class:`MechsafetyError`, which begins with ``at``, where two columns differ in case alone.
    """
    if all(name.islower() for name in row):
        return row
    found: dict[str, str] = {}
    wanted = {name for group in groups if not any(name in row for name in group) for name in group}
    for own in row:
        if (name := own.casefold()) not in wanted:
            continue
        if name in found:
            raise MechsafetyError(
                f"{at}: columns {found[name]!r} and {own!r} differ in case alone: call one of them {name!r}"
            )
        found[name] = own
    return {**row, **{name: row[own] for name, own in found.items()}}


def as_asked(row: Mapping[str, Any], *, at: str) -> Mapping[str, Any]:
    """``row`` of a prompt, its text, messages and label under these names, unless a text or messages stand in it."""
    if any(name in row for name in _ASKED):
        return row
    return in_known_names(row, _ASKED, ("label",), at=at)


def has_text(row: Mapping[str, Any]) -> bool:
    return any(cell_text(row.get(column)).strip() for column in TEXT_COLUMNS)


def row_text(row: Mapping[str, Any], *, at: str) -> str:
    # An id that was made of the row's content is no column of the user's.
    have = [name for name, value in row.items() if name != "id" or not str(value).startswith("p-")]
    texts = [name for name in have if isinstance(row[name], str) and name.casefold() not in _NEVER_TEXT]
    alone = have[0] if len(have) == 1 and texts else None
    column = next((c for c in TEXT_COLUMNS if c in row), alone)
    if column is None:
        raise MechsafetyError(
            f"{at}: no text column; have {', '.join(map(str, have)) or 'none'}, want one of "
            f"{', '.join(TEXT_COLUMNS)}, or messages"
            + (way("", f"; name it, load_prompts(data, text={texts[0]!r})") if texts else "")
        )
    if cell_text(row[column]) and not isinstance(row[column], str):
        raise MechsafetyError(f"{at}: column {column!r} holds a {type(row[column]).__name__}, not text")
    text = cell_text(row[column]).strip()
    if not text:
        raise MechsafetyError(f"{at}: column {column!r} is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise MechsafetyError(f"{at}: column {column!r} holds half a character (a lone surrogate)")
    return text
