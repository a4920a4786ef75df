"""Claims as a table: each beside its control, what that does, and whether the claim goes beyond it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from mechsafety.claims.claims import Claim
from mechsafety.claims.numbers import p_value
from mechsafety.claims.sentences import spelt
from mechsafety.core.wording import listed, points

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
        row |= {"p": p_value(c.corrected, claim.alpha), "claim": _WAYS.get(claim.direction, claim.direction)}
        row |= {"control": control.name if control else ""}
        row |= {"control result": f"{drawn} ({p_value(control.corrected, claim.alpha)})" if control else ""}
        rows.append(row | {"beyond": claim.beyond})
    return pd.DataFrame(rows, columns=list(COLUMNS))


CONTROL_COLUMNS = ("claim", "reading", "control", "result of the control", "holds beyond it")
NOT_MEASURABLE = "not measurable"


def control_row(claim: str, reading: str, control: str, result: str, holds: str) -> dict[str, str]:
    """A claim beside one control; ``holds`` is yes, no, cannot fail, or not measurable."""
    return dict(zip(CONTROL_COLUMNS, (claim, reading, control, result, holds), strict=True))


def change_row(claim: str, decided: Claim, *, way: str) -> dict[str, str]:
    """A change to the side ``way`` (up, down) beside its control: it holds if shown to that side and beyond."""
    c, control = decided.contrast, decided.contrast.control
    measured = decided.direction != "not tested" and decided.beyond not in ("not tested", "no control")
    holds = "yes" if decided.direction == way and decided.beyond == "yes" else "no"
    drawn = listed([spelt(draw.estimate, c.unit) for draw in control.draws]) if control else ""
    return control_row(
        claim,
        f"{spelt(c.before, c.unit)} to {spelt(c.after, c.unit)}, {p_value(c.corrected, decided.alpha)}",
        control.name if control else "none",
        f"{drawn or 'not measured'}{f', {p_value(control.corrected, decided.alpha)}' if control else ''}",
        holds if measured else NOT_MEASURABLE,
    )


def control_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """Claims that their second state is more than their first, the control. Columns: :data:`CONTROL_COLUMNS`."""
    rows = []
    for claim in claims:
        c = claim.contrast
        holds = (
            NOT_MEASURABLE if claim.direction == "not tested" else "yes" if claim.direction == "up" else "no"
        )
        reading, result = (spelt(estimate, c.unit) for estimate in (c.after, c.before))
        row = control_row(
            f"{c.subject}: {c.measure}, {c.states[1]}",
            f"{reading}, {p_value(c.corrected, claim.alpha)}",
            c.states[0],
            result,
            holds,
        )
        rows.append(row)
    return pd.DataFrame(rows, columns=list(CONTROL_COLUMNS))
