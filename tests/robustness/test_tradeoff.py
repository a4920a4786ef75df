"""The sweet spot is named by the stated rule, and only where a setting qualifies."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
from statsmodels.stats.proportion import confint_proportions_2indep

from mechsafety.core.errors import MechsafetyError
from mechsafety.robustness.tradeoff import against_control, sweet_spot
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
    assert "0.04 refused" in found.explanation
    assert "no random control" in found.explanation
    assert not found.controls


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


def test_the_difference_from_the_control_is_newcombes() -> None:
    rows = table(
        row("removed", "a", 0.04), row("random", "a", 0.70, draw=0), row("random", "a", 0.50, draw=1)
    )
    found = against_control(rows, removal="set_difference", setting="a")
    assert found is not None
    expected = confint_proportions_2indep(2, 50, 30, 50, method="newcomb", compare="diff")
    assert (found.low, found.high) == pytest.approx(expected)
    assert (found.value, found.n, found.draws) == (pytest.approx(-0.56), 50, 2)
    assert found.differs
    spot = sweet_spot(rows)
    assert spot.controls == {"random": found}
    assert "it differs from the random control" in spot.explanation
    # A control of as large weights that does what the removal does.
    both = sweet_spot(pd.concat([rows, table(row("matched", "a", 0.06)).iloc[1:]])).controls
    assert {name: one.differs for name, one in both.items()} == {"random": True, "matched": False}
    # The control: where random does the same, nothing differs.
    same = sweet_spot(table(row("removed", "a", 0.04), row("random", "a", 0.06)))
    assert not same.controls["random"].differs
    assert "does not differ" in same.explanation


def test_what_was_not_measured_has_no_difference() -> None:
    assert against_control(table(row("removed", "a", 0.1)), removal="set_difference", setting="a") is None
    unmeasured = table(row("removed", "a", 0.1), row("random", "a", 0.5, accuracy=math.nan))
    assert (
        against_control(
            unmeasured, removal="set_difference", setting="a", column="accuracy", count="harmful_n"
        )
        is None
    )


def test_wrong_tables_are_reported() -> None:
    with pytest.raises(MechsafetyError, match="lacks accuracy"):
        sweet_spot(table(row("removed", "a", 0.1)).drop(columns="accuracy"))
    with pytest.raises(MechsafetyError, match="0 rows of the unedited model"):
        sweet_spot(pd.DataFrame([row("removed", "a", 0.1)]))
    with pytest.raises(MechsafetyError, match="0 to 1"):
        sweet_spot(table(row("removed", "a", 0.1)), most_degenerate=10.0)
