"""Attacks and utility of one model under one edit, in a run folder: what ``mechsafety robustness`` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.expressions import read_expression
from mechsafety.edits.interventions import Edit, digest, require_fits
from mechsafety.experiments.records import record_fed, record_shared_tokens
from mechsafety.experiments.robustness.config import RobustnessConfig
from mechsafety.judges.kinds.fluent import FluentJudge
from mechsafety.models.loading import load_model, load_record
from mechsafety.models.provenance import of_models
from mechsafety.prompts.fed import require_all_fit
from mechsafety.prompts.prompt_set import PromptSet, load_prompts
from mechsafety.prompts.splits import record_repeated
from mechsafety.robustness.attacks import ATTACK_COLUMNS, Attack, attack_table
from mechsafety.robustness.benign import benign_choices, benign_passages
from mechsafety.robustness.suffix import (
    SearchCost,
    Suffixes,
    expected_seconds,
    find_suffixes,
    require_nanogcg,
)
from mechsafety.robustness.utility import UTILITY_COLUMNS, base_distributions, utility
from mechsafety.runs.folder import RunFolder, open_run, pinned_date, record_date

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RobustnessRun:
    """Finished measurements: where they lie, the table of attacks and that of utility."""

    path: Path
    attacks: pd.DataFrame
    utility: pd.DataFrame

    def _repr_html_(self) -> str:
        shown = "".join(t.round(3).to_html(index=False, border=0) for t in (self.attacks, self.utility))
        return f"<b>{escape(str(self.path))}</b>{shown}"


def run_robustness(
    config: RobustnessConfig, out: Path, *, say: Say = lambda _: None, allow_other_versions: bool = False
) -> RobustnessRun:
    """Measure in the folder ``out``, or go on where that was interrupted: each attack is a part of the run.

    The report prompts are attacked; suffixes are searched on harmful ``fit`` prompts and stay in the run folder.
    Raises :class:`MechsafetyError` for a wrong edit, prompt sets without what is needed, the attack ``suffix``
    without its package, and whatever loading raises.
    """
    asked_edit = read_expression(config.edit) if config.edit is not None else None
    if "suffix" in config.attacks:
        require_nanogcg()
    every = load_prompts(config.prompts)
    prompts = _harmful(every, config)
    searched = _searched(every, config) if "suffix" in config.attacks else None
    loading = config.loading
    sources = of_models(config.model, **loading)
    day = pinned_date(out, config.date)
    read = [(prompts, config.max_new_tokens), *([(searched, 0)] if searched is not None else [])]
    require_all_fit([config.model], read, template=config.template, date=day)
    say(f"loading {config.model}")
    model = load_model(config.model, **loading, date=day)
    edit = asked_edit.for_model(model) if asked_edit is not None else None
    if edit is not None:
        require_fits(model, edit)
    asked = config.model_dump(mode="json") | {
        "kind": "robustness",
        "prompts_sha256": every.sha256(),
        "edit_sha256": digest(edit) if edit is not None else None,
    }
    system = config.model if edit is None else f"{config.model} under {edit.describe()}"
    with open_run(out, config=asked, sources=sources, allow_other_versions=allow_other_versions) as run:
        record_repeated(run, say, every)
        record = load_record(model)
        record_date(run, day)
        run.record("model", record.as_dict() if record else {})
        record_fed(run, config.model, model, prompts)
        rows = [
            row
            for attack in config.attacks
            for row in _attacked(run, model, prompts, searched, attack, config, edit, system, say)
        ]
        attacks = pd.DataFrame(rows, columns=list(ATTACK_COLUMNS))
        cost = pd.DataFrame([_utility(run, model, config, edit, system, say)])
        cost = cost[["system", *UTILITY_COLUMNS]].astype(dict.fromkeys(UTILITY_COLUMNS, float))
        run.write_table(attacks, "attacks.csv")
        run.write_table(cost, "utility.csv")
        record_shared_tokens(run, config.model, model)
    return RobustnessRun(path=run.path, attacks=attacks, utility=cost)


def _harmful(every: PromptSet, config: RobustnessConfig) -> PromptSet:
    found = every.to_judge.harmful
    if not len(found):
        raise MechsafetyError(
            f"prompt set {config.prompts!r} has no harmful prompts in its split 'report': there is nothing to attack"
        )
    return found if config.limit is None else found.sample(config.limit, seed=config.seed)


def _searched(every: PromptSet, config: RobustnessConfig) -> PromptSet:
    found = every.to_estimate.harmful
    if len(found) < config.suffixes:
        raise MechsafetyError(
            f"prompt set {config.prompts!r} has {len(found)} harmful prompts in its split 'fit', on which suffixes "
            f"are searched, and {config.suffixes} are asked for: lower --suffixes, or leave the attack out"
        )
    return found.sample(config.suffixes, seed=config.seed)


def _attacked(
    run: RunFolder,
    model: TransformerBridge,
    prompts: PromptSet,
    searched: PromptSet | None,
    attack: Attack,
    config: RobustnessConfig,
    edit: Edit | None,
    system: str,
    say: Say,
) -> list[dict[str, Any]]:
    if not run.has_part("attacks", attack):
        suffixes = None
        if attack == "suffix" and searched is not None:
            suffixes = resumable_suffixes(
                run,
                model,
                searched,
                cost=SearchCost(steps=config.suffix_steps, width=config.suffix_width),
                seed=config.seed,
                edit=edit,
                say=say,
            )
        say(f"{attack}: {len(prompts)} prompts")
        found = attack_table(
            model,
            prompts,
            system=system,
            attacks=[attack],
            suffixes=suffixes,
            k=config.samples,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            edit=edit,
            judge=FluentJudge(config.model, model),  # answers are judged when the edit is off again
        )
        run.write_part(found, "attacks", attack)
    return [
        {str(k): v for k, v in row.items()} for row in run.read_part("attacks", attack).to_dict("records")
    ]


def resumable_suffixes(
    run: RunFolder,
    model: TransformerBridge,
    searched: PromptSet,
    *,
    cost: SearchCost,
    seed: int,
    edit: Edit | None = None,
    key: tuple[str, ...] = (),
    say: Say,
) -> Suffixes:
    """A part of the run for each suffix, since each may take minutes; ``key`` keeps several models' apart.

    They stay in the run folder.
    """
    todo = [p for p in searched if not run.has_part("suffixes", *key, p.id, suffix="json")]
    if todo:
        minutes = expected_seconds(model, todo, cost=cost) / 60
        say(
            f"suffix: {len(todo)} searches of {cost.steps} steps with {cost.width} candidates, about "
            f"{minutes:.1f} minutes"
        )
    for prompt in todo:
        found = find_suffixes(model, [prompt], cost=cost, seed=seed, edit=edit)
        run.write_json_part(found.as_dict(), "suffixes", *key, prompt.id)
    parts = [Suffixes.from_dict(run.read_json_part("suffixes", *key, p.id)) for p in searched]
    return Suffixes(
        prompt_ids=tuple(i for part in parts for i in part.prompt_ids),
        texts=tuple(text for part in parts for text in part.texts),
        losses=tuple(row for part in parts for row in part.losses),
    )


def _utility(
    run: RunFolder,
    model: TransformerBridge,
    config: RobustnessConfig,
    edit: Edit | None,
    system: str,
    say: Say,
) -> dict[str, Any]:
    if not run.has_part("utility"):
        say("utility: benign passages and questions")
        passages = benign_passages()
        base = base_distributions(model, passages) if edit is not None else None
        found = utility(
            model, passages=passages, choices=benign_choices(), base=base, edit=edit, seed=config.seed
        )
        run.write_part(pd.DataFrame([found.row()]), "utility")
    return {"system": system} | dict(run.read_part("utility").iloc[0])
