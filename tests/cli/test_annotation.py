"""``mechsafety annotate``: what it prints, and what it says of mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from mechsafety.annotation.sampling import PLANS
from mechsafety.annotation.store import STORE, open_store
from mechsafety.cli import main
from mechsafety.runs.folder import RunFolder
from tests.annotated_runs import make_run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", torn=None)


def annotate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["annotate", *map(str, arguments)])


def label_one(run: RunFolder) -> None:
    store, _ = open_store(run, asked={"labels": 4})
    item = store.enter("Ann").item
    assert item is not None
    store.answer("Ann", item, "degenerate")


def test_the_plans_of_the_option_are_the_plans_there_are() -> None:
    (option,) = [o for o in main.get_command(click.Context(main), "annotate").params if o.name == "kind"]
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == PLANS


def test_export_reports_what_it_wrote(run: RunFolder, tmp_path: Path) -> None:
    label_one(run)
    out = tmp_path / "labels.csv"
    plain = annotate(run.path, "--export", out)
    assert (plain.exit_code, plain.stdout.strip()) == (0, str(out))
    assert pd.read_csv(out)[["annotator", "label", "inclusion_probability"]].to_numpy().tolist() == [["Ann", "degenerate", 0.2]]  # fmt: skip
    scores = annotate(run.path, "--export", tmp_path / "labels.jsonl", "--json")
    assert json.loads(scores.stdout)["written"] == [str(tmp_path / "labels.jsonl")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--export", "labels.csv"], f"has no {STORE}: label it first with mechsafety annotate"),
        (["--export", "labels.csv", "--seed", "1"], "leave the options of the plan out"),
        (["--export", "labels.txt"], "must end in .csv or .jsonl"),
        (["--labels", "0"], "0 labels are asked for"),
        (["--seed", "-1"], "seed -1 is negative"),
        (["--plan", "disagreement"], "needs verdicts, and the run has none"),
        (["--annotator", "=1+1"], "a name has 1 to 40 letters"),
    ],
)
@pytest.mark.enable_socket
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_mistakes_end_in_one_line_and_leave_no_store(
    run: RunFolder, options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = annotate(run.path, "--no-browser", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (run.path / STORE).exists()
    assert not list(tmp_path.glob("labels.*"))


def test_not_a_run(tmp_path: Path) -> None:
    result = annotate(tmp_path)
    assert result.exit_code == 2
    assert "is not a run folder" in result.stderr
