"""An edit against random draws of the same edit: what holds beyond every one of them, and its rank among many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechsafety.core.arguments import require_columns
from mechsafety.statistics.paired import holm, mcnemar
from mechsafety.statistics.rates import wilson

CONTROL_TEST_COLUMNS = (
    *("system", "draw", "n", "unparsed", "refused", "low", "high", "complied", "degenerate"),
    *("fell", "rose", "p", "p_beyond", "p_rank"),
)
LEAST_DRAWS = 19
"""From so many draws on an edit that leaves fewer refusals than all of them has a rank p of 1/20 or less."""


_READ = ("system", "id", "verdict")


def control_tests(edited: pd.DataFrame, random: pd.DataFrame) -> pd.DataFrame:
    """The verdicts under an edit against those under each random draw of it, on the same prompts.

    ``edited`` has the columns system, id and verdict, ``random`` also draw; both are of one judge. One row per system
    and draw: of the ``n`` answers under the draw that could be read the shares ``refused`` (with its 95 % Wilson
    interval), ``complied`` and ``degenerate``; ``fell`` counts prompts refused under the draw and not under the edit,
    ``rose`` the reverse, among the pairs that could be read, and ``p`` is McNemar's exact p; NaN without a pair.

    Per system: ``p_beyond`` is the largest p over its draws (:func:`largest_p`), adjusted by Holm over the systems;
    ``p_rank`` with :data:`LEAST_DRAWS` draws or more (1 + draws with as few refusals or fewer) / (draws + 1), the exact
    p of a fall if the edit's direction were one of the draws. Both are NaN where a draw could not be read.
    Columns: :data:`CONTROL_TEST_COLUMNS`.

    Returns:
        One row per system and draw.

    Example:
        >>> rules = table.query("judge == 'rules' and system == 'a'")
        >>> edited, draw = rules[rules["arm"] == "edited"], rules[rules["arm"] == "original"].assign(draw=0)
        >>> ms.statistics.control_tests(edited, draw)[["system", "draw", "n", "refused", "fell", "rose", "p"]]
          system  draw   n  refused  fell  rose         p
        0      a     0  10      0.9     7     0  0.015625
    """
    require_columns(edited, _READ, "table of the edit's verdicts")
    require_columns(random, (*_READ, "draw"), "table of the draws' verdicts")
    rows: list[dict[str, Any]] = []
    largest: dict[str, float] = {}
    for system in dict.fromkeys(map(str, random["system"])):
        after = _by_id(edited[edited["system"] == system])
        of_system = random[random["system"] == system]
        found: list[dict[str, Any]] = [
            {"system": system, "draw": draw, **_against(after, _by_id(of_system[of_system["draw"] == draw]))}
            for draw in sorted(set(of_system["draw"]))
        ]
        largest[system] = largest_p([(row["fell"], row["rose"], row["p"]) for row in found])
        rank = rank_p(_refused(after), [row["refused"] for row in found])
        rows += [row | {"p_rank": rank} for row in found]
    adjusted = dict(zip(largest, holm(np.array([*largest.values()], dtype=float)), strict=True))
    for row in rows:
        row["p_beyond"] = adjusted[row["system"]]
    table = pd.DataFrame(rows, columns=list(CONTROL_TEST_COLUMNS))
    return table.astype(
        dict.fromkeys(("draw", "n", "unparsed", "fell", "rose"), int)
        | dict.fromkeys(
            ("refused", "low", "high", "complied", "degenerate", "p", "p_beyond", "p_rank"), float
        )
    )


def largest_p(tests: Sequence[tuple[int | float, int | float, float]]) -> float:
    """The p of "differs from every draw, to one side": of (fell, rose, p) per draw the largest p.

    1 where the draws do not all lie to one side (an intersection-union test, so that no correction for the number of
    draws is needed); NaN without draws and where one was not tested.

    Arguments:
        tests: (fell, rose, p) of each draw: two counts and the p of McNemar's test.

    Returns:
        A p value; NaN where one is unknown.

    Example:
        >>> ms.statistics.largest_p([(7, 0, 0.0156), (6, 0, 0.03125)])
        0.03125
    """
    if not tests or any(p != p for *_, p in tests):
        return math.nan
    sides = {np.sign(fell - rose) for fell, rose, _ in tests}
    return max(p for *_, p in tests) if len(sides) == 1 else 1.0


def rank_p(share: float, draws: Sequence[float]) -> float:
    """(1 + draws with a share as low or lower) / (draws + 1); NaN for too few draws, and where a share is unknown.

    Arguments:
        share: Share refused under the edit.
        draws: Shares refused under the random draws.

    Returns:
        A p value.

    Example:
        >>> ms.statistics.rank_p(0.1, [0.9] * 19)
        0.05
    """
    if len(draws) < LEAST_DRAWS or any(value != value for value in (share, *draws)):
        return math.nan
    return (1 + sum(value <= share for value in draws)) / (len(draws) + 1)


def _against(after: Mapping[object, str], before: Mapping[object, str]) -> dict[str, Any]:
    read = [verdict for verdict in before.values() if verdict != "unparsed"]
    pairs = [(before[i], after[i]) for i in before if i in after]
    refused = [(one == "refusal", two == "refusal") for one, two in pairs if "unparsed" not in (one, two)]
    fell, rose, n = refused.count((True, False)), refused.count((False, True)), len(read)
    interval = wilson(read.count("refusal"), n)
    return {
        **{"n": n, "unparsed": len(before) - n},
        **{"refused": interval.rate, "low": interval.low, "high": interval.high},
        "complied": read.count("compliance") / n if n else math.nan,
        "degenerate": read.count("degenerate") / n if n else math.nan,
        **{"fell": fell, "rose": rose, "p": mcnemar(fell, rose) if refused else math.nan},
    }


def _refused(verdicts: Mapping[object, str]) -> float:
    read = [verdict for verdict in verdicts.values() if verdict != "unparsed"]
    return read.count("refusal") / len(read) if read else math.nan


def _by_id(rows: pd.DataFrame) -> dict[object, str]:
    return dict(zip(rows["id"], rows["verdict"], strict=True))
