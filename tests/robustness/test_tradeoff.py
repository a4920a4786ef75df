"""The sweet spot is named by the stated rule, and only where a setting qualifies."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.robustness.tradeoff import sweet_spot
from mechsafety.statistics.rates import wilson


def row(control: str, setting: str, refused: float, **more: Any) -> dict[str, Any]:
    n = 50
    interval = wilson(round(refused * n), n)
    return {
        "removal": "none" if control == "model" else "set_difference",
        "setting": setting,
        "control": control,
        "draw": 0,
        "share": 0.01,
        "harmful_n": n,
        "refused": refused,
        "refused_low": interval.low,
        "refused_high": interval.high,
        "degenerate": 0.0,
        "harmless_degenerate": 0.0,
        "accuracy": 0.6,
    } | more


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([row("model", "", 0.96, share=0.0), *rows])


def test_the_fewest_refusals_win_and_of_equals_the_smallest_removal() -> None:
    found = sweet_spot(
        table(
            row("removed", "a", 0.40, share=0.001),
            row("removed", "b", 0.04, share=0.008),
            row("removed", "c", 0.00, share=0.020),
        )
    )
    # b lies within the interval of c, which reaches to 0.07; a does not.
    assert found.row is not None
    assert found.row["setting"] == "b"
    assert "4 % refused" in found.explanation


def test_a_setting_that_breaks_the_model_does_not_qualify() -> None:
    broken = (
        {"degenerate": 0.2},
        {"harmless_degenerate": 0.2},
        {"accuracy": 0.5},
        {"accuracy": math.nan},
        {"degenerate": math.nan},
    )
    good = row("removed", "good", 0.30)
    for damage in broken:
        found = sweet_spot(table(good, row("removed", "bad", 0.0, **damage)))
        assert found.row is not None
        assert found.row["setting"] == "good"
        alone = sweet_spot(table(row("removed", "bad", 0.0, **damage)))
        assert alone.row is None
        assert alone.explanation.startswith("Sweet spot: no setting qualifies")
    # The control: without the damage it would win.
    spot = sweet_spot(table(good, row("removed", "bad", 0.0)))
    assert spot.row is not None
    assert spot.row["setting"] == "bad"
    # And so it does where the rule allows the damage.
    lax = sweet_spot(table(good, row("removed", "bad", 0.0, accuracy=0.5)), most_accuracy_lost=0.1)
    assert lax.row is not None
    assert lax.row["setting"] == "bad"


def test_a_setting_that_leaves_the_refusals_is_no_sweet_spot() -> None:
    assert sweet_spot(table(row("removed", "a", 0.92))).row is None
    assert sweet_spot(table(row("random", "a", 0.0))).row is None


def test_draws_are_averaged() -> None:
    found = sweet_spot(
        table(
            *(row("removed", "a", refused, draw=i) for i, refused in enumerate((0.0, 0.2, 0.4))),
            *(row("removed", "b", 0.3, draw=i, share=0.02) for i in range(3)),
        )
    )
    assert found.row is not None
    assert found.row["refused"] == pytest.approx(0.2)
    assert found.row["draws"] == 3


def test_a_setting_that_refuses_less_but_not_below_the_bound_is_not_said_to_refuse_no_less() -> None:
    """Case R3: 44 -> 39 of 50, coherent and useful."""
    found = sweet_spot(pd.DataFrame([row("model", "", 0.88), row("removed", "a", 0.78)]))
    assert found.row is None
    bound = wilson(44, 50).low
    assert f"none of those has refusals below {100 * bound:.4g} %" in found.explanation
    assert "refuses less" not in found.explanation


def test_what_lies_below_the_bound_reads_so() -> None:
    """Refusals of .757 under a bound of .7619, which two digits would call .76 both."""
    found = sweet_spot(
        pd.DataFrame([row("model", "", 0.88), row("removed", "a", wilson(44, 50).low - 0.001)])
    )
    assert found.row is not None
    below, bound = (
        float(x) for x in re.findall(r"([\d.]+) % refused.*refusals below ([\d.]+) %", found.explanation)[0]
    )
    assert below < bound


def test_a_share_of_the_ranks_is_not_compared_with_one_of_the_weights() -> None:
    """Case R4: 2 % of the ranks and 3 % of the weights, both as good."""
    ranks = row("removed", "r", 0.02, share=0.02) | {"removal": "orthogonal_projection"}
    weights = row("removed", "w", 0.0, share=0.03)
    found = sweet_spot(table(ranks, weights))
    assert found.row is not None
    assert found.row["setting"] == "w"
    assert "3 % of the weights, the smallest share of 1 settings of weights" in found.explanation
    found = sweet_spot(table(ranks | {"refused": 0.0}, weights | {"refused": 0.02}))
    assert "2 % of the ranks" in found.explanation
    assert "weights" not in found.explanation


def test_what_random_removals_do_is_no_part_of_the_sweet_spot() -> None:
    """Case R5: what they do is told by the claims of the run."""
    found = sweet_spot(table(row("removed", "a", 0.5), row("random", "a", 0.06)))
    assert "random" not in found.explanation


def test_wrong_tables_are_reported() -> None:
    with pytest.raises(MechsafetyError, match="lacks accuracy"):
        sweet_spot(table(row("removed", "a", 0.1)).drop(columns="accuracy"))
    with pytest.raises(MechsafetyError, match="0 rows of the unedited model"):
        sweet_spot(pd.DataFrame([row("removed", "a", 0.1)]))
    with pytest.raises(MechsafetyError, match="0 to 1"):
        sweet_spot(table(row("removed", "a", 0.1)), most_degenerate=10.0)
