"""Findings of tables with holes, with one row, with one value, with no verdict read: sentences all the same, and honest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache

import numpy as np
import pandas as pd
import pytest

from mechsafety.experiments.anatomy.controls import anatomy_controls
from mechsafety.experiments.anatomy.findings import anatomy_findings
from mechsafety.experiments.ladder.findings import ladder_findings, summary
from mechsafety.experiments.regions.findings import region_findings
from tests import anatomy_tables, ladder_tables, region_tables

Tables = Mapping[str, pd.DataFrame]
NOT_WRITTEN = re.compile(r"\bnan\b|\binf\b|None|NaT|<NA>|  |\n|\[\]|\(\)|e[+-]\d\d")
"""What stands in no sentence: numbers that are none, exponents, empty brackets, a second line."""


def _all(found: Mapping[str, Iterable[str]]) -> list[str]:
    return [said for told in found.values() for said in told]


def _anatomy(tables: Tables) -> list[str]:
    table = anatomy_controls(tables, names={})
    return [*_all(anatomy_findings(tables, names={})), *map(str, table.to_numpy().ravel())]


SAY: Mapping[str, Callable[[Tables], list[str]]] = {
    "anatomy": _anatomy,
    "regions": lambda tables: _all(region_findings(tables, name="m", sweet_spot=None)),
    "ladder": lambda tables: [*summary(tables), *_all(ladder_findings(tables, layer=18))],
}


@cache
def made(experiment: str) -> Tables:
    makers = {
        "anatomy": lambda: {
            k: v for k, v in anatomy_tables.tables(layers=1).items() if k not in ("norms", "tau")
        },
        "regions": lambda: region_tables.tables(layers=2),
        "ladder": lambda: ladder_tables.tables(ladder_tables.SYSTEMS[:2]),
    }
    return makers[experiment]()


def _real(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if table[name].dtype.kind == "f" and name != "q"]


def _with_holes(table: pd.DataFrame) -> pd.DataFrame:
    holes = np.random.default_rng(0).random((len(table), len(_real(table)))) < 0.4
    return table.assign(**table[_real(table)].mask(holes))


def _labelled(table: pd.DataFrame, verdict: str) -> pd.DataFrame:
    names = [name for name in ("verdict", "label") if name in table and "refusal" in set(table[name])]
    return table.assign(**dict.fromkeys(names, verdict))


CORNERS: Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "holes": _with_holes,
    "nothing known": lambda table: table.assign(**dict.fromkeys(_real(table), np.nan)),
    "one value": lambda table: table.assign(**dict.fromkeys(_real(table), 1.0)),
    "tiny": lambda table: table.assign(**{name: table[name] * 1e-9 for name in _real(table)}),
    "one row": lambda table: table.head(1),
    "no rows": lambda table: table.head(0),
    "nothing read": lambda table: _labelled(table, "unparsed"),
    "all degenerate": lambda table: _labelled(table, "degenerate"),
}


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("experiment", SAY)
def test_sentences_of_any_table_hold_numbers_or_say_that_there_are_none(experiment: str, corner: str) -> None:
    said = SAY[experiment]({name: CORNERS[corner](table) for name, table in made(experiment).items()})
    assert [sentence for sentence in said if NOT_WRITTEN.search(sentence)] == []
    if corner in ("nothing read", "nothing known"):
        assert any("not tested" in s or "unknown" in s or "not measured" in s for s in said)
    if corner in ("nothing read", "all degenerate"):
        assert not any(re.search(": a (rise|fall) in (refusals|compliance)", s) for s in said)
