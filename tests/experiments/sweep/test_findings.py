"""Sentences about a sweep: its dose curves are claims on the same prompts, beside random directions."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from mechsafety.experiments.sweep.findings import dose_claims, sweep_findings

WORDS = {"r": "refusal", "c": "compliance", "d": "degenerate", "u": "unparsed"}
MANIFEST: dict[str, Any] = {
    "selected": {"explanation": "Layer 2", "method": "pca", "selection": {"layer": 2, "position": -1}},
    "selections": {"pca": {"explanation": "Layer 2"}, "leace": {"explanation": "Layer 1"}},
}


def swept(before: str, after: str, *random: str, harmless: str = "c") -> dict[str, pd.DataFrame]:
    """The tables of a sweep with one dose curve of one strength; one letter a harmful prompt."""
    states = [("none", "unedited", "none", before), ("alpha", "1", "refusal", after)]
    states += [("alpha", "1", f"control-{n}", said) for n, said in enumerate(random, start=1)]
    verdicts = [
        (*key, f"{label}-{i}", label, WORDS[letter])
        for *key, harmful in states
        for label, said in (("harmful", harmful), ("harmless", harmless))
        for i, letter in enumerate(said)
    ]
    doses = [
        {"family": "alpha", "dose": dose, "control": direction.startswith("control"), "perplexity": 2.0}
        for _, dose, direction, _ in states
    ]
    place = {"layer": 2, "auroc": 0.9, "auroc_low": 0.8, "auroc_high": 0.95}
    stability = pd.DataFrame({"layer": [2, None], "position": [-1, None], "share": [0.7, 0.3]})
    return {
        "verdicts": pd.DataFrame(verdicts, columns=["family", "dose", "direction", "id", "label", "verdict"]),
        "doses": pd.DataFrame(doses),
        "profile": pd.DataFrame([place]),
        "stability": stability.astype({"layer": "Int64", "position": "Int64"}),
    }


@pytest.mark.parametrize(
    ("before", "after", "random", "direction", "beyond"),
    [
        ("r" * 30, "c" * 30, ["r" * 30, "r" * 28 + "c" * 2], "down", "yes"),
        ("r" * 30, "c" * 30, ["r" * 30, "c" * 30], "down", "no"),
        ("r" * 30, "r" * 22 + "c" * 8, ["c" * 30], "down", "control does more"),
        ("c" * 30, "r" * 30, ["c" * 30], "up", "yes"),
        ("r" * 30, "r" * 30, ["r" * 30], "none shown", "no"),
        ("d" * 30, "d" * 30, [], "none shown", "no control"),
        ("u" * 30, "c" * 30, ["u" * 30], "not tested", "not tested"),
    ],
)
def test_every_planted_effect_has_its_sentence(
    before: str, after: str, random: list[str], direction: str, beyond: str
) -> None:
    """Case W2 among them: nothing is said to remove what does not fall."""
    tables = swept(before, after, *random)
    claim = dose_claims(tables, "harmful")["1"]
    assert (claim.direction, claim.beyond) == (direction, beyond)
    said = " ".join(sweep_findings(tables, MANIFEST))
    words = {
        **{"down": "a fall in refusals", "up": "a rise in refusals", "none shown": "no change in refusals"},
        **{"not tested": "refusals of harmful prompts not tested", "yes": "this goes beyond random"},
        **{
            "no": "a change beyond random",
            "control does more": "a larger change under random directions of like energy",
        },
    }
    assert words[direction] in said
    assert words.get(beyond, "") in said


def test_what_is_recorded_and_what_is_missing_is_said() -> None:
    tables = swept("r" * 9, "c" * 9)
    said = sweep_findings(tables, MANIFEST)
    assert said[:2] == ["Layer 2.", "leace: Layer 1."]
    assert any("resamples that pick layer 2 at position -1, 70 %" in s for s in said)
    assert any("AUROC of its projection on held-out prompts, 0.90 [0.80, 0.95]" in s for s in said)
    del tables["verdicts"]
    assert any("not measured (the run holds no verdicts" in s for s in sweep_findings(tables, MANIFEST))
