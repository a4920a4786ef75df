"""The cells of notebooks, in order and in this process; `make test-slow` runs all notebooks in kernels."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import plotly.io as pio
import pytest

from tests.conftest import IN_A_KERNEL

ROOT = Path(__file__).parents[1]
NOTEBOOKS = [
    pytest.param(path.stem, marks=pytest.mark.slow if path.name == IN_A_KERNEL else ())
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
]

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default"),  # as in a kernel
]


def cells(name: str) -> list[str]:
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(source: str, names: dict[str, Any], *, title: str) -> Any:
    """What a cell ends with, its names left in ``names``."""
    statements = ast.parse(source, title)
    ending = statements.body.pop() if isinstance(statements.body[-1], ast.Expr) else None
    exec(compile(statements, title, "exec"), names)
    return None if ending is None else eval(compile(ast.Expression(ending.value), title, "eval"), names)


def show(value: Any) -> list[str]:
    """All that a notebook can show of a value."""
    if value is None:
        return []
    whole = getattr(value, "_repr_mimebundle_", dict)()
    html = [value._repr_html_()] if hasattr(value, "_repr_html_") else []
    return [repr(value), *html, *map(str, whole)]


@pytest.fixture
def _no_window() -> Any:
    before, pio.renderers.default = pio.renderers.default, "plotly_mimetype"
    yield
    pio.renderers.default = before


@pytest.mark.usefixtures("_no_window")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_its_first_cell_to_its_last(name: str) -> None:
    names: dict[str, Any] = {"__name__": "notebook"}
    shown = [show(run(cell, names, title=f"{name}, cell {n}")) for n, cell in enumerate(cells(name), 1)]
    assert sum(map(bool, shown)) > 1


def test_control_a_cell_that_fails_fails() -> None:
    names: dict[str, Any] = {}
    assert run("a = 1\na + 1", names, title="a cell") == 2
    assert run("b = a", names, title="a cell") is None
    assert names["b"] == 1
    with pytest.raises(NameError):
        run("gone", names, title="a cell")
