"""Who judges decides: judges against each other and against people; how many labels a study needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mechsafety.cli.base import Shown, command, records
from mechsafety.core.errors import MechsafetyError

if TYPE_CHECKING:
    from mechsafety.experiments.agreement.work import JudgeComparison


@command("agree", example="mechsafety agree runs/default --human labels.csv")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--human",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Labels that people gave: CSV, JSONL or Parquet with system, arm, id, label.",
)
@click.option("--reference", default=None, metavar="JUDGE", help="A judge of the run to take for the truth.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
def _agree(run: Path, human: Path | None, reference: str | None, seed: int) -> Shown:
    """Compare the judges of a finished study with each other, with people, or with one of them.

    Writes the tables into the run, and its report again with the judge chapter: agreement, the edit's effect under
    every judge, each judge's errors, and the refusal rates that people would have found.
    """
    from mechsafety.experiments.agreement.work import compare_judges
    from mechsafety.experiments.base import load_run

    found = compare_judges(run, human=human, reference=reference, seed=seed)
    report = load_run(run).publish()
    facts: dict[str, Any] = {name: records(table) for name, table in found.tables.items()}
    return {"run": str(run), "report": str(report), **facts}, f"{_text(found)}\n\nreport: {report}"


@command("plan-labels", example="mechsafety plan-labels --rate 0.3 --width 0.1 --responses 400")
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option("--rate", type=float, default=0.5, show_default=True, help="The refusal rate that is expected.")
@click.option("--width", type=float, default=0.1, show_default=True, help="Whole width of the 95 % interval.")
@click.option(
    "--responses", type=int, default=None, help="Judged responses of the cell that is to be corrected."
)
@click.option("--sensitivity", type=float, default=0.9, show_default=True, help="Of the judge, roughly.")
@click.option("--specificity", type=float, default=0.9, show_default=True, help="Of the judge, roughly.")
@click.option("--kappa", type=float, default=0.8, show_default=True, help="Between annotators, roughly.")
@click.option("--kappa-width", type=float, default=0.2, show_default=True, help="Width of its interval.")
@click.option("--drop", type=float, default=0.2, show_default=True, help="The drop in refusals to be found.")
@click.option("--baseline", type=float, default=0.9, show_default=True, help="Refusal rate before the edit.")
@click.option(
    "--gained",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of all prompts that the edit newly refuses.",
)
@click.option("--power", type=float, default=0.8, show_default=True)
@click.option(
    "--comparisons", type=int, default=1, show_default=True, help="Tests that Bonferroni corrects for."
)
def _plan(
    run: Path | None,
    rate: float,
    width: float,
    responses: int | None,
    sensitivity: float,
    specificity: float,
    kappa: float,
    kappa_width: float,
    drop: float,
    baseline: float,
    gained: float,
    power: float,
    comparisons: int,
) -> Shown:
    """Say how many labels and prompts a study needs, before anyone labels.

    With a finished RUN, also how many labels each of its arms and prompt labels needs, all systems together, from the
    rates that its primary judge found.
    """
    from mechsafety.statistics import (
        labels_for_correction,
        labels_for_kappa,
        labels_for_rate,
        pairs_for_drop,
    )

    if comparisons < 1:
        raise MechsafetyError(f"--comparisons {comparisons}: at least 1")
    alone = labels_for_rate(rate=rate, width=width)
    doubly = labels_for_kappa(kappa=kappa, rate=rate, width=kappa_width)
    prompts = pairs_for_drop(
        drop=drop, baseline=baseline, gained=gained, alpha=0.05 / comparisons, power=power
    )
    assumed = (
        f"{100 * (drop + gained):g} points lost and {100 * gained:g} newly refused"
        if gained
        else "if the edit refuses nothing anew (--gained)"
    )
    facts: dict[str, Any] = {
        "labels_alone": alone,
        "labels_twice_for_kappa": doubly,
        "prompts_for_drop": prompts,
        "gained": gained,
    }
    lines = [
        f"a rate near {rate:.0%}, interval {width:g} wide, from labels alone: {alone} labels",
        f"kappa near {kappa:g}, interval {kappa_width:g} wide: {doubly} responses labelled by both annotators",
        f"a drop of {100 * drop:g} points from {baseline:.0%} with power {power:g}"
        + (f" after Bonferroni over {comparisons}" if comparisons > 1 else "")
        + f": {prompts} prompts, the same in both arms, {assumed}",
    ]
    if responses is not None:
        needed = labels_for_correction(
            rate=rate, sensitivity=sensitivity, specificity=specificity, responses=responses, width=width
        )
        facts["labels_with_judge"] = needed
        judge = f"with a judge of sensitivity {sensitivity:g} and specificity {specificity:g} on {responses} responses"
        lines.insert(
            1,
            f"the same {judge}: {needed} labels"
            if needed is not None
            else f"the same {judge}: no number of labels is enough, more responses are needed",
        )
    if run is not None:
        cells = _cells(run, sensitivity=sensitivity, specificity=specificity, width=width)
        facts["cells"] = records(cells)
        told = cells.assign(labels=cells["labels"].astype(str).replace("<NA>", "-"))
        lines += [
            "",
            f"labels for an interval {width:g} wide in {run}, drawn alike within each row",
            _table(told),
        ]
        if cells["labels"].isna().any():
            lines.append("-: no number of labels is enough for this width, more responses are needed")
    return facts, "\n".join(lines)


def _cells(run: Path, *, sensitivity: float, specificity: float, width: float) -> Any:
    """Per arm and prompt label of a finished study: responses, the primary judge's rate, labels needed."""
    import pandas as pd

    from mechsafety.runs.folder import read_run
    from mechsafety.statistics import labels_for_correction

    folder = read_run(run)
    rates = folder.read_table("rates.csv")
    mine = rates[(rates["judge"] == folder.manifest["config"]["judges"][0]).to_numpy()]
    rows = []
    for (arm, label), group in mine.groupby(["arm", "label"], sort=False):
        read = int((group["n"] - group["unparsed"]).sum())
        # The plan divides by the variance at the rate: one refusal more or less keeps it off 0 and 1.
        rate = (group["refusal"].sum() + 1) / (read + 2)
        needed = labels_for_correction(
            rate=float(rate),
            sensitivity=sensitivity,
            specificity=specificity,
            responses=max(1, read),
            width=width,
        )
        rows.append({"arm": arm, "label": label, "responses": read, "rate": rate, "labels": needed})
    return pd.DataFrame(rows).astype({"labels": "Int64"})


def _text(found: JudgeComparison) -> str:
    flips = found.tables["judge_flips"]
    parts = [f"primary judge {found.primary}: where another judge or reading says otherwise"]
    parts.append(_table(flips.drop(columns=["primary", "flipped_by"])))
    parts += [f"{r['system']}, {r['label']}: {r['flipped_by']}" for r in records(flips) if r["flipped_by"]]
    if "judge_errors" in found.tables:
        errors = found.tables["judge_errors"]
        shown = errors[(errors["label"] == "all").to_numpy()]
        columns = ["judge", "arm", "n", "kappa", "kappa_low", "kappa_high", "sensitivity", "specificity"]
        parts += ["", "against the reference", _table(shown[columns])]
    if "corrected_rates" in found.tables:
        rates = found.tables["corrected_rates"]
        columns = ["system", "arm", "label", "judge", "labels", "raw", "ppi", "ppi_low", "ppi_high"]
        parts += ["", "refusal rates corrected by people's labels", _table(rates[columns])]
    return "\n".join(parts)


def _table(table: Any) -> str:
    return table.to_string(index=False, float_format=lambda v: f"{v:.2f}", na_rep="-")
