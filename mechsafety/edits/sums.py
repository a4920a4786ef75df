"""Several edits as one: each acts on what those before it leave."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from torch import Tensor

from mechsafety.core.arguments import shown
from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.values import Edit, Position, _Value
from mechsafety.models.hooking import Target
from mechsafety.models.projection import HasVector

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    EditLike: TypeAlias = Edit | Iterable[Edit] | str | Path
else:
    EditLike = Any
"""An edit, several in the order in which they act, a saved edit's path, or an expression."""


@dataclass(frozen=True, eq=False, repr=False)
class EditSum(_Value):
    """Edits that act one after the other: where two act at one place, the later one sees what the earlier one left.

    ``a + b`` makes one, with ``a`` first, and so does a list in the place of an edit. As weights the edits are written
    in the same order.
    """

    edits: tuple[Edit, ...]

    def __post_init__(self) -> None:
        if len(self.edits) < 2:
            raise MechsafetyError(f"a sum has two edits or more, got {len(self.edits)}")

    @property
    def positions(self) -> Position:
        """Those of all of its edits; ``all`` where they differ, and each acts at its own."""
        first = self.edits[0].positions
        return first if all(edit.positions == first for edit in self.edits) else "all"

    def targets(self, n_layers: int) -> list[Target]:
        return [target for edit in self.edits for target in edit.targets(n_layers)]

    def describe(self) -> str:
        return " + ".join(edit.describe() for edit in self.edits)

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for edit in self.edits for tensor in edit.tensors())


def added(*edits: object) -> Edit:
    """The edits as one, sums among them taken apart. Raises :class:`MechsafetyError` for what is no edit, and none."""
    found: list[Edit] = []
    for edit in edits:
        if not _is_edit(edit):
            how = (
                ": write ms.Ablate(direction) or ms.Add(direction, layer=...)"
                if isinstance(edit, HasVector) or hasattr(edit, "dtype")
                else ""
            )
            raise MechsafetyError(f"{shown(edit)} is no edit{how or ', as Ablate and Add are'}")
        found += edit.edits if isinstance(edit, EditSum) else [edit]
    if not found:
        raise MechsafetyError("no edits are given: one or more are needed, or None for the model as it is")
    return found[0] if len(found) == 1 else EditSum(tuple(found))


def parts_of(edit: Edit) -> tuple[Edit, ...]:
    """The edits of a sum in their order, or the edit alone."""
    return edit.edits if isinstance(edit, EditSum) else (edit,)


def as_edit(given: Any, model: TransformerBridge) -> Edit:
    """``given`` as an edit: a list is their sum, a str an expression or the path of a saved edit.

    Raises :class:`MechsafetyError` for anything else.
    """
    if _is_edit(given):
        return given
    if isinstance(given, str | Path):
        from mechsafety.edits.expressions import parse_edit

        return parse_edit(str(given), model)
    if isinstance(given, Iterable) and not hasattr(given, "dtype"):
        return added(*given)
    return added(given)


def _is_edit(given: object) -> TypeGuard[Edit]:
    return isinstance(given, Edit) and not isinstance(given, type)
