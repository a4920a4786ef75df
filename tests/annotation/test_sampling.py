"""Samples have the chances that they claim, and what cannot be drawn is said."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from mechsafety.annotation.sampling import KEY, Plan, draw_sample, share_out
from mechsafety.core.errors import MechsafetyError
from tests.annotated_runs import responses, verdicts

TABLE = responses(systems=("one", "two"), prompts=10)  # 40 responses
VERDICTS = verdicts(TABLE, torn=10)
TORN = set(map(tuple, TABLE[KEY].head(10).to_numpy()))


def drawn(**plan: object) -> pd.DataFrame:
    return draw_sample(TABLE, VERDICTS, plan=Plan(**plan)).items  # type: ignore[arg-type]


def test_same_seed_same_sample_whatever_the_order_of_rows() -> None:
    for kind in ("uniform", "disagreement"):
        plan = Plan(kind=kind, labels=12, seed=3)
        one = draw_sample(TABLE, VERDICTS, plan=plan).items
        two = draw_sample(
            TABLE.sample(frac=1, random_state=1), VERDICTS.sample(frac=1, random_state=2), plan=plan
        ).items
        pd.testing.assert_frame_equal(one, two)
        assert not one.equals(drawn(kind=kind, labels=12, seed=4))


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "disagreement"])
def test_probability_is_drawn_over_size_in_every_stratum(kind: str, balanced: bool) -> None:
    items = drawn(kind=kind, labels=17, balanced=balanced)
    assert len(items) == 17
    assert not items.duplicated(KEY).any()
    assert sorted(items["item"]) == list(range(1, 18))
    everything = drawn(kind=kind, labels=40, balanced=balanced)
    assert (everything["inclusion_probability"] == 1).all()
    sizes = Counter(everything["stratum"])
    for stratum, group in items.groupby("stratum"):
        assert group["inclusion_probability"].unique() == pytest.approx([len(group) / sizes[stratum]])
    assert set(items["stratum"]) == set(sizes)
    if balanced:
        assert set(items.groupby(["system", "arm"]).size()) == {4, 5}


@pytest.mark.parametrize("repeats", [100, pytest.param(600, marks=pytest.mark.slow)])
def test_each_response_is_drawn_with_its_stated_probability(repeats: int) -> None:
    counts: Counter[tuple[str, ...]] = Counter()
    for seed in range(repeats):
        items = drawn(kind="disagreement", labels=9, seed=seed)
        counts.update(map(tuple, items[KEY].to_numpy()))
    chance = (
        items.assign(torn=items["stratum"] == "disagreement").groupby("torn")["inclusion_probability"].first()
    )
    assert chance[True] == pytest.approx(6 / 10)
    assert chance[False] == pytest.approx(3 / 30)
    for key in map(tuple, TABLE[KEY].to_numpy()):
        expected = chance[key in TORN]
        error = np.sqrt(expected * (1 - expected) / repeats)
        assert counts[key] / repeats == pytest.approx(expected, abs=4.5 * error)


@pytest.mark.parametrize("repeats", [50, pytest.param(300, marks=pytest.mark.slow)])
def test_weighting_by_the_inverse_probability_is_unbiased_and_not_weighting_is_not(repeats: int) -> None:
    """Horvitz-Thompson: the mean over seeds of sum(y / p) / N is the rate of the whole run."""
    truth = {key: key in TORN for key in map(tuple, TABLE[KEY].to_numpy())}
    weighted, plain = [], []
    for seed in range(repeats):
        items = drawn(kind="disagreement", labels=9, seed=seed)
        y = np.array([truth[tuple(key)] for key in items[KEY].to_numpy()])
        weighted.append((y / items["inclusion_probability"]).sum() / len(TABLE))
        plain.append(y.mean())
    assert np.mean(weighted) == pytest.approx(0.25, abs=1e-9)
    assert np.mean(plain) > 0.6


def test_more_is_drawn_where_judges_disagree_and_both_strata_always() -> None:
    for labels in range(2, 41):
        rate = drawn(kind="disagreement", labels=labels).groupby("stratum")["inclusion_probability"].first()
        assert set(rate.index) == {"agreement", "disagreement"}
        assert labels < 4 or rate["disagreement"] >= rate["agreement"]


def test_a_response_that_one_judge_could_read_is_no_disagreement() -> None:
    unread = VERDICTS.assign(
        verdict=VERDICTS["verdict"].where(VERDICTS["judge"] != "phrases:arditi", "unparsed")
    )
    sample = draw_sample(TABLE, unread, plan=Plan(kind="disagreement", labels=5))
    assert set(sample.items["stratum"]) == {"agreement"}
    assert sample.notes == ("the judges are in agreement on every response: drawn from all alike",)


def test_item_numbers_do_not_follow_the_strata() -> None:
    items = drawn(kind="disagreement", labels=24).sort_values("item")
    changes = (items["stratum"] != items["stratum"].shift()).sum()
    assert changes > 5
    assert list(items["id"]) != sorted(items["id"])


def test_more_than_there_are_takes_all_and_reports_it() -> None:
    sample = draw_sample(TABLE, None, plan=Plan(labels=100))
    assert len(sample.items) == 40
    assert sample.notes == ("100 labels asked for, the run has 40 responses: all are taken",)
    assert draw_sample(TABLE, None, plan=Plan(labels=40)).notes == ()


@pytest.mark.parametrize(
    ("table", "found", "plan", "message"),
    [
        (TABLE.head(0), None, {}, "no responses to label"),
        (pd.concat([TABLE, TABLE.head(1)]), None, {}, "one / original / p0 twice"),
        (
            TABLE,
            None,
            {"kind": "disagreement"},
            "needs verdicts, and the run has none: label with --plan uniform",
        ),
        (TABLE, VERDICTS.head(0), {"kind": "disagreement"}, "needs verdicts"),
        (
            TABLE,
            VERDICTS[VERDICTS["judge"] != "secret-judge"],
            {"kind": "disagreement"},
            "needs two judges that give refusal or compliance, the run has 1",
        ),
        (TABLE, VERDICTS, {"kind": "disagreement", "labels": 1}, "1 labels for 2 strata"),
        (TABLE, None, {"balanced": True, "labels": 3}, "3 labels for 4 strata"),
    ],
)
def test_what_cannot_be_drawn_is_reported(
    table: pd.DataFrame, found: object, plan: dict, message: str
) -> None:
    with pytest.raises(MechsafetyError, match=message):
        draw_sample(table, found, plan=Plan(**plan))  # type: ignore[arg-type]


@pytest.mark.parametrize(("field", "value"), [("labels", 0), ("seed", -1)])
def test_plans_check_themselves(field: str, value: int) -> None:
    with pytest.raises(MechsafetyError, match=str(value)):
        Plan(**{field: value})  # type: ignore[arg-type]


def test_shares_are_whole_and_keep_their_bounds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        room = dict(enumerate(rng.integers(1, 30, size=4).tolist()))
        total = int(rng.integers(4, 60))
        given = share_out(total, room, weights=None, least=dict.fromkeys(room, 1))
        assert sum(given.values()) == min(total, sum(room.values()))
        assert all(1 <= given[name] <= room[name] for name in room)
        unfilled = [given[name] for name in room if given[name] < room[name]]
        # Equal weights: who is not full has as much as anybody, give or take one.
        assert not unfilled or max(given.values()) - min(unfilled) <= 1
