"""Auditing published records of refusal."""

from __future__ import annotations

from pathlib import Path

from mechsafety.cli.base import Shown, command, run_and_show, run_options
from mechsafety.cli.options import config_options
from mechsafety.experiments.audit.config import AuditConfig


@command("audit", example="mechsafety audit rates.csv labels-anna.csv labels-ben.csv --out runs/audit")
@config_options(AuditConfig)
@run_options(None)
def _audit(config: AuditConfig, out: Path | None, allow_other_versions: bool) -> Shown:
    """List the published differences that survive intervals, correction and another judge.

    The judges are compared too.

    FILES hold counts (model, label, refusal_judge, refused, not_refused, total; or system, arm, label, judge, refused,
    n) or verdicts (question, label, model, response, is_refusal_JUDGE, or is_refusal in a file per annotator). X is
    paired with X-ALB, X-abliterated or models/X-abliterated. Without FILES the counts of arXiv 2510.02768 are audited.
    """
    from mechsafety.experiments.audit.experiment import PublishedAudit, audit_facts, comparisons_text

    experiment = PublishedAudit(config)
    if out is not None:
        return run_and_show(experiment, out, allow_other_versions=allow_other_versions)
    found = experiment.found
    following = " ".join(["mechsafety audit", *config.files, "--out runs/audit"])
    text = "\n".join(
        [
            comparisons_text(found.comparisons, alpha=found.alpha),
            "",
            *found.sentences,
            "",
            f"next:   {following}",
        ]
    )
    return audit_facts(found) | {"report": None}, text
