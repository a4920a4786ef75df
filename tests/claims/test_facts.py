"""Tables become facts: sentences on them are true, and false where they name other rows."""

import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from tests.claims.evaluator import evaluate, refuted
from tests.claims.facts import change_facts, value_facts, verdict_facts
from tests.claims.recomputed import disagreement, holm

HARMFUL = "refusals of harmful prompts"
VERDICTS = {"r": "refusal", "c": "compliance", "d": "degenerate", "u": "unparsed"}


def test_tables_of_verdicts_become_facts() -> None:
    """Systems, controls, judges, doses and labels find their rows."""
    table = pd.DataFrame(
        [
            (system, arm, label, i, judge, VERDICTS[letter], draw, dose)
            for judge in ("rules", "text")
            for system, arm, label, letters, draw, dose in (
                ("s1", "original", "harmful", "r" * 20, None, None),
                ("s1", "edited", "harmful", ("c" if judge == "rules" else "r") * 20, None, "1"),
                ("s1", "edited", "harmless", "r" * 20, None, "1"),
                ("s1", "random", "harmful", "r" * 20, 1, "1"),
                ("s1", "random", "harmful", "r" * 20, 2, "1"),
                ("s2", "original", "harmful", "r" * 20, None, None),
                ("s2", "edited", "harmful", "r" * 20, None, "1"),
            )
            for i, letter in enumerate(letters)
        ],
        columns=["system", "arm", "label", "id", "judge", "verdict", "draw", "dose"],
    )
    measures = {HARMFUL: ("harmful", "refusal")}
    facts = verdict_facts(table, measures, controls={"random directions": "random"})
    every = "original 20 of 20 (100 % [84, 100])"
    test = "(-100 points [-100, -66]; exact McNemar, p < .0001, p < .0001 after Holm over 2 systems)"
    said = [
        f"s1: a fall in {HARMFUL}, {every}, edited 0 of 20 (0 % [0, 16]) {test}.",
        "s1: of 20 no longer refused, 20 answered.",
        "s1: this goes beyond random directions: 20 of 20 (100 % [84, 100]) and 20 of 20 (100 % [84, 100]) "
        "(fewer than under each, largest p < .0001).",
        f"s1: {HARMFUL}, by 2 judges: fall by 1 (rules); no change shown by 1 (text).",
        "rules and text: answers labelled differently, 20 of 140 (14 % [9, 21]), kappa 0.00.",
        f"All systems, edited: {HARMFUL} over 2 systems: lowest 0 of 20 (0 % [0, 16]) (s1), highest 20 of 20 (100 % [84, 100]) (s2).",
        f"s2, edited: {HARMFUL}, 20 of 20 (100 % [84, 100]).",
    ]
    kappa = disagreement(facts.answers["rules"], facts.answers["text"])[1]
    said[4] = said[4].replace("0.00", "undefined" if kappa is None else f"{kappa:.2f}")
    assert refuted(said, facts) == []
    dosed = verdict_facts(table, measures, doses=("doses", "dose"))
    assert evaluate(f"s1: {HARMFUL} over 1 doses: a fall is first shown at 1.", dosed) == "true"
    assert evaluate(f"s2: {HARMFUL} over 1 doses: a fall is first shown at 1.", dosed) == "false"


def test_tables_of_values_become_facts() -> None:
    table = pd.DataFrame(
        {
            "name": ["a", "b", "c", "d"],
            "value": [0.5, 0.5, 0.71, None],
            "low": [0.4, None, 0.6, None],
            "high": [0.6, None, 0.8, None],
        }
    )
    facts = value_facts(table, "AUROC", things="layers")
    sentence = (
        "All: AUROC over 3 layers: lowest 0.50 (a and b tie), highest 0.71 [0.60, 0.80] (c); 1 unknown."
    )
    assert evaluate(sentence, facts) == "true"
    assert evaluate(sentence.replace("a and b tie", "a"), facts) == "false"
    assert evaluate("c: AUROC, 0.71 [0.60, 0.80].", facts) == "true"
    assert evaluate("d: AUROC, 0.71 [0.60, 0.80].", facts) == "unsupported"


def test_tables_of_changes_become_facts() -> None:
    """Numbers are the table's; a row without p is left out of the family, and one without an interval is not tested."""
    table = pd.DataFrame(
        {"name": ["a", "b", "c"], "before": [1.0, 1.0, 1.0], "after": [1.31, 1.02, 2.0], "difference": [0.31, 0.02, 1.0],
         "difference_low": [0.2, -0.1, None], "difference_high": [0.4, 0.1, None], "p": [0.012, 0.7, None]}
    )  # fmt: skip
    facts = change_facts(table, "loss", unit="nats", test="paired t", over="rungs")
    rise = "a: a rise in loss, original 1 nats, edited 1.31 nats (+0.31 nats [0.2, 0.4]; paired t, p = .012, p = .024 after Holm over 2 rungs)."
    assert evaluate(rise, facts) == "true"
    assert evaluate(rise.replace("over 2", "over 3"), facts) == "false"
    none = "b: no change in loss shown, original 1 nats, edited 1.02 nats (+0.02 nats [-0.1, 0.1]; paired t, p = .7, p = .7 after Holm over 2 rungs)."
    assert evaluate(none, facts) == "true"
    assert evaluate(none.replace("no change in loss shown", "loss equal within 1 nats"), facts) == "false"
    stated = change_facts(table, "loss", unit="nats", test="paired t", over="rungs", margin=0.15)
    assert evaluate(none.replace("no change in loss shown", "loss equal within 0.15 nats"), stated) == "true"
    untested = "c: change in loss not tested (there is neither a test nor an interval), original 1 nats, edited 2 nats."
    assert evaluate(untested, facts) == "true"


@pytest.mark.parametrize(
    "ps", [[0.04], [0.01, 0.04, 0.03], [0.02, 0.02, 1.0, 0.5], [0.9, 0.001, 0.0, 0.001], [0.6, 0.7, 0.8]]
)
def test_holm_is_that_of_statsmodels(ps: list[float]) -> None:
    assert holm(ps) == pytest.approx(list(multipletests(ps, method="holm")[1]))
    assert holm([]) == []
