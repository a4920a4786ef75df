"""Claims as a table: each beside its control, what that does, and whether the claim goes beyond it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from mechsafety.claims.claims import Claim
from mechsafety.claims.numbers import p_value, points
from mechsafety.claims.sentences import spelt
from mechsafety.core.wording import listed

COLUMNS = (
    "subject",
    "measure",
    "before",
    "after",
    "change",
    "p",
    "claim",
    "control",
    "control result",
    "beyond",
)
_WAYS: Mapping[str, str] = {"up": "rise", "down": "fall", "none shown": "no change shown"}


def claim_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row per claim; ``p`` after correction, with the test of its control beside its result.

    Columns: :data:`COLUMNS`. ``claim`` is rise, fall, equal, no change shown or not tested, ``beyond`` yes, no,
    control does more, not tested or no control.
    """
    rows = []
    for claim in claims:
        c, control = claim.contrast, claim.contrast.control
        drawn = listed([spelt(draw.estimate, c.unit) for draw in control.draws]) if control else ""
        row = {"subject": c.subject, "measure": c.measure}
        row |= {"before": spelt(c.before, c.unit), "after": spelt(c.after, c.unit)}
        row |= {"change": points(c.difference.value) if c.unit == "share" else f"{c.difference.value:+.3g}"}
        row |= {"p": p_value(c.corrected), "claim": _WAYS.get(claim.direction, claim.direction)}
        row |= {"control": control.name if control else ""}
        row |= {"control result": f"{drawn} ({p_value(control.corrected)})" if control else ""}
        rows.append(row | {"beyond": claim.beyond})
    return pd.DataFrame(rows, columns=list(COLUMNS))
