"""The page of a regions run, its sentences, and its chapter in a study's report."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.regions.experiment import Regions
from mechsafety.experiments.regions.findings import (
    main_findings,
    region_findings,
    told_setting,
)
from mechsafety.experiments.regions.page import region_chapters
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.result import Result
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.experiment import run_study
from mechsafety.runs.folder import RunFolder, open_run, read_run
from tests import region_tables as made
from tests.cli.test_base import succeed
from tests.prompt_sets import small_prompts, write_csv

HOSTILE = "<script>document.title='taken over'</script>"


def write_regions(
    path: Path,
    tables: Mapping[str, pd.DataFrame],
    *,
    spot: dict[str, Any] | None = None,
    model: str = "tiny+x",
) -> RunFolder:
    asked = {"kind": "regions", "model": model, "method": "snip", "group": "matrix", "seed": 0}
    with open_run(path, config=asked) as run:
        for name, table in tables.items():
            run.write_table(table, Regions.tables[name])
        if spot is not None:
            run.record("sweet_spot", spot)
    return read_run(path)


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    path = tmp_path_factory.mktemp("regions") / "run"
    return write_regions(path, made.tables(layers=3), spot=made.SWEET_SPOT)


@cache
def opened(path: Path) -> Result:
    """A run that does not change any more: its figures are drawn once."""
    return load_run(path)


def without_library(page: str) -> str:
    return re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)


def steady(page: str) -> str:
    """A page without the random names that plotly gives its elements."""
    return re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "ID", page)


# -- the page ---------------------------------------------------------------------------------------


def test_page_has_a_block_for_every_table(regions: RunFolder) -> None:
    page = opened(regions.path).page()
    assert [b.name for b in page.blocks] == [
        *("tradeoff", "structure", "subspaces", "attacks", "links", "link-effects", "heads", "freezing"),
        "claims",
    ]
    assert all(b.figures and (b.text or b.claims) and b.table is not None for b in page.blocks[:-1])
    assert sum(len(b.figures) for b in page.blocks) == len(opened(regions.path).figures())
    html = opened(regions.path).report().read_text(encoding="utf-8")
    assert "Safety-critical weights" in html
    assert made.SWEET_SPOT["explanation"] in html
    assert not re.search(r"(src|href)=[\"'](?!#)", without_library(html))


@pytest.mark.parametrize("name", ["structure", "heads", "link_effects"])
def test_a_run_with_one_table_shows_that_alone(name: str, tmp_path: Path) -> None:
    run = write_regions(tmp_path / "run", {name: made.tables(layers=2)[name]})
    page = load_run(run.path).page()
    assert [b.name for b in page.blocks] == [name.replace("_", "-")]
    assert page.findings


def test_tables_survive_the_disk(regions: RunFolder) -> None:
    tables = load_run(regions.path).tables
    assert set(tables["tradeoff"].loc[tables["tradeoff"]["control"] == "model", "setting"]) == {""}
    assert set(tables["freezing"].loc[tables["freezing"]["n_examples"] == 0, "frozen"]) == {"none"}
    assert region_findings(tables, name="m", sweet_spot=None) == region_findings(
        made.tables(layers=3), name="m", sweet_spot=None
    )


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    tables = made.tables(layers=2)
    del tables["tradeoff"]
    tables["attacks"] = tables["attacks"].assign(system=HOSTILE)
    tables["link_effects"] = tables["link_effects"].assign(state=HOSTILE)
    tables["structure"] = tables["structure"].assign(kind=HOSTILE)
    tables["links"] = tables["links"].assign(removal=HOSTILE)
    tables["freezing"] = tables["freezing"].assign(frozen=HOSTILE)
    spot = {"removal": HOSTILE, "setting": HOSTILE, "explanation": HOSTILE}
    run = write_regions(tmp_path / "run", tables, spot=spot, model=f"m{HOSTILE}")
    html = load_run(run).report().read_text(encoding="utf-8")
    assert HOSTILE not in html
    assert "&lt;script&gt;document.title" in html


def test_figures_are_written_by_name(tmp_path: Path) -> None:
    run = write_regions(tmp_path / "run", {"heads": made.heads(layers=2), "attacks": made.attacks()})
    paths = load_run(run).save_figures(form="html", out=tmp_path / "figures")
    assert {p.stem for p in paths} == set(load_run(run.path).figures()) == {"region-heads", "region-attacks"}


def test_numbers_are_rounded_and_missing_ones_are_dashes(tmp_path: Path) -> None:
    table = made.tradeoff(draws=1).iloc[:3]
    table.loc[1, ["accuracy", "accuracy_low", "accuracy_high"]] = math.nan
    html = load_run(write_regions(tmp_path / "run", {"tradeoff": table})).report().read_text(encoding="utf-8")
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html)
    assert "–" in cells
    assert "nan" not in cells
    assert not [c for c in cells if re.fullmatch(r"-?\d+\.\d{4,}", c)]


# -- the sentences ----------------------------------------------------------------------------------


WORDS = {"r": "refusal", "c": "compliance", "d": "degenerate", "u": "unparsed"}


def moved(
    whole: str,
    removed: Sequence[str],
    *,
    random: Sequence[str] = (),
    matched: Sequence[str] = (),
    harmless: tuple[str, str] = ("c", "c"),
) -> dict[str, pd.DataFrame]:
    """The tables of one removal: one letter a harmful prompt, for the whole model and every draw."""
    states = [("none", "", "model", 0, whole, harmless[0])]
    for control, draws in (("removed", removed), ("random", random), ("matched", matched)):
        beside = harmless[1] if control == "removed" else harmless[0]
        states += [("set_difference", "p=1 q=1", control, n, said, beside) for n, said in enumerate(draws)]
    verdicts, rows = [], []
    for removal, setting, control, draw, harmful, other in states:
        said = made.outcomes(harmful.count("r"), harmful.count("d"))
        rows.append(
            {"removal": removal, "setting": setting, "control": control, "draw": draw, "share": 0.01}
            | {"p": 1.0, "q": 1.0, "r_u": math.nan, "r_s": math.nan}
            | said
            | made.utility(8.4, 0.0, 41)
        )
        for label, letters in (("harmful", harmful), ("harmless", other)):
            verdicts += [
                ("outcomes", removal, setting, control, draw, f"{label}-{i}", label, WORDS[letter])
                for i, letter in enumerate(letters)
            ]
    columns = ["part", *made.STATE, "id", "label", "verdict"]
    return {"tradeoff": pd.DataFrame(rows), "verdicts": pd.DataFrame(verdicts, columns=columns)}


def told(tables: Mapping[str, pd.DataFrame]) -> str:
    return " ".join(region_findings(tables, name="m", sweet_spot=None)["tradeoff"])


def test_refusals_that_rise_are_told_as_a_rise() -> None:
    """Case R1: 20/5/25 -> 45/5/0."""
    said = told(moved("r" * 20 + "d" * 5 + "c" * 25, ["r" * 20 + "d" * 5 + "r" * 25]))
    assert "harmful prompts: a rise in refusals, whole 20 of 50" in said
    assert "of 25 newly refused, 25 answered before" in said
    assert "degenerate" not in said


def test_what_became_of_refusals_is_counted_item_by_item() -> None:
    """Case R2: 25/25/0 -> 0/27/23, of which 23 refusals were answered; and nothing that changed."""
    said = told(moved("r" * 25 + "d" * 25, ["c" * 23 + "d" * 27]))
    assert "of 25 no longer refused, 23 answered and 2 degenerate" in said
    same = "r" * 20 + "d" * 20 + "c" * 10
    said = told(moved(same, [same]))
    assert "harmful prompts: no change in refusals shown" in said
    assert "no longer refused" not in said


def test_random_removals_that_do_more_are_told() -> None:
    """Case R5: 45 of 50, without the weights 25, without random ones 3."""
    said = told(moved("r" * 45 + "c" * 5, ["r" * 25 + "c" * 25], random=["r" * 3 + "c" * 47]))
    assert "harmful prompts: a fall in refusals, whole 45 of 50" in said
    assert "a larger change under random removals of the same number: 3 of 50" in said
    assert "0 of 1 settings show a fall in refusals of harmful prompts beyond every random removal" in said


@pytest.mark.parametrize(
    ("removed", "random", "matched", "words"),
    [
        (["c" * 40], ["r" * 40], ["r" * 39 + "c"], ["this goes beyond random removals of the same number:"]),
        (["c" * 40], ["r" * 40], ["c" * 40], ["a change beyond random removals of the same number and size"]),
        (["c" * 40, "r" * 40], ["r" * 40], [], ["no change in refusals", "a change beyond random removals"]),
        (["c" * 40], [], [], ["a fall in refusals"]),
        (["d" * 40], ["r" * 40], [], ["of 40 no longer refused, 40 degenerate"]),
        (["r" * 40], ["r" * 40], [], ["harmful prompts: no change in refusals shown"]),
        (
            ["u" * 40],
            ["r" * 40],
            [],
            ["harmful prompts: change in refusals not tested", "beyond random removals"],
        ),
    ],
)
def test_every_planted_effect_has_its_sentence(
    removed: list[str], random: list[str], matched: list[str], words: list[str]
) -> None:
    said = told(moved("r" * 40, removed, random=random, matched=matched))
    for word in words:
        assert word in said


def test_harmless_prompts_that_move_as_much_are_told() -> None:
    said = told(moved("r" * 40, ["c" * 40], harmless=("r" * 30, "c" * 30)))
    assert "harmless prompts: a fall in refusals, whole 30 of 30" in said


def test_the_least_sure_of_several_calibration_draws_is_told() -> None:
    said = told(moved("r" * 40, ["c" * 40, "c" * 10 + "r" * 30], random=["r" * 40]))
    assert "p=1 q=1, harmful prompts, draw 2 of 2: a fall in refusals" in said
    assert "exact McNemar, largest p of 2 draws, p = .002" in said


def test_a_run_without_verdicts_by_prompt_says_so(tmp_path: Path) -> None:
    tables = {name: table for name, table in made.tables(layers=2).items() if name != "verdicts"}
    found = region_findings(tables, name="m", sweet_spot=None)
    for name in ("tradeoff", "link_effects", "freezing"):
        assert any("holds no verdicts by prompt" in s for s in found[name])
    page = load_run(write_regions(tmp_path / "run", tables).path).page()
    assert "claims" not in [b.name for b in page.blocks]


def test_reported_setting_is_the_sweet_spot_else_the_most_coherent_compliance() -> None:
    table = made.tradeoff()
    assert told_setting(table, "set_difference", made.SWEET_SPOT) == "p=1 q=1"
    rows = table[(table["removal"] == "set_difference") & (table["control"] == "removed")]
    most = rows.groupby("setting")["complied"].mean().idxmax()
    assert told_setting(table, "set_difference", None) == most
    nowhere = {"removal": "set_difference", "setting": None, "explanation": "No setting meets the rule."}
    assert told_setting(table, "set_difference", nowhere) == most
    assert (
        "No setting meets the rule."
        in region_findings({"tradeoff": table}, name="m", sweet_spot=nowhere)["tradeoff"]
    )


def test_every_set_that_is_kept_stands_beside_random_weights() -> None:
    said = region_findings(made.tables(layers=2), name="m", sweet_spot=None)["freezing"]
    assert any(
        s.startswith("safety rewound, 100 benign examples") and "a fall in compliance" in s for s in said
    )
    assert any("this goes beyond random weights kept" in s for s in said)
    assert not any("random of that size" in s for s in said)


def test_removal_and_ablation_stand_beside_the_random_removal() -> None:
    said = " ".join(region_findings(made.tables(layers=2), name="m", sweet_spot=None)["link_effects"])
    assert "region removed, harmful prompts: a fall in refusals, whole 50 of 50" in said
    assert "region removed, harmful prompts: this goes beyond its random removal: 46 of 50" in said


def test_jaccard_is_reported_against_chance() -> None:
    table = made.structure(layers=3).assign(jaccard=0.25, chance=0.05 / 1.95)
    found = region_findings({"structure": table}, name="m", sweet_spot=None)["structure"]
    # Of two sets with Jaccard index 1/4 each shares 2/5 with the other, of random top-5 % sets 1/20.
    assert sum("8 times" in s for s in found) == 2
    assert "0.03" in found[1]


@pytest.mark.parametrize(("jaccard", "times"), [(1.0, "20 times"), (0.5, "13.3 times")])
def test_times_chance_are_of_shared_weights(jaccard: float, times: str) -> None:
    """Case K1."""
    table = made.structure(layers=2).assign(jaccard=jaccard, chance=0.05 / 1.95)
    found = region_findings({"structure": table}, name="m", sweet_spot=None)["structure"]
    assert any(f", {times}." in s for s in found)


def test_every_sentence_stands_once_on_the_page(regions: RunFolder) -> None:
    found = region_findings(opened(regions.path).tables, name="tiny+x", sweet_spot=made.SWEET_SPOT)
    page = opened(regions.path).page()
    shown = "\n".join([*page.findings, *(said for b in page.blocks for said in b.claims)])
    assert all(said in shown for sentences in found.values() for said in sentences)
    # Where there is nothing but details, they come first.
    assert main_findings({"heads": ["a"]}) == ["a"]
    assert main_findings({"heads": ["a"], "tradeoff": ["b"]}) == ["b"]


# -- the chapter ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study."""
    folder = tmp_path_factory.mktemp("study")
    csv = str(write_csv(small_prompts(6), folder / "small.csv"))
    fields: dict[str, Any] = {"prompts": csv, "anchors": csv, "limit": 3, "layer": 2, "controls": 0}
    fields |= {"judges": ("rules",), "selfjudge": False, "nll": False, "max_new_tokens": 4}
    config = StudyConfig(systems=(str(tiny_folder("llama")),), dtype="float32", device="cpu", **fields)
    return run_study(config, folder / "run").path


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(finished, tmp_path / "study")
    return read_run(tmp_path / "study")


def test_chapter_appears_only_with_a_finished_run(study: RunFolder) -> None:
    before = steady(load_run(study.path).report().read_text(encoding="utf-8"))
    assert "Safety-critical regions" not in before
    assert region_chapters(study) == []
    (study.path / "regions").mkdir()
    write_regions(study.path / "regions" / "begun", {})
    (study.path / "regions" / "notes").mkdir()
    assert steady(load_run(study.path).report().read_text(encoding="utf-8")) == before

    tables = {k: v for k, v in made.tables(layers=3).items() if k in ("tradeoff", "structure", "freezing")}
    write_regions(study.path / "regions" / "one", tables, spot=made.SWEET_SPOT, model=f"m{HOSTILE}")
    after = steady(load_run(study.path).report().read_text(encoding="utf-8"))
    assert '<a href="#regions">' in after
    assert made.SWEET_SPOT["explanation"] in after
    assert 'id="regions-one"' in after
    assert HOSTILE not in after
    # Three removals, a grid is no main figure, and two methods.
    (chapter,) = region_chapters(study)
    assert len(chapter.block.figures) == 5
    assert any("after fine-tuning" in s for s in chapter.findings)


def test_runs_of_another_kind_are_no_chapter(study: RunFolder) -> None:
    with open_run(study.path / "regions" / "sweep", config={"kind": "sweep"}) as run:
        run.write_table(made.heads(layers=2), "heads.csv")
    assert region_chapters(study) == []


def test_a_damaged_run_is_named(study: RunFolder) -> None:
    (study.path / "regions" / "bad").mkdir(parents=True)
    (study.path / "regions" / "bad" / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(MechsafetyError, match="bad"):
        load_run(study.path).report()


def test_the_command_writes_the_studys_report_again(
    study: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(_: Any, out: Path, **__: Any) -> Result:
        return load_run(write_regions(out, made.tables(layers=3), spot=made.SWEET_SPOT).path)

    monkeypatch.setattr("mechsafety.experiments.running.run_experiment", measured)
    (study.path / "report.html").unlink(missing_ok=True)
    succeed("regions", "tiny+x", "--study", study.path)
    assert made.SWEET_SPOT["setting"] in (study.path / "report.html").read_text(encoding="utf-8")
