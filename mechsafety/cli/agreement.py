"""Judges against each other and against people; how many labels a study needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mechsafety.cli.base import Shown, command, records
from mechsafety.cli.options import config_options
from mechsafety.core.wording import percent, two_digits
from mechsafety.experiments.agreement.config import PlanConfig

if TYPE_CHECKING:
    from mechsafety.experiments.agreement.work import JudgeComparison


@command("agree", example="mechsafety agree runs/default --human labels.csv")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--human",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Labels that people gave: CSV, JSONL or Parquet with system, arm, id, label [default: the run's own].",
)
@click.option(
    "--reference",
    default=None,
    metavar="JUDGE",
    help="A judge of the run to take for the truth; with --labels any judge.",
)
@click.option(
    "--labels",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Let the judge --reference read a random sample of N responses.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
def _agree(run: Path, human: Path | None, reference: str | None, labels: int | None, seed: int) -> Shown:
    """Compare the judges of a finished study with each other, with people, or with one of them.

    Writes the tables into the run, and its report again with the judge chapter: agreement, the edit's effect under
    every judge, each judge's errors in both arms, and the refusal rates that the reference would have found: labels of
    people (--human, or those given with mechsafety annotate), or a judge (--reference).
    """
    from mechsafety.experiments.agreement.work import compare_judges
    from mechsafety.experiments.registry import load_run

    found = compare_judges(run, human=human, reference=reference, labels=labels, seed=seed)
    report = load_run(run).publish()
    facts: dict[str, Any] = {name: records(table) for name, table in found.tables.items()}
    return {"run": str(run), "report": str(report), **facts}, f"{_text(found)}\n\nreport: {report}"


@command("plan-labels", example="mechsafety plan-labels --rate 0.3 --width 0.1 --responses 400")
@click.argument("run", type=click.Path(path_type=Path), required=False)
@config_options(PlanConfig)
def _plan(config: PlanConfig, run: Path | None) -> Shown:
    """Plan how many labels and prompts a study needs, before anyone labels.

    With a finished RUN, also how many labels each of its arms and prompt labels needs, all systems together, from the
    rates that its primary judge found.
    """
    from mechsafety.statistics.planning import labels_for_kappa, labels_for_rate, pairs_for_drop

    c = config
    alone = labels_for_rate(rate=c.rate, width=c.width)
    doubly = labels_for_kappa(kappa=c.kappa, rate=c.rate, width=c.kappa_width)
    prompts = pairs_for_drop(
        drop=c.drop, baseline=c.baseline, gained=c.gained, alpha=0.05 / c.comparisons, power=c.power
    )
    assumed = (
        f"{100 * (c.drop + c.gained):g} points lost and {100 * c.gained:g} newly refused"
        if c.gained
        else "if the edit refuses nothing anew (--gained)"
    )
    facts: dict[str, Any] = {
        "labels_alone": alone,
        "labels_twice_for_kappa": doubly,
        "prompts_for_drop": prompts,
        "gained": c.gained,
    }
    lines = [
        f"a rate near {percent(c.rate)}, interval {c.width:g} wide, from labels alone: {alone} labels",
        f"kappa near {c.kappa:g}, interval {c.kappa_width:g} wide: {doubly} responses labelled by both annotators",
        f"a drop of {100 * c.drop:g} points from {percent(c.baseline)} with power {c.power:g}"
        + (f" after Bonferroni over {c.comparisons}" if c.comparisons > 1 else "")
        + f": {prompts} prompts, the same in both arms, {assumed}",
    ]
    if c.responses is not None:
        needed = _labels(c, rate=c.rate, responses=c.responses)
        facts["labels_with_judge"] = needed
        labels = "no number of labels is enough, more responses are needed"
        lines.insert(
            1,
            f"the same with a judge of sensitivity {c.sensitivity:g} and specificity {c.specificity:g} on "
            f"{c.responses} responses: {labels if needed is None else f'{needed} labels'}",
        )
    if run is not None:
        cells = _cells(run, c)
        facts["cells"] = records(cells)
        lines += [
            "",
            f"labels for an interval {c.width:g} wide in {run}, drawn alike within each row",
            _table(cells.assign(labels=cells["labels"].astype(str).replace("<NA>", "-"))),
        ]
        if cells["labels"].isna().any():
            lines.append("-: no number of labels is enough for this width, more responses are needed")
    return facts, "\n".join(lines)


def _labels(config: PlanConfig, *, rate: float, responses: int) -> int | None:
    """How many labels correct a judge's rate on so many responses; None where no number is enough."""
    from mechsafety.statistics.planning import labels_for_correction

    of_judge = {"sensitivity": config.sensitivity, "specificity": config.specificity}
    return labels_for_correction(rate=rate, responses=responses, width=config.width, **of_judge)


def _cells(run: Path, config: PlanConfig) -> Any:
    """Per arm and prompt label of a finished study: responses, the primary judge's rate, labels needed."""
    from mechsafety.experiments.agreement.planning import label_plan
    from mechsafety.runs.folder import read_run

    folder = read_run(run)
    return label_plan(
        folder.read_table("rates.csv"),
        folder.manifest["config"]["judges"][0],
        width=config.width,
        sensitivity=config.sensitivity,
        specificity=config.specificity,
    )


def _text(found: JudgeComparison) -> str:
    from mechsafety.experiments.agreement.findings import arm_error_sentences, by_judge_sentences

    parts = [f"primary judge {found.primary}", *by_judge_sentences(found.tables["judge_effects"])]
    if "judge_errors" in found.tables:
        errors = found.tables["judge_errors"]
        shown = errors[(errors["label"] == "all").to_numpy()]
        columns = ["judge", "arm", "n", "kappa", "kappa_low", "kappa_high", "sensitivity", "specificity"]
        parts += ["", "against the reference", _table(shown[columns])]
        parts += ["", *arm_error_sentences(found.tables["arm_errors"], primary=found.primary)]
    if "corrected_changes" in found.tables:
        parts += ["", "refusal rates corrected by the reference, and their change"]
        parts += [_table(found.tables["corrected_changes"])]
    return "\n".join(parts)


def _table(table: Any) -> str:
    return table.to_string(index=False, float_format=two_digits, na_rep="-")
