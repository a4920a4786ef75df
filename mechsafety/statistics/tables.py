"""The table of verdicts that every statistic reads, and its check.

One row per (system, arm, id, judge): ``system``, ``arm`` (``original`` or ``edited``), ``id`` of the prompt, ``label``
of the prompt (``harmful`` or ``harmless``), ``judge`` and ``verdict`` (one of
:data:`mechsafety.core.verdict.LABELS`). ``unparsed`` is missing data: it is never counted as a label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import pandas as pd

from mechsafety.core.arguments import closest, require_columns
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.verdict import LABELS

ARMS = ("original", "edited")
PROMPT_LABELS = ("harmful", "harmless")
_LABELS = (*PROMPT_LABELS, "")  # prompts of a user's own may have none
VERDICT_COLUMNS = ("system", "arm", "id", "label", "judge", "verdict")
ABSTAINING_JUDGES = frozenset({"degeneracy"})
"""Judges that never give refusal or compliance: no rate, test or agreement is defined for them."""


def checked(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return a copy with ordered categories, or raise an error that names what is wrong with the table."""
    require_columns(verdicts, VERDICT_COLUMNS, "verdict table")
    table = verdicts.loc[:, list(VERDICT_COLUMNS)].reset_index(drop=True)
    for name, allowed in (("arm", ARMS), ("label", _LABELS), ("verdict", LABELS)):
        if strange := sorted(set(map(str, table[name])) - set(allowed)):
            raise MechsafetyError(
                f"column {name} holds {', '.join(strange)}; allowed are {', '.join(filter(None, allowed))}"
                + way("", f": table[{name!r}]{_renaming(table[name], strange, allowed)} renames")
            )
    repeated = table.duplicated(["system", "arm", "id", "judge"])
    if repeated.any():
        first = " / ".join(map(str, table.loc[repeated, ["system", "arm", "id", "judge"]].iloc[0]))
        raise MechsafetyError(
            f"{int(repeated.sum())} rows repeat a (system, arm, id, judge), the first is {first}"
        )
    for name, order in (("arm", ARMS), ("label", _LABELS)):
        table[name] = pd.Categorical(table[name], categories=list(order), ordered=True)
    for name in ("system", "judge"):
        table[name] = pd.Categorical(table[name], categories=list(dict.fromkeys(table[name])), ordered=True)
    return table


def _renaming(column: pd.Series, strange: Sequence[str], allowed: Sequence[str]) -> str:
    """What of pandas would rename ``strange`` values: to the allowed name that each is nearly, else to dots."""
    values = {str(value): value for value in column.tolist() if str(value) in strange}
    named = {text: value for text, value in values.items() if not pd.isna(value)}
    pairs = ", ".join(f"{named[text]!r}: {_nearly(text, allowed)!r}" for text in sorted(named))
    return (f".replace({{{pairs}}})" if named else "") + (
        ".fillna('...')" if len(named) < len(values) else ""
    )


def _nearly(text: str, allowed: Sequence[str]) -> str:
    # What begins otherwise may be the opposite: "unharmful", "non-refusal", "unedited".
    return closest(text, [name for name in allowed if name[:1] == text[:1].casefold()]) or "..."


def deciding(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The checked table without judges that abstain: no rate, test or agreement is defined for them."""
    table = checked(verdicts)
    return where(table, ~table["judge"].isin(list(ABSTAINING_JUDGES)))


def groups(table: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Yield the non-empty groups in the order of the categories, each with its key as plain strings."""
    for key, group in table.groupby(list(by), observed=True, sort=True):
        yield dict(zip(by, map(str, cast("tuple[object, ...]", key)), strict=True)), group


def where(table: pd.DataFrame, rows: object) -> pd.DataFrame:
    return cast(pd.DataFrame, table.loc[cast(pd.Series, rows)])
