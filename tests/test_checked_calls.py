"""What the tests check at every call of the package: shapes and other types, of arguments and of results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from mechsafety.core.wording import counted
from mechsafety.directions.direction import Direction
from tests.checked_calls import _checked

if TYPE_CHECKING:
    from pathlib import Path

checked = _checked(typechecker=beartype)


@checked
def dots(a: Float[Tensor, "row d"], b: Float[Tensor, " d"]) -> Float[Tensor, " row"]:
    return a @ b if a.shape[0] < 5 else b


@checked
def named(text: str, *more: int, sure: bool = True, **rest: float) -> int:
    return len(text) + len(more) if sure else text  # pyright: ignore[reportReturnType]


@checked
def unknown(path: Path) -> int:
    """Its annotation is imported for type checkers alone."""
    return path  # pyright: ignore[reportReturnType]


Files = Mapping[str, "Path"]


@checked
def within(paths: Files) -> int:
    """The same, within the name of another type."""
    return len(paths)


@checked
@dataclass(frozen=True)
class Pair:
    first: int
    second: Later | None = None


class Later:
    pass


def closure() -> Callable[..., Any]:
    @checked
    def inner(a: int, *, b: list[str]) -> str:
        return b[a] if a >= 0 else a  # pyright: ignore[reportReturnType]

    return inner


def test_what_fits_passes() -> None:
    assert dots(torch.ones(2, 3), torch.ones(3)).tolist() == [3.0, 3.0]
    assert named("ab", 1, 2, sure=True, x=0.5) == 4
    assert unknown(3) == 3  # pyright: ignore[reportArgumentType]
    assert within({}) == 0
    assert Pair(1, Later()).second is not None
    assert closure()(0, b=["c"]) == "c"


@pytest.mark.parametrize(
    "call",
    [
        lambda: dots(torch.ones(2, 3), torch.ones(4)),
        lambda: dots(torch.ones(2, 3).long(), torch.ones(3).long()),
        lambda: dots(torch.ones(5, 3), torch.ones(3)),  # of its result
    ],
)
def test_shapes_that_do_not_agree_fail(call: Callable[[], object]) -> None:
    with pytest.raises(TypeCheckError):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: named(1),
        lambda: named("a", "b"),
        lambda: named("a", x="b"),
        lambda: named("a", sure=False),  # its result
        lambda: unknown("a"),
        lambda: Pair("a"),
        lambda: Pair(1, "later"),
        lambda: closure()("a", b=["c"]),
        lambda: closure()(0, b="c"),
        lambda: closure()(-1, b=["c"]),
        lambda: counted("a", "prompt"),  # of the package, which the hook wrapped
    ],
)
def test_other_types_fail(call: Callable[[], object]) -> None:
    with pytest.raises(BeartypeCallHintViolation):
        call()


def test_the_package_checks_the_shapes_of_its_dataclasses() -> None:
    with pytest.raises(TypeCheckError):
        Direction(vector=torch.ones(2, 2), layer=0, position=-1, method="mean_difference")
