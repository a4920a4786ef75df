"""Every public name shows itself in an example, which runs and gives what it shows."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mechsafety as ms
from tests.example_names import Names, small_world

SPACES = {"plots": ms.plots, "statistics": ms.statistics, "regions": ms.regions}
SPACES |= {"anatomy": ms.anatomy, "lab": ms.lab, "judges": ms.judges}
PUBLIC = {f"ms.{name}": getattr(ms, name) for name in ms.__all__} | {
    f"ms.{space}.{name}": getattr(module, name) for space, module in SPACES.items() for name in module.__all__
}
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def documented(name: str) -> str:
    """Where the example of a name stands: numbers and tables have none of their own, their name space has it."""
    found = PUBLIC[name]
    if inspect.ismodule(found) or callable(found):
        return found.__doc__ or ""
    space = name.rpartition(".")[0]
    return (ms if space == "ms" else PUBLIC[space]).__doc__ or ""


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Names]:
    with pytest.MonkeyPatch.context() as patch:
        small_world(patch, tmp_path_factory.mktemp("examples"))
        yield Names()


def run(document: str, name: str, known: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What the example says where it does not give what it shows, and the names that it leaves."""
    said: list[str] = []
    test = doctest.DocTestParser().get_doctest(document, known, name, None, None)
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append, clear_globs=False)
    return "".join(said), test.globs


@pytest.mark.parametrize("name", ["ms", *PUBLIC])
def test_examples_give_what_they_show(name: str, names: Names) -> None:
    document = ms.__doc__ or "" if name == "ms" else documented(name)
    examples = doctest.DocTestParser().get_examples(document)
    source = "".join(example.source for example in examples)
    assert any(example.want for example in examples), f"{name} has no example"
    assert "import" not in source, "public names do"
    said, left = run(document, name, names.of(source))
    assert said == ""
    made = inspect.isclass(PUBLIC.get(name)) and any(type(value) is PUBLIC[name] for value in left.values())
    assert made or re.search(rf"\b{re.escape(name)}\b", source), f"the example of {name} does not use it"


def test_control_an_example_that_shows_something_else_fails(names: Names) -> None:
    assert "Expected:\n    1\nGot:\n    2\n" in run(">>> 1 + 1\n1\n", "one", names.of(""))[0]
    assert not doctest.DocTestParser().get_examples("Prose alone.")


def test_every_public_name_is_counted() -> None:
    """About forty flat names, the rest in name spaces; each is looked at above."""
    flat = [name for name in PUBLIC if name.count(".") == 1]
    assert len(flat) < 65
    assert len(PUBLIC) > 180
    assert all(">>>" in documented(name) for name in PUBLIC)


def test_examples_write_where_they_are_run(names: Names) -> None:
    names.of('ms.load_run("runs/study")')
    assert Path("runs/study/report.html").exists()
    assert Path.cwd() != Path(__file__).parents[1]
