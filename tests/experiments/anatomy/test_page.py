"""The page of an anatomy: a block a table, findings first, hostile text escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.anatomy.config import TABLES
from mechsafety.experiments.anatomy.experiment import model_names
from mechsafety.experiments.anatomy.findings import anatomy_findings
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.result import Result
from mechsafety.pages.page import Page
from mechsafety.runs.folder import RunFolder, open_run, read_run
from tests import anatomy_tables as made

HOSTILE = "<script>document.title='taken over'</script>"


def write_anatomy(
    path: Path,
    tables: Mapping[str, pd.DataFrame],
    *,
    tuned: str = "tiny+x",
    control: str | None = "tiny+benign",
) -> RunFolder:
    asked = {
        **{"kind": "anatomy", "base": "tiny", "tuned": tuned, "control": control, "prompts": "default"},
        **{"attacks": None, "judge": "rules", "limit": 12, "max_new_tokens": 32, "seed": 0},
    }
    with open_run(path, config=asked) as run:
        for name, table in tables.items():
            run.write_table(table, TABLES[name])
    return read_run(path)


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_anatomy(tmp_path_factory.mktemp("anatomy") / "run", made.tables(layers=2))


@cache
def opened(path: Path) -> Result:
    """A run that does not change any more: its figures are drawn once."""
    return load_run(path)


def page_of(run: RunFolder) -> Page:
    return opened(run.path).page()


def figures_of(run: RunFolder) -> dict[str, go.Figure]:
    return opened(run.path).figures()


def without_library(page: str) -> str:
    return re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)


def test_page_has_a_block_for_every_part_and_findings_first(anatomy: RunFolder) -> None:
    page = page_of(anatomy)
    assert [b.name for b in page.blocks] == [
        *(
            "controls",
            "clusters",
            "attacks",
            "sensitivity",
            "interpolation",
            "weights",
            "action",
            "reversal",
            "links",
            "ablation",
        )
    ]
    assert all(b.text and b.table is not None for b in page.blocks)
    assert [b.name for b in page.blocks if not b.figures] == ["controls"]
    assert sum(len(b.figures) for b in page.blocks) == len(figures_of(anatomy)) == 16
    assert page.subtitle == "base (tiny) · tuned (tiny+x) · control (tiny+benign)"
    assert list(page.headings) == [b.title for b in page.blocks[1:]]
    html = opened(anatomy.path).report().read_text(encoding="utf-8")
    assert "Anatomy of a fine-tuning" in html
    assert not re.search(r"(src|href)=[\"'](?!#)", without_library(html))
    assert any("judge rules; no verdict is a person's" in line for line in page.how)
    assert not any(line.startswith("Attacks") for line in page.how)


def test_every_sentence_stands_once_on_the_page(anatomy: RunFolder) -> None:
    page = page_of(anatomy)
    run = opened(anatomy.path)
    found = anatomy_findings(run.tables, names=model_names(run))
    shown = "\n".join([*page.findings, *(said for b in page.blocks for said in b.claims)])
    assert all(shown.count(said) == 1 for sentences in found.values() for said in sentences)


def test_tables_survive_the_disk(anatomy: RunFolder) -> None:
    run = load_run(anatomy.path)
    names = model_names(run)
    assert anatomy_findings(run.tables, names=names) == anatomy_findings(made.tables(layers=2), names=names)


@pytest.mark.parametrize("name", ["separation", "links"])
def test_a_run_with_one_table_shows_that_alone(name: str, tmp_path: Path) -> None:
    run = write_anatomy(tmp_path / "run", {name: made.tables(layers=2)[name]}, control=None)
    page = page_of(run)
    assert len(page.blocks) == 2
    assert page.findings
    assert page.subtitle == "base (tiny) · tuned (tiny+x)"


def test_an_unfinished_run_is_an_error(tmp_path: Path) -> None:
    run = write_anatomy(tmp_path / "run", {})
    for make in (page_of, figures_of):
        with pytest.raises(MechsafetyError, match="not finished"):
            make(run)


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    tables = {
        name: made.tables(layers=2)[name] for name in ("attack_tau", "interpolation", "links", "reversal")
    }
    tables["attack_tau"] = tables["attack_tau"].replace({"family": {"ood": HOSTILE}})
    tables["interpolation"] = tables["interpolation"].replace({"group": {"ood": HOSTILE}})
    tables["reversal"] = tables["reversal"].replace({"group": {"ood": HOSTILE}, "state": {"mlp": HOSTILE}})
    tables["links"] = tables["links"].replace({"kind": {"down": HOSTILE}})
    run = write_anatomy(tmp_path / "run", tables, tuned=f"m{HOSTILE}")
    html = load_run(run).report().read_text(encoding="utf-8")
    assert HOSTILE not in html
    assert "&lt;script&gt;document.title" in html


def test_figures_are_written_by_name(tmp_path: Path) -> None:
    run = write_anatomy(tmp_path / "run", {"ablation": made.ablation(), "norms": made.norms()})
    paths = load_run(run).save_figures(form="html", out=tmp_path / "figures")
    assert {p.stem for p in paths} == set(figures_of(run)) == {"anatomy-ablation", "anatomy-sensitivity"}


def test_missing_numbers_are_dashes(tmp_path: Path) -> None:
    table = made.separation(layers=2)
    table.loc[1, ["auroc", "auroc_low", "auroc_high"]] = math.nan
    html = (
        load_run(write_anatomy(tmp_path / "run", {"separation": table})).report().read_text(encoding="utf-8")
    )
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html)
    assert "–" in cells
    assert "nan" not in cells
