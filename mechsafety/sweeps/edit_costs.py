"""What an edit costs where it should change nothing: after harmless prompts, and in the model's own answers to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from mechsafety.edits.interventions import Edit
from mechsafety.generation.answered import Written
from mechsafety.generation.bodies import body_under
from mechsafety.generation.scoring import answer_nll
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.prefixes import all_last_logits
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.sweeps.refusal_scores import kl_divergence

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, kw_only=True, eq=False)
class EditCosts:
    """Measures edits of ``model`` on harmless ``prompts``; ``answers`` are the unedited model's, as it wrote them.

    Thoughts before the answers are read, and not scored.
    """

    model: TransformerBridge
    prompts: Sequence[Prompt]
    answers: Sequence[Written] = ()

    def measure(self, edit: Edit | None) -> dict[str, float]:
        """``kl``: KL(unedited || edited) of the token after a prompt, in nats, mean over prompts; 0 without an edit.

        ``perplexity``: exp of the mean negative log-likelihood, under the edit, of a token of the answers; NaN where
        all are empty.
        """
        return {"kl": self.kl(edit), "perplexity": self._perplexity(edit)}

    def kl(self, edit: Edit | None) -> float:
        """The first of the two measures alone, for which no answer is needed."""
        if edit is None:
            return 0.0
        return float(kl_divergence(self._unedited, self._logits(edit)).mean())

    @cached_property
    def _contexts(self) -> list[list[int]]:
        return tokenize_prompts(self.model, [p.asked for p in self.prompts])

    @cached_property
    def _unedited(self) -> Float[Tensor, "prompt vocabulary"]:
        return self._logits(None)

    def _logits(self, edit: Edit | None) -> Float[Tensor, "prompt vocabulary"]:
        with body_under(self.model, edit) as body:
            return all_last_logits(self.model, body, self._contexts, batch_size=64)

    def nll(self, edit: Edit | None) -> float:
        """Mean negative log-likelihood of a token of the answers, in nats; NaN where all are empty."""
        tokens, n_thought = [tokens for tokens, _ in self.answers], [n for _, n in self.answers]
        named: dict[str, Any] = {"ids": [p.id for p in self.prompts], "n_thought": n_thought}
        found = answer_nll(self.model, self._contexts, tokens, edit=edit, **named)
        lengths = [len(tokens) - n for tokens, n in self.answers]
        pairs = [(nll, n) for nll, n in zip(found, lengths, strict=True) if nll is not None]
        total = sum(n for _, n in pairs)
        return sum(nll * n for nll, n in pairs) / total if total else math.nan

    def _perplexity(self, edit: Edit | None) -> float:
        nll = self.nll(edit)
        # exp overflows where the edit has destroyed the model; the logarithm then shows it.
        return nll if math.isnan(nll) else math.exp(min(nll, 700.0))
