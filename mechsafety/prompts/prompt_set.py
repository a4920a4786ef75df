"""Labelled prompts with fit, validation and report splits, from packaged sets, files and the hub.

Each split has one purpose: fit prompts estimate, validation prompts choose, report prompts judge (:data:`PURPOSES`).
"""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.places import data_folder
from mechsafety.core.values import short
from mechsafety.prompts.files import SUFFIXES, cell_text, read_rows
from mechsafety.prompts.messages import Turns, as_messages, read_turns, turns_text

if TYPE_CHECKING:
    import pandas as pd

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


@dataclass(frozen=True, kw_only=True, repr=False)
class Prompt:
    """One request. ``label`` marks whether a safe model should decline it.

    ``messages`` are the turns of a conversation, (role, content) of each; ``text`` is then the last of them, the
    user's. One turn of the user alone is no conversation.
    """

    id: str
    text: str
    label: PromptLabel
    category: str = ""
    split: Split = "report"
    source: str = ""
    licence: str = ""
    messages: Turns = ()

    def __post_init__(self) -> None:
        turns = read_turns(self.messages, at=f"prompt {self.id!r}")
        if turns and turns[-1][1].strip() != self.text.strip():
            raise MechsafetyError(f"prompt {self.id!r}: its text is not the last of its messages")
        object.__setattr__(self, "messages", turns if len(turns) > 1 else ())
        if self.messages:
            object.__setattr__(self, "text", self.messages[-1][1])

    def __repr__(self) -> str:
        turns = f", {len(self.messages)} turns" if self.messages else ""
        return f"Prompt({self.id!r}, {self.label}, {self.split}{turns}: {short(self.text, 200)})"

    def _repr_html_(self) -> str:
        return f"<b>{escape(self.id)}</b> ({self.label}, {self.split})<p>{escape(self.text)}</p>"

    @property
    def asked(self) -> str | list[dict[str, str]]:
        """What the model is asked: the text, or the whole conversation."""
        return as_messages(self.messages) if self.messages else self.text

    @property
    def contents(self) -> tuple[str, ...]:
        """Every text in it."""
        return tuple(content for _, content in self.messages) or (self.text,)

    def with_contents(self, contents: Sequence[str]) -> Prompt:
        """The same prompt with other texts, in the order of :attr:`contents`."""
        turns = tuple((role, new) for (role, _), new in zip(self.messages, contents, strict=False))
        return replace(self, text=contents[-1], messages=turns)

    def with_text(self, text: str, **changes: Any) -> Prompt:
        """The same prompt with another last turn of the user, and other changes."""
        return replace(self.with_contents([*self.contents[:-1], text]), **changes)

    @property
    def folded(self) -> str:
        """By which two prompts are the same: their texts, folded."""
        if not self.messages:
            return folded(self.text)
        return "\x1e".join(f"{role}\x1f{folded(content)}" for role, content in self.messages)


@dataclass(frozen=True, repr=False)
class PromptSet(Sequence[Prompt]):
    """An ordered set of prompts: unique ids, no empty text, no text in two splits or under two labels.

    ``repeated`` counts the rows of its file that were left out because their text stood in the same split and label
    before.
    """

    prompts: tuple[Prompt, ...]
    name: str = ""
    repeated: int = field(default=0, compare=False)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: Any) -> Any:
        found = self.prompts[index]
        return PromptSet(found, self.name) if isinstance(index, slice) else found

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def where(self, *, split: Split | None = None, label: PromptLabel | None = None) -> PromptSet:
        """The prompts of one split, one label, or both."""
        return PromptSet(
            tuple(
                p
                for p in self.prompts
                if (split is None or p.split == split) and (label is None or p.label == label)
            ),
            self.name,
        )

    @property
    def fit(self) -> PromptSet:
        return self.where(split="fit")

    @property
    def validation(self) -> PromptSet:
        return self.where(split="validation")

    @property
    def report(self) -> PromptSet:
        return self.where(split="report")

    @property
    def to_estimate(self) -> PromptSet:
        """What directions, probes and scores of weights are found on."""
        return self.where(split=PURPOSES["estimate"])

    @property
    def to_choose(self) -> PromptSet:
        """What layers and settings are chosen on."""
        return self.where(split=PURPOSES["choose"])

    @property
    def to_judge(self) -> PromptSet:
        """What results are measured on."""
        return self.where(split=PURPOSES["judge"])

    @property
    def harmful(self) -> PromptSet:
        return self.where(label="harmful")

    @property
    def harmless(self) -> PromptSet:
        return self.where(label="harmless")

    def sample(self, per_label: int, *, seed: int) -> PromptSet:
        """At most ``per_label`` prompts of each label, drawn by ``seed``, in the set's own order."""
        generator = random.Random(seed)
        kept: set[str] = set()
        for label in LABELS:
            ids = [p.id for p in self.prompts if p.label == label]
            kept.update(generator.sample(ids, min(per_label, len(ids))))
        return PromptSet(tuple(p for p in self.prompts if p.id in kept), self.name)

    def sha256(self) -> str:
        """Hash of every field of every prompt, in order."""
        digest = hashlib.sha256()
        for p in self.prompts:
            fields = (p.id, p.text, p.label, p.category, p.split, p.source, p.licence)
            fields += (turns_text(p.messages),) if p.messages else ()
            digest.update("\x1f".join(fields).encode() + b"\x1e")
        return digest.hexdigest()

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt, as :func:`load_prompts` reads them; ``messages`` only where some are conversations."""
        import pandas as pd

        names = [one.name for one in fields(Prompt) if one.name != "messages"]
        table = pd.DataFrame([[getattr(p, name) for name in names] for p in self.prompts], columns=names)
        several = any(p.messages for p in self.prompts)
        return table.assign(messages=[as_messages(p.messages) for p in self.prompts]) if several else table

    def __repr__(self) -> str:
        counts = [
            f"{len(part)} {split} ({', '.join(f'{len(part.where(label=one))} {one}' for one in LABELS)})"
            for split in SPLITS
            if len(part := self.where(split=split))
        ]
        return f"PromptSet({self.name!r}: {len(self)} prompts; {'; '.join(counts) or 'none'})"

    def _repr_html_(self) -> str:
        counts = "".join(
            f"<tr><td>{split}</td>"
            + "".join(f"<td>{len(self.where(split=split, label=label))}</td>" for label in LABELS)
            + "</tr>"
            for split in SPLITS
        )
        repeated = f" ({self.repeated} given twice, counted once)" if self.repeated else ""
        return (
            f"<b>{escape(self.name)}</b>: {len(self)} prompts{repeated}"
            f"<table><tr><th>split</th><th>harmful</th><th>harmless</th></tr>{counts}</table>"
        )


def load_prompts(
    name: str | Path, *, label: PromptLabel | None = None, split: Split | None = None
) -> PromptSet:
    """Load a packaged set (``default``, ``contrast``), a published one by name, a file, or a folder.

    Files are CSV, JSON (a list of objects), JSONL, Parquet, or text (one prompt per line), in UTF-8, with a
    text column (``text``, ``prompt``, ``question``, ``instruction``, ``goal`` or ``behavior``), or a column
    ``messages`` (a list of {role, content} that ends with the user's turn; in CSV as JSON text), and
    optionally ``id``, ``label``, ``category``, ``split``, ``source``, ``licence``. ``label`` and ``split``
    fill these columns where a file lacks them; without ``split`` such prompts are report prompts. A folder holds a
    file for each label and part (:func:`mechsafety.prompts.folders.load_folder`).

    Raises :class:`MechsafetyError`, with file and line, for a missing file, a wrong encoding, wrong
    columns, empty text, a duplicate id, and a text that stands in two splits or under two labels. A text that stands
    twice in one split under one label is taken once (``PromptSet.repeated``).
    """
    from mechsafety.prompts.folders import load_folder
    from mechsafety.prompts.sources import SOURCES, load_source

    text = str(name)
    if text in packaged_sets():
        packaged = data_folder() / "prompts" / f"{text}.csv"
        return _from_file(packaged, name=text, label=label, split=split)
    if text in SOURCES:
        return from_rows(load_source(text), where=text, name=text, label=label, split=split)
    path = Path(name).expanduser()
    if text and path.is_dir():
        return load_folder(path)
    if path.suffix.lower() in SUFFIXES or path.is_file():
        return _from_file(path, name=path.name, label=label, split=split)
    raise MechsafetyError(
        f"unknown prompt set {text!r}: packaged are {', '.join(packaged_sets())}; by name from the hub "
        f"{', '.join(SOURCES)}; or name a folder, or a file ending in {', '.join(SUFFIXES)}"
    )


def packaged_sets() -> list[str]:
    return sorted(path.stem for path in (data_folder() / "prompts").glob("*.csv"))


def from_rows(
    rows: Iterable[tuple[str, dict[str, Any]]],
    *,
    where: str,
    name: str,
    label: PromptLabel | None = None,
    split: Split | None = None,
) -> PromptSet:
    """Check rows, each with the place it stands in (``"line 7"``), and make a :class:`PromptSet`."""
    prompts: list[Prompt] = []
    ids: dict[str, str] = {}
    texts: dict[str, tuple[Prompt, str]] = {}
    repeated = 0
    for index, (place, row) in enumerate(rows):
        prompt = _prompt(row, at=f"{where}, {place}", index=index, name=name, label=label, split=split)
        if prompt.id in ids:
            raise MechsafetyError(f"{where}, {place}: id {prompt.id!r} stands already at {ids[prompt.id]}")
        ids[prompt.id] = place
        other, other_place = texts.setdefault(prompt.folded, (prompt, place))
        if other.split != prompt.split:
            raise MechsafetyError(
                f"{where}, {place}: this text stands in split {prompt.split!r} and, at {other_place}, in "
                f"{other.split!r}; splits must not overlap"
            )
        if other.label != prompt.label:
            raise MechsafetyError(
                f"{where}, {place}: this text is labelled {prompt.label!r} and, at {other_place}, {other.label!r}; a "
                "text has one label"
            )
        if other is prompt:
            prompts.append(prompt)
        else:
            repeated += 1
    if not prompts:
        raise MechsafetyError(f"{where}: no prompts in it")
    return PromptSet(tuple(prompts), name, repeated)


def folded(text: str) -> str:
    """By which two prompts are the same: case, blanks, sentence marks and the encoding of a letter do not count."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_SENTENCE_MARKS.sub(" ", plain).split()) or plain.strip()


def _prompt(
    row: dict[str, Any], *, at: str, index: int, name: str, label: PromptLabel | None, split: Split | None
) -> Prompt:
    turns = read_turns(row.get("messages"), at=at)
    text = _row_text(row, at=at) if not turns or _has_text(row) else ""
    last = "".join(content for _, content in turns[-1:])
    if turns and text and text != last.strip():
        raise MechsafetyError(f"{at}: the text is not the last of the messages: give the messages alone")
    text = text or last.strip()
    the_label = cell_text(row.get("label")) or label
    if the_label not in LABELS:
        got = f"label {the_label!r} is" if the_label else "there is no label column, and label is"
        raise MechsafetyError(
            f"{at}: {got} not one of {', '.join(LABELS)} (a label for the whole file: --label)"
        )
    the_split = cell_text(row.get("split")) or split or "report"
    if the_split not in SPLITS:
        raise MechsafetyError(f"{at}: split {the_split!r} is not one of {', '.join(SPLITS)}")
    return Prompt(
        id=cell_text(row.get("id")) or f"{Path(name).stem}-{index + 1:04d}",
        text=text,
        label=the_label,
        category=cell_text(row.get("category")),
        split=the_split,
        source=cell_text(row.get("source")) or name,
        licence=cell_text(row.get("licence")),
        messages=turns,
    )


def _has_text(row: Mapping[str, Any]) -> bool:
    return any(cell_text(row.get(column)).strip() for column in TEXT_COLUMNS)


def _row_text(row: Mapping[str, Any], *, at: str) -> str:
    column = next((c for c in TEXT_COLUMNS if c in row), None)
    if column is None:
        raise MechsafetyError(
            f"{at}: no text column; have {', '.join(map(str, row)) or 'none'}, want one of "
            f"{', '.join(TEXT_COLUMNS)}, or messages"
        )
    if cell_text(row[column]) and not isinstance(row[column], str):
        raise MechsafetyError(f"{at}: column {column!r} holds a {type(row[column]).__name__}, not text")
    text = cell_text(row[column]).strip()
    if not text:
        raise MechsafetyError(f"{at}: column {column!r} is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise MechsafetyError(f"{at}: column {column!r} holds half a character (a lone surrogate)")
    return text


def _from_file(path: Path, *, name: str, label: PromptLabel | None, split: Split | None) -> PromptSet:
    return from_rows(read_rows(path), where=str(path), name=name, label=label, split=split)
