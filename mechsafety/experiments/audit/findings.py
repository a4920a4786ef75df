"""What an audit found: one contrast per comparison, and what depends on the judge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.claims import (
    Claim,
    Contrast,
    Estimate,
    corrected_over,
    decide,
    paired_counts,
    unpaired_counts,
)
from mechsafety.claims.numbers import ALPHA
from mechsafety.claims.rows import named
from mechsafety.claims.sentences import (
    by_judge,
    change,
    counted,
    disagreement,
    extremes,
    level,
    missing,
)
from mechsafety.core.wording import listed
from mechsafety.experiments.agreement.findings import arm_error_sentences
from mechsafety.plots.style import system_names
from mechsafety.statistics.tables import ARMS

if TYPE_CHECKING:
    from mechsafety.experiments.audit.work import Audit

_NAMED = 10  # comparisons that have a sentence each
_MEASURES = ("accuracy", "precision", "recall")


def audit_sections(found: Audit) -> dict[str, list[str]]:
    """Sentences by the block of the page that they stand in: errors by arm, differences, then the judges."""
    claims = comparison_claims(found)
    sections: dict[str, Iterable[str]] = {
        "arm_errors": arm_error_sentences(found.arm_errors) if len(found.arm_errors) else (),
        "differences": _of_differences(found, claims),
        "broken": _of_broken(found.broken),
        "judges": _of_judges(found.comparisons, claims),
        "prompt_labels": _of_prompts(found.prompt_labels),
        "pairs": _of_orders(found.pairs, found.alpha),
        "agreement": _of_agreement(found.agreement, found.primary),
    }
    return {name: said for name, told in sections.items() if (said := list(told))}


def audit_sentences(found: Audit) -> list[str]:
    """All sentences of an audit."""
    return [said for told in audit_sections(found).values() for said in told]


def _of_differences(found: Audit, claims: Sequence[Claim]) -> Iterator[str]:
    shown, tested = sum(c.shown for c in claims), sum(c.direction != "not tested" for c in claims)
    what = (
        "differences are shown" if found.alpha == ALPHA else f"differences are shown at alpha {found.alpha:g}"
    )
    yield counted("Comparisons", shown, tested, what, unknown=len(claims) - tested)
    yield from (change(c) for c in claims if len(claims) <= _NAMED or (c.shown and shown <= _NAMED))
    yield from _of_pairing(found.comparisons, found.alpha)
    yield from _of_size(found.comparisons)
    if found.unpaired:
        yield missing(listed(found.unpaired), "no other form")


def _of_broken(table: pd.DataFrame) -> Iterator[str]:
    measure = "refusals of harmful prompts by a judge that is left out of every other number"
    for row in table.to_dict(orient="records"):
        yield level(row["judge"], measure, Estimate.of_counts(0, row["harmful"]))


def _of_agreement(table: pd.DataFrame, primary: str) -> Iterator[str]:
    for row in table.to_dict(orient="records"):
        if primary in (row["judge_a"], row["judge_b"]):
            labels = [(True, at < row["equal"]) for at in range(row["n"])]
            judges, unread = (row["judge_a"], row["judge_b"]), int(row["unread"])
            yield disagreement(*judges, labels, kappa=row["kappa"], unread=unread)


def comparison_claims(found: Audit) -> list[Claim]:
    """Each comparison, corrected over the audit's family at its level."""
    table = found.comparisons
    names = system_names(table["system"])
    claims: dict[Any, Claim] = {}
    family = "comparisons" if found.family == "all" else "systems"
    together = (
        [[*table.index]] if found.family == "all" else table.groupby(["label", "judge"]).groups.values()
    )
    for rows in together:
        contrasts = [
            _contrast(row, names[row["system"]]) for row in table.loc[[*rows]].to_dict(orient="records")
        ]
        corrected = corrected_over(contrasts, family)
        claims |= {at: decide(c, alpha=found.alpha) for at, c in zip(rows, corrected, strict=True)}
    return [claims[at] for at in table.index]


def _contrast(row: dict[Any, Any], name: str) -> Contrast:
    refused, n = (tuple(int(row[f"{what}_{arm}"]) for arm in ARMS) for what in ("refused", "n"))
    named: dict[str, Any] = {
        "subject": f"{name}, {row['label']} prompts, {row['judge']}",
        "measure": "refusals",
    }
    if row["data"] == "counts":
        return unpaired_counts(before=(refused[0], n[0]), after=(refused[1], n[1]), **named)
    unread = (int(row["unread_original"]), int(row["unread_edited"]))
    return paired_counts(
        n=n[0], hits=refused[0], lost=int(row["b"]), gained=int(row["c"]), unread=unread, **named
    )


def _of_pairing(table: pd.DataFrame, alpha: float) -> Iterator[str]:
    """Of comparisons given as counts, what a paired test could have shown: counts fix its p within a range."""
    counts = table[(table["data"] == "counts").to_numpy()]
    if counts.empty:
        return
    known = counts[counts["paired_holm_worst"].notna()]
    always = int((known["paired_holm_worst"] < alpha).sum())
    never = int((known["paired_holm_best"] >= alpha).sum())
    unknown = len(counts) - len(known)
    subject = "Comparisons given as counts, a paired test after correction"
    yield counted(subject, always, len(known), "would show a difference whatever the pairs", unknown=unknown)
    yield counted(subject, never, len(known), "would show none whatever the pairs", unknown=unknown)


def _of_size(table: pd.DataFrame) -> Iterator[str]:
    """The smallest fall that a paired test of each comparison's size finds with power .8, where it finds any."""
    for column, correction in (("detectable", "without"), ("detectable_corrected", "after")):
        values = named(table.assign(points=100 * table[column]), lambda row: _name(row, table), "points")
        subject = f"Paired tests {correction} correction"
        measure = "smallest fall found with power 0.8 where nothing is newly refused"
        yield extremes(subject, measure, values, unit="points", of="comparisons")
        none = int(table[column].isna().sum())
        yield counted(subject, none, len(table), "comparisons have no fall that is found with power 0.8")


def _name(row: Mapping[Any, Any], table: pd.DataFrame) -> str:
    several = [column for column in ("label", "judge") if len(set(table[column])) > 1]
    return ", ".join([row["system"], *(row[column] for column in several)])


def _of_judges(table: pd.DataFrame, claims: Sequence[Claim]) -> Iterator[str]:
    """Of each system that some of several judges show to change, which do; how many none does."""
    names, found = system_names(table["system"]), {}
    for row, claim in zip(table.to_dict(orient="records"), claims, strict=True):
        found.setdefault(f"{names[row['system']]}, {row['label']} prompts", {})[row["judge"]] = claim
    several = {subject: by for subject, by in found.items() if len(by) > 1}
    if not several:
        yield missing("Whether another judge shows the same", "one judge")
        return
    changed = {s: by for s, by in several.items() if any(claim.shown for claim in by.values())}
    yield from (by_judge(subject, "refusals", by) for subject, by in changed.items())
    what = "systems and kinds of prompts are shown to change by some judge"
    yield counted("Under several judges", len(changed), len(several), what)


def _of_prompts(table: pd.DataFrame) -> Iterator[str]:
    whole = table[(table["arm"] == "all").to_numpy()]
    for measure in _MEASURES if len(whole) else ():
        values = named(whole, "judge", measure)
        yield extremes("Against the prompts' labels", measure, values, unit="share", of="judges")


def _of_orders(pairs: pd.DataFrame, alpha: float) -> Iterator[str]:
    for label, part in pairs.groupby("label", sort=False):
        subject, tested = f"{label} prompts", part[part["p_holm"].notna()]
        values = named(part, lambda row: f"{row['judge_a']} and {row['judge_b']}", "tau")
        measure = "Kendall's tau of the models' order"
        yield extremes(subject, measure, values, unit="tau", of="pairs of judges")
        tau = tested.loc[(tested["p_holm"] < alpha).to_numpy(), "tau"]
        for way, hits in (("alike", tau > 0), ("the other way", tau < 0)):
            what, unknown = f"pairs of judges order the models {way} beyond chance", len(part) - len(tested)
            yield counted(subject, int(hits.sum()), len(tested), what, unknown=unknown)
