"""What a run of the lab found: bounds and controls over seeds, and which attacks get through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from mechsafety.claims.contrasts import Estimate
from mechsafety.claims.sentences import Named, counted, extremes, held, level
from mechsafety.core.wording import span

TUNINGS: Mapping[str, str] = {
    "ssft": "supervised safety fine-tuning",
    "dpo": "DPO",
    "unlearn": "unlearning",
    "benign": "benign fine-tuning",
}
KINDS: Mapping[str, str] = {
    "safe": "safe",
    "unsafe": "unsafe",
    "co_task": "competing tasks",
    "co_text": "mixed texts",
    "misgen": "aliases",
    "ood": "random texts",
    "soft": "searched soft tokens",
    "random_soft": "random soft tokens",
}
_ATTACKS = ("co_task", "co_text", "misgen", "ood", "soft")


def lab_findings(cases: pd.DataFrame, bounds: pd.DataFrame, beyond: pd.DataFrame) -> dict[str, list[str]]:
    """Sentences by section: ``claims``, ``controls`` and ``attacks``. What only the table has is over the answer.

    ``cases`` has the columns of the run's ``cases``; ``bounds`` and ``beyond`` are :func:`held_over_seeds` and
    :func:`controls_over_seeds`.
    """
    return {
        "claims": [*_claims(bounds)],
        "controls": [*_controls(beyond)],
        "attacks": [*_attacks(cases)],
    }


def _claims(table: pd.DataFrame) -> Iterator[str]:
    rows = table[table["met"].notna()]
    never = int((rows["not measurable"] == rows["seeds"]).sum())
    always = rows["met"] == rows["seeds"]
    yield counted("Lab", int(always.sum()), len(rows) - never, "bounds are met in every seed", unknown=never)
    for row in rows[~always].to_dict("records"):
        outcomes = _outcomes(row, {"met": True, "not met": False, "not measurable": None})
        ends = span([row["lowest"], row["highest"]], ".3g")
        yield held(f"{_who(row)}: {row['what']} {row['bound']}, {ends}", outcomes, of=_seeds(row))


def _controls(table: pd.DataFrame) -> Iterator[str]:
    for control, rows in table.groupby("control", sort=False):
        over = rows["what"].str.contains("over the answer")
        for where, part in (("before the answer", rows[~over]), ("over the answer", rows[over])):
            always = part["beyond"] == part["seeds"]
            never = int((part["not measurable"] == part["seeds"]).sum())
            what = f"readings {where} go beyond {control} in every seed"
            if len(part):
                yield counted("Lab", int(always.sum()), len(part) - never, what, unknown=never)
        for row in rows[~over & (rows["beyond"] < rows["seeds"])].to_dict("records"):
            outcomes = _outcomes(row, {"beyond": True, "not beyond": False, "not measurable": None})
            name = f"{_who(row)}: {row['what']}, {row['value']}, beyond {control}"
            yield held(name, outcomes, of=_seeds(row), control=row["result"])


def _who(row: Mapping[str, Any]) -> str:
    return f"Claim {row['number']}, {TUNINGS.get(row['model'], 'pretrained')}"


def _seeds(row: Mapping[str, Any]) -> str:
    return "seed" if row["seeds"] == 1 else "seeds"


def _outcomes(row: Mapping[str, Any], states: Mapping[str, bool | None]) -> list[bool | None]:
    return [state for name, state in states.items() for _ in range(int(row[name]))]


def _attacks(cases: pd.DataFrame) -> Iterator[str]:
    """Inputs of all seeds together, without intervals: seeds are different worlds."""
    for model, name in TUNINGS.items():
        rows = cases[cases["model"] == model]
        if model == "benign" or rows.empty:
            continue
        yield level(name, "direct unsafe inputs answered", _answered(rows, "unsafe"))
        values = [Named(name=KINDS[kind], estimate=_answered(rows, kind)) for kind in _ATTACKS]
        yield extremes(name, "attacks answered", values, unit="share", of="families")


def _answered(cases: pd.DataFrame, kind: str) -> Estimate:
    rows = cases[cases["kind"] == kind]
    n, hits = int(rows["n"].sum()), int((rows["correct"] * rows["n"]).round().sum())
    return Estimate(value=hits / n if n else float("nan"), hits=hits, n=n)
