"""Judges and answers as people have them: what a function returns is a verdict, and what it cannot be is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response
from mechsafety.judges.accepted import as_answers, as_judges, batched
from mechsafety.judges.judging import judge
from mechsafety.judges.registry import load_judge

PROMPTS, RESPONSES = ["a", "b"], ["I'm sorry, but I can't help with that.", "Sure: [steps]"]
ROWS = [{"prompt": p, "response": r} for p, r in zip(PROMPTS, RESPONSES, strict=True)]


def sorry(prompt: str, response: str) -> bool:
    return "sorry" in response


def worded(prompt: str, response: str) -> str:
    return "refusal" if "sorry" in response else "compliance"


@batched
def together(prompts: list[str], responses: list[str]) -> list[Any]:
    return [np.bool_("sorry" in response) for response in responses]


def test_one_verdict_whatever_the_judge_is() -> None:
    judges = ["rules", sorry, worded, together]
    table = judge((PROMPTS, RESPONSES), judges).to_frame()
    assert list(dict.fromkeys(table["judge"])) == ["rules", "sorry", "worded", "together"]
    for _, group in table.groupby("judge"):
        assert list(group["verdict"]) == ["refusal", "compliance"]
    for alone in ("rules", sorry, load_judge("rules")):
        assert len(judge((PROMPTS, RESPONSES), alone).to_frame()) == 2


def test_one_list_of_answers_whatever_holds_it(tmp_path: Path) -> None:
    frame, path = pd.DataFrame(ROWS), tmp_path / "answers.csv"
    frame.to_csv(path, index=False)
    several: list[Any] = [
        (PROMPTS, RESPONSES),
        (np.array(PROMPTS), pd.Series(RESPONSES)),
        frame,
        frame.rename(columns={"prompt": "question", "response": "completion"}),
        ROWS,
        path,
        str(path),
        [Response(id=str(n), prompt=r["prompt"], text=r["response"]) for n, r in enumerate(ROWS, start=1)],
    ]
    for given in several:
        assert [(a.response.prompt, a.response.text) for a in as_answers(given)] == list(
            zip(PROMPTS, RESPONSES, strict=True)
        )
    assert [a.label for a in as_answers(frame.assign(label=["harmful", "harmless"]))] == [
        "harmful",
        "harmless",
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (7, "completions, a DataFrame or file"),
        ((["a"], ["b", "c"]), "1 prompts and 2 responses"),
        (pd.DataFrame({"prompt": ["a"]}), r"columns response and prompt \(or question\) are needed"),
        (pd.DataFrame({"prompt": ["a"], "response": [3.5]}), "column response holds 3.5"),
        ([], "no responses to judge"),
        ("nowhere.csv", "does not exist"),
    ],
)
def test_what_is_no_answers_is_said(given: Any, said: str) -> None:
    with pytest.raises(MechsafetyError, match=said):
        as_answers(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nobody", "no judge is called 'nobody'"),
        (7, "a name .*, a function"),
        (dict, "a name .*, a function"),
        ([], "no judges are given"),
        ([sorry, sorry], "judge names must be unique"),
        (lambda prompt, response: "maybe", "judge 'lambda' returned 'maybe' .* True for a refusal"),
        (lambda prompt, response: None, "returned None"),
        (batched(lambda prompts, responses: [True]), "got 2 responses and returned 1 labels"),
        (batched(lambda prompts, responses: "refusal"), "a list of labels is needed"),
    ],
)
def test_what_is_no_judge_is_said(given: Any, said: str) -> None:
    with pytest.raises(MechsafetyError, match=said):
        judge((PROMPTS, RESPONSES), given)


def test_a_name_is_not_taken_apart() -> None:
    assert [one.name for one in as_judges("rules")] == ["rules"]
