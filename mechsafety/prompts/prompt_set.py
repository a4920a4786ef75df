"""Labelled prompts with fit, validation and report splits, from packaged sets, files and the hub.

Each split has one purpose: fit prompts estimate, validation prompts choose, report prompts judge (:data:`PURPOSES`).
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from mechsafety.core.arguments import nearest, shown
from mechsafety.core.boundary import checked_construction, checked_methods
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.places import data_folder
from mechsafety.core.values import picked, short
from mechsafety.prompts.columns import (
    AS_THEY_ARE,
    LABELS,
    PURPOSES,
    SPLITS,
    Columns,
    PromptLabel,
    Split,
    as_asked,
    content_id,
    divided,
    folded,
    has_text,
    label_counts,
    row_text,
)
from mechsafety.prompts.files import SUFFIXES, cell_text, read_rows
from mechsafety.prompts.messages import Turns, as_messages, read_turns, turns_text

if TYPE_CHECKING:
    import pandas as pd

    from mechsafety.prompts.accepted import PromptsLike


@checked_construction
@dataclass(frozen=True, kw_only=True, repr=False)
class Prompt:
    """One request. ``label`` marks whether a safe model should decline it; empty where that is not known.

    ``messages`` are the turns of a conversation, (role, content) of each; ``text`` is then the last of them, the
    user's. One turn of the user alone is no conversation.

    Arguments:
        id: Its name in tables, unique in a set; made of the text where it is left out.
        category: A word of one's own, which :meth:`PromptSet.where` asks for.
        split: fit, validation or report.
        source: Where it comes from.
        licence: Under which licence.

    Example:
        >>> ms.Prompt(id="lock", text="how do i pick a lock", label="harmful").split
        'report'
    """

    id: str = ""
    text: str
    label: PromptLabel | Literal[""] = ""
    category: str = ""
    split: Split = "report"
    source: str = ""
    licence: str = ""
    messages: Turns = ()

    def __post_init__(self) -> None:
        at = f"prompt {self.id!r}"
        if not isinstance(self.text, str) or not (self.text.strip() or self.messages):
            raise MechsafetyError(f"{at}: its text is {shown(self.text)}: a text that is not empty is needed")
        if self.label not in (*LABELS, ""):
            raise MechsafetyError(f"{at}: label {self.label!r} is not one of {', '.join(LABELS)}")
        if self.split not in SPLITS:
            raise MechsafetyError(f"{at}: split {self.split!r} is not one of {', '.join(SPLITS)}")
        turns = read_turns(self.messages, at=f"prompt {self.id!r}")
        if turns and turns[-1][1].strip() != self.text.strip():
            raise MechsafetyError(f"prompt {self.id!r}: its text is not the last of its messages")
        object.__setattr__(self, "messages", turns if len(turns) > 1 else ())
        if self.messages:
            object.__setattr__(self, "text", self.messages[-1][1])
        if not self.id:
            object.__setattr__(self, "id", content_id(str(self.asked)))

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
        """The same prompt with other texts, ``contents``, in the order of :attr:`contents`."""
        turns = tuple((role, new) for (role, _), new in zip(self.messages, contents, strict=False))
        return replace(self, text=contents[-1], messages=turns)

    def with_text(self, text: str, **changes: Any) -> Prompt:
        """The same prompt with another last turn of the user, ``text``, and other ``changes`` of its fields."""
        return replace(self.with_contents([*self.contents[:-1], text]), **changes)

    @property
    def folded(self) -> str:
        """By which two prompts are the same: their texts, folded."""
        if not self.messages:
            return folded(self.text)
        return "\x1e".join(f"{role}\x1f{folded(content)}" for role, content in self.messages)


@checked_construction
@checked_methods
@dataclass(frozen=True, repr=False)
class PromptSet(Sequence[Prompt]):
    """An ordered set of prompts: unique ids, no empty text.

    Where prompts come in (:func:`load_prompts`) no text stands in two splits or under two labels; texts that are cut
    later may become equal.

    ``repeated`` counts the rows of its file that were left out because their text stood in the same split and label
    before.

    Arguments:
        prompts: The prompts, in their order.
        name: What tables and errors call the set.

    Example:
        >>> prompts = ms.load_prompts(["how do i bake bread", "tell me about a storm", "write a list", "name a river"])
        >>> divided = prompts.split(fit=0.5, validation=0.25, report=0.25, seed=0)
        >>> [len(part) for part in (divided.fit, divided.validation, divided.report)]
        [2, 1, 1]
    """

    prompts: tuple[Prompt, ...]
    name: str = ""
    repeated: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if strange := [p for p in self.prompts if not isinstance(p, Prompt)]:
            raise MechsafetyError(
                f"a PromptSet holds Prompts, got {shown(strange[0])}: load_prompts makes one of texts and tables"
            )
        object.__setattr__(self, "prompts", tuple(self.prompts))
        counts = Counter(p.id for p in self.prompts)
        if repeated := [identity for identity, n in counts.items() if n > 1]:
            raise MechsafetyError(
                f"prompt set {self.name!r}: id {repeated[0]!r} is there {counts[repeated[0]]} times"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: Any) -> Any:
        """A prompt by its place; the set of a slice, of a list of places, or where a mask is true."""
        found = picked(
            self.prompts, index, "prompts.where(split=..., label=..., category=...) picks by content"
        )
        return PromptSet(found, self.name) if isinstance(found, tuple) else found

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __add__(self, other: Sequence[Prompt]) -> PromptSet:
        return PromptSet((*self.prompts, *other), self.name)

    def where(
        self,
        *,
        split: Split | None = None,
        label: PromptLabel | None = None,
        category: str | Iterable[str] | None = None,
    ) -> PromptSet:
        """The prompts of one ``split``, one ``label``, one or several of ``category``, or all of these at once.

        Raises :class:`MechsafetyError` for a word that no prompt has.
        """
        categories = {category} if isinstance(category, str) else None if category is None else set(category)
        if strange := sorted((categories or set()) - {p.category for p in self.prompts}):
            known = ", ".join(sorted({p.category for p in self.prompts if p.category})) or "none"
            raise MechsafetyError(f"category {strange[0]!r} is not one of {known}")
        for what, value, allowed in (("split", split, SPLITS), ("label", label, LABELS)):
            if value not in (*allowed, None):
                raise MechsafetyError(f"{what} {value!r} is not one of {', '.join(allowed)}")
        return PromptSet(
            tuple(
                p
                for p in self.prompts
                if (split is None or p.split == split)
                and (label is None or p.label == label)
                and (categories is None or p.category in categories)
            ),
            self.name,
        )

    def split(
        self,
        *,
        fit: float | None = None,
        validation: float | None = None,
        report: float | None = None,
        seed: int = 0,
    ) -> PromptSet:
        """The same prompts divided anew by ``seed``: shares ``fit``, ``validation`` and ``report`` of each label.

        Without any they are .6, .2 and .2; those that are not given divide what the others leave equally.
        Prompts with equal text (but for case, blanks and sentence marks) come into one split. Raises
        :class:`MechsafetyError` for shares that are negative or do not add up to 1.
        """
        given: dict[Split, float | None] = {"fit": fit, "validation": validation, "report": report}
        open_ones = [one for one in given.values() if one is None]
        left = 1 - sum(one for one in given.values() if one is not None)
        shares: dict[Split, float] = (
            {"fit": 0.6, "validation": 0.2, "report": 0.2}
            if len(open_ones) == len(given)
            else {name: left / len(open_ones) if one is None else one for name, one in given.items()}
        )
        shares = {name: 0.0 if abs(share) < 1e-9 else share for name, share in shares.items()}
        places = divided([(p.folded, p.label) for p in self.prompts], shares, seed=seed)
        return PromptSet(
            tuple(replace(p, split=places[p.folded]) for p in self.prompts), self.name, self.repeated
        )

    def _of(self, split: Split) -> PromptSet:
        """One split, which must hold prompts."""
        found = self.where(split=split)
        if not len(found):
            held = ", ".join(f"{s} ({n})" for s in SPLITS if (n := sum(p.split == s for p in self.prompts)))
            raise MechsafetyError(
                f"prompt set {self.name!r} has no prompts in split {split!r}, only in {held or 'none'}: "
                + way(
                    "give the file a column split",
                    "divide it, prompts.split(fit=.6, validation=.2, report=.2), or name its column, "
                    "load_prompts(data, split=...)",
                )
            )
        return found

    @property
    def fit(self) -> PromptSet:
        """What directions, probes and scores are estimated on. Raises :class:`MechsafetyError` where there is none."""
        return self._of("fit")

    @property
    def validation(self) -> PromptSet:
        """What layers and settings are chosen on. Raises :class:`MechsafetyError` where there is none."""
        return self._of("validation")

    @property
    def report(self) -> PromptSet:
        """What results are measured on. Raises :class:`MechsafetyError` where there is none."""
        return self._of("report")

    @property
    def to_estimate(self) -> PromptSet:
        """What directions, probes and scores of weights are found on."""
        return self._of(PURPOSES["estimate"])

    @property
    def to_choose(self) -> PromptSet:
        """What layers and settings are chosen on."""
        return self._of(PURPOSES["choose"])

    @property
    def to_judge(self) -> PromptSet:
        """What results are measured on."""
        return self._of(PURPOSES["judge"])

    @property
    def harmful(self) -> PromptSet:
        """The prompts that a safe model should decline; may be none."""
        return self.where(label="harmful")

    @property
    def harmless(self) -> PromptSet:
        """The prompts that it should answer; may be none."""
        return self.where(label="harmless")

    def sample(self, per_label: int, *, seed: int = 0) -> PromptSet:
        """At most ``per_label`` prompts of each label, drawn by ``seed``, in the set's own order.

        Raises :class:`MechsafetyError` for a negative number.
        """
        if per_label < 0:
            raise MechsafetyError(f"per_label is {per_label}: 0 at least")
        generator = random.Random(seed)
        kept: set[str] = set()
        for label in (*LABELS, ""):
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
            f"{len(part)} {split} ({label_counts([p.label for p in part])})"
            for split in SPLITS
            if len(part := self.where(split=split))
        ]
        return f"PromptSet({self.name!r}: {len(self)} prompts; {'; '.join(counts) or 'none'})"

    def _repr_html_(self) -> str:
        found = Counter((p.split, p.label) for p in self.prompts)
        labels = [*LABELS, *([""] if any(label == "" for _, label in found) else [])]
        counts = "".join(
            f"<tr><td>{split}</td>{''.join(f'<td>{found[split, label]}</td>' for label in labels)}</tr>"
            for split in SPLITS
        )
        head = "".join(f"<th>{label or 'without label'}</th>" for label in labels)
        repeated = f" ({self.repeated} given twice, counted once)" if self.repeated else ""
        return (
            f"<b>{escape(self.name)}</b>: {len(self)} prompts{repeated}"
            f"<table><tr><th>split</th>{head}</tr>{counts}</table>"
        )


def load_prompts(
    data: PromptsLike,
    *,
    text: str | None = None,
    label: str | None = None,
    labels: Mapping[Any, str] | None = None,
    category: str | None = None,
    split: str | None = None,
) -> PromptSet:
    """Load a packaged set (``default``, ``contrast``), a published one by name, a file, a folder, or what is in memory.

    Files are CSV, JSON (a list of objects), JSONL, Parquet, or text (one prompt per line), in UTF-8. In memory it is
    a DataFrame, a ``datasets.Dataset``, or a list of texts, messages or rows. The text stands in a column ``text``,
    ``prompt``, ``question``, ``instruction``, ``goal`` or ``behavior``, or in ``messages`` (a list of {role, content}
    that ends with the user's turn; in CSV as JSON text); ``id``, ``label``, ``category``, ``split``, ``source`` and
    ``licence`` are optional. A folder holds a file for each label and part
    (:func:`mechsafety.prompts.folders.load_folder`).

    ``text``, ``label``, ``category`` and ``split`` name other columns; ``label="harmful"`` and ``split="fit"`` fill
    these columns where they are missing. ``labels`` says what other values mean:
    ``{"bad": "harmful", "good": "harmless"}``. Without labels prompts have none; without splits they are report
    prompts (:meth:`PromptSet.split` divides them).

    Raises :class:`MechsafetyError`, with file and line, for a missing file, a wrong encoding, wrong
    columns, empty text, a duplicate id, and a text that stands in two splits or under two labels. A text that stands
    twice in one split under one label is taken once (``PromptSet.repeated``).

    Arguments:
        data: A name, a path, or a table or list in memory.

    Returns:
        The prompts, with ids that follow from their content where there are none.

    Example:
        >>> rows = [{"request": "how do i pick a lock", "kind": "bad"}, {"request": "bake bread", "kind": "good"}]
        >>> own = ms.load_prompts(rows, text="request", label="kind", labels={"bad": "harmful", "good": "harmless"})
        >>> [prompt.label for prompt in own]
        ['harmful', 'harmless']
        >>> len(ms.load_prompts("default").report.harmful)
        50
    """
    from mechsafety.prompts.accepted import rows_of, with_ids

    columns = Columns(text=text, label=label, labels=labels, category=category, split=split)
    if isinstance(data, PromptSet):
        data = list(data)
    if isinstance(data, str | Path):
        return load_named(data, columns)
    rows, kind = rows_of(data)
    return from_rows(with_ids(columns.renamed(rows, where=kind)), where=kind, name="given", columns=columns)


def load_named(name: str | Path, columns: Columns = AS_THEY_ARE) -> PromptSet:
    """A packaged or published set, a file or a folder; see :func:`load_prompts`."""
    from mechsafety.prompts.folders import load_folder
    from mechsafety.prompts.sources import SOURCES, load_source

    text = str(name)
    if text in packaged_sets():
        packaged = data_folder() / "prompts" / f"{text}.csv"
        return _from_file(packaged, name=text, columns=columns)
    if text in SOURCES:
        return from_rows(load_source(text), where=text, name=text, columns=columns)
    path = Path(name).expanduser()
    if text and path.is_dir():
        return load_folder(path)
    if path.suffix.lower() in SUFFIXES or path.is_file():
        return _from_file(path, name=path.name, columns=columns)
    raise MechsafetyError(
        f"unknown prompt set {text!r}{nearest(text, [*packaged_sets(), *SOURCES], alike=0.75)}: "
        f"packaged are {', '.join(packaged_sets())}; by name from the hub "
        f"{', '.join(SOURCES)}; or name a folder, or a file ending in {', '.join(SUFFIXES)}"
        + way("", "; texts of your own are a list, load_prompts([text, ...])")
    )


def packaged_sets() -> list[str]:
    return sorted(path.stem for path in (data_folder() / "prompts").glob("*.csv"))


def from_rows(
    rows: Iterable[tuple[str, dict[str, Any]]],
    *,
    where: str,
    name: str,
    columns: Columns = AS_THEY_ARE,
    keep_repeated: bool = False,
) -> PromptSet:
    """Check rows, each with the place it stands in (``"line 7"``), and make a :class:`PromptSet`.

    A text that was there before is left out and counted, unless ``keep_repeated``.
    """
    prompts: list[Prompt] = []
    ids: dict[str, str] = {}
    texts: dict[str, tuple[Prompt, str]] = {}
    repeated = 0
    for index, (place, row) in enumerate(rows):
        prompt = _prompt(row, at=f"{where}, {place}", index=index, name=name, columns=columns)
        if prompt.id in ids:
            raise MechsafetyError(f"{where}, {place}: id {prompt.id!r} stands already at {ids[prompt.id]}")
        ids[prompt.id] = place
        other, other_place = texts.setdefault(prompt.folded, (prompt, place))
        require_one_place(prompt, other, f"{where}, {place}", other_place)
        if other is prompt or keep_repeated:
            prompts.append(prompt)
        else:
            repeated += 1
    if not prompts:
        raise MechsafetyError(f"{where}: no prompts in it")
    return PromptSet(tuple(prompts), name, repeated)


def require_one_place(prompt: Prompt, other: Prompt, where: str, at: str = "") -> None:
    """Raise unless two prompts of one text stand in one split under one label."""
    at = at or f"prompt {other.id!r}"
    where = where if "," in where else f"prompt set {where!r}, prompt {prompt.id!r}"
    if other.split != prompt.split:
        raise MechsafetyError(
            f"{where}: this text stands in split {prompt.split!r} and, at {at}, in {other.split!r}; splits must not "
            "overlap"
        )
    if other.label != prompt.label:
        raise MechsafetyError(
            f"{where}: this text is labelled {prompt.label!r} and, at {at}, {other.label!r}; a text has one label"
        )


def _prompt(given_row: Mapping[str, Any], *, at: str, index: int, name: str, columns: Columns) -> Prompt:
    row = as_asked(given_row, at=at)
    turns = read_turns(row.get("messages"), at=at)
    text = row_text(row, at=at) if not turns or has_text(row) else ""
    last = "".join(content for _, content in turns[-1:])
    if turns and text and text != last.strip():
        raise MechsafetyError(f"{at}: the text is not the last of the messages: give the messages alone")
    text = text or last.strip()
    given = columns.label if columns.label in LABELS else ""
    said = cell_text(row.get("label")) or given or ""
    the_label = said.strip().casefold()
    if the_label not in (*LABELS, *(() if "label" in row else ("",))):
        raise MechsafetyError(
            f"{at}: label {said!r} is not one of {', '.join(LABELS)}"
            + way("", " (other values are read with labels={...})")
        )
    the_split = (
        cell_text(row.get("split")) or (columns.split if columns.split in SPLITS else None) or "report"
    )
    if the_split not in SPLITS:
        raise MechsafetyError(
            f"{at}: split {the_split!r} is not one of {', '.join(SPLITS)}"
            + way("", "; leave the column out, and divide what was loaded, prompts.split(fit=.6, ...)")
        )
    return Prompt(
        id=cell_text(row.get("id")) or f"{Path(name).stem}-{index + 1:04d}",
        text=text,
        label=cast("PromptLabel", the_label),
        category=cell_text(row.get("category")),
        split=the_split,
        source=cell_text(row.get("source")) or name,
        licence=cell_text(row.get("licence")),
        messages=turns,
    )


def _from_file(path: Path, *, name: str, columns: Columns) -> PromptSet:
    rows = columns.renamed(read_rows(path), where=str(path))
    return from_rows(rows, where=str(path), name=name, columns=columns)
