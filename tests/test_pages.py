"""Findings on a page: every sentence whole and once, under the subject that it begins with."""

from __future__ import annotations

import pandas as pd

from mechsafety.pages.page import Page, by_subject, grouped_findings, rounded, under_headings

SAID = [
    "m, harmful prompts: a fall.",
    "m, harmful prompts: of 3, 3 answered.",
    "m+x: no change.",
    "m: energy.",
    "rules and other: kappa 0.5.",
    "m+x, harmless prompts: a rise.",
]


def test_findings_stand_under_the_subject_that_they_begin_with() -> None:
    found = by_subject(SAID, ["m", "m+x"], others="Judges")
    shown = {subject: [said.text for said in group] for subject, group in found}
    assert shown == {"m": [SAID[0], SAID[1], SAID[3]], "m+x": [SAID[2], SAID[5]], "Judges": [SAID[4]]}
    assert sorted(text for texts in shown.values() for text in texts) == sorted(SAID)
    assert [said.follows for _, group in found for said in group] == [False, True, False, False, False, False]


def test_without_subjects_they_are_one_list() -> None:
    ((subject, group),) = by_subject(SAID, [], others="Others")
    assert (subject, [said.text for said in group]) == ("", SAID)
    assert by_subject([], ["m"], others="Others") == []


def test_findings_of_blocks_stand_under_the_headings_of_these() -> None:
    words = {"b": {"title": "Second"}, "a": {"title": "First"}}
    given = under_headings({"a": SAID[:2], "b": SAID[2:]}, words)
    page = Page(title="", subtitle="", blocks=[], **given)
    found = grouped_findings(page)
    assert [(title, [said.text for said in group]) for title, group in found] == [
        ("First", SAID[:2]),
        ("Second", SAID[2:]),
    ]
    assert [said.follows for said in found[0][1]] == [False, True]


def test_numbers_of_a_page_are_0_1_and_alpha_only_where_exact() -> None:
    values = [0.0, 1.0, 0.9996, 0.0004, 1.7e-15, 0.0499998, -0.9999, 0.12345, float("nan")]
    shown = [row["p"] for row in rounded(pd.DataFrame({"p": values}))]
    assert shown[:2] == [0.0, 1.0]
    assert all(0 < abs(v) < 1 for v in shown[2:7])
    assert shown[5] < 0.05
    assert shown[7:] == [0.123, "–"]
