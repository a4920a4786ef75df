"""Sentences on columns say what is unknown, and nothing where nothing is known."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from mechsafety.claims.rows import above, counts_in, ends_of, told, verdicts_by

NAN = math.nan


def test_rows_that_lack_a_number_or_its_bound_are_unknown() -> None:
    table = pd.DataFrame(
        {"x": [1.0, 2.0, NAN, 4.0, 2.0], "than": [0.5, NAN, 1.0, 5.0, 2.0], "name": list("abcde")}
    )
    (said,) = above("s", table, "x", "than", "things", chance=0.5)
    assert said == "s: 1 of 3 things; 1.5 are expected by chance; 2 unknown."
    (said,) = above("s", table, "x", 1.5, "things", chance=0.5)
    assert said == "s: 3 of 4 things; 2 are expected by chance; 1 unknown."
    assert not [*above("s", table.assign(than=NAN), "x", "than", "things", chance=0.5)]
    assert not [*above("s", table, "x", "no column", "things", chance=0.5)]
    (said,) = ends_of("s", "m", table, "name", "x", unit="nats", of="rows")
    assert "over 4 rows: lowest 1 nats (a), highest 4 nats (d); 1 unknown" in said
    assert not [*ends_of("s", "m", table.assign(x=NAN), "name", "x", unit="nats", of="rows")]


@pytest.mark.parametrize(
    ("share", "n", "hits"), [(0.5, 10, 5), (NAN, 10, None), (0.5, NAN, None), (NAN, 0, None)]
)
def test_a_share_is_a_count_only_where_it_and_its_items_are_known(
    share: float, n: float, hits: int | None
) -> None:
    found = counts_in({"share": share, "n": n}, "share", "n")
    assert (found.hits, found.n) == (hits or 0, 10 if hits else 0)
    assert found.known == (hits is not None)


def test_verdicts_are_by_state_and_sections_without_rows_or_sentences_are_left_out() -> None:
    table = pd.DataFrame(
        {"state": ["a", "a", "b"], "draw": [0, 1, 0], "id": [1, 2, 1], "verdict": ["r", "c", "d"]}
    )
    assert verdicts_by(table, ["state"]) == {"a": {1: "r", 2: "c"}, "b": {1: "d"}}
    assert verdicts_by(table, ["state", "draw"], state="a") == {("a", 0): {1: "r"}, ("a", 1): {2: "c"}}
    assert verdicts_by(None, ["state"]) == {}
    found = told(
        {"full": table, "empty": table[:0]},
        {
            "said": ("full", lambda tables, more: [f"{len(tables['full'])} {more}"]),
            "silent": ("full", lambda *_: []),
            **dict.fromkeys(("empty", "absent"), ("empty", lambda *_: ["never"])),
        },
        "rows",
    )
    assert found == {"said": ["3 rows"]}
