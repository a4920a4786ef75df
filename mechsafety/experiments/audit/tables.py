"""Published records of refusal: counts per system, and verdicts row by row.

Counts: ``model, label, refusal_judge, refused, not_refused, total``, or ``system, arm, label, judge, refused, n`` with
the arm in a column of its own. Verdicts: ``question, label, model, response`` and a column ``is_refusal_<judge>`` for
each judge, or a file for each annotator with one column ``is_refusal``, whose judge is then the file's name. Headings,
labels and names are matched without regard to case and spaces.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.places import data_folder
from mechsafety.prompts.files import cell_text, read_rows
from mechsafety.statistics.tables import ARMS, PROMPT_LABELS

COUNT_COLUMNS = ("model", "label", "refusal_judge", "refused", "not_refused", "total")
ARM_COLUMNS = ("system", "arm", "label", "judge", "refused", "n")
ROW_COLUMNS = ("question", "label", "model", "response")
EDITED_ENDINGS = ("ALB", "abliterated")
"""``X-ALB``, ``X - ALB``, ``X_ALB``, ``X-abliterated``: the edited form of ``X``, in any case."""

_EDITED = re.compile(r"\s*[-_]\s*(?:ALB|abliterated)$", re.IGNORECASE)
_JUDGED = "is_refusal"
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "refusal"), True),
    **dict.fromkeys(("false", "0", "0.0", "no", "non-refusal"), False),
    "": None,
}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many of ``total`` answers of ``model`` to prompts of ``label`` ``judge`` called refusals."""

    model: str
    label: str
    judge: str
    refused: int
    total: int

    def __post_init__(self) -> None:
        if self.label not in PROMPT_LABELS:
            raise MechsafetyError(f"label {self.label!r} is not one of {', '.join(PROMPT_LABELS)}")
        if not 0 <= self.refused <= self.total or not self.total:
            raise MechsafetyError(
                f"{self.refused} refused of {self.total}: 0 to total is possible, total above 0"
            )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The verdict of ``judge`` on one answer: refused or not, or None where there is none."""

    model: str
    label: str
    judge: str
    question: str
    refused: bool | None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that was read: counts, and single verdicts. A (model, label, judge) is given by one of them only."""

    counts: tuple[Counts, ...]
    answers: tuple[Answer, ...]
    files: tuple[str, ...]

    def __post_init__(self) -> None:
        known = {(c.model, c.label, c.judge) for c in self.counts}
        for answer in self.answers:
            if (key := (answer.model, answer.label, answer.judge)) in known:
                raise MechsafetyError(
                    f"{' / '.join(key)} is given as counts and row by row: name one of the two files"
                )

    @property
    def judges(self) -> list[str]:
        """In the order of the files."""
        return list(dict.fromkeys(row.judge for row in (*self.counts, *self.answers)))

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(row.model for row in (*self.counts, *self.answers)))

    def without(self, judges: Collection[str]) -> Evidence:
        """The same but for what these judges gave."""
        return replace(
            self,
            counts=tuple(row for row in self.counts if row.judge not in judges),
            answers=tuple(row for row in self.answers if row.judge not in judges),
        )


Side = Counts | dict[str, bool | None]
"""One form of a system under one judge: its counts, or the verdict on each question."""


def published_counts() -> Path:
    """The shipped counts of Agnihotri et al. 2025 (data/published/README.md)."""
    return data_folder() / "published" / "granular-480.csv"


def split_name(model: str) -> tuple[str, bool]:
    """The system a model's name belongs to, and whether the name is that of its edited form."""
    base = _EDITED.sub("", model)
    return (base, True) if base != model and base else (model, False)


def read_evidence(paths: Sequence[Path]) -> Evidence:
    """Counts and verdicts of one or more files.

    Raises :class:`MechsafetyError` with the file and the row for missing columns, totals that do not add up, values
    that are not on the menu, and rows that stand twice.
    """
    if not paths:
        raise MechsafetyError("name a file of published records")
    if repeated := [str(p) for p in dict.fromkeys(paths) if list(paths).count(p) > 1]:
        raise MechsafetyError(f"{repeated[0]} is named twice")
    spelling = _Spelling()
    counts: dict[tuple[str, ...], Counts] = {}
    answers: dict[tuple[str, ...], Answer] = {}
    for path in paths:
        rows = 0
        for place, raw in read_rows(path):
            rows += 1
            where = f"{path}, {place}"
            row = _headed(raw, where)
            if (read := _reader_of_counts(row, where)) is not None:
                found = read(row, where, spelling)
                _add(counts, (found.model, found.label, found.judge), found, where)
            else:
                for answer in _answers(row, where, spelling, judge=path.stem):
                    key = (answer.model, answer.label, answer.judge, answer.question)
                    _add(answers, key, answer, where)
        if not rows:
            raise MechsafetyError(f"{path}: no rows in it")
    return Evidence(
        counts=tuple(counts.values()), answers=tuple(answers.values()), files=tuple(map(str, paths))
    )


def system_of(models: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """By model the system that it belongs to, and whether it is the edited form.

    ``X-ALB`` belongs to ``X``; where there is no such model, to the only one whose name ends alike after another path:
    ``models/X-abliterated`` to ``owner/X``. Raises :class:`MechsafetyError` where there are several.
    """
    forms = {model: split_name(model) for model in models}
    edited = {base.casefold() for base, is_edited in forms.values() if is_edited}
    plain = {model.casefold(): model for model, (_, is_edited) in forms.items() if not is_edited}
    alone: dict[str, list[str]] = {}
    for key, model in plain.items():
        if key not in edited:
            alone.setdefault(_last(model), []).append(model)
    found = {model: (model, False) for model in plain.values()}
    for model, (base, is_edited) in forms.items():
        if not is_edited:
            continue
        candidates = [plain[base.casefold()]] if base.casefold() in plain else alone.get(_last(base), [base])
        if len(candidates) > 1:
            raise MechsafetyError(
                f"{model!r} could be the edited form of {' and of '.join(map(repr, candidates))}: rename one of them"
            )
        found[model] = (candidates[0], True)
    return found


def _last(name: str) -> str:
    return name.rpartition("/")[2].casefold()


def paired_forms(evidence: Evidence) -> tuple[list[tuple[tuple[str, str, str], Side, Side]], list[str]]:
    """((system, label, judge), original, edited) in the order of the files, and what has no partner.

    Raises :class:`MechsafetyError` where a system has two edited forms.
    """
    systems = system_of(evidence.models)
    sides: dict[tuple[str, str, str], dict[bool, tuple[str, Side]]] = {}
    for model, label, judge, side in _sides(evidence):
        base, edited = systems[model]
        both = sides.setdefault((base.casefold(), label, judge), {})
        if edited in both:
            raise MechsafetyError(
                f"{both[edited][0]!r} and {model!r} are both the edited form of {base!r} for {label} prompts and "
                f"judge {judge!r}: leave one of them out"
            )
        both[edited] = (model, side)
    pairs, unpaired = [], []
    for (_, label, judge), both in sides.items():
        if len(both) == 2:
            pairs.append(((both[False][0], label, judge), both[False][1], both[True][1]))
        else:
            unpaired += [f"{model} / {label} / {judge}" for model, _ in both.values()]
    return pairs, unpaired


def _sides(evidence: Evidence) -> Iterator[tuple[str, str, str, Side]]:
    for counts in evidence.counts:
        yield counts.model, counts.label, counts.judge, counts
    grouped: dict[tuple[str, str, str], dict[str, bool | None]] = {}
    for answer in evidence.answers:
        grouped.setdefault((answer.model, answer.label, answer.judge), {})[answer.question] = answer.refused
    for (model, label, judge), verdicts in grouped.items():
        yield model, label, judge, verdicts


class _Spelling:
    """Names that differ in case and spaces only are one; the first spelling is kept."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def __call__(self, value: object, *, name: str, where: str) -> str:
        text = " ".join(cell_text(value).split())
        if not text:
            raise MechsafetyError(f"{where}: {name} is empty")
        if not text.isprintable():
            raise MechsafetyError(f"{where}: {name} {text!r} holds characters that do not print; remove them")
        return self._first.setdefault(f"{name}:{text.casefold()}", text)


def _headed(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The row under plain headings; a judge's name keeps its spelling."""
    row: dict[str, Any] = {}
    for heading, value in raw.items():
        text = "_".join(str(heading).split())
        plain = text.lower().replace("-", "_")
        judged = plain.startswith(f"{_JUDGED}_")
        name = f"{_JUDGED}_{text[len(_JUDGED) + 1 :]}" if judged else plain
        if name in row:
            raise MechsafetyError(f"{where}: column {name} stands twice")
        row[name] = value
    return row


def _judges(column: str) -> bool:
    return column == _JUDGED or column.startswith(f"{_JUDGED}_")


def _reader_of_counts(row: Mapping[str, Any], where: str) -> Callable[..., Counts] | None:
    """What reads a row of counts; None for a row of verdicts."""
    judged = any(map(_judges, row))
    by_arm = not judged and "arm" in row
    needed = ROW_COLUMNS if judged else ARM_COLUMNS if by_arm else COUNT_COLUMNS
    if missing := [name for name in needed if name not in row]:
        raise MechsafetyError(
            f"{where}: lacks {', '.join(missing)}; counts have the columns {', '.join(COUNT_COLUMNS)}, or "
            f"{', '.join(ARM_COLUMNS)}, and verdicts {', '.join(ROW_COLUMNS)} and {_JUDGED}_JUDGE (or {_JUDGED})"
        )
    return None if judged else _arm_counts if by_arm else _counts


def _counts(row: Mapping[str, Any], where: str, spelling: _Spelling) -> Counts:
    refused, other, total = (_whole(row[name], name, where) for name in COUNT_COLUMNS[3:])
    if refused + other != total:
        raise MechsafetyError(
            f"{where}: {refused} refused and {other} not refused are {refused + other}, but total is {total}"
        )
    return _counted(row["model"], row["refusal_judge"], row["label"], refused, total, where, spelling)


def _arm_counts(row: Mapping[str, Any], where: str, spelling: _Spelling) -> Counts:
    arm = cell_text(row["arm"]).strip().lower()
    if arm not in ARMS:
        raise MechsafetyError(f"{where}: arm {cell_text(row['arm'])!r} is not one of {', '.join(ARMS)}")
    refused, n = (_whole(row[name], name, where) for name in ("refused", "n"))
    if refused > n:
        raise MechsafetyError(f"{where}: {refused} refused of {n}; at most all can be")
    # The name that an edited form has where the arm is no column.
    name = cell_text(row["system"]).strip()
    model = f"{name}-{EDITED_ENDINGS[0]}" if arm == "edited" and name else name
    return _counted(model, row["judge"], row["label"], refused, n, where, spelling)


def _counted(
    model: object, judge: object, label: object, refused: int, total: int, where: str, spelling: _Spelling
) -> Counts:
    if not total:
        raise MechsafetyError(f"{where}: total is 0, so that there is no rate; leave the row out")
    return Counts(
        model=spelling(model, name="model", where=where),
        label=_label(label, where),
        judge=spelling(judge, name="refusal_judge", where=where),
        refused=refused,
        total=total,
    )


def _answers(row: Mapping[str, Any], where: str, spelling: _Spelling, *, judge: str) -> Iterator[Answer]:
    model = spelling(row["model"], name="model", where=where)
    question = spelling(row["question"], name="question", where=where)
    label = _label(row["label"], where)
    for column in row:
        if not _judges(column):
            continue
        named = column.removeprefix(_JUDGED).removeprefix("_") or judge
        yield Answer(
            model=model,
            label=label,
            judge=spelling(named, name="refusal_judge", where=where),
            question=question,
            refused=_read_verdict(row[column], column, where),
        )


def _read_verdict(value: object, column: str, where: str) -> bool | None:
    word = " ".join(cell_text(value).split()).lower()
    if word not in _WORDS:
        raise MechsafetyError(
            f"{where}: {column} is {cell_text(value)!r}; allowed are true, false, 1, 0, yes, no, Refusal, Non-Refusal, "
            "and empty for what was not judged"
        )
    return _WORDS[word]


def _label(value: object, where: str) -> str:
    label = cell_text(value).strip().lower()
    if label not in PROMPT_LABELS:
        raise MechsafetyError(f"{where}: label {cell_text(value)!r} is not one of {', '.join(PROMPT_LABELS)}")
    return label


def _whole(value: object, name: str, where: str) -> int:
    try:
        number = float(cell_text(value))
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0 and number == int(number)):
        raise MechsafetyError(f"{where}: {name} is {cell_text(value)!r}; a whole number from 0 is expected")
    return int(number)


def _add(found: dict[tuple[str, ...], Any], key: tuple[str, ...], value: object, where: str) -> None:
    if key in found:
        shown = " / ".join(part if len(part) <= 60 else f"{part[:60]}…" for part in key)
        raise MechsafetyError(f"{where}: {shown} stands twice; remove one of the rows")
    found[key] = value
