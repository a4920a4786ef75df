"""Every public figure by tables that are not what it needs: a figure, or one line of ours that says what is needed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from mechsafety import plots
from mechsafety.core.errors import MechsafetyError
from mechsafety.plots import style
from tests.plots.awkward import CASES, drawings

Call = tuple[tuple[Any, ...], dict[str, Any]]
OPTIONAL = {("outcome_bars", "controls")}
"""Tables that may be left out, and therefore be empty."""


@functools.cache
def calls() -> dict[str, Call]:
    """The arguments with which each figure is drawn of plain data."""
    seen: dict[str, Call] = {}
    drawing = drawings(CASES["plain"])
    with pytest.MonkeyPatch.context() as patch:
        for name in plots.__all__:
            patch.setattr(
                plots, name, lambda *args, _name=name, **kwargs: seen.update({_name: (args, kwargs)})
            )
        for name in (*plots.__all__, "outcome_bars with controls"):
            drawing[name]()
    return seen


def drawn_or_refused(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What is said where no figure is drawn."""
    try:
        figure = getattr(plots, name)(*args, **kwargs)
    except MechsafetyError as error:
        return str(error)
    return "" if isinstance(figure, go.Figure) else "no figure"


def with_other(name: str, call: Call, change: Callable[[pd.DataFrame], Any]) -> Iterator[str]:
    """What the function says where one of its tables after another is changed."""
    args, kwargs = call
    for place, table in enumerate(args):
        if isinstance(table, pd.DataFrame):
            yield drawn_or_refused(name, (*args[:place], change(table), *args[place + 1 :]), kwargs)
    for key, table in kwargs.items():
        if isinstance(table, pd.DataFrame) and (name, key) not in OPTIONAL:
            yield drawn_or_refused(name, args, kwargs | {key: change(table)})


TABLES = [name for name in plots.__all__ if name not in ("layer_sweep", "heat_map")]
"""What takes tables."""


def needed(name: str, call: Call) -> list[list[str]]:
    """For each table the columns that are asked of one that has none of them."""
    said = with_other(name, call, lambda _: pd.DataFrame({"another": [1]}))
    return [one.partition("it needs the columns ")[2].split(", ") for one in said]


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_column_is_named_and_no_other_is_needed(name: str) -> None:
    call = calls()[name]
    for columns in needed(name, call):
        assert len(columns) > 2
        for column in columns:
            said = list(with_other(name, call, lambda t, c=column: t.drop(columns=c, errors="ignore")))
            assert any(f"lacks {column}; it needs the columns" in one for one in said)
    args, kwargs = call
    every = {column for columns in needed(name, call) for column in columns}
    only = [t[[c for c in t if c in every]] if isinstance(t, pd.DataFrame) else t for t in args]
    assert drawn_or_refused(name, tuple(only), kwargs) == ""


@pytest.mark.parametrize("name", TABLES)
def test_a_table_without_rows_is_refused(name: str) -> None:
    for said in with_other(name, calls()[name], lambda table: table.iloc[:0]):
        assert "no rows: there is nothing to draw" in said
    for said in with_other(name, calls()[name], lambda _: pd.DataFrame()):
        assert "it needs the columns" in said


@pytest.mark.parametrize("name", TABLES)
def test_what_is_no_table_is_refused(name: str) -> None:
    for other in ("no such thing", 3, {"a": [1]}, [object()]):
        for said in with_other(name, calls()[name], lambda _, given=other: given):
            assert "a DataFrame" in said


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("other", ["no such thing", pytest.param(math.nan, marks=pytest.mark.slow)])
def test_columns_of_another_kind_are_refused_or_drawn(
    name: str, other: str | float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "lay_out", lambda *_, **__: None)  # where text goes is measured elsewhere
    call = calls()[name]
    for columns in needed(name, call):
        for c in columns:
            for said in with_other(name, call, lambda t, c=c: t.assign(**{c: other}) if c in t else t):
                assert (
                    not said
                    or c in said
                    or "nothing to draw" in said
                    or "several rows" in said
                    or "tests hold" in said
                )


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("value", [math.inf, 0])
def test_numbers_that_are_all_the_same_are_drawn_or_refused(name: str, value: float | None) -> None:
    """Not places: of those there is one row each."""
    for said in with_other(name, calls()[name], lambda t: filled(t, value)):
        assert "\n" not in said
        assert "no figure" not in said


def filled(table: pd.DataFrame, value: float | None) -> pd.DataFrame:
    return table.assign(
        **{c: value for c in table.select_dtypes("float") if c not in ("q", "p", "r_u", "r_s")}
    )


def test_numbers_as_text_are_numbers() -> None:
    """A table that was read without types draws the same."""
    args, kwargs = (pd.DataFrame({"position": [-1, -1], "layer": [1, 2], "bypass": [0.5, 1.0], "induce": [1.0, 2.0], "kl": [0.1, 0.2]}),), {}  # fmt: skip
    plain = plots.score_heatmap(*args, **kwargs)
    assert plots.score_heatmap(args[0].astype(str)).to_json() == plain.to_json()


SQUARE = [[0.5, math.nan], [None, 1.0]]


@pytest.mark.parametrize(
    "values",
    [
        SQUARE,
        tuple(map(tuple, SQUARE)),
        np.array(SQUARE, dtype=float),
        np.array(SQUARE, dtype=object),
        torch.tensor(np.array(SQUARE, dtype=float)),
        pd.DataFrame(SQUARE),
        [[0, 0], [0, 0]],
        np.zeros((3, 1), dtype=int),
        [[math.inf, 1.0]],
    ],
)
def test_a_heat_map_takes_numbers_as_they_come(values: Any) -> None:
    assert isinstance(plots.heat_map(values), go.Figure)
    assert isinstance(plots.heat_map(values, colours=np.array(["white", "navy"])), go.Figure)


def test_a_heat_map_takes_its_names_of_a_frame() -> None:
    frame = pd.DataFrame([[1.0, 2.0]], columns=["left", "right"], index=["one"])
    figure = plots.heat_map(frame)
    assert (figure.layout.xaxis.ticktext, figure.layout.yaxis.ticktext) == (("left", "right"), ("one",))
    # Columns of one name stay columns of their own.
    assert len(set(plots.heat_map([[1, 2, 3]], x=["the", "cat", "the"]).data[0].x)) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"values": []}, r"values is \[\]"),
        ({"values": [[]]}, r"numbers \[row, column\] are needed"),
        ({"values": [1.0, 2.0]}, r"numbers \[row, column\] are needed"),
        ({"values": [[1.0, 2.0], [1.0]]}, r"lists of equal length"),
        ({"values": [["a"]]}, r"numbers \[row, column\] are needed"),
        ({"values": "no such thing"}, r"numbers \[row, column\] are needed"),
        ({"values": None}, r"numbers \[row, column\] are needed"),
        ({"values": pd.DataFrame()}, r"numbers \[row, column\] are needed"),
        ({"values": [[1.0, 2.0]], "x": [1]}, "x has 1 name for 2 columns"),
        ({"values": [[1.0, 2.0]], "y": ["a", "b"]}, "y has 2 names for 1 row"),
        ({"values": [[1.0]], "bounds": (1, 0)}, "bounds are 1 and 0: the lower one comes first"),
        ({"values": [[1.0]], "bounds": (0, math.nan)}, "bounds"),
        ({"values": [[1.0]], "titles": ("a", "b")}, "titles is .* a tuple of 3 is needed"),
    ],
)
def test_a_heat_map_of_something_else_is_one_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(MechsafetyError, match=message):
        plots.heat_map(**given)


@pytest.mark.parametrize("name", plots.__all__)
def test_only_what_is_drawn_must_be_given(name: str) -> None:
    """Names, layers and what is selected have defaults."""
    args, kwargs = calls()[name]
    if name == "layer_sweep_table":
        args = (args[0][args[0]["position"] == -1],)
    assert isinstance(getattr(plots, name)(*(args[:1] or (next(iter(kwargs.values())),))), go.Figure)
