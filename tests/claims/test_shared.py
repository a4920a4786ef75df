"""What is made of the tables of a run is made once, and of other tables anew."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mechsafety.claims.shared import RunTables, filled, once
from mechsafety.experiments.anatomy import contrasts as of_anatomy
from mechsafety.experiments.ladder import contrasts as of_ladder
from mechsafety.experiments.regions import contrasts as of_regions
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.result import Result
from tests import anatomy_tables, region_tables
from tests.experiments.anatomy.test_page import write_anatomy
from tests.experiments.ladder.test_page import REAL, write_ladder
from tests.experiments.regions.test_page import write_regions


def test_a_function_of_tables_is_called_once_for_one_run() -> None:
    called: Counter[Any] = Counter()

    @once
    def make(tables: Mapping[str, pd.DataFrame], label: str, *, names: Mapping[str, str]) -> tuple[int, str]:
        called[label] += 1
        return len(tables["a"]), label

    names, table = {"x": "y"}, pd.DataFrame({"v": [1, 2]})
    tables = RunTables({"a": table, "empty": table.iloc[:0]})
    assert {make(tables, "one", names=names) for _ in range(3)} == {(2, "one")}
    assert make(filled(tables), "one", names=names) == (2, "one")
    assert list(filled(tables)) == ["a"]
    assert called == {"one": 1}
    make(tables, "two", names=names)
    make(RunTables({"a": table}), "one", names=names)
    make({"a": table}, "one", names=names)
    make({"a": table}, "one", names=names)
    assert called == {"one": 4, "two": 1}


def test_what_was_made_goes_with_a_table_and_into_no_pickle() -> None:
    @once
    def rows(tables: Mapping[str, pd.DataFrame]) -> int:
        return len(tables["a"]) if "a" in tables else 0

    tables = RunTables({"a": pd.DataFrame({"v": [1, 2]}), "b": pd.DataFrame({"v": [1]})})
    assert rows(tables.without(["a"])) == 0
    assert rows(tables) == 2
    again = pickle.loads(pickle.dumps(tables))
    assert (type(again), list(again), again.made) == (RunTables, ["a", "b"], {})
    tables["a"] = pd.DataFrame({"v": [1, 2, 3]})
    assert rows(tables) == 3
    del tables["a"]
    assert rows(tables) == 0


@pytest.mark.parametrize("name", ["ladder", "regions", "anatomy"])
def test_figures_findings_and_page_share_the_contrasts_of_a_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No contrast of the answers is computed a second time while a run draws, speaks and writes its page."""
    runs: dict[str, Callable[[], Any]] = {
        "ladder": lambda: write_ladder(tmp_path / "run", REAL),
        "regions": lambda: write_regions(tmp_path / "run", region_tables.tables(layers=2)),
        "anatomy": lambda: write_anatomy(tmp_path / "run", anatomy_tables.tables(layers=2)),
    }
    places: dict[str, tuple[Any, str]] = {
        "ladder": (of_ladder, "paired_binary"),
        "regions": (of_regions, "paired_draws"),
        "anatomy": (of_anatomy, "paired_binary"),
    }
    made: Counter[Any] = Counter()
    module, function = places[name]
    plain = getattr(module, function)

    def counted(before: Any, after: Any, **more: Any) -> Any:
        made[tuple(more[key] for key in ("subject", "measure", "states"))] += 1
        return plain(before, after, **more)

    monkeypatch.setattr(module, function, counted)
    run: Result = load_run(runs[name]().path)
    assert run.figures()
    assert run.findings
    assert run.page().blocks
    assert made
    assert [what for what, times in made.items() if times > 1] == []
