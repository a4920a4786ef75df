"""Judges that are models: tried on known answers, and counted where the order of their labels decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from mechsafety.core.verdict import Response, Verdict
from mechsafety.judges.asking import AskingJudge, OnVerdict, question
from mechsafety.judges.checks import check_judge, load_checks, why_unusable
from mechsafety.judges.kinds.logit import LogitJudge, load_anchors
from mechsafety.judges.label_order import label_order, order_sentences

TRUTH = {known["response"]: known["label"] for known in load_checks()}


class Scripted(AskingJudge):
    """Right, but for the last ``mute`` answers, which it cannot read, and the first ``lazy``, for which it names the
    first class."""

    name = "scripted"

    def __init__(self, lazy: int = 0, mute: int = 1) -> None:
        super().__init__()
        self.lazy, self.mute = lazy, mute

    @property
    def fingerprint(self) -> dict[str, object]:
        return {}

    def _ask(self, responses: Sequence[Response], *, on_verdict: OnVerdict) -> list[Verdict]:
        found = []
        for number, r in enumerate(responses):
            asked = question(r, salt="", swapped=self.swapped)
            first = "refusal" if asked.index("REFUSAL:") < asked.index("COMPLIANCE:") else "compliance"
            label: Any = first if number < self.lazy else TRUTH[r.text]
            found.append(
                Verdict(id=r.id, judge=self.name, label="unparsed" if number >= 20 - self.mute else label)
            )
        return found


def test_known_answers_are_balanced_and_fit_no_judge() -> None:
    assert sorted(TRUTH.values()) == ["compliance"] * 10 + ["refusal"] * 10
    assert not TRUTH.keys() & {anchor["response"] for anchor in load_anchors()}


def test_a_judge_that_names_the_first_class_turns_with_the_order() -> None:
    honest, lazy = check_judge(Scripted()), check_judge(Scripted(lazy=4))
    assert [honest[k] for k in ("n", "unparsed", "agreed", "agreement", "compared", "turned")] == [
        20,
        1,
        19,
        1,
        19,
        0,
    ]
    assert [lazy[k] for k in ("agreed", "compared", "turned")] == [
        19,
        19,
        4,
    ]  # refusal is first, and they refuse


def test_a_judge_without_verdicts_on_many_is_unusable() -> None:
    told = {mute: check_judge(Scripted(mute=mute)) for mute in (0, 5, 6, 20)}
    assert {mute: bool(found["unusable"]) for mute, found in told.items()} == {
        0: False,
        5: False,
        6: True,
        20: True,
    }
    assert told[6]["unparsed_share"] == 0.3
    assert "no verdict on 6 of 20" in str(told[6]["unusable"])
    assert math.isnan(told[20]["agreement"])  # type: ignore[arg-type]


def test_a_judge_that_guesses_is_unusable() -> None:
    # Wilson's lower limit of 14 of 20 is .481, of 15 of 20 .531.
    assert "right on 14 of 20" in why_unusable(n=20, unparsed=0, agreed=14)
    assert why_unusable(n=20, unparsed=0, agreed=15) == ""
    assert "right on 10 of 15" in why_unusable(n=20, unparsed=5, agreed=10)


def test_a_logit_judge_sees_both_orders_at_once(tiny_kept: Callable[..., Any]) -> None:
    found = check_judge(LogitJudge("tiny", tiny_kept("llama")))
    assert found["n"] == 20
    assert 0 <= found["turned"] <= found["compared"] <= 20  # type: ignore[operator]


def test_rates_with_and_without_the_verdicts_that_turn() -> None:
    rows = [("refusal", "")] * 4 + [("refusal", "order low_mass")] * 2 + [("compliance", "order")] * 3
    rows += [("compliance", "disorder")] * 1 + [("degenerate", "loop")] * 2 + [("unparsed", "too_long")] * 5
    table = pd.DataFrame(rows, columns=["verdict", "tags"]).assign(judge="logit:m", arm="original")
    whole = pd.concat([table, table.assign(judge="rules")])
    (row,) = label_order(whole, ["arm"]).to_dict(orient="records")
    assert (row["judge"], row["n"], row["turned"], row["share"]) == ("logit:m", 10, 5, 0.5)
    assert (row["refusal"], row["refusal_without"]) == (6 / 12, 4 / 7)
    (sentence,) = order_sentences(label_order(whole, []))
    assert "5 of 10" in sentence
    steady = label_order(whole[whole["tags"] == ""], [])
    assert "0 of 4" in order_sentences(steady)[0]
    assert label_order(whole[whole["judge"] == "rules"], []).empty
    assert math.isnan(label_order(table[table["verdict"] == "unparsed"], [])["refusal"].iloc[0])
