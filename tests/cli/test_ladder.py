"""The command ``mechsafety ladder``: what it prints, writes and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mechsafety import cli
from mechsafety.experiments.ladder.config import LadderConfig
from mechsafety.experiments.ladder.systems import LadderSystem
from tests.prompt_sets import small_prompts, write_csv

SMALL = ("--limit", 4, "--max-new-tokens", 3, "--compare-limit", 4, "--counts", "1,2", "--dtype", "float32")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["ladder", *(str(a) for a in arguments)])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_csv(small_prompts(6), tmp_path / "prompts.csv")


def test_it_measures_reports_and_goes_on_where_it_was_interrupted(
    tiny_folder: Callable[..., Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systems = (tiny_folder(), tiny_folder("llama", 1))
    options = (*systems, "--prompts", prompts, "--base", systems[0], *SMALL, "--out", tmp_path / "run")
    linked = LadderSystem.links

    def interrupted(_: LadderSystem) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LadderSystem, "links", interrupted)
    cut = call(*options)
    assert cut.exit_code == 130
    assert "the same command goes on" in cut.stderr
    monkeypatch.setattr(LadderSystem, "links", linked)
    done = call(*options)
    assert done.exit_code == 0, done.output
    assert f"[1/2] {systems[0]} · as it is" not in done.stderr  # it was there already
    assert f"[2/2] {systems[1]} · as it is" in done.stderr
    assert "harmful prompts refused, by directions removed" in done.stdout
    assert "without random ones" in done.stdout
    assert (tmp_path / "run" / "report.html").is_file()
    again = call(*options, "--json")
    facts = json.loads(again.stdout)
    assert {"run", "report", "systems", "findings", "notes", "tables"} == set(facts)
    assert {"survival", "tests", "breaking", "ranks", "links"} <= set(facts["tables"])
    assert len(facts["tables"]["survival"]) == 2 * (1 + 2 + 2 * 3) * 2
    assert facts["systems"][str(systems[0])]["explanation"].startswith("Layer ")


def test_what_is_wrong_is_one_line(tiny_folder: Callable[..., Path], prompts: Path, tmp_path: Path) -> None:
    system = tiny_folder()
    for arguments, said in (
        ((), "no system"),
        ((system, system), "named twice"),
        ((tmp_path / "nowhere",), "nowhere"),
        ((system, "--counts", "0,1"), "each 1 or more"),
        ((system, "--counts", "few"), "--counts 'few'"),
        ((system, "--prompts", tmp_path / "none.csv"), "none.csv"),
        ((system, "--prompts", prompts, "--judge", "nobody", "--counts", "1"), "nobody"),
        ((system, "--prompts", prompts), "8 directions of 6"),
        ((system, "--prompts", prompts, "--beside", tmp_path, "--counts", "1"), "not a run folder"),
        ((system, "--prompts", prompts, "--regions", tmp_path, "--counts", "1"), "not a run folder"),
        ((system, "--limit", 1), "limit"),
    ):
        result = call(*arguments, "--out", tmp_path / "run")
        assert result.exit_code == 2, arguments
        assert said in result.stderr, arguments
        assert result.stderr.count("\n") == 1, arguments


def test_help_names_the_defaults_that_there_are() -> None:
    shown = " ".join(call("--help").output.split())
    config = LadderConfig(systems=("s",))
    for default in (config.prompts, config.judge, config.max_new_tokens, config.compare_limit):
        assert f"default: {default}]" in shown
    assert f"default: {','.join(map(str, config.counts))}]" in shown
    assert "Example:" in shown
