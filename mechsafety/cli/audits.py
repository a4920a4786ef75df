"""Auditing published records of refusal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mechsafety.cli.base import Shown, command, other_versions_option, records

if TYPE_CHECKING:
    from mechsafety.experiments.audit.work import Audit


@command("audit", example="mechsafety audit rates.csv labels-anna.csv labels-ben.csv --out runs/audit")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--published", is_flag=True, help="The counts of arXiv 2510.02768, as without FILES.")
@click.option("--alpha", type=float, default=0.05, show_default=True, help="Error rate of the verdicts.")
@click.option(
    "--family",
    type=click.Choice(["judge", "all"]),
    default="judge",
    show_default=True,
    help="Correct over the systems under one judge and label, or over all comparisons.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="For the bootstrap of kappa.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Folder for tables, figures, page."
)
@other_versions_option
def _audit(
    files: tuple[Path, ...],
    published: bool,
    alpha: float,
    family: Any,
    seed: int,
    out: Path | None,
    allow_other_versions: bool,
) -> Shown:
    """Say which published differences survive intervals, correction and another judge.

    FILES hold counts (model, label, refusal_judge, refused, not_refused, total) or verdicts (question, label, model,
    response, is_refusal_JUDGE, or is_refusal in a file for each annotator). X is paired with X-ALB or X-abliterated.
    """
    from mechsafety.experiments.audit.tables import published_counts, read_evidence
    from mechsafety.experiments.audit.work import audit

    paths = [*([published_counts()] if published or not files else []), *files]
    page = None
    if out is None:
        found = audit(read_evidence(paths), seed=seed, alpha=alpha, family=family)
    else:
        from mechsafety.experiments.audit.page import write_audit

        found, page = write_audit(
            paths,
            out,
            seed=seed,
            alpha=alpha,
            family=family,
            allow_other_versions=allow_other_versions,
        )
    facts = {
        "files": list(found.files),
        "alpha": found.alpha,
        "family": found.family,
        "comparisons": records(found.comparisons),
        "judges": records(found.judges),
        "agreement": records(found.agreement),
        "unpaired": list(found.unpaired),
        "sentences": list(found.sentences),
        "report": str(page) if page else None,
    }
    tail = (
        [f"report: {page}"]
        if page
        else ["next:   " + " ".join(["mechsafety audit", *map(str, files), "--out runs/audit"])]
    )
    return facts, "\n".join([_text(found), "", *found.sentences, "", *tail])


def _text(found: Audit) -> str:
    table = found.comparisons
    shown = table[["system"]].copy()
    if table["label"].nunique() > 1:
        shown["label"] = table["label"]
    if table["judge"].nunique() > 1:
        shown["judge"] = table["judge"]
    for arm in ("original", "edited"):
        shown[arm] = [f"{k}/{n}" for k, n in zip(table[f"refused_{arm}"], table[f"n_{arm}"], strict=True)]
    shown["change"] = [
        f"{_points(change)} [{_points(low)}, {_points(high)}]"
        for change, low, high in zip(table["change"], table["low"], table["high"], strict=True)
    ]
    shown["test"] = table["test"]
    for column in ("p", "p_holm"):
        shown[column] = table[column].map(_p)
    shown["paired p"] = [
        _range(*pair) for pair in zip(table["paired_p_best"], table["paired_p_worst"], strict=True)
    ]
    shown["finding"] = table["finding"]
    return shown.to_string(index=False)


def _points(value: float) -> str:
    return "-" if value != value else f"{100 * value:+.0f}"


def _p(value: float) -> str:
    return "-" if value != value else f"{value:.2g}"


def _range(best: float, worst: float) -> str:
    return _p(best) if best == worst or best != best else f"{_p(best)} to {_p(worst)}"
