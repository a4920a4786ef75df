"""``mechsafety anatomy`` on a lab pair: page, figures and JSON, resumption, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import click
import pandas as pd
import pytest

from mechsafety.cli.base import main
from mechsafety.experiments.anatomy.config import TABLES, AnatomyConfig
from mechsafety.experiments.anatomy.experiment import read_anatomy
from mechsafety.experiments.config import ChatConfig
from mechsafety.experiments.lab.models import pretrained, tuned
from mechsafety.lab.presets import preset
from mechsafety.lab.prompt_sets import lab_prompts
from mechsafety.lab.rules import Rules
from mechsafety.lab.vocabulary import Vocabulary
from tests.cli.test_base import call, succeed
from tests.conftest import save_tiny


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab model, a safety tuning and a benign one of it, with their prompts, attacks and answer key."""
    folder = tmp_path_factory.mktemp("lab")
    quick = preset("quick")
    vocabulary = Vocabulary(rules=Rules(size=quick.rules, seed=0))
    pretrained(quick, vocabulary, folder / "base", rung="raw", seed=0, checkpoints=False)
    for name in ("ssft", "benign"):
        tuned(
            quick,
            vocabulary,
            folder / "base",
            folder / name,
            tuning=name,
            schedule=quick.tunings[name],
            seed=0,
        )
    made = lab_prompts(vocabulary, fit=6, validation=4, report=6, attacks=2, seed=0)
    for name, table in (("prompts", made.prompts), ("attacks", made.attacks), ("key", made.key)):
        table.to_csv(folder / f"{name}.csv", index=False)
    return folder


def asked(lab: Path, out: Path, *more: object) -> list[object]:
    return [
        *("anatomy", lab / "base", lab / "ssft", "--control", lab / "benign"),
        *("--prompts", lab / "prompts.csv", "--attacks", lab / "attacks.csv"),
        *("--judge", f"key:{lab / 'key.csv'}", "--max-new-tokens", 10, "--dtype", "float32"),
        *("--alphas", "0,0.5,1,1.5", "--ranks", 1),
        *("--out", out, *more),
    ]


def test_a_lab_pair_to_its_page(lab: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    facts = succeed(*asked(lab, out, "--json"))
    assert Path(facts["run"]) == out
    assert Path(facts["report"]).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list((out / "figures").glob("anatomy-*.html"))
    assert set(facts["tables"]) == {n for n, file in TABLES.items() if file.endswith(".csv")}
    assert {"clusters", "weights", "action", "reversal"} <= set(facts["findings"])
    tables = read_anatomy(out).tables
    for name, file in TABLES.items():
        assert (out / file).is_file()
        assert len(tables[name]), name
    attacks = set(pd.read_csv(lab / "attacks.csv")["category"])
    assert set(tables["interpolation"]["group"]) == {"safe", "unsafe"} | attacks
    assert set(tables["attack_tau"]["family"]) == attacks | {"all"}

    # What is finished is told again without being made again.
    changed = {path: path.stat().st_mtime_ns for path in (out / "parts").rglob("*") if path.is_file()}
    shown = succeed(*asked(lab, out))
    assert f"report: {out / 'report.html'}" in shown
    for sentence in facts["findings"]["clusters"]:
        assert sentence in shown
    assert {path: path.stat().st_mtime_ns for path in changed} == changed


def test_some_parts_of_a_lab_pair(lab: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    facts = succeed(
        *asked(lab, out, "--parts", "weights, sensitivity", "--maps", "all", "--limit", 2, "--json")
    )
    assert set(facts["tables"]) == {"weight_changes", "action", "action_ratios", "sensitivity"}
    assert {row["kind"] for row in facts["tables"]["weight_changes"]} == {"q", "k", "v", "o", "up", "down"}
    assert {row["n"] for row in facts["tables"]["sensitivity"]} == {2}
    said = call(*asked(lab, out, "--parts", "weights", "--limit", 2))
    assert said.exit_code == 2
    assert "has another configuration" in said.stderr


def test_every_option_is_one_of_the_configuration() -> None:
    command = main.get_command(click.Context(main), "anatomy")
    options = {p.name for p in command.params} - {"as_json", "out", "allow_other_versions"}
    assert options <= {*AnatomyConfig.model_fields, *ChatConfig.model_fields}
    maps = next(p for p in command.params if p.name == "maps")
    assert list(maps.type.choices) == list(get_args(AnatomyConfig.model_fields["maps"].annotation))  # type: ignore[attr-defined]


def test_mistakes_are_reported_in_one_line(lab: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", "gpt2")
    (tmp_path / "empty").mkdir()
    only = tmp_path / "harmful.csv"
    pd.read_csv(lab / "prompts.csv").query("label == 'harmful'").to_csv(only, index=False)
    unsplit = tmp_path / "unsplit.csv"
    pd.read_csv(lab / "prompts.csv").drop(columns="split").to_csv(unsplit, index=False)
    out = tmp_path / "run"
    for more, message in (
        (["--parts", "clusters,nothing"], "'nothing' is not one of clusters, weights"),
        (["--attacks", "gone.csv"], "'gone.csv' does not exist"),
        (["--prompts", only], "no harmless prompts in split 'fit'"),
        (["--prompts", unsplit], "no harmful prompts in split 'fit'"),
        (["--judge", "key:gone.csv"], "'gone.csv' does not exist"),
        (["--control", other], "must be of one architecture"),
        (["--control", lab / "ssft"], "three different models"),
        (["--limit", 1], "limit"),
        (["--max-new-tokens", 0], "max_new_tokens"),
    ):
        told(message, *asked(lab, out, *more))
    given = asked(lab, out)[3:]
    told("three different models", "anatomy", lab / "base", lab / "base", *given)
    told("holds no config.json", "anatomy", lab / "base", tmp_path / "empty", *given)
    told("must be of one architecture", "anatomy", lab / "base", other, *given)
    assert not out.exists()


def told(message: str, *arguments: object) -> None:
    result = call(*arguments, "--json")
    assert result.exit_code == 2, (result.output, arguments)
    error = json.loads(result.stdout)["error"]
    assert message in error
    assert result.stderr.splitlines()[-1] == f"error: {error}"
    assert "Traceback" not in result.output
