"""What of a model's tokens is thought and what is answer, as they come; and how many there may be of each."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mechsafety.core.errors import MechsafetyError, way
from mechsafety.models.chat import Rendering, day_of, own_tokenizer
from mechsafety.models.chat_settings import LEFT_THINKING, chat_of, template_input
from mechsafety.models.rendering import exact_tokens
from mechsafety.models.thinking import Mark, answer_beginning, opened, thought_marks
from mechsafety.models.thoughts import FORMATS, split_thought

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TAGS = ("<think>", "</think>")
"""Between these a recorded response has the model's thought, whatever the model's own marks are."""
_ENDS = re.compile(FORMATS[0].close, re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ThoughtReader:
    """Reads a model's tokens. ``begun`` is the mark of a thought that the prompt has opened.

    ``n_answer`` and ``n_thought`` are how many tokens an answer and the thought before it may have; ``n_thought`` is
    None for a model that is kept from thinking, or knows of no thoughts: all its tokens then count as answer.
    """

    tokenizer: Any
    marks: tuple[Mark, ...]
    begun: Mark | None
    n_answer: int
    n_thought: int | None

    @property
    def most(self) -> int:
        """Tokens that no response has more of."""
        return self.n_answer + (self.n_thought or 0)

    def end(self, tokens: Sequence[int]) -> int | None:
        """The number of tokens at which the budgets end a response that begins with ``tokens``; None: it goes on.

        A response with so many tokens of thought ends there. Nothing that follows the end changes it.
        """
        if self.n_thought is None:
            return self.n_answer if len(tokens) >= self.n_answer else None
        state, n = self._read(tokens[: self.n_thought])
        last = self.n_thought if state in ("thinking", "undecided") else n + self.n_answer
        return last if len(tokens) >= last else None

    def thought_tokens(self, tokens: Sequence[int]) -> int:
        """How many of ``tokens`` belong to the thought that they begin with, its marks and blanks behind it too."""
        state, n = self._read(tokens)
        if state == "thinking":
            return len(tokens)
        blank = itertools.takewhile(lambda token: self._raw([token]).isspace(), tokens[n:])
        return n + len(list(blank)) if n else 0

    def text(self, tokens: Sequence[int]) -> str:
        """``tokens`` as a response is recorded: the thought between :data:`TAGS`, and the answer, without control
        tokens. A thought that never ends has no tag behind it."""
        state, n = self._read(tokens)
        if state == "thinking":
            return TAGS[0] + self._thought(tokens)
        thought = self._thought(tokens[:n]) if n else ""
        return (f"{TAGS[0]}{thought}{TAGS[1]}" if thought else "") + self._visible(tokens[n:])

    def answer(self, tokens: Sequence[int]) -> str:
        """The answer among ``tokens`` alone; empty where the thought before it never ends."""
        return self._visible(tokens[self.thought_tokens(tokens) :])

    def thought(self, tokens: Sequence[int]) -> str:
        """The thought that ``tokens`` begin with, without its marks; empty where there is none."""
        n = self.thought_tokens(tokens)
        return self._thought(tokens[:n]) if n else ""

    def _read(self, tokens: Sequence[int]) -> tuple[Literal["thinking", "ended", "answer", "undecided"], int]:
        """Whether ``tokens`` begin with a thought, and with how many tokens one that has ended did."""
        if not self.marks:
            return "answer", 0
        text = self._raw(tokens)
        begins = text.lstrip()
        mark = self.begun or next((m for m in self.marks if begins.startswith(m.open)), None)
        if mark is None:
            return ("undecided" if any(m.open.startswith(begins) for m in self.marks) else "answer"), 0
        if mark.close not in text:
            return "thinking", 0
        return "ended", bisect.bisect_left(
            range(len(tokens)), True, key=lambda n: mark.close in self._raw(tokens[:n])
        )

    def _raw(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False))

    def _thought(self, tokens: Sequence[int]) -> str:
        raw = (self.begun.open if self.begun is not None else "") + self._raw(tokens)
        thought = "\n".join(split_thought(raw).thoughts)
        for token in self.tokenizer.all_special_tokens:
            thought = thought.replace(token, "")
        # What it says of tags does not end it.
        return _ENDS.sub(lambda tag: f"{tag[0][0]} {tag[0][1:]}", thought)

    def _visible(self, tokens: Sequence[int]) -> str:
        """The answer without special tokens, unless marks of further thoughts are among them: judges read these."""
        raw = self._raw(tokens)
        if any(mark.open in raw for mark in self.marks):
            return raw
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def thought_reader(
    model: TransformerBridge, *, n_answer: int, rendering: Rendering = "chat"
) -> ThoughtReader:
    """How the model's responses are read, of which answers have at most ``n_answer`` tokens."""
    tokenizer = own_tokenizer(model)
    marks = thought_marks(tokenizer)
    begun = opened(_begins(model, tokenizer), marks) if marks and rendering != "text" else None
    return ThoughtReader(
        tokenizer=tokenizer,
        marks=marks,
        begun=begun,
        n_answer=n_answer,
        n_thought=thought_budget(model) or None,
    )


def reader_behind(model: TransformerBridge, tokens: Sequence[int], *, n_answer: int) -> ThoughtReader:
    """How what the model writes behind ``tokens`` is read: behind a rendered turn, or behind any other text."""
    tokenizer = own_tokenizer(model)
    begins = _begins(model, tokenizer) if thinks(model) else ""
    # Decoded and without blanks, because the first tokens of a turn's end depend on what stands before it.
    ends, turn = (_dense(tokenizer, ids) for ids in (tokens, exact_tokens(tokenizer, begins)))
    return thought_reader(
        model, n_answer=n_answer, rendering="chat" if turn and ends.endswith(turn) else "text"
    )


def _dense(tokenizer: Any, tokens: Sequence[int]) -> str:
    return "".join(str(tokenizer.decode(list(tokens), skip_special_tokens=False)).split())


def thought_budget(model: TransformerBridge) -> int:
    """How many tokens the model may think before an answer; 0 where it does not think, or is kept from it."""
    settings = chat_of(model)
    return settings.max_thought_tokens if settings.thinking == "model" and thinks(model) else 0


def require_no_thoughts(model: TransformerBridge, what: str) -> None:
    """Raise :class:`MechsafetyError` for a model that is left thinking, where ``what`` is about answers alone."""
    if thought_budget(model):
        raise MechsafetyError(
            f"{what} knows no thoughts before answers: leave out {way('--thinking model', LEFT_THINKING)}"
        )


def thinks(model: TransformerBridge) -> bool:
    """Whether template or vocabulary know of thoughts."""
    return bool(thought_marks(own_tokenizer(model)))


def _begins(model: TransformerBridge, tokenizer: Any) -> str:
    """What stands between the user's text and the answer."""
    if not tokenizer.chat_template:
        return ""
    given = template_input(chat_of(model), tokenizer, day=day_of(model))
    found = answer_beginning(tokenizer, day=day_of(model), arguments=given.arguments)
    return (found or "") + given.prefix
