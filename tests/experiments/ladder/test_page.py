"""The page of a ladder, alone and beside others: every table has its block, and every text is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.ladder.tables import COMPARE, TABLES
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.result import Result
from mechsafety.pages.page import Page
from mechsafety.runs.folder import RunFolder, open_run, read_run
from tests import ladder_tables as made

HOSTILE = "<script>document.title='taken over'</script>"
REAL = ("smollm2-135m", "smollm2-135m+refusals", "smollm2-135m+rephrase", "smollm2-135m+dpo")
LAB = ("lab/ladder/refusals", "lab/ladder/rephrase", "lab/ladder/all")
COMPARED = ("cosines", "angles", "transfer")


def write_ladder(
    path: Path,
    systems: Sequence[str],
    *,
    tables: Mapping[str, pd.DataFrame] | None = None,
    beside: Sequence[Path] = (),
    compared: bool = True,
    finished: bool = True,
) -> RunFolder:
    found = made.tables(systems) if tables is None else tables
    asked = {
        **{"kind": "ladder", "systems": list(systems), "base": made.BASE, "prompts": "default"},
        **{"judge": "rules", "seed": 0, "max_new_tokens": 32, "limit": None},
        "beside": [str(p) for p in beside],
    }
    with open_run(path, config=asked) as run:
        for name, file in TABLES.items():
            run.write_table(found[name], file)
        if finished:
            facts = {s: {"layer": 15, "explanation": f"layer 15 for {s}"} for s in systems}
            left_out = {"compared": compared, "notes": ["Something was left out."]}
            run.record("ladder", {"systems": facts, "tables": list(TABLES), **left_out})
    if compared:
        with open_run(path / COMPARE, config={"kind": "compare", "checkpoints": list(systems)}) as run:
            for name in COMPARED:
                run.write_table(found[name], f"{name}.parquet")
            run.record("comparison", {"layer": 15, "tables": list(COMPARED), "notes": [], "bases": []})
    return read_run(path)


@cache
def opened(path: Path) -> Result:
    """A finished run, which does not change: its figures are drawn once."""
    return load_run(path)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_ladder(tmp_path_factory.mktemp("ladder") / "real", REAL)


def page_of(run: RunFolder) -> Page:
    return opened(run.path).page()


def figures_of(run: RunFolder) -> dict[str, go.Figure]:
    return opened(run.path).figures()


def without_library(page: str) -> str:
    return re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)


def test_page_has_a_block_for_every_question(ladder: RunFolder) -> None:
    page = page_of(ladder)
    titled = {b.name: b for b in page.blocks if b.title}
    assert list(titled) == [
        *("survival", "answers", "cost", "ranks", "cosines", "angles", "transfer", "links", "paper")
    ]
    assert sum(len(b.figures) for b in page.blocks) == len(opened(ladder.path).figures())
    assert all(b.table is not None for b in titled.values())
    assert "2 of 4 systems show a fall in refusals of harmful prompts" in page.findings[0]
    assert any("The paper's headline" in said for said in page.findings)
    assert page.subtitle == "smollm2-135m · refusals · rephrase · dpo"
    assert "Something was left out." in page.how
    assert "refusals: layer 15 for smollm2-135m+refusals" in page.how
    html = opened(ladder.path).report().read_text(encoding="utf-8")
    assert "Refusal after ablation, by rung" in html
    assert "Comparison with the paper" in html
    assert not re.search(r"(src|href)=[\"'](?!#)", without_library(html))
    assert "nan" not in re.findall(r"<td[^>]*>([^<]*)</td>", html)


def test_every_system_has_its_sentences_in_order(ladder: RunFolder) -> None:
    page = page_of(ladder)
    (said,) = [b.claims for b in page.blocks if b.name == "survival"]
    assert list(dict.fromkeys(s.split()[0] for s in said)) == ["smollm2-135m", "refusals", "rephrase", "dpo"]
    titles = {b.title for b in page.blocks}
    assert (
        set(page.headings) == {"Refusals against directions removed", "Comparison with the paper"} <= titles
    )


def test_ladders_beside_have_their_own_chapters(tmp_path: Path) -> None:
    lab = write_ladder(tmp_path / "lab", LAB)
    run = write_ladder(tmp_path / "real", REAL, beside=[lab.path])
    page = page_of(run)
    titles = [b.title for b in page.blocks if b.title]
    assert titles[0] == "real: Refusals against directions removed"
    assert "lab: Refusals against directions removed" in titles
    assert titles.count("Comparison with the paper") == 1
    assert len({b.name for b in page.blocks}) == len(page.blocks)
    assert {said.split(":")[0] for said in page.findings} == {"real", "lab"}
    (joint,) = [b.table for b in page.blocks if b.name == "ladders"]
    assert joint is not None
    assert set(joint["rung"]) == {"refusals", "rephrase"}
    figures = figures_of(run)
    assert {"ladder-overview", "lab-ladder-overview"} <= set(figures)
    assert page.subtitle == "real: smollm2-135m · refusals · rephrase · dpo — lab: refusals · rephrase · all"
    assert opened(run.path).report().is_file()


def test_folders_of_one_name_are_distinguished_by_their_parents(tmp_path: Path) -> None:
    lab = write_ladder(tmp_path / "lab" / "ladder", LAB)
    run = write_ladder(tmp_path / "real" / "ladder", REAL[1:3], beside=[lab.path])
    page = page_of(run)
    assert next(b.title for b in page.blocks if b.title) == "real/ladder: Refusals against directions removed"
    paths = opened(run.path).save_figures(form="html", out=tmp_path / "figures")
    assert tmp_path / "figures" / "lab-ladder-ladder-overview.html" in paths


def test_a_ladder_without_a_comparison_or_links(tmp_path: Path) -> None:
    tables = made.tables(REAL[1:2])
    run = write_ladder(tmp_path / "run", REAL[1:2], compared=False)
    assert [b.name for b in page_of(run).blocks if b.title] == [
        *("survival", "answers", "cost", "ranks", "links", "paper")
    ]
    bare = {**tables, "links": tables["links"].iloc[:0]}
    run = write_ladder(tmp_path / "bare", REAL[1:2], tables=bare, compared=False)
    assert "links" not in [b.name for b in page_of(run).blocks]


def test_a_ladder_without_rungs_of_the_paper_is_silent_on_it(tmp_path: Path) -> None:
    run = write_ladder(tmp_path / "run", ["smollm2-135m+dpo", "smollm2-135m+unlearn"])
    page = page_of(run)
    assert "paper" not in [b.name for b in page.blocks]
    assert not any("paper" in said for said in page.findings)


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    systems = (f"m+{HOSTILE}", "m+refusals")
    tables = made.tables(REAL[1:3])
    names = dict(zip(REAL[1:3], systems, strict=True))
    columns = ("system", "a", "b", "source", "target")
    hostile = {
        key: table.assign(**{c: table[c].map(names) for c in columns if c in table})
        for key, table in tables.items()
    }
    run = write_ladder(tmp_path / "run", systems, tables=hostile)
    html = opened(run.path).report().read_text(encoding="utf-8")
    assert HOSTILE not in html
    assert "&lt;" in html


def test_an_unfinished_ladder_has_no_page(tmp_path: Path) -> None:
    begun = write_ladder(tmp_path / "begun", REAL[1:3], compared=False, finished=False)
    with pytest.raises(MechsafetyError, match="not finished"):
        page_of(begun)
    run = write_ladder(tmp_path / "run", REAL[1:3], beside=[begun.path], compared=False)
    with pytest.raises(MechsafetyError, match="begun"):
        page_of(run)
    gone = write_ladder(tmp_path / "gone", REAL[1:3], beside=[tmp_path / "nowhere"], compared=False)
    with pytest.raises(MechsafetyError, match="nowhere"):
        figures_of(gone)
