"""Every public name shows itself in an example, which runs and gives what it shows."""

from __future__ import annotations

import doctest
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mechsafety as ms
from mechsafety.core.docstrings import completed, described
from mechsafety.directions.projections import CosineMatrix, Projections
from mechsafety.experiments.result import Result
from mechsafety.generation.answered import Completion
from mechsafety.generation.token_projections import TokenProjections
from mechsafety.models.hooking import Coverage
from mechsafety.prompts.rendered import Rendered
from mechsafety.sweeps.layer_profile import LayerProfile
from mechsafety.sweeps.sweep import Sweep
from tests.example_names import Names, small_world

SPACES = {"plots": ms.plots, "statistics": ms.statistics, "regions": ms.regions}
SPACES |= {"anatomy": ms.anatomy, "lab": ms.lab, "judges": ms.judges}
PUBLIC = {f"ms.{name}": getattr(ms, name) for name in ms.__all__} | {
    f"ms.{space}.{name}": getattr(module, name) for space, module in SPACES.items() for name in module.__all__
}
FUNCTIONS_OF_CLASSES = (types.FunctionType, classmethod)
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


CLASSES = {name: found for name, found in PUBLIC.items() if inspect.isclass(found)}
CONFIGS = {name: found for name, found in CLASSES.items() if hasattr(found, "model_fields")}
RETURNED = [
    Sweep,
    LayerProfile,
    Projections,
    CosineMatrix,
    TokenProjections,
    Rendered,
    Completion,
    Coverage,
    Result,
]
"""Classes of results that have no public name, and whose methods people call."""
METHODS = {
    f"{name}.{own}": getattr(found, own)
    for name, found in [*CLASSES.items(), *((kind.__name__, kind) for kind in RETURNED)]
    if name not in CONFIGS
    for own in vars(found)
    if not own.startswith("_") and isinstance(inspect.getattr_static(found, own), FUNCTIONS_OF_CLASSES)
}
FUNCTIONS = {name: found for name, found in PUBLIC.items() if inspect.isfunction(found)} | METHODS
_NOUN = re.compile(
    r"(?:The|A|An|One|Every|Each|All|Both|Those|At most|Where|Whether|What|Which|How|Cosines|Norm|Projection|Coordinates"
    r"|Shares|Commands|Layers|Hash|Hooks|Scores|E_x|sum x|\W)"
)
"""How a docstring begins that says what is returned in its first words."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_say_what_is_taken_and_given(name: str) -> None:
    """One sentence; every argument; what is returned, where something is; the example of a function comes last."""
    document = inspect.getdoc(FUNCTIONS[name]) or ""
    assert document, "no docstring"
    signature = inspect.signature(FUNCTIONS[name])
    first, _, rest = document.partition("\n\n")
    assert first.endswith((".", "?"))
    parameters = {p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD} - {
        "self",
        "cls",
    }
    assert parameters - described(document) == set(), "arguments that nothing is said of"
    returns = str(signature.return_annotation) not in ("None", "")
    assert (
        not returns or re.search(r"\bReturns?\b", document) or (name in METHODS and _NOUN.match(document))
    ), "what is returned is not said"
    assert name in METHODS or rest.rpartition("\nExample:\n")[2].lstrip().startswith(">>>")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_say_what_is_raised(name: str) -> None:
    """Where the function itself raises our error, its docstring says so."""
    source = inspect.getsource(inspect.unwrap(FUNCTIONS[name]))
    document = inspect.getdoc(FUNCTIONS[name]) or ""
    assert "raise MechsafetyError" not in source or re.search(r"\b[Rr]aises?\b|is an error|refused", document)


@pytest.mark.parametrize("name", CLASSES)
def test_docstrings_of_classes_say_what_they_are_made_of(name: str) -> None:
    """One sentence; every argument of the constructor; the example comes last. Properties have a docstring each."""
    kind = CLASSES[name]
    document = inspect.getdoc(kind) or ""
    assert document.partition("\n\n")[0].endswith((".", "?"))
    assert document.rpartition("\nExample:\n")[2].lstrip().startswith(">>>")
    if name not in CONFIGS and "__init__" in vars(kind) and not getattr(kind, "_is_protocol", False):
        assert set(inspect.signature(kind).parameters) - described(document) == set(), (
            "arguments that nothing is said of"
        )
    for own, found in vars(kind).items():
        if isinstance(found, property) and not own.startswith("_"):
            assert inspect.getdoc(getattr(kind, own)), own


@pytest.mark.parametrize("name", CONFIGS)
def test_fields_of_configurations_are_described(name: str) -> None:
    for own, field in CONFIGS[name].model_fields.items():
        assert (
            field.description
            or field.is_required()
            or any(getattr(one, "argument", False) for one in field.metadata)
        )
        assert own in (CONFIGS[name].__doc__ or "")


def test_control_an_argument_that_is_left_out_is_noticed() -> None:
    document = "Take ``one``.\n\nArguments:\n    two: A number.\n\nExample:\n    >>> f(one, two, three)"
    assert described(document) == {"one", "two"}
    assert "    seed: Seed" in completed(document, ["one", "two", "seed"])
    assert "seed" not in completed(f"``seed`` is here.\n\n{document}", ["seed"]).partition("Arguments")[2]


def test_control_an_example_that_shows_something_else_fails(names: Names) -> None:
    assert "Expected:\n    1\nGot:\n    2\n" in run(">>> 1 + 1\n1\n", "one", names.of(""))[0]
    assert not doctest.DocTestParser().get_examples("Prose alone.")


def test_every_public_name_is_counted() -> None:
    """About forty flat names, the rest in name spaces; each is looked at above."""
    flat = [name for name in PUBLIC if name.count(".") == 1]
    assert len(flat) <= 52
    assert len(PUBLIC) > 180
    assert all(">>>" in documented(name) for name in PUBLIC)


def test_examples_write_where_they_are_run(names: Names) -> None:
    names.of('ms.load_run("runs/study")')
    assert Path("runs/study/report.html").exists()
    assert Path.cwd() != Path(__file__).parents[1]
