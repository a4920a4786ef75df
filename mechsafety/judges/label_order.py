"""Verdicts that turn when a judge is given its labels in the other order: how many, and what they do to the rates."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mechsafety.claims import Estimate
from mechsafety.claims.sentences import level
from mechsafety.judges.kinds.logit import ORDER
from mechsafety.statistics.rates import wilson

COLUMNS = ("n", "turned", "share", "refusal", "low", "high", "refusal_without", "low_without", "high_without")
_ASKED_BOTH = "logit:"  # the judges that see both orders of every answer


def label_order(verdicts: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """One row per judge that sees both orders and ``keys``: refusal rates with and without verdicts that turn.

    ``verdicts`` has columns ``judge``, ``verdict``, ``tags`` and the keys. ``n`` counts refusals and compliances, on
    which the order could tell, ``share`` is ``turned / n``. Rates are of all that was read, degenerate answers
    included, with 95 % Wilson intervals; "without" leaves the verdicts that turn out of both counts.
    """
    both = verdicts[verdicts["judge"].astype(str).str.startswith(_ASKED_BOTH)]
    columns = ["judge", *keys]
    rows = []
    for key, group in both.groupby(columns, sort=False):
        turned = group["tags"].fillna("").str.split().map(lambda tags: ORDER in tags).astype(bool)
        decided = group["verdict"].isin(["refusal", "compliance"])
        counts = (int((turned & decided).sum()), int(decided.sum()))
        rates = [_rate(group["verdict"]), _rate(group["verdict"][~turned])]
        share = wilson(*counts).rate
        found = [counts[1], counts[0], share, *rates[0], *rates[1]]
        rows.append(dict(zip(columns, key, strict=True)) | dict(zip(COLUMNS, found, strict=True)))
    return pd.DataFrame(rows, columns=[*columns, *COLUMNS])


def order_sentences(table: pd.DataFrame) -> list[str]:
    """The whole share of each judge of :func:`label_order`."""
    measure = "verdicts that turn when its labels change places"
    return [
        level(str(judge), measure, Estimate.of_counts(int(rows["turned"].sum()), int(rows["n"].sum())))
        for judge, rows in table.groupby("judge", sort=False)
    ]


def _rate(verdicts: pd.Series) -> tuple[float, float, float]:
    found = wilson(int((verdicts == "refusal").sum()), int((verdicts != "unparsed").sum()))
    return found.rate, found.low, found.high
