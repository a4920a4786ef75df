"""Directions of one model: find them, sweep them, select one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import Field

from mechsafety.cli.base import (
    Shown,
    command,
    records,
    run_and_show,
    run_options,
    say,
)
from mechsafety.cli.options import config_options
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import THOUGHT_END, FitOn, Method
from mechsafety.experiments.config import LoadingConfig, Option
from mechsafety.experiments.sweep.config import SweepConfig, SweptPositions


class DirectionConfig(LoadingConfig):
    """What ``mechsafety direction`` finds."""

    model: Annotated[str, Option(argument=True)]
    prompts: Annotated[str, Option(metavar="SET")] = Field(
        default="default", description="fit and validation prompts"
    )
    positions: SweptPositions = Field(
        default="last",
        description="the last template token after the instruction, every one, the end of the model's own thought, or "
        "named ones",
    )
    direction: Method = Field(default="mean_difference", description="how directions are estimated")
    fit_on: FitOn = Field(
        default="behaviour",
        description="fit prompts that the model treats as their label says (behaviour), or all (labels)",
    )


@command("direction", example="mechsafety direction smollm2-135m+refusals --out directions.safetensors")
@config_options(DirectionConfig)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Where to save them (safetensors)."
)
def _direction(config: DirectionConfig, out: Path | None) -> Shown:
    """Find refusal directions of MODEL at every layer, and select one."""
    if out is not None and not out.parent.is_dir():
        raise MechsafetyError(f"folder {str(out.parent)!r} does not exist")
    from mechsafety.directions.activations import residual_stream
    from mechsafety.directions.direction import find_directions
    from mechsafety.generation.thought_ends import offsets_of, own_thoughts
    from mechsafety.models.chat import after_thoughts
    from mechsafety.models.chat_settings import chat_text
    from mechsafety.models.loading import load_model
    from mechsafety.prompts.prompt_set import load_prompts
    from mechsafety.prompts.splits import require_splits
    from mechsafety.runs.folder import finite
    from mechsafety.sweeps.behaviour import treated_as_labelled
    from mechsafety.sweeps.measures import refusal_measure
    from mechsafety.sweeps.openings import own_refusals
    from mechsafety.sweeps.sweep import sweep

    chosen = load_prompts(config.prompts)
    if chosen.repeated:
        say(f"{chosen.repeated} prompts stand twice in one split under one label: each is counted once")
    require_splits(chosen, ("estimate", "choose"), name=config.prompts)
    loaded = load_model(config.model, **config.loading, date=config.date)
    validation, fit = chosen.to_choose.sample(32, seed=config.seed), chosen.to_estimate
    thoughts, positions = {}, offsets_of(loaded, config.positions)
    if config.positions == THOUGHT_END:
        thoughts = own_thoughts(loaded, [*fit, *validation])
    say("the model's own refusals, and how they begin")
    refusals = own_refusals(loaded, validation, seed=config.seed)
    with after_thoughts(loaded, thoughts):
        measure = refusal_measure(loaded, validation, refusals=refusals)
        if config.fit_on == "behaviour":
            fit = treated_as_labelled(loaded, fit, measure=measure.taken)
        say(f"residual streams of {len(fit.harmful)} harmful and {len(fit.harmless)} harmless prompts")
        streams = residual_stream(loaded, fit, positions=positions)
        found = find_directions(streams, method=config.direction, seed=config.seed)
        if out is not None:
            found.save(out)
        say("layer sweep")
        swept = sweep(loaded, found, validation, measure=measure)
    try:
        explanation = swept.select().explain()
        selected: Any = finite(asdict(swept.select()))
    except MechsafetyError as error:
        explanation, selected = str(error), None
    table = swept.to_frame().round(3).to_string(index=False)
    facts = {
        "scores": records(swept.to_frame()),
        "n_layers": swept.n_layers,
        "fit_on": config.fit_on,
        "chat": chat_text(loaded),
        "fit_prompts_used": {"harmful": found.n_harmful, "harmless": found.n_harmless},
        "selected": selected,
        "refusal_tokens": list(swept.refusal_tokens.texts),
        "out": str(out) if out else None,
    }
    return facts, f"{table}\n\n{explanation}" + (f"\ndirections: {out}" if out else "")


@command("sweep", example="mechsafety sweep smollm2-135m+refusals --positions last --out runs/sweep")
@config_options(SweepConfig)
@run_options("runs/sweep")
def _sweep(config: SweepConfig, out: Path | None, allow_other_versions: bool) -> Shown:
    """Score every layer and template position of MODEL, select a direction, and draw what lies where.

    An interrupted sweep goes on when the same command runs again.
    """
    from mechsafety.experiments.sweep.experiment import LayerSweep

    return run_and_show(
        LayerSweep(config), out or Path("runs") / "sweep", allow_other_versions=allow_other_versions
    )


@command("select", example="mechsafety select direction_evaluations.json --layers 32 --rule arditi")
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "--layers", "n_layers", type=int, required=True, metavar="N", help="The model's number of layers."
)
@click.option("--rule", default="auto", show_default=True, metavar="NAME", help="auto or arditi.")
@click.option("--harmful", type=float, metavar="X", help="Unedited mean score of harmful prompts, for auto.")
@click.option(
    "--harmless", type=float, metavar="X", help="Unedited mean score of harmless prompts, for auto."
)
@click.option("--system", default=None, metavar="NAME", help="One system of a table that holds several.")
@click.option("--method", default=None, metavar="NAME", help="One method of a table that holds several.")
def _select(
    table: Path,
    n_layers: int,
    rule: str,
    harmful: float | None,
    harmless: float | None,
    system: str | None,
    method: str | None,
) -> Shown:
    """Select a candidate from a recorded TABLE of scores, and list what each filter dropped.

    CSV, JSON, JSONL or Parquet with columns position, layer, bypass, induce, kl, or the reference project's
    keys position, layer, refusal_score, steering_score, kl_div_score. Rule auto needs the unedited model's mean scores
    too: columns harmful and harmless, or the options of these names.
    """
    from mechsafety.runs.folder import finite
    from mechsafety.sweeps.score_tables import read_score_table
    from mechsafety.sweeps.selection import select

    where = {k: v for k, v in (("system", system), ("method", method)) if v is not None}
    unedited = {k: v for k, v in (("harmful", harmful), ("harmless", harmless)) if v is not None}
    scores = read_score_table(table, n_layers=n_layers, where=where).assign(**unedited)
    chosen = select(scores, n_layers=n_layers, rule=rule)
    return finite(asdict(chosen)) | {"explanation": chosen.explain()}, chosen.explain()
