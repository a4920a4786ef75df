"""What the headline claims about random directions is true of the rows that it was made from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from mechsafety.experiments.study.findings import control_sentences, study_findings
from mechsafety.statistics import control_tests, paired_tests, refusal_rates

VERDICTS = ("refusal", "compliance", "degenerate", "unparsed")
N = 12


def tables(arms: Sequence[Sequence[str]], energies: Sequence[float]) -> dict[str, pd.DataFrame]:
    """The original's verdicts, the edited model's, then those under every draw."""
    key = {"system": "m", "label": "harmful", "judge": "rules"}
    named = ["original", "edited", *(f"random-{k}" for k in range(1, len(arms) - 1))]
    rows = pd.DataFrame(
        [
            {**key, "arm": arm, "draw": draw, "id": f"p{i}", "verdict": verdict}
            for draw, (arm, verdicts) in enumerate(zip(named, arms, strict=True), start=-1)
            for i, verdict in enumerate(verdicts)
        ]
    )
    own = rows[rows["draw"] <= 0].drop(columns="draw")
    tested = control_tests(own[own["arm"] == "edited"], rows[rows["draw"] > 0])
    return {
        "rates": refusal_rates(own),
        "tests": paired_tests(own),
        "controls": tested.assign(judge="rules", energy=list(energies)[: len(tested)], energy_direction=0.1),
    }


def refusals(verdicts: Sequence[str]) -> int:
    return list(verdicts).count("refusal")


shares = st.sampled_from([0, 1, 5, 11, 12])
arm = st.one_of(
    st.builds(lambda k: ["refusal"] * k + ["compliance"] * (N - k), shares),
    st.lists(st.sampled_from(VERDICTS), min_size=N, max_size=N),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(arm, min_size=3, max_size=6), st.lists(st.sampled_from([0.0, 0.01, 0.1]), min_size=4, max_size=4)
)
def test_no_claim_is_refuted_by_the_verdicts(arms: list[list[str]], energies: list[float]) -> None:
    found = tables(arms, energies)
    manifest = {"config": {"judges": ["rules"]}, "systems": {"m": {"selection": {"rule": "auto"}}}}
    (text,) = study_findings(found, manifest)
    original, edited, *draws = arms
    controls = found["controls"]
    rate = found["rates"].set_index("arm")["rate"]
    for word, sign in (("fall", 1), ("rise", -1)):
        if f"the {word} goes beyond" in text:
            assert float(found["tests"]["p_holm"].iloc[0]) < 0.05
            assert sign * (rate["original"] - rate["edited"]) > 0
            assert (controls["p"] < 0.05).all()
            assert (sign * (controls["fell"] - controls["rose"]) > 0).all()
    if "of like energy" in text:
        ratio = controls["energy"] / 0.1
        assert ratio.between(0.66, 1.51).all()
    if all("unparsed" not in verdicts for verdicts in arms):
        # What is plainly beyond every draw is claimed.
        plain = refusals(original) >= 11 and refusals(edited) == 0
        if plain and all(refusals(verdicts) >= 11 for verdicts in draws):
            assert "the fall goes beyond" in text
    if not controls["p"].notna().all():
        assert "goes beyond" not in text


def test_nothing_is_claimed_where_nothing_was_drawn() -> None:
    refused, answered = ["refusal"] * N, ["compliance"] * N
    found = tables([refused, answered, refused], [0.1])
    before, after = (found["rates"].set_index("arm").loc[name] for name in ("original", "edited"))
    assert control_sentences(found["controls"].iloc[:0], before, after, 0.001) == ""
    # The change itself must be shown: without its test nothing goes beyond.
    assert "goes beyond" not in control_sentences(found["controls"], before, after, math.nan)
    assert "goes beyond" in control_sentences(found["controls"], before, after, 0.001)
