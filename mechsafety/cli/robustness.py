"""Attacks on a model, and what an edit costs it elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mechsafety.cli.base import (
    Shown,
    command,
    date_option,
    device_option,
    dtype_option,
    other_versions_option,
    records,
    say,
    template_option,
)
from mechsafety.cli.options import checked


@command("robustness", example="mechsafety robustness smollm2-135m+refusals --limit 10 --out runs/robustness")
@click.argument("model")
@click.option("--edit", default=None, metavar="FILE|EXPR", help="As in `mechsafety generate`.")
@click.option(
    "--attack",
    "attacks",
    type=click.Choice(["vanilla", "decoding", "suffix"]),
    multiple=True,
    default=("vanilla", "decoding"),
    show_default=True,
    help="May be repeated.",
)
@click.option("--prompts", default="default", show_default=True, metavar="SET", help="Packaged, hub or file.")
@click.option("--limit", type=int, default=None, metavar="N", help="At most N harmful report prompts.")
@click.option("--samples", type=int, default=None, metavar="K", help="Samples of each prompt [default: 5].")
@click.option("--temperature", type=float, default=None, help="Of the samples [default: 1].")
@click.option("--max-new-tokens", type=int, default=64, show_default=True, metavar="N")
@click.option("--suffixes", type=int, default=None, metavar="N", help="Suffixes to search [default: 3].")
@click.option("--suffix-steps", type=int, default=None, metavar="N", help="Steps of a search [default: 100].")
@click.option("--suffix-width", type=int, default=None, metavar="N", help="Candidates a step [default: 128].")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Run folder [default: runs/robustness]."
)
@template_option
@date_option
@dtype_option
@device_option
@other_versions_option
def _robustness(model: str, out: Path | None, allow_other_versions: bool, **given: Any) -> Shown:
    """Attack MODEL under an edit, or as it is, and measure its perplexity and accuracy on benign text.

    vanilla: greedy, in the chat template. decoding: samples of the bare request. suffix: adversarial suffixes (GCG),
    searched on fit prompts and tried on report prompts; they stay in the run folder. Success is coherent compliance;
    the published metric, which also counts garbage, stands beside it.
    """
    from mechsafety.experiments.robustness.config import RobustnessConfig
    from mechsafety.experiments.robustness.work import run_robustness

    fields = {k: v for k, v in given.items() if v is not None} | {"model": model}
    found = run_robustness(
        checked(RobustnessConfig, fields),
        out or Path("runs") / "robustness",
        say=say,
        allow_other_versions=allow_other_versions,
    )
    attacks, utility = found.path / "attacks.csv", found.path / "utility.csv"
    facts = {
        "run": str(found.path),
        "attacks": records(found.attacks),
        "utility": records(found.utility),
        "out": [str(attacks), str(utility)],
    }
    shown = found.attacks.drop(columns=["system", "published_low", "published_high"]).round(3)
    cost = found.utility.drop(columns=["system"]).round(3).dropna(axis=1)
    return facts, (
        f"{found.attacks['system'].iloc[0]}\n\n{shown.to_string(index=False)}\n\n{cost.to_string(index=False)}\n\n"
        f"attacks: {attacks}\nutility: {utility}"
    )
