"""An audit of published records of refusal: what ``mechsafety audit`` runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from mechsafety.claims.numbers import p_value
from mechsafety.core.places import packaged_words
from mechsafety.core.wording import points
from mechsafety.experiments.audit.config import AuditConfig
from mechsafety.experiments.audit.figures import audit_figures
from mechsafety.experiments.audit.findings import audit_sections
from mechsafety.experiments.audit.tables import published_counts, read_evidence
from mechsafety.experiments.audit.work import TABLES, Audit, audit
from mechsafety.experiments.base import Experiment
from mechsafety.experiments.result import Result
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.session import Session
from mechsafety.pages.page import Page, page_blocks, under_headings

if TYPE_CHECKING:
    import plotly.graph_objects as go

_WORDS = packaged_words("mechsafety.experiments.audit", "page.toml")
_PRINTED = 60  # comparisons


class PublishedAudit(Experiment[AuditConfig]):
    """Which published differences survive intervals, correction and another judge."""

    kind = "audit"
    # Names as they are: a CSV cell may not begin with "+".
    tables: ClassVar[Mapping[str, str]] = MappingProxyType({name: f"{name}.parquet" for name in TABLES})

    def __init__(self, config: AuditConfig) -> None:
        super().__init__(config)
        own = [published_counts()] if config.published or not config.files else []
        self.paths = [*own, *map(Path, config.files)]
        self.evidence = read_evidence(self.paths)
        self.found = audit(
            self.evidence,
            seed=config.seed,
            alpha=config.alpha,
            family=config.family,
            primary=config.primary,
        )

    def bound(self) -> Mapping[str, Any]:
        return {
            "files": list(self.evidence.files),
            "sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.paths],
        }

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        tables = {name: getattr(self.found, name) for name in self.tables}
        for name, table in tables.items():
            session.run.write_table(table, "audit.csv" if name == "comparisons" else f"{name}.csv")
        session.run.record("primary", self.found.primary)
        session.run.record("unpaired", list(self.found.unpaired))
        session.run.record("sentences", list(self.found.sentences))
        return tables

    @classmethod
    def figures(cls, result: Result) -> dict[str, go.Figure]:
        return audit_figures(result.tables, primary=result.manifest["primary"], alpha=result.config["alpha"])

    @classmethod
    def findings(cls, result: Result) -> list[str]:
        return list(result.manifest["sentences"])

    @classmethod
    def page(cls, result: Result, figures: Mapping[str, go.Figure]) -> Page:
        tables, config = result.tables, result.config
        tests = ", ".join(dict.fromkeys(tables["comparisons"]["test"]))
        over = "the systems under one judge and label" if config["family"] == "judge" else "all comparisons"
        paired = (
            "one by one"
            if (tables["comparisons"]["data"] == "verdicts").all()
            else (
                "as counts: which answers belong to one prompt is not known, so that these tests are unpaired"
            )
        )
        hashes = zip(config["files"], config["sha256"], strict=True)
        return Page(
            title="Audit of published refusal rates",
            subtitle=" · ".join(Path(name).name for name in config["files"]),
            **under_headings(audit_sections(found_in(result)), _WORDS["blocks"]),
            blocks=page_blocks(_WORDS["blocks"], tables, figures),
            how=[
                f"Tests: {tests}, two-sided; alpha {config['alpha']:g}; Holm over {over}; answers are given {paired}",
                f"Primary judge: {result.manifest['primary']}",
                *(f"{Path(name).name}: sha256 {sha[:16]}" for name, sha in hashes),
            ],
        )

    @classmethod
    def text(cls, result: Result) -> str:
        return comparisons_text(result.tables["comparisons"], alpha=result.config["alpha"])

    @classmethod
    def facts(cls, result: Result) -> dict[str, Any]:
        return audit_facts(found_in(result))


def run_audit(config: AuditConfig, out: str | Path, *, allow_other_versions: bool = False) -> Result:
    """Audit the files and write the tables into the run folder ``out``.

    Raises :class:`MechsafetyError` for whatever is wrong with the files, before the folder is made, and for a folder
    that holds another audit.
    """
    return run_experiment(PublishedAudit(config), out, allow_other_versions=allow_other_versions)


def found_in(result: Result) -> Audit:
    """The audit that a run holds."""
    config = result.config
    return Audit(
        **result.tables,
        primary=result.manifest["primary"],
        unpaired=tuple(result.manifest["unpaired"]),
        files=tuple(config["files"]),
        alpha=config["alpha"],
        family=config["family"],
    )


def audit_facts(found: Audit) -> dict[str, Any]:
    """For ``--json``: with a run folder or without one."""
    return {
        "files": list(found.files),
        "alpha": found.alpha,
        "family": found.family,
        "primary": found.primary,
        **{name: getattr(found, name) for name in PublishedAudit.tables},
        "unpaired": list(found.unpaired),
        "sentences": list(found.sentences),
    }


def comparisons_text(table: pd.DataFrame, *, alpha: float) -> str:
    """The comparisons as they are printed; of very many those below alpha alone."""
    left_out = 0
    if len(table) > _PRINTED:
        found = table["finding"].isin(["survives", "lost in correction"])
        left_out, table = int((~found).sum()), table[found]
    shown = table[["system"]].copy()
    if len(set(table["label"])) > 1:
        shown["label"] = table["label"]
    if len(set(table["judge"])) > 1:
        shown["judge"] = table["judge"]
    for arm in ("original", "edited"):
        shown[arm] = [f"{k}/{n}" for k, n in zip(table[f"refused_{arm}"], table[f"n_{arm}"], strict=True)]
    shown["change"] = [
        f"{_points(change)} [{_points(low)}, {_points(high)}]"
        for change, low, high in zip(table["change"], table["low"], table["high"], strict=True)
    ]
    shown["test"] = table["test"]
    for column in ("p", "p_holm"):
        shown[column] = [_p(p, alpha) for p in table[column]]
    shown["paired p"] = [
        _range(*pair, alpha) for pair in zip(table["paired_p_best"], table["paired_p_worst"], strict=True)
    ]
    shown["finding"] = table["finding"]
    text = shown.to_string(index=False) if len(shown) else "no difference is below alpha"
    return (
        f"{text}\n\n{left_out} differences that are not shown to be any: --json, --out" if left_out else text
    )


def _points(value: float) -> str:
    return "-" if value != value else points(value)


def _p(value: float, alpha: float) -> str:
    return "-" if value != value else p_value(value, alpha).removeprefix("p ").removeprefix("= ")


def _range(best: float, worst: float, alpha: float) -> str:
    least = _p(best, alpha)
    return least if best == worst or best != best else f"{least} to {_p(worst, alpha)}"
