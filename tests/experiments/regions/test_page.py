"""The page of a regions run, its sentences, and its chapter in a study's report."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.base import Result, load_run
from mechsafety.experiments.regions.findings import (
    main_findings,
    region_findings,
    told_setting,
)
from mechsafety.experiments.regions.page import region_chapters
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.experiment import run_study
from mechsafety.runs.folder import RunFolder, open_run, read_run
from mechsafety.statistics.pooled import Pooled, pooled
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
            run.write_table(table, f"{name}.csv")
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


def sentence(found: list[str], start: str) -> str:
    return next(s for s in found if s.startswith(start))


# -- the page ---------------------------------------------------------------------------------------


def test_page_has_a_block_for_every_table(regions: RunFolder) -> None:
    page = opened(regions.path).page()
    assert [b.name for b in page.blocks] == [
        *("tradeoff", "structure", "subspaces", "attacks", "links", "link-effects", "heads", "freezing")
    ]
    assert all(b.figures and b.text and b.table is not None for b in page.blocks)
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


def test_effect_beyond_the_random_control_is_reported_with_numbers() -> None:
    found = region_findings({"tradeoff": made.tradeoff()}, name="tiny", sweet_spot=made.SWEET_SPOT)[
        "tradeoff"
    ]
    assert found[0].startswith("tiny as it is refuses 100% [93%, 100%] of 50 harmful")
    assert found[1] == made.SWEET_SPOT["explanation"]
    told = sentence(found, "Set difference, p=1 q=1 (the sweet spot)")
    assert "the intervals lie apart in both" in told
    assert "mean of 3 draws" in told
    assert "perplexity to" in told


def test_no_effect_is_reported_where_intervals_meet() -> None:
    table = made.tradeoff()
    model = table[table["control"] == "model"].iloc[0]
    measures = [c for c in table if c.startswith(("refused", "complied", "degenerate"))]
    table.loc[table["control"] == "removed", measures] = model[measures].to_numpy(dtype=float)
    table.loc[table["control"].isin(["random", "matched"]), measures] = model[measures].to_numpy(dtype=float)
    told = sentence(
        region_findings({"tradeoff": table}, name="m", sweet_spot=None)["tradeoff"], "Set difference"
    )
    assert "no effect beyond chance was seen" in told
    assert "No effect on refusals was seen" in told
    assert "lie apart" not in told


def test_collapse_is_not_reported_as_unsafe() -> None:
    found = region_findings({"tradeoff": made.tradeoff()}, name="m", sweet_spot=None)["tradeoff"]
    assert "broken rather than unsafe" in sentence(found, "Top safety weights alone")
    # The control: a removal after which most answers are coherent.
    assert "broken" not in sentence(found, "Set difference")


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


def test_freezing_reports_what_differs_and_what_does_not() -> None:
    (told,) = region_findings({"freezing": made.freezing()}, name="m", sweet_spot=None)["freezing"]
    assert "after fine-tuning on 100 benign examples" in told.lower()
    assert re.search(r"safety rewound [^;]* \(less\)", told)
    assert re.search(r"random frozen [^;]* \(no difference seen\)", told)


def test_pooled_spans_the_intervals_of_draws() -> None:
    rows = pd.DataFrame({"refused": [0.2, 0.4], "refused_low": [0.1, 0.3], "refused_high": [0.3, 0.5]})
    found = pooled(rows, "refused")
    assert (found.value, found.low, found.high, found.draws) == (pytest.approx(0.3), 0.1, 0.5, 2)
    assert str(found) == "30% [10%, 50%]"
    assert str(pooled(rows.assign(refused=math.nan), "refused")) == "an unknown share"
    assert str(pooled(rows, "absent")) == "an unknown share"
    apart = Pooled(value=0.8, low=0.6, high=0.9, draws=1)
    assert found.differs_from(apart)
    assert not found.differs_from(Pooled(value=0.6, low=0.5, high=0.7, draws=1))
    # Unknown is not different.
    assert not found.differs_from(pooled(rows, "absent"))


def test_jaccard_is_reported_against_chance() -> None:
    table = made.structure(layers=3).assign(jaccard=0.25, chance=0.05 / 1.95)
    found = region_findings({"structure": table}, name="m", sweet_spot=None)["structure"]
    # Of two sets with Jaccard index 1/4 each shares 2/5 with the other, of random top-5 % sets 1/20.
    assert " 8.0 times " in found[0]
    assert "0.026" in found[0]
    assert len(found) == 2


def test_every_sentence_stands_once_on_the_page(regions: RunFolder) -> None:
    found = region_findings(opened(regions.path).tables, name="tiny+x", sweet_spot=made.SWEET_SPOT)
    page = opened(regions.path).page()
    shown = "\n".join([*page.findings, *(b.text for b in page.blocks)])
    assert all(shown.count(said) == 1 for sentences in found.values() for said in sentences)
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
    assert any("after fine-tuning" in s.lower() for s in chapter.findings)


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

    monkeypatch.setattr("mechsafety.experiments.base.run_experiment", measured)
    (study.path / "report.html").unlink(missing_ok=True)
    succeed("regions", "tiny+x", "--study", study.path)
    assert made.SWEET_SPOT["setting"] in (study.path / "report.html").read_text(encoding="utf-8")
