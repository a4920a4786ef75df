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
from tests.claims.facts import Change, Facts, Family, Key, RealChange, Value

SIDES = {"shuffled": "the same answer after another prompt", "length": "shortness of the answer alone"}
KNOWS = {"known": 4.0, "guessed": 0.0, "reversed": -4.0, "equal": math.nan}


def judgements(
    truth: str,
    knows: str,
    *,
    shown: str = "guessed",
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
            "said": [("unparsed" if i % 7 == 6 else "yes" if s > 0 else "no") for i, s in enumerate(score)],
            "said_reversed": ["no" if s > 0 else "yes" for s in score],
        }
    )


def facts_of(table: pd.DataFrame, judged: pd.DataFrame) -> Facts:
    """What the columns of each cell hold, and, of words, the judgements themselves."""
    changes: dict[Key, Change | RealChange] = {}
    families: list[Family] = []
    facts, beside = Facts(), []
    for row in table.to_dict(orient="records"):
        whose = "its own" if row["judge_arm"] == "original" else "the original model's"
        how = "by log-probability" if row["form"] == "logit" else "in words"
        subject = f"s, {row['judge_arm']}, about {whose} answers {how}"
        known = row["auc"] == row["auc"]
        own = Value(row["auc"], row["low"], row["high"]) if known else None
        sides = [("labels", "shuffled labels", Value(0.5, row["auc_labels_low"], row["auc_labels_high"]))]
        if row["form"] == "logit":
            sides += [(name, state, Value(row[f"auc_{name}"])) for name, state in SIDES.items()]
        beside.append((subject, own, sides, row))
        cell = judged[(judged["judge_arm"] == row["judge_arm"]) & (judged["form"] == row["form"])]
        read = cell[cell["verdict"].isin(["refusal", "compliance"])]
        by_score = ["yes" if s > 0 else "no" for s in read["score"]]
        said = by_score if row["form"] == "logit" else list(read["said"])
        asked = read[np.array([s in ("yes", "no") for s in said], dtype=bool)]
        refused = (asked["verdict"] == "refusal").tolist()
        common = sum(refused) >= len(refused) / 2
        right = {
            i: None if s not in ("yes", "no") else (s == "yes") == (v == "refusal")
            for i, s, v in zip(read["id"], said, read["verdict"], strict=True)
        }
        always = {i: (v == "refusal") == common for i, v in zip(read["id"], read["verdict"], strict=True)}
        key = (subject, "answers judged as by the outside judge")
        changes[key] = Change(always, right, ("always the commoner word", "its own word"))
        families = [Family("kinds of question", list(changes))]
    facts = Facts(changes, families)
    return facts, beside


def check(judged: pd.DataFrame) -> list[str]:
    """Each sentence on one control is read against the table's own numbers; those on words against the answers."""
    table = two_by_two(judged, seed=0)
    facts, beside = facts_of(table, judged)
    said = findings(table)
    words = [s for s in said if "answers judged as by the outside judge" in s]
    assert refuted(words, facts) == []
    assert unsaid(words, facts) == []
    every = [(subject, state) for subject, _, sides, _ in beside for _, state, _ in sides]
    ps = {
        (subject, state): None if row[f"p_{name}"] != row[f"p_{name}"] else row[f"p_{name}"]
        for subject, _, sides, row in beside
        for name, state, _ in sides
    }
    for subject, own, sides, row in beside:
        unread = row["unparsed"]
        level = [s for s in said if s.startswith(f"{subject}: AUROC, ")]
        assert len(level) == 1
        for name, state, value in sides:
            mine = [s for s in said if s.startswith(subject + ": ") and state in s]
            assert len(mine) == 1
            if unread:  # the evaluator's values have none
                mine = [s.replace(f", {unread} not read", "") for s in mine]
            test = "label shuffles" if name == "labels" else "exchange of ranks"
            changes: dict[Key, RealChange] = {}
            for at in every:
                other = at != (subject, state)
                found = None if own is None or value.value != value.value else Value(own.value - value.value)
                before = None if own is None or value.value != value.value else value
                changes[(f"{at}", "AUROC") if other else (subject, "AUROC")] = RealChange(
                    Value(0.0) if other else before,
                    Value(0.0) if other else own,
                    Value(0.0) if other and ps[at] is not None else found,
                    test,
                    ps[at],
                    states=(state, "the answer itself"),
                    why="no interval of the difference",
                )
            assert refuted(mine, Facts(changes, [Family("controls", list(changes))])) == []
    return said


@few(12)
@given(
    st.sampled_from(
        ["r" * 20 + "c" * 20, "rc" * 6, "rcd" * 10, "r" * 12, "c" * 3, "rc", "r", "d" * 5, "cccr" * 12]
    ),
    st.sampled_from(sorted(KNOWS)),
    st.sampled_from(sorted(KNOWS)),
    st.integers(0, 99),
)
def test_drawn_answers(truth: str, knows: str, shown: str, seed: int) -> None:
    cells = [
        judgements(truth, knows, shown=shown, form=form, arm=arm, seed=seed + i)
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


def test_a_control_that_knows_as_much_turns_the_verdict() -> None:
    alike = judgements("rc" * 30, "known", shown="known")
    apart = judgements("rc" * 30, "known", shown="guessed")
    beside = "the same answer after another prompt"
    holds = [
        controls_table(two_by_two(judged, seed=0)).set_index("control").loc[beside, "holds beyond it"]
        for judged in (alike, apart)
    ]
    assert holds == ["no", "yes"]


def test_one_class_is_not_measurable() -> None:
    table = controls_table(two_by_two(judgements("r" * 20, "known"), seed=0)).set_index("control")
    assert table.loc["shuffled labels", "holds beyond it"] == "not measurable"
