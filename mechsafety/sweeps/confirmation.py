"""What a model writes under the first candidates of a sweep: scores of the next token are a stand-in for that.

The shortlist of a table of scores -> answers to harmful validation prompts under each candidate's edit, read by a judge
-> the likelihood, under the same edit, of the unedited model's own answers to harmless validation prompts -> columns of
the table, by which :func:`mechsafety.sweeps.selection.select` decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mechsafety.core.progress import bar
from mechsafety.directions.direction import Direction, Directions
from mechsafety.directions.other_weights import require_same_model
from mechsafety.edits.interventions import Ablate, Edit, digest
from mechsafety.generation.answered import Completion, Written
from mechsafety.generation.completions import DEFAULT_BATCH, generate
from mechsafety.generation.side_by_side import generate_under_each
from mechsafety.judges.accepted import JudgeLike, as_judge
from mechsafety.judges.outcomes import Tally, labels_of
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat_settings import chat_bound
from mechsafety.models.loading import current_fingerprint
from mechsafety.prompts.accepted import PromptsLike, as_prompt_set
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.prompts.splits import require_classes
from mechsafety.runs.journal import Journal
from mechsafety.sweeps.edit_costs import EditCosts
from mechsafety.sweeps.ranking import SHORTLISTED, Place, shortlist

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

JUDGE = "rules"
_OWN_TOKENS = 32
"""The longest own answer whose likelihood is measured: a thousand tokens of 32 prompts tell candidates apart."""
ANSWER_COLUMNS = ("n_answers", "refused", "complied", "degenerate", "nll")
KeepAnswers = Callable[[Place, Sequence[Completion]], None]
"""Receives the answers under one candidate as soon as they are there."""


def confirm(
    model: ModelLike,
    table: pd.DataFrame,
    directions: Directions,
    prompts: PromptsLike,
    *,
    edit: Callable[[Direction], Edit] = Ablate,
    candidates: int = SHORTLISTED,
    judge: JudgeLike = JUDGE,
    max_new_tokens: int = 64,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH,
    journal: Journal | None = None,
    keep: KeepAnswers | None = None,
    allow_other_weights: bool = False,
) -> pd.DataFrame:
    """The table of scores with what the model writes under the first ``candidates`` of its ranking.

    ``prompts`` are validation prompts. Columns, NaN for the other candidates: ``n_answers`` to harmful prompts, the
    shares of them that ``judge`` calls ``refused``, ``complied`` (coherent compliance) and ``degenerate``, and ``nll``:
    the mean negative log-likelihood, in nats a token, of the unedited model's own answers to the harmless prompts.
    ``edit`` makes the edit of a direction; all candidates' answers share batches of ``batch_size``. ``journal`` keeps
    finished batches and candidates; ``keep`` receives a candidate's answers.

    Raises :class:`MechsafetyError` for one class only, no prompts, and directions of a model with other weights, unless
    ``allow_other_weights``.

    Example: ``confirm(model, swept.to_frame(), directions, prompts.validation.sample(32, seed=0))``.
    """
    model = as_model(model)
    prompts = as_prompt_set(prompts)
    require_same_model(model, directions, allow_other_weights=allow_other_weights)
    require_classes(prompts, "confirm candidates")
    judge = as_judge(judge)
    places = shortlist(table, n_layers=model.cfg.n_layers, size=candidates)
    edits = {place: edit(directions.at(position=place[0], layer=place[1])) for place in places}
    if journal is not None:
        settings = {"judge": judge.name, "max_new_tokens": max_new_tokens, "seed": seed}
        journal.bind(
            model=current_fingerprint(model), prompts=prompts.sha256(), **chat_bound(model), **settings
        )
    found: dict[Place, dict[str, Any]] = {}
    if journal is not None:
        stored = {place: journal.get(digest(edits[place])) for place in places}
        found = {place: shares for place, shares in stored.items() if shares is not None}
    if missing := [place for place in places if place not in found]:
        asking: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed}
        own = _own_answers(model, prompts, min(max_new_tokens, _OWN_TOKENS), seed, journal)
        costs = EditCosts(model=model, prompts=prompts.harmless, answers=own)
        answers = _answers(
            model,
            prompts.harmful,
            [edits[place] for place in missing],
            journal,
            **asking,
            batch_size=batch_size,
        )
        with bar("likelihood of own answers", total=len(missing), unit="candidate") as progress:
            for place, written in zip(missing, answers, strict=True):
                if keep is not None:
                    keep(place, written)
                shares = _shares(Tally.of(labels_of(written, judge))) | {"nll": costs.nll(edits[place])}
                found[place] = {name: None if v != v else v for name, v in shares.items()}
                if journal is not None:
                    journal.put(digest(edits[place]), found[place])
                progress.update(1)
    rows = [found.get(place, {}) for place in zip(table["position"], table["layer"], strict=True)]
    columns = {name: [_number(row.get(name)) for row in rows] for name in ANSWER_COLUMNS}
    return table.assign(**columns)


def confirmed_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Of a table of scores the candidates whose answers were read, with what they were chosen by; often none."""
    if "complied" not in table.columns:
        return table.iloc[:0]
    groups = [name for name in ("system", "method") if name in table.columns]
    columns = [*groups, "position", "layer", "removed", "caused", "kl", *ANSWER_COLUMNS]
    return table.loc[table["complied"].notna(), columns].reset_index(drop=True)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _answers(
    model: TransformerBridge,
    prompts: PromptSet,
    edits: Sequence[Edit],
    journal: Journal | None,
    **asking: Any,
) -> list[list[Completion]]:
    """Answers to ``prompts`` under each of ``edits``; those of finished batches are in the journal."""
    names = [digest(edit) for edit in edits]
    stored = {
        (name, p.id): (journal.get(f"{name} {p.id}") if journal is not None else None)
        for name in names
        for p in prompts
    }
    done = {
        key: Completion(
            **answer | {"tokens": tuple(answer["tokens"]), "messages": tuple(map(tuple, answer["messages"]))}
        )
        for key, answer in stored.items()
        if answer is not None
    }

    def put(groups: list[list[Completion]]) -> None:
        for name, group in zip(names, groups, strict=True):
            for answer in group:
                done[name, answer.id] = answer
                if journal is not None:
                    journal.put(f"{name} {answer.id}", asdict(answer))

    left = [p for p in prompts if any((name, p.id) not in done for name in names)]
    if left:
        generate_under_each(model, left, edits, on_batch=put, label="answers under candidates", **asking)
    return [[done[name, p.id] for p in prompts] for name in names]


def _shares(tally: Tally) -> dict[str, float]:
    shares = (tally.refused.rate, tally.complied.rate, tally.degenerated.rate)
    return {
        "n_answers": float(tally.n),
        **dict(zip(("refused", "complied", "degenerate"), shares, strict=True)),
    }


_OWN = "own answers and thoughts"


def _own_answers(
    model: TransformerBridge, prompts: PromptSet, max_new_tokens: int, seed: int, journal: Journal | None
) -> list[Written]:
    stored = journal.get(_OWN) if journal is not None else None
    if stored is None:
        label = "own answers to harmless prompts"
        done: list[Completion] = list(
            generate(model, prompts.harmless, max_new_tokens=max_new_tokens, seed=seed, label=label)
        )
        stored = [c.written for c in done]
        if journal is not None:
            journal.put(_OWN, stored)
    return [(tokens, n_thought) for tokens, n_thought in stored]
