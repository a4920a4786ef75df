"""Where the weights of linear maps are stored: parameters, rows of joint ones, experts of those that hold all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ATTENTION = {"q": "q", "k": "k", "v": "v", "o": "o"}
_MLP = {"gate": "gate", "in": "up", "out": "down"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """Where a map's weight is stored: a parameter, which of its rows, and whether it stands transposed.

    ``expert`` is the number of an expert in a parameter that holds those of all.
    """

    parameter: nn.Parameter
    rows: Int[Tensor, " d_out"] | None
    transposed: bool
    expert: int | None = None

    def of(self, stored: Tensor) -> Float[Tensor, "d_out d_in"]:
        """What stands at this map's place in a tensor of the parameter's shape: a view unless it has rows."""
        matrix = self._matrix(stored)
        return matrix if self.rows is None else matrix[self.rows]

    def read(self) -> Float[Tensor, "d_out d_in"]:
        return self.of(self.parameter.detach())

    def _matrix(self, stored: Tensor) -> Tensor:
        matrix = stored if self.expert is None else stored[self.expert]
        return matrix.T if self.transposed else matrix

    def write(self, value: Float[Tensor, "d_out d_in"]) -> None:
        matrix = self._matrix(self.parameter.detach())
        if self.rows is None:
            matrix.copy_(value)
        else:
            matrix[self.rows] = value.to(matrix.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    kind: str
    rows: Tensor | None
    places: tuple[Place, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Joint:
    """A joint projection: its parameter, and for each kind its rows and the parameter of the bridge's own part."""

    parameter: nn.Parameter
    transposed: bool
    parts: dict[str, tuple[Tensor, nn.Parameter]]

    def of(self, parameter: nn.Parameter) -> list[Part]:
        """What a module with ``parameter`` runs of this projection: all of it, one part, or nothing."""
        if parameter is self.parameter:
            return [
                Part(kind=kind, rows=rows, places=self._places(rows, own))
                for kind, (rows, own) in self.parts.items()
            ]
        return [
            Part(kind=kind, rows=None, places=self._places(rows, own)[::-1])
            for kind, (rows, own) in self.parts.items()
            if parameter is own
        ]

    def _places(self, rows: Tensor, own: nn.Parameter) -> tuple[Place, ...]:
        joint = Place(parameter=self.parameter, rows=rows, transposed=self.transposed)
        part = Place(parameter=own, rows=None, transposed=False)
        return (joint, part)


def parts_of(module: Any, name: str, joint: Sequence[Joint], kinds: dict[int, str]) -> list[Part]:
    for projection in joint:
        if parts := projection.of(module.weight):
            return parts
    place = Place(parameter=module.weight, rows=None, transposed=isinstance(module, Conv1D))
    kind = kinds.get(id(module.weight), name.rpartition(".")[2])
    return [Part(kind=kind, rows=None, places=(place,))]


def kinds_of(model: TransformerBridge, layer: int) -> dict[int, str]:
    """The field's names of the block's maps, by the identity of their parameters."""
    block: Any = model.blocks[layer]
    found: dict[int, str] = {}
    for part, names in (("attn", _ATTENTION), ("mlp", _MLP)):
        for name, kind in names.items():
            module = getattr(getattr(getattr(block, part, None), name, None), "original_component", None)
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter):
                found[id(weight)] = kind
    return found


def joint_maps(model: TransformerBridge, layer: int) -> list[Joint]:
    block: Any = model.blocks[layer]
    found = []
    for part, split, names in (
        ("attn", "split_qkv_matrix", {k: v for k, v in _ATTENTION.items() if k != "o"}),
        ("mlp", "split_gate_up_matrix", {k: v for k, v in _MLP.items() if k != "out"}),
    ):
        component = getattr(block, part, None)
        splitter = getattr(component, split, None)
        if component is None or splitter is None:
            continue
        owns = {kind: getattr(component, name).original_component.weight for name, kind in names.items()}
        module = _joint_module(component, owns)
        if module is None:
            continue
        transposed = isinstance(module, Conv1D)
        with _numbered_rows(module, transposed=transposed):
            numbered = [_numbers(piece.weight) for piece in splitter(component.original_component)]
        parts = {kind: (rows, owns[kind]) for (kind, rows) in zip(owns, numbered, strict=True)}
        found.append(Joint(parameter=module.weight, transposed=transposed, parts=parts))
    return found


def _joint_module(component: Any, owns: dict[str, nn.Parameter]) -> Any:
    """The linear module of ``component`` whose weight has as many entries as the parts together."""
    total = sum(p.numel() for p in owns.values())
    parts = {id(p) for p in owns.values()}
    for module in component.modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        if module.weight.numel() == total and id(module.weight) not in parts:
            return module
    return None


# A split may be a view, a copy, or interleaved by head. Which rows went where is read off by putting each row's
# number into it, in digits that every number format holds exactly, and splitting that.
_DIGIT = 128


@contextmanager
def _numbered_rows(module: Any, *, transposed: bool) -> Iterator[None]:
    kept = module.weight.detach().clone()
    matrix = module.weight.detach().T if transposed else module.weight.detach()
    try:
        number = torch.arange(len(matrix), device=matrix.device)
        for column in range(3):
            matrix[:, column] = (number // _DIGIT**column % _DIGIT).to(matrix.dtype)
        yield
    finally:
        module.weight.detach().copy_(kept)


def _numbers(rows: Float[Tensor, "d_out d_in"]) -> Int[Tensor, " d_out"]:
    digits = rows.detach()[:, :3].round().long()
    return digits @ torch.tensor([1, _DIGIT, _DIGIT**2], device=digits.device)
