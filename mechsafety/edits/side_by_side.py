"""Several edits in one batch, each on rows of its own: what one pass over many rows saves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.sums import parts_of
from mechsafety.edits.values import Edit, Position
from mechsafety.models.hooking import Target

_sizes: ContextVar[list[int] | None] = ContextVar("rows of each group", default=None)


@contextmanager
def of_groups(sizes: list[int]) -> Iterator[None]:
    """While the block runs, the groups have so many rows, and not equally many."""
    token = _sizes.set(sizes)
    try:
        yield
    finally:
        _sizes.reset(token)


@dataclass(frozen=True)
class SideBySide:
    """Of n edits, each on one of n equal groups of consecutive rows: the first edit on the first rows, and so on.

    All act at the same ``positions``. Raises :class:`MechsafetyError` for no edit, or for edits that do not.
    """

    edits: tuple[Edit, ...]

    def __post_init__(self) -> None:
        single = [part for edit in self.edits for part in parts_of(edit)]
        if len({edit.positions for edit in single}) != 1:
            raise MechsafetyError("edits side by side are one or more, all at the same positions")

    @property
    def positions(self) -> Position:
        return self.edits[0].positions

    def targets(self, n_layers: int) -> list[Target]:
        return grouped([edit.targets(n_layers) for edit in self.edits])

    def describe(self) -> str:
        return f"SideBySide({', '.join(edit.describe() for edit in self.edits)})"

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for edit in self.edits for tensor in edit.tensors())


def grouped(targets: Sequence[Sequence[Target]]) -> list[Target]:
    """One target for each hook point: group k of the rows gets the maps of ``targets[k]`` there."""
    at: dict[str, list[tuple[int, Target]]] = defaultdict(list)
    for group, found in enumerate(targets):
        for target in found:
            at[target.hook].append((group, target))
    return [_together(len(targets), found) for found in at.values()]


def _together(n: int, found: Sequence[tuple[int, Target]]) -> Target:
    """The maps of ``found`` (group, target), all at one hook point, as one map of n groups of rows."""
    shapes = [target.constant.shape for _, target in found]
    lengths = [shape.numel() for shape in shapes]

    def apply(x: Tensor, constant: Tensor) -> Tensor:
        sizes = _sizes.get()
        if sizes is None and len(x) % n:
            raise MechsafetyError(f"{len(x)} rows are no {n} equal groups, one for each edit")
        groups = list(x.split(sizes or len(x) // n))
        for (group, target), part, shape in zip(found, constant.split(lengths), shapes, strict=True):
            groups[group] = target.apply(groups[group], part.reshape(shape))
        return torch.cat(groups)

    first = found[0][1]
    constant = torch.cat([target.constant.flatten() for _, target in found])
    return replace(first, apply=apply, constant=constant)
