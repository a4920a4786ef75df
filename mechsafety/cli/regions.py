"""Which weights a model's safety behaviour needs, and what removing them does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mechsafety.cli.base import (
    Shown,
    checked,
    command,
    date_option,
    device_option,
    dtype_option,
    other_versions_option,
    records,
    say,
    template_option,
)
from mechsafety.core.errors import MechsafetyError

# Named here too, so that --help loads no torch; a test holds them together.
_PARTS = ["structure", "sweep", "attacks", "links", "heads", "freezing"]
_ATTACKS = ["vanilla", "decoding", "suffix"]
_PLANNED_PROMPT = 208
"""Tokens of a long prompt, template and all; the packaged ones have up to 80."""
_COLUMNS = [
    *("removal", "setting", "control", "draw", "share", "refused", "refused_low", "refused_high", "complied"),
    *("degenerate", "harmless_refused", "accuracy", "perplexity", "kl"),
]


@command("regions", example="mechsafety regions smollm2-135m+refusals --out runs/regions")
@click.argument("model")
@click.option("--prompts", default="default", show_default=True, metavar="SET", help="Fit to report prompts.")
@click.option(
    "--part",
    "parts",
    type=click.Choice(_PARTS),
    multiple=True,
    help="What to do; may be repeated [default: structure, sweep, links, heads].",
)
@click.option(
    "--examples", type=int, default=None, metavar="N", help="Safety and utility examples, N of each."
)
@click.option(
    "--response", type=click.Choice(["full", "short"]), default=None, help="Whole refusals, or one sentence."
)
@click.option(
    "--method", type=click.Choice(["snip", "wanda"]), default=None, help="Scores that the sweep ranks by."
)
@click.option(
    "--loss", type=click.Choice(["mean", "sum"]), default=None, help="Per answer token, or per answer."
)
@click.option(
    "--positions",
    type=click.Choice(["paper", "predictive"]),
    default=None,
    help="Tokens that the Grams are of.",
)
@click.option(
    "--group", type=click.Choice(["row", "matrix"]), default=None, help="What weights are ranked in."
)
@click.option(
    "--set-difference",
    "set_differences",
    multiple=True,
    metavar="P,Q",
    help="Top Q percent by safety without top P by utility; may be repeated.",
)
@click.option(
    "--projection",
    "projections",
    multiple=True,
    metavar="RU,RS",
    help="Ranks of the orthogonal projection, counts or fractions; may be repeated.",
)
@click.option("--top-safety", multiple=True, type=float, metavar="Q", help="Top Q percent by safety alone.")
@click.option("--prune", "pruned", multiple=True, type=float, metavar="P", help="Lowest P percent by safety.")
@click.option("--heads", type=int, default=None, metavar="N", help="How many of the best heads to prune.")
@click.option("--draws", type=int, default=None, metavar="N", help="Calibration draws.")
@click.option("--controls", type=int, default=None, metavar="N", help="Random controls of every removal.")
@click.option("--attack", "attacks", type=click.Choice(_ATTACKS), multiple=True, help="May be repeated.")
@click.option("--finetuning", multiple=True, type=int, metavar="N", help="Benign examples to fine-tune on.")
@click.option("--limit", type=int, default=None, metavar="N", help="At most N report prompts of each label.")
@click.option("--max-new-tokens", type=int, default=None)
@click.option("--batch-size", type=int, default=None, help="Examples in a batch of the attribution.")
@click.option("--seed", type=int, default=None)
@click.option(
    "--study", type=click.Path(path_type=Path), default=None, help="Put it into this study's report."
)
@click.option("--dry-run", is_flag=True, help="Say how much memory it needs, and load nothing.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Run folder [default: runs/NAME-regions]."
)
@template_option
@date_option
@dtype_option
@device_option
@other_versions_option
def _regions(
    model: str,
    study: Path | None,
    dry_run: bool,
    out: Path | None,
    allow_other_versions: bool,
    **given: Any,
) -> Shown:
    """Score the weights that MODEL's refusals need, remove them, and measure what is left.

    Safety and utility are each scored in one pass over the model's own answers. Every removal is measured beside a
    random one that takes as many weights of every matrix. An interrupted run goes on when the same command runs again.
    """
    from mechsafety.experiments.regions.config import RegionsConfig

    fields = {name: value for name, value in given.items() if value not in (None, ())}
    for name in ("set_differences", "projections"):
        if name in fields:
            fields[name] = tuple(_pair(text, name) for text in fields[name])
    config = checked(RegionsConfig, {**fields, "model": model})
    if dry_run:
        return _plan(config)
    return _run(config, _folder(config, study, out), study, allow_other_versions=allow_other_versions)


def _pair(text: str, name: str) -> tuple[float | int, float | int]:
    parts = text.split(",")
    try:
        first, second = (float(part) for part in parts)
    except ValueError:
        option = "--set-difference" if name == "set_differences" else "--projection"
        raise MechsafetyError(
            f"{option} {text!r}: two numbers with a comma between them, such as 1,1"
        ) from None
    if name == "set_differences":
        return first, second
    return tuple(  # type: ignore[return-value]
        int(value) if value >= 1 and value == int(value) else value for value in (first, second)
    )


def _folder(config: Any, study: Path | None, out: Path | None) -> Path:
    from mechsafety.plots.style import system_names
    from mechsafety.runs.folder import read_run

    if study is not None:
        if out is not None:
            raise MechsafetyError("--study puts the run into the study's folder: leave out --out")
        systems = read_run(study).manifest["config"].get("systems", [])
        name = system_names([*systems, config.model])[config.model].replace("/", "-")
        return study / "regions" / name
    name = system_names([config.model])[config.model].replace("/", "-")
    return out or Path("runs") / f"{name}-regions"


def _plan(config: Any) -> Shown:
    from mechsafety.models.hardware import free_bytes, resolve_device
    from mechsafety.regions.memory_plan import memory_plan

    plan = memory_plan(
        config.model,
        dtype=config.dtype,
        device=config.device,
        batch_size=config.batch_size,
        tokens=_PLANNED_PROMPT + config.answer_tokens,
    )
    free = free_bytes(resolve_device(config.device))
    files = 2 * config.draws * (plan.scores + plan.grams)
    text = f"{plan.describe(free=free)}\n  files of scores in the run folder  {files / 1e9:,.2f} GB"
    return {**asdict(plan), "total": plan.total, "free": free, "files": files}, text


def _run(config: Any, folder: Path, study: Path | None, *, allow_other_versions: bool) -> Shown:
    from mechsafety.experiments.published import write_run_page
    from mechsafety.experiments.regions.experiment import run_regions, sweet_spot
    from mechsafety.runs.folder import read_run

    result = run_regions(config, folder, say=say, allow_other_versions=allow_other_versions)
    say("figures and page")
    report = result.publish()
    if study is not None:
        write_run_page(read_run(study))
    sentences = result.findings()
    facts = {
        "run": str(result.path),
        "report": str(report),
        "sweet_spot": sweet_spot(result.run),
        "findings": sentences,
        "tables": {name: records(table) for name, table in result.tables.items()},
    }
    lines = []
    if "tradeoff" in result.tables:
        shown = result.tables["tradeoff"][_COLUMNS]
        lines = [shown.to_string(index=False, na_rep="-", float_format="%.3g"), ""]
    return facts, "\n".join([*lines, *sentences, "", f"report: {report}"])
