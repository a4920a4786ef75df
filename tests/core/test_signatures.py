"""What ``help()`` shows of public names can be read."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal

import pytest

import mechsafety as ms
from mechsafety.core.signatures import type_name
from tests.test_examples import PUBLIC

CALLABLE = {name: found for name, found in PUBLIC.items() if callable(found) and name != "ms.MechsafetyError"}


@pytest.mark.parametrize("name", CALLABLE)
def test_signatures_name_types_and_no_machinery(name: str) -> None:
    shown = str(inspect.signature(CALLABLE[name]))
    for machinery in ("ForwardRef", "typing.", "Annotated", "<function", "Option(", "jaxtyping", " at 0x"):
        assert machinery not in shown, shown


def test_a_configs_fields_are_there_by_name() -> None:
    shown = inspect.signature(ms.StudyConfig)
    assert set(shown.parameters) == set(ms.StudyConfig.model_fields)
    assert str(shown.parameters["layer"]) == "layer: int | None = None"


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        (int | None, "int | None"),
        (Annotated[list[str], 3], "list[str]"),
        (Literal["a", 1], "Literal['a', 1]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Any, "Any"),
    ],
)
def test_types_are_written_as_they_are_written(hint: Any, name: str) -> None:
    assert type_name(hint) == name
