"""Directions of one model: find them, sweep them, select one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import Field

from mechsafety.cli.base import (
    Shown,
    command,
    date_option,
    device_option,
    dtype_option,
    escape_option,
    other_versions_option,
    records,
    say,
    template_option,
    truncate_option,
)
from mechsafety.cli.options import checked, config_options, whole_numbers
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import Method
from mechsafety.experiments.config import ModelConfig, Option

# Named here too, so that --help loads no torch; a test holds them together.
_METHODS = ["mean_difference", "pca", "leace", "probe"]
_DOSES = ["alpha", "directions", "layers"]


class DirectionConfig(ModelConfig):
    """What ``mechsafety direction`` finds."""

    model: Annotated[str, Option(argument=True)]
    prompts: Annotated[str, Option(metavar="SET")] = Field(
        default="default", description="fit and validation prompts"
    )
    direction: Method = Field(default="mean_difference", description="how directions are estimated")


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
    from mechsafety.models.loading import load_model
    from mechsafety.prompts.prompt_set import load_prompts
    from mechsafety.runs.folder import finite
    from mechsafety.sweeps.sweep import sweep

    chosen = load_prompts(config.prompts)
    if chosen.repeated:
        say(f"{chosen.repeated} prompts stand twice in one split under one label: each is counted once")
    loaded = load_model(config.model, **config.loading, date=config.date)
    say("residual streams")
    streams = residual_stream(loaded, chosen.to_estimate)
    found = find_directions(streams, method=config.direction, seed=config.seed)
    if out is not None:
        found.save(out)
    say("layer sweep")
    swept = sweep(loaded, found, chosen.to_choose.sample(32, seed=config.seed))
    try:
        explanation = swept.select().explain()
        selected: Any = finite(vars(swept.select()))
    except MechsafetyError as error:
        explanation, selected = str(error), None
    table = swept.table.round(3).to_string(index=False)
    facts = {
        "scores": records(swept.table),
        "n_layers": swept.n_layers,
        "selected": selected,
        "refusal_tokens": list(swept.refusal_tokens.texts),
        "out": str(out) if out else None,
    }
    return facts, f"{table}\n\n{explanation}" + (f"\ndirections: {out}" if out else "")


@command("sweep", example="mechsafety sweep smollm2-135m+refusals --positions last --out runs/sweep")
@click.argument("model")
@click.option("--prompts", default="default", show_default=True, metavar="SET", help="A set with splits.")
@click.option(
    "--method",
    "methods",
    type=click.Choice(_METHODS),
    multiple=True,
    default=("mean_difference",),
    show_default=True,
    help="May be repeated.",
)
@click.option("--centring", type=click.Choice(["pooled", "per_class"]), default="pooled", show_default=True)
@click.option(
    "--positions",
    default="post",
    show_default=True,
    metavar="post|last|-2,-1",
    help="Every template token after the instruction, the last one, or named ones.",
)
@click.option("--layers", default=None, metavar="A-B|A,B", help="Layers to score [default: all].")
@click.option("--fit", type=int, default=128, show_default=True, help="Fit prompts of each label.")
@click.option("--limit", type=int, default=32, show_default=True, help="Validation prompts of each label.")
@click.option(
    "--refusal-tokens",
    default=None,
    metavar="A,B",
    help="First tokens of refusals [default: from the model's own refusals].",
)
@click.option("--rule", default="auto", show_default=True, metavar="NAME", help="auto or arditi.")
@click.option(
    "--doses",
    type=click.Choice([*_DOSES, "all"]),
    multiple=True,
    help="Dose curves of the selected direction; may be repeated.",
)
@click.option("--dose-prompts", type=int, default=20, show_default=True, help="Report prompts of each label.")
@click.option("--max-new-tokens", type=int, default=32, show_default=True, help="Length of their answers.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Run folder [default: runs/sweep]."
)
@click.option("--seed", type=int, default=0, show_default=True)
@template_option
@date_option
@truncate_option
@escape_option
@dtype_option
@device_option
@other_versions_option
def _sweep(
    model: str,
    methods: tuple[str, ...],
    positions: str,
    layers: str | None,
    limit: int,
    refusal_tokens: str | None,
    doses: tuple[str, ...],
    out: Path | None,
    allow_other_versions: bool,
    **given: Any,
) -> Shown:
    """Score every layer and template position of MODEL, select a direction, and draw what lies where.

    An interrupted sweep goes on when the same command runs again.
    """
    fields = {k: v for k, v in given.items() if v is not None} | {
        "model": model,
        "methods": tuple(dict.fromkeys(methods)),
        "positions": positions if positions in ("post", "last") else whole_numbers(positions, "--positions"),
        "layers": None if layers is None else whole_numbers(layers, "--layers"),
        "validation": limit,
        "refusal_tokens": None if refusal_tokens is None else tuple(refusal_tokens.split(",")),
        "doses": tuple(_DOSES) if "all" in doses else tuple(dict.fromkeys(doses)),
    }
    from mechsafety.experiments.published import write_run_page
    from mechsafety.experiments.sweep.config import SweepConfig
    from mechsafety.experiments.sweep.work import run_sweep
    from mechsafety.runs.folder import read_run

    result = run_sweep(
        checked(SweepConfig, fields),
        out or Path("runs") / "sweep",
        say=say,
        allow_other_versions=allow_other_versions,
    )
    report = write_run_page(read_run(result.path))
    nothing = result.stability[result.stability["layer"].isna()]["share"].sum()
    steady = result.stability.dropna(subset=["layer"]).head(3)
    shares = ", ".join(
        f"layer {layer} at {position} in {share:.0%}"
        for position, layer, share in steady.itertuples(index=False, name=None)
    )
    facts = {
        "run": str(result.path),
        "report": str(report),
        "selected": result.selection,
        "stability": records(result.stability),
        "scores": records(result.table),
    }
    best = result.table.sort_values("bypass").head(12).round(3).to_string(index=False)
    text = (
        f"lowest bypass:\n{best}\n\n{result.selection['explanation']}\n"
        f"drawn again: {shares or 'no candidate'}; none passed in {nothing:.0%}\n\nreport: {report}\n"
        f"edit:   {result.path / 'edit.safetensors'}\n"
        f"next:   mechsafety generate {model} --edit {result.path / 'edit.safetensors'} --limit 10"
    )
    return facts, text


@command("select", example="mechsafety select direction_evaluations.json --layers 32 --rule arditi")
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "--layers", "n_layers", type=int, required=True, metavar="N", help="The model's number of layers."
)
@click.option("--rule", default="auto", show_default=True, metavar="NAME", help="auto or arditi.")
@click.option("--system", default=None, metavar="NAME", help="One system of a table that holds several.")
@click.option("--method", default=None, metavar="NAME", help="One method of a table that holds several.")
def _select(table: Path, n_layers: int, rule: str, system: str | None, method: str | None) -> Shown:
    """Select a candidate from a recorded TABLE of scores, and say what each filter dropped.

    CSV, JSON, JSONL or Parquet with columns position, layer, bypass, induce, kl, or the reference project's
    keys position, layer, refusal_score, steering_score, kl_div_score.
    """
    from mechsafety.runs.folder import finite
    from mechsafety.sweeps.score_tables import read_score_table
    from mechsafety.sweeps.selection import select

    where = {k: v for k, v in (("system", system), ("method", method)) if v is not None}
    chosen = select(read_score_table(table, n_layers=n_layers, where=where), n_layers=n_layers, rule=rule)
    return finite(vars(chosen)) | {"explanation": chosen.explain()}, chosen.explain()
