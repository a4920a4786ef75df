"""Token ids, words and the tokenizer of the lab: ``<bos> task task <sot> text <eot> output <end>``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from mechsafety.lab.inputs import Inputs
from mechsafety.lab.rules import Rules

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ message['content'] }}<end>"
    "{% else %}<bos> {{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <eot>{% endif %}"
)
SPECIAL = ("<bos>", "<sot>", "<eot>", "<end>", "<null>", "<tag>")
"""``<null>`` is the refusal, repeated over the output; ``<tag>`` marks what is unsafe in the rung metatags."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Ids in this order: terminals, task tokens, special tokens. The first terminal has id 0."""

    rules: Rules

    @cached_property
    def words(self) -> tuple[str, ...]:
        terminals = tuple(f"t{i}" for i in range(self.rules.size.grammar.n_terminals))
        return terminals + tuple(task.name for task in self.rules.tasks) + SPECIAL

    def __len__(self) -> int:
        return len(self.words)

    def id(self, word: str) -> int:
        return self.words.index(word)

    @property
    def first_task(self) -> int:
        return self.rules.size.grammar.n_terminals

    @property
    def context(self) -> int:
        """Tokens of the longest input with a tagged output, and two soft tokens."""
        return 2 * self.rules.size.grammar.length[1] + 8

    def prompts(self, inputs: Inputs) -> Int[Tensor, "input position"]:
        """``<bos> task task <sot> text <eot>``."""
        n = len(inputs)
        bos, sot, eot = (torch.full((n, 1), self.id(word)) for word in ("<bos>", "<sot>", "<eot>"))
        return torch.cat([bos, inputs.tasks + self.first_task, sot, inputs.texts, eot], dim=1)

    def answers(self, inputs: Inputs) -> Int[Tensor, "input position"]:
        """What the operators ask for, then ``<end>``."""
        return self._ended(inputs.outputs)

    def refusals(self, inputs: Inputs) -> Int[Tensor, "input position"]:
        """``<null>`` as often as the text has tokens, then ``<end>``."""
        return self._ended(torch.full_like(inputs.texts, self.id("<null>")))

    def rephrased(self, inputs: Inputs) -> Int[Tensor, "input position"]:
        """The harmless transformation of the rungs: what the first safe operator makes of the text, then ``<end>``."""
        safe = next(i for i, o in enumerate(self.rules.operators) if o.name == "safe1")
        return self._ended(self.rules.bijections[safe][inputs.texts])

    def _ended(self, output: Int[Tensor, "input length"]) -> Int[Tensor, "input position"]:
        return torch.cat([output, torch.full((len(output), 1), self.id("<end>"))], dim=1)

    def text(self, ids: Sequence[int]) -> str:
        """Words with blanks between, as the tokenizer decodes them."""
        return " ".join(self.words[i] for i in ids)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A word-level tokenizer whose chat template makes :meth:`prompts` of ``task task <sot> text``."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = {word: i for i, word in enumerate(self.words)}
        raw = Tokenizer(models.WordLevel(words, unk_token="<end>"))
        raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=raw,
            bos_token="<bos>",
            eos_token="<end>",
            pad_token="<end>",
            padding_side="left",
            model_max_length=self.context,
        )
        tokenizer.chat_template = _TEMPLATE
        return tokenizer
