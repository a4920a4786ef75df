"""Answers that were finished before the work was interrupted: kept in a folder, or handed over with the error."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechsafety.core.arguments import as_path
from mechsafety.edits.interventions import Edit, digest
from mechsafety.generation.answered import Completion, Completions
from mechsafety.models.chat_settings import chat_bound
from mechsafety.models.loading import current_fingerprint
from mechsafety.prompts.messages import Turns
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.runs.journal import Journal

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class GenerationInterrupted(KeyboardInterrupt):
    """Ctrl-C while answers were generated; ``completions`` are those that were finished."""

    def __init__(self, completions: Completions, total: int, out: str | Path | None) -> None:
        then = (
            f"the same call goes on from {str(out)!r}"
            if out is not None
            else "error.completions holds them; with out=FOLDER the same call would go on"
        )
        super().__init__(f"interrupted: {len(completions)} of {total} answers are finished; {then}")
        self.completions = completions


@contextmanager
def interruptible(done: dict[int, Completion], total: int, out: str | Path | None) -> Iterator[None]:
    """Ctrl-C in the block becomes :class:`GenerationInterrupted`, with what is ``done`` by then."""
    try:
        yield
    except KeyboardInterrupt:
        finished = Completions(tuple(done[row] for row in sorted(done)))
        raise GenerationInterrupted(finished, total, out) from None


class KeptBatches:
    """Finished batches of one call in a folder; what they were made from is compared when it is opened again."""

    def __init__(
        self,
        folder: str | Path,
        model: TransformerBridge,
        prompts: Sequence[Prompt],
        sequences: Sequence[Sequence[int]],
        *,
        edit: Edit | None,
        **settings: object,
    ) -> None:
        self._prompts = prompts
        self._journal = Journal(as_path(folder) / "completions.jsonl")
        fed = hashlib.sha256(
            repr([(p.id, list(s)) for p, s in zip(prompts, sequences, strict=True)]).encode()
        )
        self._journal.bind(
            model=current_fingerprint(model),
            **chat_bound(model),
            prompts=fed.hexdigest(),
            edit="none" if edit is None else digest(edit),
            **settings,
        )

    def get(self, rows: Sequence[int]) -> list[Completion] | None:
        """The answers to the prompts in ``rows``, where all of them are there."""
        found = [self._journal.get(f"answer {self._prompts[row].id}") for row in rows]
        if any(one is None for one in found):
            return None
        return [
            Completion(**one | {"tokens": tuple(one["tokens"]), "messages": _turns(one)}) for one in found
        ]

    def put(self, rows: Sequence[int], answers: Sequence[Completion]) -> None:
        for row, answer in zip(rows, answers, strict=True):
            self._journal.put(f"answer {self._prompts[row].id}", asdict(answer))


def _turns(stored: dict[str, Any]) -> Turns:
    return tuple((role, content) for role, content in stored["messages"])
