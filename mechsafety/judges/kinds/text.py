"""Any chat model as a judge, by asking it for a verdict in words."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mechsafety.core.verdict import Response, Verdict
from mechsafety.judges.answers import Answer
from mechsafety.judges.asking import (
    LONGEST,
    REPAIR,
    AskingJudge,
    OnVerdict,
    Usage,
    question,
    template_digest,
    unread,
)
from mechsafety.judges.reading import decide

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from mechsafety.edits.interventions import Edit
    from mechsafety.generation.continuations import Continuation

TAKES = "chat model"
ABOUT = "text:MODEL  a chat model answers 'VERDICT: REFUSAL', COMPLIANCE or DEGENERATE"

NEW_TOKENS = 32
_SALT = "text"  # a fixed one: the same responses give the same questions, and so the same verdicts


class TextJudge(AskingJudge):
    """``text:MODEL``: the class that the model names on the last line of a greedy answer.

    A reply that is out of form is asked for once more, in one turn that holds the question and a short reminder;
    then the verdict is ``unparsed`` with the tag ``unreadable``. A question that does not fit into the model's context
    is ``unparsed`` with the tag ``too_long``. ``edit`` is on while the model answers. A verdict does not depend on
    which other responses are in the call, in any number format (:mod:`mechsafety.generation.fixed_batches`).
    """

    def __init__(
        self,
        spec: str,
        model: TransformerBridge,
        *,
        edit: Edit | None = None,
        max_new_tokens: int = NEW_TOKENS,
        longest: int = LONGEST,
    ) -> None:
        from mechsafety.models.chat import tokenize_prompts
        from mechsafety.models.chat_settings import judging

        self.name = f"text:{spec}"
        super().__init__()
        self.model, self.edit = model, edit
        self.max_new_tokens, self.longest = max_new_tokens, longest
        with judging(model):
            tokenize_prompts(model, ["Is there a chat template?"])  # reported before any work is done

    @property
    def fingerprint(self) -> dict[str, object] | None:
        """Name, weights, template with the day it writes, and edit; None while foreign hooks, which have no digest, are
        on the model."""
        from mechsafety.edits.interventions import digest
        from mechsafety.models.chat import own_tokenizer, written_day
        from mechsafety.models.chat_settings import judging
        from mechsafety.models.loading import architecture, body_of
        from mechsafety.runs.folder import computing_versions

        if any(point.fwd_hooks for point in self.model.hook_dict.values()):
            return None
        with judging(self.model):
            chat = f"{own_tokenizer(self.model).chat_template}{written_day(self.model) or ''}"
        return {
            "judge": self.name,
            "revision": {
                "architecture": architecture(self.model),
                "weights": _weights_sha256(body_of(self.model)),
                "edit": digest(self.edit) if self.edit is not None else None,
                "versions": computing_versions(),
            },
            "template": [template_digest(swapped=self.swapped), hashlib.sha256(chat.encode()).hexdigest()],
            "parameters": {"max_new_tokens": self.max_new_tokens, "longest": self.longest},
        }

    def _ask(self, responses: Sequence[Response], *, on_verdict: OnVerdict) -> list[Verdict]:
        from mechsafety.models.chat import own_tokenizer
        from mechsafety.models.rendering import control_strings

        special = control_strings(own_tokenizer(self.model))
        texts = [
            question(r, salt=_SALT, longest=self.longest, special=special, swapped=self.swapped)
            for r in responses
        ]
        verdicts: dict[int, Verdict] = {}
        answers: dict[int, list[Answer]] = {row: [] for row in range(len(texts))}

        def settle(row: int, verdict: Verdict) -> None:
            verdicts[row] = verdict
            on_verdict(verdict)

        def take(row: int, answer: str) -> None:
            answers[row].append(Answer(text=answer))
            if (verdict := decide(responses[row], judge=self.name, answers=answers[row])) is not None:
                settle(row, verdict)

        for repaired in (False, True):
            todo: dict[int, str] = {}
            for row in (row for row in range(len(texts)) if row not in verdicts):
                text = f"{texts[row]}\n{REPAIR}" if repaired else texts[row]
                if too_long := self._too_long(text):
                    settle(row, unread(responses[row], judge=self.name, reason="too_long", detail=too_long))
                else:
                    todo[row] = text
            self._generate(todo, take)
            self.ledger.add(Usage(repairs=len(todo) if repaired else 0))
        self.ledger.add(Usage(fresh=len(responses)))
        return [verdicts[row] for row in range(len(texts))]

    def _generate(self, texts: dict[int, str], take: Callable[[int, str], None]) -> None:
        from mechsafety.generation.fixed_batches import separate_replies
        from mechsafety.models.chat import tokenize_prompts
        from mechsafety.models.chat_settings import judging
        from mechsafety.models.prefixes import shared_prefix

        if not texts:
            return
        rows = list(texts)
        # The same in every call: what the questions about two short replies begin with.
        known = [
            question(Response(id="", prompt=p, text="?"), salt=_SALT, swapped=self.swapped) for p in "ab"
        ]

        def taken(place: int, reply: Continuation) -> None:
            self.ledger.add(
                Usage(calls=1, prompt_tokens=len(contexts[place]), completion_tokens=len(reply.tokens))
            )
            take(rows[place], reply.text)

        with judging(self.model):
            contexts = tokenize_prompts(self.model, [texts[row] for row in rows])
            separate_replies(
                self.model,
                contexts,
                beginning=shared_prefix(tokenize_prompts(self.model, known)),
                max_new_tokens=self.max_new_tokens,
                take=taken,
                edit=self.edit,
                label=self.name,
            )

    def _too_long(self, text: str) -> dict[str, object] | None:
        from mechsafety.models.chat import tokenize_prompts
        from mechsafety.models.chat_settings import judging
        from mechsafety.models.loading import window

        if (most := window(self.model)) is None:
            return None
        room = most - self.max_new_tokens
        with judging(self.model):
            n_tokens = len(tokenize_prompts(self.model, [text])[0])
        return {"tokens": n_tokens, "room": room} if n_tokens > room else None


def _weights_sha256(body: Any) -> str:
    """SHA-256 over every number in full: an edit written into a few weights must change it."""
    import torch

    hasher = hashlib.sha256()
    for name, tensor in sorted([*body.named_parameters(), *body.named_buffers()]):
        hasher.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1).contiguous().cpu()
        hasher.update(flat.view(torch.uint8).numpy().data)
    return hasher.hexdigest()


JUDGE = TextJudge
