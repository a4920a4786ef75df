"""The skeleton of experiments, on one that only counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response, Verdict
from mechsafety.experiments import judging, registry
from mechsafety.experiments.base import Experiment
from mechsafety.experiments.config import Config
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.result import Result
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.session import Session
from mechsafety.pages.page import Block, Page
from mechsafety.statistics.rates import wilson

ANSWERS = {"kept": ["I can't help with that.", "No, I won't."], "lost": ["Sure, here it is: one.", "No."]}


class ToyConfig(Config):
    states: tuple[str, ...] = ("kept", "lost")


class Toy(Experiment[ToyConfig]):
    kind = "toy"
    tables: ClassVar[Mapping[str, str]] = {"lengths": "lengths.csv"}
    answer_keys = ("state",)
    made: ClassVar[list[str]] = []
    drawn: ClassVar[list[Path]] = []

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        rows = [
            session.part(state, make=lambda state=state: self._state(session, state))
            for state in self.config.states
        ]
        return {"lengths": pd.concat(rows, ignore_index=True)}

    def _state(self, session: Session, state: str) -> pd.DataFrame:
        if state == "interrupted":
            raise KeyboardInterrupt
        self.made.append(state)
        rows = [
            {"state": state, "id": f"p{n}", "label": "harmful", "prompt": f"Prompt {n}", "response": text}
            for n, text in enumerate(ANSWERS.get(state, []))
        ]
        if rows:
            session.keep_answers(pd.DataFrame(rows), state)
        return pd.DataFrame({"state": [state], "n": [len(rows)]})

    @classmethod
    def figures(cls, result: Result) -> dict[str, go.Figure]:
        cls.drawn.append(result.path)
        return {"lengths": go.Figure()}

    @classmethod
    def findings(cls, result: Result) -> list[str]:
        return [f"{len(result.to_frame())} states"]

    @classmethod
    def page(cls, result: Result, figures: Mapping[str, go.Figure]) -> Page:
        block = Block(name="lengths", title="Lengths", figures=list(figures.values()))
        return Page(title="Toy", subtitle="", findings=result.findings, blocks=[block])


class Silent(Toy):
    """The same without answers."""

    def _state(self, session: Session, state: str) -> pd.DataFrame:
        return pd.DataFrame({"state": [state], "n": [0]})


class Always:
    """A judge that gives every answer one label."""

    def __init__(self, label: Any) -> None:
        self.name = f"always-{label}"
        self.label = label

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
        return [Verdict(id=r.id, judge=self.name, label=self.label) for r in responses]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "experiment_of", lambda _: Toy)
    monkeypatch.setattr(Toy, "made", [])
    monkeypatch.setattr(Toy, "drawn", [])


def judged_by(monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    monkeypatch.setattr(judging, "load_judge", lambda _: Always(label))
    monkeypatch.setattr(judging, "judge_sources", lambda _, **__: {})


def test_a_run_opens_again_as_it_was_left(tmp_path: Path) -> None:
    made = run_experiment(Toy(ToyConfig()), tmp_path / "run")
    again = load_run(str(tmp_path / "run"))
    pd.testing.assert_frame_equal(again.to_frame("lengths"), made.to_frame("lengths"))
    assert again.findings == ["2 states"]
    with pytest.raises(MechsafetyError, match="has no table 'none': it has lengths"):
        again.to_frame("none")


def test_an_interrupted_run_goes_on_and_makes_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ToyConfig(states=("kept", "interrupted", "lost"))
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Toy(config), tmp_path / "run")
    assert Toy.made == ["kept"]
    monkeypatch.setitem(ANSWERS, "interrupted", [])
    monkeypatch.setattr(Toy, "_state", lambda *_: pd.DataFrame({"state": ["later"], "n": [0]}))
    made = run_experiment(Toy(config), tmp_path / "run")
    assert list(made.to_frame()["state"]) == ["kept", "later", "later"]
    assert list(made.responses()["response"]) == ANSWERS["kept"]


def test_figures_are_drawn_once_for_files_and_page(tmp_path: Path) -> None:
    made = run_experiment(Toy(ToyConfig()), tmp_path / "run")
    made.publish()
    assert Toy.drawn == [tmp_path / "run"]
    assert (tmp_path / "run" / "figures" / "lengths.html").is_file()
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(("label", "rate"), [("refusal", 1.0), ("compliance", 0.0)])
def test_an_added_judge_reads_every_answer_in_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str, rate: float
) -> None:
    made = run_experiment(Toy(ToyConfig()), tmp_path / "run")
    judged_by(monkeypatch, label)
    found = made.judge("always").rates_by_judge()
    assert list(zip(found["state"], found["n"], strict=True)) == [("kept", 2), ("lost", 2)]
    assert set(found["refusal"]) == {rate}
    expected = wilson(round(rate * 2), 2)
    assert found["refusal_low"].tolist() == pytest.approx([expected.low] * 2)
    assert found["refusal_high"].tolist() == pytest.approx([expected.high] * 2)
    assert judging.FIGURE in load_run(tmp_path / "run").figures()
    assert "always" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert Toy.made == ["kept", "lost"]


def test_rates_of_a_real_judge_differ_between_states(tmp_path: Path) -> None:
    found = run_experiment(Toy(ToyConfig()), tmp_path / "run").judge("phrases:arditi").rates_by_judge()
    assert dict(zip(found["state"], found["refusal"], strict=True))["kept"] > 0


def test_judges_join_those_that_were_added_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run_experiment(Toy(ToyConfig()), tmp_path / "run")
    judged_by(monkeypatch, "refusal")
    made.judge("first")
    judged_by(monkeypatch, "unparsed")
    both = made.judge("second").rates_by_judge()
    assert list(both["judge"]) == ["first", "first", "second", "second"]
    assert list(both["unparsed"]) == [0, 0, 2, 2]
    assert both["refusal"].isna().tolist() == [False, False, True, True]
    with pytest.raises(MechsafetyError, match="judge 'first' has read the answers"):
        made.judge("first")


def test_a_run_without_answers_reports_it(tmp_path: Path) -> None:
    made = run_experiment(Silent(ToyConfig()), tmp_path / "run")
    with pytest.raises(MechsafetyError, match=r"keeps no answers \(responses.parquet is missing\)"):
        made.judge("rules")


def test_an_unfinished_run_has_no_tables(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Toy(ToyConfig(states=("interrupted",))), tmp_path / "run")
    with pytest.raises(MechsafetyError, match="not finished"):
        load_run(tmp_path / "run").to_frame()
