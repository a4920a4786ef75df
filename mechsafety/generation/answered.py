"""Answers as values: one completion, and those to several prompts with the coverage of the edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from mechsafety.core.boundary import checked_construction, checked_methods
from mechsafety.core.values import picked, short
from mechsafety.core.wording import counted
from mechsafety.models.hooking import Coverage
from mechsafety.models.thoughts import split_thought
from mechsafety.prompts.messages import Turns, as_messages, read_turns, turns_text

if TYPE_CHECKING:
    import pandas as pd

    from mechsafety.judges.accepted import JudgesLike


Written = tuple[Sequence[int], int]
"""The tokens of a response, and how many of them are the thought that it begins with."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Completion:
    """One response: its text without special tokens, its token ids, and why it ended.

    A thought stands in ``text`` before the answer, between ``<think>`` and ``</think>`` whatever the model's own marks
    are, and without the latter where it was cut off; ``n_thought_tokens`` of ``tokens`` are its, with the blank lines
    before the answer. ``finish`` is ``stop`` (end of turn) or ``length`` (the answer was cut at max_new_tokens, or the
    thought at max_thought_tokens). An answer prefix, which the model is fed, is part of the text and of the prompt's
    tokens. ``messages`` are those of a prompt that is a conversation.
    """

    id: str
    prompt: str
    label: str
    category: str
    text: str
    tokens: tuple[int, ...]
    n_prompt_tokens: int
    finish: Literal["stop", "length"]
    n_thought_tokens: int = 0
    messages: Turns = ()

    def __repr__(self) -> str:
        return (
            f"Completion({self.id!r}, {self.n_tokens} tokens, {self.finish})\n"
            f"{short(self.prompt, 100)} ->\n{short(self.text, 200)}"
        )

    def _repr_html_(self) -> str:
        return f"<p><b>{escape(self.prompt)}</b></p><p>{escape(self.text)}</p>"

    @property
    def asked(self) -> str | list[dict[str, str]]:
        """What the model was asked: the prompt's text, or the whole conversation."""
        return as_messages(self.messages) if self.messages else self.prompt

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def written(self) -> Written:
        """All tokens, and how many of them are the thought before the answer."""
        return self.tokens, self.n_thought_tokens

    @property
    def answer_tokens(self) -> tuple[int, ...]:
        """The tokens behind the thought."""
        return self.tokens[self.n_thought_tokens :]

    @property
    def answer(self) -> str:
        """The text without thoughts."""
        return split_thought(self.text).answer.lstrip("\n")

    @property
    def thought(self) -> str:
        """What was thought before the answer; empty where nothing was."""
        return "\n".join(split_thought(self.text).thoughts)


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server that was asked for answers: whether it was ``used``, the ``reason`` where it was not, and how its greedy
    answers to a sample of the prompts agree with our own (:class:`mechsafety.generation.served.Agreement`)."""

    address: str
    model: str
    used: bool
    reason: str
    agreement: Mapping[str, int | float]


@checked_methods
@checked_construction
@dataclass(frozen=True, repr=False)
class Completions(Sequence[Completion]):
    """Completions in the order of the prompts, with the coverage receipt of the edit, and what a server had to do
    with them.

    Arguments:
        items: The answers, in the order of the prompts.
        coverage: The receipt of the edit; None without one.
        served: What a server had to do with them; None without one.

    Example:
        >>> plain = ms.generate(model, prompts.report, max_new_tokens=4, progress=False)
        >>> edited = ms.generate(model, prompts.report, edit=ms.Ablate(direction), max_new_tokens=4, progress=False)
        >>> list(plain.compare(edited).columns)
        ['id', 'label', 'prompt', 'response', 'other', 'rules', 'rules_other']
    """

    items: tuple[Completion, ...]
    coverage: Coverage | None = None
    served: Served | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        """An answer by its place; those of a slice, of a list of places, or where a mask is true, with the coverage."""
        found = picked(self.items, index, "answers.to_frame() has their ids")
        return replace(self, items=found) if isinstance(found, tuple) else found

    def __iter__(self) -> Iterator[Completion]:
        return iter(self.items)

    def __repr__(self) -> str:
        cut = sum(c.finish == "length" for c in self)
        tokens = sum(c.n_tokens for c in self)
        first = f": {self[0].prompt[:40]!r} -> {self[0].text[:60]!r}" if len(self) else ""
        carried = f"\n{self.coverage.carried}" if self.coverage and self.coverage.carried else ""
        how_many = f"{counted(len(self), 'answer')}, {counted(tokens, 'token')}"
        return f"Completions({how_many}, {cut} cut at the limit{first}){carried}"

    def compare(self, other: Sequence[Completion], *, judges: JudgesLike = ("rules",)) -> pd.DataFrame:
        """Both answers to each prompt side by side, these and those of ``other``, with the verdicts of ``judges``.

        Columns: id, label, prompt, response, other, and for each judge its name (on this answer) and its name with
        ``_other``. Raises :class:`MechsafetyError` where the two do not answer the same prompts.
        """
        from mechsafety.judges.judging import compared  # the one import that goes up: .importlinter names it

        return compared(self, other, judges)

    def to_frame(self) -> pd.DataFrame:
        """One row per answer: the fields of :class:`Completion`, its text as ``response``."""
        import pandas as pd

        rows = [asdict(c) | {"tokens": list(c.tokens), "n_tokens": c.n_tokens} for c in self]
        table = pd.DataFrame(rows).rename(columns={"text": "response"})
        return _with_conversations(table, [c.messages for c in self])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(c.label)}</td><td>{escape(c.prompt)}</td><td>{escape(c.text[:300])}</td></tr>"
            for c in self.items[:10]
        )
        more = f"<p>… and {len(self) - 10} more</p>" if len(self) > 10 else ""
        head = "<tr><th>label</th><th>prompt</th><th>response</th></tr>"
        return f"<table>{head}{rows}</table>{more}"


def _with_conversations(table: pd.DataFrame, several: Sequence[Turns]) -> pd.DataFrame:
    """``table`` with the column ``messages``, as JSON text, where some prompts are conversations."""
    kept = table.drop(columns="messages", errors="ignore")
    return kept.assign(messages=[turns_text(turns) for turns in several]) if any(several) else kept


def conversations(table: pd.DataFrame) -> list[Turns]:
    """The messages of each row of a table of answers; none for prompts of one turn."""
    if "messages" not in table.columns:
        return [()] * len(table)
    return [read_turns(given, at=f"answer {row}") for row, given in enumerate(table["messages"])]


def asked_in(table: pd.DataFrame) -> list[str | list[dict[str, str]]]:
    """What the model was asked in each row of a table of answers."""
    pairs = zip(table["prompt"], conversations(table), strict=True)
    return [as_messages(turns) if turns else str(prompt) for prompt, turns in pairs]


def answer_frame(answers: Sequence[Completion], **keys: object) -> pd.DataFrame:
    """Answers as a run keeps them for other judges: ``keys``, then id, label, prompt, response."""
    table = Completions(tuple(answers)).to_frame()[["id", "label", "prompt", "response"]]
    table = _with_conversations(table, [c.messages for c in answers])
    return table.assign(**keys)[[*keys, *table.columns]]
