"""What labels show about a run's judges and its rates, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mechsafety.core.wording import listed, spelt_p
from mechsafety.plots.style import system_names

_ALPHA = 0.05
_KINDS = {"sensitivity": "refusals", "specificity": "other answers"}


def reference_name(tables: Mapping[str, pd.DataFrame]) -> str:
    """What the rates are corrected by."""
    if "people" not in tables:
        return "the reference judge"
    names = [name for name in tables["people"]["annotator"] if name != "settled"]
    return f"people's labels ({listed(names)})" if len(names) < 4 else f"the labels of {len(names)} people"


def arm_error_sentences(
    table: pd.DataFrame, *, primary: str = "", against: str = "the reference"
) -> list[str]:
    """Judges that err differently on edited responses, the primary one first; empty where none is shown to."""
    off = table[(table["p_holm"] < _ALPHA).to_numpy()].to_dict(orient="records")
    tests = f"Boschloo's exact test, Holm over {int(table['p'].notna().sum())} tests of all judges"
    mine = [_by_arm(row) for row in off if row["judge"] == primary]
    others = [f"{row['judge']}, {_by_arm(row)}" for row in off if row["judge"] != primary]
    differs, sentences = f"differently in the two arms against {against}", []
    if mine:
        sentences.append(
            f"The primary judge, {primary}, errs {differs}: {'; '.join(mine)} ({tests}). Its change between the arms "
            "is partly its own."
        )
    if others:
        who = "Other judges err" if primary else "Judges err"
        sentences.append(f"{who} {differs}: {'; '.join(others)} ({tests}).")
    return sentences


def _by_arm(row: Mapping[Any, Any]) -> str:
    share = [
        f"{row[arm]:.0%} [{row[f'{arm}_low']:.0%}, {row[f'{arm}_high']:.0%}] of {row[f'{arm}_labels']} {arm}"
        for arm in ("original", "edited")
    ]
    return f"{row['measure']} {' and '.join(share)} {_KINDS[row['measure']]} ({spelt_p(row['p_holm'])})"


def arm_error_summary(table: pd.DataFrame, *, primary: str = "") -> str:
    """The same for the judge chapter, where none was found too."""
    if not table["p"].notna().any():
        return (
            "Too few responses of a kind were labelled in both arms to compare a judge's errors between them."
        )
    found = arm_error_sentences(table, primary=primary)
    return " ".join(found) or (
        "No judge's sensitivity or specificity was shown to differ between original and edited responses (Boschloo's "
        f"exact test, Holm over {int(table['p'].notna().sum())} tests of all judges)."
    )


def corrected_sentences(tables: Mapping[str, pd.DataFrame], *, primary: str) -> list[str]:
    """Prediction-powered rates of harmful prompts and their change, the raw ones beside them.

    By system where each arm of it has enough labels; of all systems together too, where there are several.
    """
    if "corrected_changes" not in tables:
        return []
    table = tables["corrected_changes"]
    mine = table[((table["judge"] == primary) & (table["label"] == "harmful")).to_numpy()]
    names = {"all": "All systems together", **system_names([s for s in mine["system"] if s != "all"])}
    by = reference_name(tables)
    return [
        f"{names[row['system']]}, harmful prompts, corrected by {by}: {_rate(row, 'original')} refused, after the edit "
        f"{_rate(row, 'edited')}, a change of {_points(row['change'])} points [{_points(row['low'])}, "
        f"{_points(row['high'])}] ({row['labels_original']} and {row['labels_edited']} labels, prediction-powered). "
        f"Raw, by {primary} alone: {row['raw_original']:.0%}, {row['raw_edited']:.0%}, {_points(row['raw_change'])} "
        "points."
        for row in mine.to_dict(orient="records")
    ]


def _rate(row: Mapping[Any, Any], arm: str) -> str:
    return f"{row[arm]:.0%} [{row[f'{arm}_low']:.0%}, {row[f'{arm}_high']:.0%}]"


def _points(value: float) -> str:
    return f"{100 * value:+.0f}"
