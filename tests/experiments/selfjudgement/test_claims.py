"""What self-judgement says of drawn answers: nothing false, and every control of every cell; verdicts that turn."""

from __future__ import annotations

import math
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechsafety.experiments.selfjudgement.findings import controls_table, findings
from mechsafety.experiments.selfjudgement.tables import two_by_two
from tests.claims.drawn import few
from tests.claims.evaluator import refuted, unsaid
from tests.claims.facts import Change, Count, Facts, Family, Key, RealChange, Value

SIDES = {
    "shuffled": "the same answer after another prompt",
    "length": "shortness of the answer alone",
    "untrained": "the highest of 3 untrained networks",
}
KNOWS = {"known": 4.0, "guessed": 0.0, "reversed": -4.0, "equal": math.nan}


def judgements(
    truth: str,
    knows: str,
    *,
    shown: str = "guessed",
    untrained: str = "guessed",
    form: str = "logit",
    arm: str = "original",
    seed: int = 0,
) -> pd.DataFrame:
    """Answers that an outside judge read (r, c, d: refusal, compliance, degenerate) and what the model said of them."""
    each = random.Random(seed)
    verdicts = [{"r": "refusal", "c": "compliance", "d": "degenerate", "u": "unparsed"}[t] for t in truth]

    def scores(kind: str) -> list[float]:
        gain = KNOWS[kind]
        if gain != gain:
            return [0.0] * len(truth)
        return [gain * (v == "refusal") + each.gauss(0, 1) - gain / 2 for v in verdicts]

    score = scores(knows)
    return pd.DataFrame(
        {
            **{"system": "s", "judge_arm": arm, "response_arm": "original", "form": form},
            **{"id": range(len(truth)), "verdict": verdicts, "score": score, "shuffled": scores(shown)},
            **{"length": [each.randint(1, 9) for _ in truth], "reversed": [-s for s in score]},
            **{"content_free": 0.0, "mass": 1.0},
            **{f"untrained_{i}": scores(kind) for i, kind in ((1, "guessed"), (2, untrained), (3, "equal"))},
            "said": [("unparsed" if i % 7 == 6 else "yes" if s > 0 else "no") for i, s in enumerate(score)],
            "said_reversed": ["no" if s > 0 else "yes" for s in score],
        }
    )


def facts_of(table: pd.DataFrame, judged: pd.DataFrame) -> Facts:
    """What the columns of each cell hold beside each control, and the judgements of words from the answers."""
    areas: dict[Key, Change | RealChange] = {}
    words: dict[Key, Change | RealChange] = {}
    levels, counts = {}, {}
    for row in table.to_dict(orient="records"):
        whose = "its own" if row["judge_arm"] == "original" else "the original model's"
        how = "by log-probability" if row["form"] == "logit" else "in words"
        subject = f"s, {row['judge_arm']}, about {whose} answers {how}"
        cell = judged[(judged["judge_arm"] == row["judge_arm"]) & (judged["form"] == row["form"])]
        read = cell[cell["verdict"].isin(["refusal", "compliance"])]
        by_score = ["yes" if s > 0 else "no" for s in read["score"]]
        said = by_score if row["form"] == "logit" else list(read["said"])
        own = Value(row["auc"], row["low"], row["high"], unread=sum(s not in ("yes", "no") for s in said))
        levels[subject, "AUROC"] = own
        known = own.value == own.value
        if not known:
            own = Value(math.nan, unread=own.unread)
            counts[subject, "answers are refusals"] = Count(list(read["verdict"] == "refusal"))
        labels = Value(0.5, row["auc_labels_low"], row["auc_labels_high"])
        sides = [("labels", "shuffled labels", labels)]
        if row["form"] == "logit":
            sides += [(name, state, Value(row[f"auc_{name}"])) for name, state in SIDES.items()]
        for name, state, beside in sides:
            measured = known and beside.value == beside.value
            p = row[f"p_{name}"]
            areas[subject, "AUROC", state] = RealChange(
                beside if measured else None,
                own,
                Value(own.value - beside.value) if measured else None,
                "label shuffles" if name == "labels" else "exchange of ranks",
                None if p != p else p,
                states=(state, "the answer itself"),
                why="no interval of the difference",
            )
        asked = read[np.array([s in ("yes", "no") for s in said], dtype=bool)]
        refused = (asked["verdict"] == "refusal").tolist()
        common = sum(refused) >= len(refused) / 2
        right = {
            i: None if s not in ("yes", "no") else (s == "yes") == (v == "refusal")
            for i, s, v in zip(read["id"], said, read["verdict"], strict=True)
        }
        always = {i: (v == "refusal") == common for i, v in zip(read["id"], read["verdict"], strict=True)}
        key = (subject, "answers judged as by the outside judge")
        words[key] = Change(always, right, ("always the commoner word", "its own word"))
    families = [Family("controls", list(areas)), Family("kinds of question", list(words))]
    return Facts({**areas, **words}, families, levels=levels, counts=counts)


def check(judged: pd.DataFrame) -> list[str]:
    """Nothing false of any cell; every level, control and judgement of words."""
    table = two_by_two(judged, seed=0)
    facts, said = facts_of(table, judged), findings(table)
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []
    assert len(said) == len(facts.changes) + len(facts.levels) + len(facts.counts)
    return said


@few(12)
@given(
    st.sampled_from(
        ["r" * 20 + "c" * 20, "rc" * 6, "rcd" * 10, "r" * 12, "c" * 3, "rc", "r", "d" * 5, "cccr" * 12]
    ),
    st.sampled_from(sorted(KNOWS)),
    st.sampled_from(sorted(KNOWS)),
    st.sampled_from(sorted(KNOWS)),
    st.integers(0, 99),
)
def test_drawn_answers(truth: str, knows: str, shown: str, untrained: str, seed: int) -> None:
    cells = [
        judgements(truth, knows, shown=shown, untrained=untrained, form=form, arm=arm, seed=seed + i)
        for i, (form, arm) in enumerate([("logit", "original"), ("text", "original"), ("text", "edited")])
    ]
    check(pd.concat(cells, ignore_index=True))


@pytest.mark.parametrize(
    ("knows", "word", "holds"),
    [("known", "a rise", "yes"), ("guessed", "no change", "no"), ("reversed", "a fall", "no")],
)
@pytest.mark.parametrize("form", ["logit", "text"])
def test_shuffled_labels_turn_the_verdict(knows: str, word: str, holds: str, form: str) -> None:
    """The control can fail: scores that know nothing of the outside verdict do not go beyond it."""
    judged = judgements("rc" * 30, knows, form=form)
    (said,) = [s for s in check(judged) if "shuffled labels" in s]
    assert f"{word} in AUROC" in said
    table = controls_table(two_by_two(judged, seed=0)).set_index("control")
    assert table.loc["shuffled labels", "holds beyond it"] == holds


@pytest.mark.parametrize(
    ("control", "beside"),
    [("shown", "the same answer after another prompt"), ("untrained", "the highest of 3 untrained networks")],
)
@pytest.mark.parametrize("as_much", ["known", "reversed"])
def test_a_control_that_knows_as_much_turns_the_verdict(control: str, beside: str, as_much: str) -> None:
    """The sign of an untrained network means nothing: one that separates the wrong way round knows as much."""
    alike = judgements("rc" * 30, "known", **{control: as_much})
    apart = judgements("rc" * 30, "known", **{control: "guessed"})
    check(alike)
    holds = [
        controls_table(two_by_two(judged, seed=0)).set_index("control").loc[beside, "holds beyond it"]
        for judged in (alike, apart)
    ]
    assert holds == ["yes" if (control, as_much) == ("shown", "reversed") else "no", "yes"]


def test_one_class_is_not_measurable() -> None:
    table = controls_table(two_by_two(judgements("r" * 20, "known"), seed=0)).set_index("control")
    assert table.loc["shuffled labels", "holds beyond it"] == "not measurable"
