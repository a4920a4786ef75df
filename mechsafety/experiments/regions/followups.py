"""What follows a regions sweep: attacks, links with the refusal direction, fine-tuning with sets frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import Attack
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Direction, find_directions
from mechsafety.edits.interventions import Edit
from mechsafety.experiments.regions.config import State, planned_states
from mechsafety.experiments.regions.contrasts import LOW_RANK
from mechsafety.experiments.regions.work import RegionWork
from mechsafety.generation.answered import Completion
from mechsafety.regions.links import LINK_COLUMNS, LINK_STATES, direction_share, link_effects
from mechsafety.regions.pruning import matched_pruning, random_pruning, set_difference, top_pruning
from mechsafety.regions.removal import Pruning
from mechsafety.regions.score_files import Method
from mechsafety.robustness.attacks import ATTACK_COLUMNS, attack_table
from mechsafety.robustness.finetuning import FinetuneRecipe, benign_examples
from mechsafety.robustness.freezing import freezing_table
from mechsafety.robustness.suffix import SearchCost, Suffixes, resumable_suffixes
from mechsafety.robustness.tradeoff import sweet_spot
from mechsafety.runs.journal import Journal
from mechsafety.sweeps.selection import nearest
from mechsafety.sweeps.sweep import sweep

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_DIRECTION_FIT = 128
_DIRECTION_VALIDATION = 32
_SUFFIX_PROMPTS = 3
CONTROL_SYSTEMS: Mapping[Literal["random", "matched"], str] = {
    "random": "random weights of the same number",
    "matched": "random weights of the same number and size",
}
LOW_RANK_SYSTEMS: Mapping[Literal["random", "matched"], str] = {
    "random": "random ranks of the same number",
    "matched": "random ranks of the same energy",
}
"""What a region's controls are called among the attacked systems: of weights, and of a region of low rank."""
_CHOSEN_ON = " It is chosen on the report prompts that it is measured on, so its own numbers flatter it."


def follow_up(work: RegionWork, tradeoff: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    """The tables of the parts that take the sweep's sweet spot; without a sweep, its first set difference."""
    parts, found = work.config.parts, {}
    if tradeoff is None:
        first = work.config.set_differences[0]
        state = State(removal="set_difference", control="removed", values=first)
    else:
        state = chosen_state(work, tradeoff)
    if "attacks" in parts:
        found["attacks"] = work.part("attacks", lambda: measure_attacks(work, state))
    if "links" in parts:
        direction = cache(lambda: refusal_direction(work))
        found["links"] = work.part("links", lambda: measure_links(work, state, direction()))
        found["link_effects"] = work.part("link_effects", lambda: effects(work, state, direction()))
    if "freezing" in parts:
        found["freezing"] = freezing(work, state)
    return found


def chosen_state(work: RegionWork, tradeoff: pd.DataFrame) -> State:
    """The sweet spot, which is recorded; where no setting qualifies, the one with the most coherent compliance.

    Every setting is measured on report prompts alone, and chosen by that: the record states it.
    """
    rows = tradeoff[tradeoff["removal"] != "heads"]
    spot = sweet_spot(rows)
    row = spot.row or dict(rows[rows["control"] == "removed"].nlargest(1, "complied").iloc[0])
    work.run.record(
        "sweet_spot",
        {
            "explanation": spot.explanation + ("" if spot.row is None else _CHOSEN_ON),
            "removal": str(row["removal"]) if spot.row else None,
            "setting": str(row["setting"]) if spot.row else None,
            "taken": f"{row['removal']} {row['setting']}",
        },
    )
    return next(
        s
        for s in planned_states(work.config)
        if (s.removal, s.setting, s.control) == (row["removal"], row["setting"], "removed")
    )


def measure_attacks(work: RegionWork, state: State) -> pd.DataFrame:
    """Every attack on the model as it is, without the region, and without each of its random controls.

    Suffixes are searched on each.
    """
    config, harmful = work.config, work.evaluated.harmful
    tables = []
    region = f"{state.removal.replace('_', ' ')} {state.setting}"
    controls = LOW_RANK_SYSTEMS if state.removal in LOW_RANK else CONTROL_SYSTEMS
    systems = {"model": State(removal="none", control="model"), region: state}
    systems |= {f"{region}, {name}": replace(state, control=control) for control, name in controls.items()}
    for system, there in systems.items():
        with work.without(there):

            def keep(attack: Attack, answers: Sequence[Completion], there: State = there) -> None:
                work.answering(f"attack {attack}", there)
                work.keep(answers)

            suffixes = _suffixes(work, system) if "suffix" in config.attacks else None
            tables.append(
                attack_table(
                    work.model,
                    harmful,
                    system=system,
                    attacks=config.attacks,
                    suffixes=suffixes,
                    max_new_tokens=config.max_new_tokens,
                    seed=config.seed,
                    judge=work.judge,
                    keep=keep,
                )
            )
    return pd.concat(tables, ignore_index=True)[list(ATTACK_COLUMNS)]


def _suffixes(work: RegionWork, system: str) -> Suffixes:
    """Searched on fit prompts, on the model in the state that it is in."""
    prompts = work.prompts.to_estimate.sample(_SUFFIX_PROMPTS, seed=work.config.seed).harmful
    return resumable_suffixes(
        work.run,
        work.model,
        prompts,
        cost=SearchCost(),
        seed=work.config.seed,
        key=(system,),
        say=work.say,
    )


def refusal_direction(work: RegionWork) -> Direction:
    """The mean difference at the layer that the default rule selects on validation prompts."""
    config = work.config
    fit = work.prompts.to_estimate.sample(_DIRECTION_FIT, seed=config.seed)
    found = find_directions(residual_stream(work.model, fit), method="mean_difference", seed=config.seed)
    validation = work.prompts.to_choose.sample(_DIRECTION_VALIDATION, seed=config.seed)
    swept = sweep(work.model, found, validation)
    try:
        return swept.best()
    except MechsafetyError as error:
        work.say(f"{error}; the nearest candidate is taken")
        chosen = nearest(swept.to_frame(), n_layers=swept.n_layers)
        return swept.directions.at(layer=chosen.layer, position=chosen.position)


def measure_links(work: RegionWork, state: State, direction: Direction) -> pd.DataFrame:
    """What the removed weights wrote along the refusal direction: by SNIP, by Wanda, and by ActSVD."""
    safety, _ = work.attributions(0)
    config = work.config
    tables = []
    for method in ("snip", "wanda"):
        removal = _set_difference(work, state, method)
        tables.append(direction_share(removal, work.maps, safety, direction, method=method, seed=config.seed))
    if config.projections:
        projection = State(removal="orthogonal_projection", control="removed", values=config.projections[0])
        tables.append(
            direction_share(
                work.removal(projection), work.maps, safety, direction, method="actsvd", seed=config.seed
            )
        )
    return pd.concat(tables, ignore_index=True)[list(LINK_COLUMNS)]


def _values(work: RegionWork, state: State) -> tuple[int | float, ...]:
    """p and q of ``state``, or of the first set difference where it is another removal."""
    return state.values if state.removal == "set_difference" else work.config.set_differences[0]


def _set_difference(work: RegionWork, state: State, method: Method) -> Pruning:
    p, q = _values(work, state)
    return set_difference(work.maps, *work.attributions(0), method=method, p=p, q=q, group=work.config.group)


def effects(work: RegionWork, state: State, direction: Direction) -> pd.DataFrame:
    """Removal and ablation, each alone and one after the other."""
    names = iter(LINK_STATES)

    def judged(model: TransformerBridge, edit: Edit | None) -> dict[str, Any]:
        work.answering("links", state, control=next(names))
        return work.judged(model, edit)

    return link_effects(
        work.model,
        work.removal(state),
        direction,
        fit=work.prompts.to_estimate.sample(_DIRECTION_FIT, seed=work.config.seed),
        held_out=work.evaluated,
        measure=judged,
        seed=work.config.seed,
    )


def freezing(work: RegionWork, state: State) -> pd.DataFrame:
    """Benign fine-tuning with the safety set frozen, rewound, and neither; each set beside random ones of its number.

    Of these one is of the same number of weights, one of as large weights too.
    """
    config = work.config
    safety, _ = work.attributions(0)
    region = _set_difference(work, state, config.method)
    p, q = _values(work, state)
    sets = {
        f"set difference p={p:g} q={q:g}": region,
        "random of that size": random_pruning(region, seed=config.seed),
        "matched to that": matched_pruning(region, work.maps, seed=config.seed),
    }
    for share in config.frozen:
        top = top_pruning(work.maps, safety, method=config.method, q=share, group=config.group)
        sets[f"top {share:g} %"] = top
        sets[f"random {share:g} %"] = random_pruning(top, seed=config.seed)
        sets[f"matched {share:g} %"] = matched_pruning(top, work.maps, seed=config.seed)

    def starting(row: Mapping[str, Any]) -> None:
        setting = f"{row['frozen']} {row['mode']} n={row['n_examples']}"
        work.answering("freezing", state, setting=setting, control="fine-tuned", draw=row["seed"] or 0)

    return freezing_table(
        work.model,
        benign_examples(),
        sets=sets,
        measure=work.measure,
        seeds=tuple(config.seed + draw for draw in range(config.draws)),
        recipe=FinetuneRecipe(),
        n_examples=config.finetuning,
        journal=Journal(work.run.path / "parts" / "freezing.jsonl"),
        starting=starting,
    )
