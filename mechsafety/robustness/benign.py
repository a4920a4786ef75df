"""Benign text and simple questions on which it is measured what an edit costs. Both were written for this project."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.places import data_folder
from mechsafety.prompts.files import read_rows


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A short text on everyday matters."""

    id: str
    topic: str
    text: str

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise MechsafetyError(f"passage {self.id!r} is empty")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The beginning of a sentence and ways to end it; ``answer`` is the place of the right one."""

    id: str
    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise MechsafetyError(f"question {self.id!r} needs two different choices at least")
        if not 0 <= self.answer < len(self.choices):
            raise MechsafetyError(
                f"question {self.id!r} has {len(self.choices)} choices, and its answer is {self.answer}"
            )
        if not self.question.strip() or not all(choice.strip() for choice in self.choices):
            raise MechsafetyError(f"question {self.id!r}: the question or a choice is empty")


def benign_passages(path: str | Path | None = None) -> list[Passage]:
    """The 60 packaged passages of 60 to 120 words, or those of a JSONL file with id, topic and text.

    Returns:
        The passages.

    Example:
        >>> len(ms.regions.benign_passages())
        60
    """
    path = None if path is None else as_path(path)
    return [
        Passage(id=str(row["id"]), topic=str(row["topic"]), text=str(row["text"]))
        for row in _rows(path or _packaged("passages"), ("id", "topic", "text"))
    ]


def benign_choices(path: str | Path | None = None) -> list[Choice]:
    """The 130 packaged questions (106 with four choices, 24 with two), or those of a JSONL file.

    Returns:
        The questions.

    Example:
        >>> len(ms.regions.benign_choices())
        130
    """
    path = None if path is None else as_path(path)
    fields = ("id", "subject", "question", "choices", "answer")
    return [
        Choice(
            id=str(row["id"]),
            subject=str(row["subject"]),
            question=str(row["question"]),
            choices=tuple(str(choice) for choice in row["choices"]),
            answer=int(row["answer"]),
        )
        for row in _rows(path or _packaged("choices"), fields)
    ]


def _packaged(name: str) -> Path:
    return data_folder() / "benign" / f"{name}.jsonl"


def _rows(path: Path, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for place, row in read_rows(path):
        if missing := [name for name in fields if name not in row]:
            raise MechsafetyError(f"{path}, {place}: no {', '.join(missing)}; needs {', '.join(fields)}")
        yield row
