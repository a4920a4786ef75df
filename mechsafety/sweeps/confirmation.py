"""What a model writes under the first candidates of a sweep: scores of the next token are a stand-in for that.

The shortlist of a table of scores -> answers to harmful validation prompts under each candidate's edit, read by a judge
-> the likelihood, under the same edit, of the unedited model's own answers to harmless validation prompts -> columns of
the table, by which :func:`mechsafety.sweeps.selection.select` decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mechsafety.core.progress import bar
from mechsafety.directions.direction import Direction, Directions
from mechsafety.edits.interventions import Ablate, Edit, digest
from mechsafety.generation.completions import Completion, generate
from mechsafety.judges.outcomes import Tally, answered
from mechsafety.models.loading import current_fingerprint
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.prompts.splits import require_classes
from mechsafety.runs.folder import Journal
from mechsafety.sweeps.edit_costs import EditCosts
from mechsafety.sweeps.ranking import SHORTLISTED, Place, shortlist

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

JUDGE = "rules"
ANSWER_COLUMNS = ("n_answers", "refused", "complied", "degenerate", "nll")
KeepAnswers = Callable[[Place, Sequence[Completion]], None]
"""Receives the answers under one candidate as soon as they are there."""


def confirm(
    model: TransformerBridge,
    table: pd.DataFrame,
    directions: Directions,
    prompts: PromptSet,
    *,
    edit: Callable[[Direction], Edit] = Ablate,
    candidates: int = SHORTLISTED,
    judge: str = JUDGE,
    max_new_tokens: int = 64,
    seed: int = 0,
    journal: Journal | None = None,
    keep: KeepAnswers | None = None,
) -> pd.DataFrame:
    """The table of scores with what the model writes under the first ``candidates`` of its ranking.

    ``prompts`` are validation prompts. Columns, NaN for the other candidates: ``n_answers`` to harmful prompts, the
    shares of them that ``judge`` calls ``refused``, ``complied`` (coherent compliance) and ``degenerate``, and ``nll``:
    the mean negative log-likelihood, in nats a token, of the unedited model's own answers to the harmless prompts.
    ``edit`` makes the edit of a direction. ``journal`` keeps finished candidates; ``keep`` receives their answers.

    Raises :class:`MechsafetyError` for one class only or no prompts.

    Example: ``confirm(model, swept.table, directions, prompts.validation.sample(32, seed=0))``.
    """
    require_classes(prompts, "confirm candidates")
    places = shortlist(table, n_layers=model.cfg.n_layers, size=candidates)
    edits = {place: edit(directions.at(position=place[0], layer=place[1])) for place in places}
    if journal is not None:
        settings = {"judge": judge, "max_new_tokens": max_new_tokens, "seed": seed}
        journal.bind(model=current_fingerprint(model), prompts=prompts.sha256(), **settings)
    found: dict[Place, dict[str, float]] = {}
    costs: EditCosts | None = None
    with bar("confirmation by answers", total=len(places), unit="candidate") as progress:
        for place in places:
            key = digest(edits[place])
            stored = journal.get(key) if journal is not None else None
            if stored is None:
                if costs is None:
                    own = _own_answers(model, prompts, max_new_tokens, seed, journal)
                    costs = EditCosts(model=model, prompts=prompts.harmless, answers=own)
                asking: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed, "judge": judge}
                kept = None if keep is None else partial(keep, place)
                _, labels = answered(model, prompts.harmful, edit=edits[place], keep=kept, **asking)
                stored = _shares(Tally.of(labels)) | {"nll": costs.nll(edits[place])}
                if journal is not None:
                    journal.put(key, {name: None if v != v else v for name, v in stored.items()})
            found[place] = {name: math.nan if v is None else float(v) for name, v in stored.items()}
            progress.update(1)
    rows = [found.get(place, {}) for place in zip(table["position"], table["layer"], strict=True)]
    return table.assign(**{name: [row.get(name, math.nan) for row in rows] for name in ANSWER_COLUMNS})


def confirmed_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Of a table of scores the candidates whose answers were read, with what they were chosen by; often none."""
    if "complied" not in table.columns:
        return table.iloc[:0]
    groups = [name for name in ("system", "method") if name in table.columns]
    columns = [*groups, "position", "layer", "removed", "caused", "kl", *ANSWER_COLUMNS]
    return table.loc[table["complied"].notna(), columns].reset_index(drop=True)


def _shares(tally: Tally) -> dict[str, float]:
    shares = (tally.refused.rate, tally.complied.rate, tally.degenerated.rate)
    return {
        "n_answers": float(tally.n),
        **dict(zip(("refused", "complied", "degenerate"), shares, strict=True)),
    }


def _own_answers(
    model: TransformerBridge, prompts: PromptSet, max_new_tokens: int, seed: int, journal: Journal | None
) -> list[list[int]]:
    stored = journal.get("own answers") if journal is not None else None
    if stored is None:
        label = "own answers to harmless prompts"
        done: list[Completion] = list(
            generate(model, prompts.harmless, max_new_tokens=max_new_tokens, seed=seed, label=label)
        )
        stored = [list(c.tokens) for c in done]
        if journal is not None:
            journal.put("own answers", stored)
    return stored
