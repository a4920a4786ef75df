"""Every linear map of every block, found by module: its weight as W [d_out, d_in], whatever the storage.

A map is what the field names q, k, v, o, gate, up or down. Where a model keeps several in one matrix (joint
query-key-value or gate-up projections) each is a map of its own, a set of rows of the joint one: ranking and ranks
are per map. Biases, norms, embeddings and the unembedding are no maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mechsafety.core.errors import MechsafetyError
from mechsafety.models.chat import device_of, pad_left
from mechsafety.models.forward import forward
from mechsafety.models.handles import attached
from mechsafety.models.hooking import plain_module_path
from mechsafety.models.loading import architecture, body_of, generation_twin, is_hooked_transformer
from mechsafety.models.quantised import require_plain

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KINDS = ("q", "k", "v", "o", "gate", "up", "down")
WRITING_KINDS = ("o", "down")
"""The maps whose outputs are added to the residual stream."""
_ATTENTION = {"q": "q", "k": "k", "v": "v", "o": "o"}
_MLP = {"gate": "gate", "in": "up", "out": "down"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """Where a map's weight is stored: a parameter, which of its rows, and whether it stands transposed."""

    parameter: nn.Parameter
    rows: Int[Tensor, " d_out"] | None
    transposed: bool

    def read(self) -> Float[Tensor, "d_out d_in"]:
        matrix = self.parameter.detach().T if self.transposed else self.parameter.detach()
        return matrix if self.rows is None else matrix[self.rows]

    def write(self, value: Float[Tensor, "d_out d_in"]) -> None:
        matrix = self.parameter.detach().T if self.transposed else self.parameter.detach()
        if self.rows is None:
            matrix.copy_(value)
        else:
            matrix[self.rows] = value.to(matrix.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearMap:
    """One linear map y = W x of one block.

    ``name`` is ``blocks.3.q``; ``site`` names its input after the first map that reads it (``blocks.3.q.in``): maps
    that read the same tensor share it (q, k and v; gate and up). ``module`` is what runs, and ``rows`` which entries
    of its output are this map's (None: all). ``places`` are all parameters that hold W: one, or several where
    TransformerLens keeps a copy of its own.
    """

    name: str
    layer: int
    kind: str
    site: str
    module: nn.Module
    rows: Int[Tensor, " d_out"] | None
    places: tuple[Place, ...]
    d_out: int
    d_in: int

    @property
    def rank(self) -> int:
        """The largest rank that W can have."""
        return min(self.d_out, self.d_in)

    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """W in the model's number format: a view where the storage allows one; do not write to it."""
        return self.places[0].read()

    def write(self, value: Float[Tensor, "d_out d_in"]) -> None:
        """Replace W wherever it is stored."""
        for place in self.places:
            place.write(value)


def linear_maps(model: TransformerBridge) -> list[LinearMap]:
    """The linear maps of all blocks, in the order in which they run.

    What runs is seen in a probe pass, so nothing hangs on a module's name. Raises :class:`MechsafetyError` for a
    ``HookedTransformer``, whose maps are no modules, for quantised weights, and for a model in whose blocks no
    linear module ran.
    """
    body: Any = running_body(model)
    require_plain(body, "regions, heads and anatomy score and change weights")
    found: list[LinearMap] = []
    with torch.inference_mode(False):
        runs = _runs(model, body)
        for layer in range(model.cfg.n_layers):
            joint = _joint_maps(model, layer)
            kinds = _kinds(model, layer)
            taken: dict[str, int] = {}
            sites: dict[int, str] = {}
            for module, path, x in runs[layer]:
                for part in _parts(module, path, joint, kinds):
                    count = taken[part.kind] = taken.get(part.kind, 0) + 1
                    name = f"blocks.{layer}.{part.kind}{'' if count == 1 else f'_{count}'}"
                    d_out, d_in = part.places[0].read().shape
                    found.append(
                        LinearMap(
                            name=name,
                            layer=layer,
                            kind=part.kind,
                            site=sites.setdefault(x, f"{name}.in"),
                            module=module,
                            rows=part.rows,
                            places=part.places,
                            d_out=d_out,
                            d_in=d_in,
                        )
                    )
    if not found:
        raise MechsafetyError(
            f"no linear module runs in the blocks of {architecture(model)}: there is no map to score"
        )
    return found


def uncovered(model: TransformerBridge, maps: Sequence[LinearMap]) -> list[str]:
    """Weights of the blocks with two or more axes that no map covers (fused experts, routers, convolutions)."""
    covered = {id(place.parameter) for m in maps for place in m.places}
    body: Any = running_body(model)
    return [
        name
        for layer in range(model.cfg.n_layers)
        for name, parameter in block_module(model, body, layer).named_parameters(prefix=f"blocks.{layer}")
        if parameter.ndim >= 2 and id(parameter) not in covered
    ]


def running_body(model: TransformerBridge) -> Any:
    """The module tree to run and to hook: the plain twin where there is one, else the bridge's own."""
    if is_hooked_transformer(model):
        raise MechsafetyError(
            "regions, anatomy and the fine-tuning attack run the modules of Hugging Face, and a HookedTransformer has "
            "none: load the same weights with load_model() or TransformerBridge.boot_transformers()"
        )
    twin = generation_twin(model)
    return twin if twin is not None else body_of(model)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    kind: str
    rows: Tensor | None
    places: tuple[Place, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Joint:
    """A joint projection: its parameter, and for each kind its rows and the parameter of the bridge's own part."""

    parameter: nn.Parameter
    transposed: bool
    parts: dict[str, tuple[Tensor, nn.Parameter]]

    def of(self, parameter: nn.Parameter) -> list[_Part]:
        """What a module with ``parameter`` runs of this projection: all of it, one part, or nothing."""
        if parameter is self.parameter:
            return [
                _Part(kind=kind, rows=rows, places=self._places(rows, own))
                for kind, (rows, own) in self.parts.items()
            ]
        return [
            _Part(kind=kind, rows=None, places=self._places(rows, own)[::-1])
            for kind, (rows, own) in self.parts.items()
            if parameter is own
        ]

    def _places(self, rows: Tensor, own: nn.Parameter) -> tuple[Place, ...]:
        joint = Place(parameter=self.parameter, rows=rows, transposed=self.transposed)
        part = Place(parameter=own, rows=None, transposed=False)
        return (joint, part)


def _parts(module: Any, name: str, joint: Sequence[_Joint], kinds: dict[int, str]) -> list[_Part]:
    for projection in joint:
        if parts := projection.of(module.weight):
            return parts
    place = Place(parameter=module.weight, rows=None, transposed=isinstance(module, Conv1D))
    kind = kinds.get(id(module.weight), name.rpartition(".")[2])
    return [_Part(kind=kind, rows=None, places=(place,))]


def block_module(model: TransformerBridge, body: Any, layer: int) -> nn.Module:
    """The module of ``body`` that is block ``layer``."""
    if body is body_of(model):
        block: Any = model.blocks[layer]
        return block.original_component
    place = plain_module_path(model, f"blocks.{layer}.hook_resid_pre")
    if place is None:
        raise MechsafetyError(f"block {layer} of {architecture(model)} is no plain module")
    return body.get_submodule(place[0])


def _runs(model: TransformerBridge, body: Any) -> list[list[tuple[nn.Module, str, int]]]:
    """For each block the linear modules that run, in order, each with its path and a number for its input."""
    seen: list[list[tuple[nn.Module, str, int]]] = [[] for _ in range(model.cfg.n_layers)]
    inputs: list[Tensor] = []  # kept, so that no later tensor gets an earlier one's address
    numbers: dict[tuple[int, tuple[int, ...], tuple[int, ...]], int] = {}

    def watch(layer: int, path: str) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if any(module is other for other, *_ in seen[layer]):
                return
            x = args[0]
            inputs.append(x)
            number = numbers.setdefault((x.data_ptr(), tuple(x.shape), tuple(x.stride())), len(numbers))
            seen[layer].append((module, path, number))

        return before

    handles = [
        module.register_forward_pre_hook(watch(layer, path))
        for layer in range(model.cfg.n_layers)
        for path, module in block_module(model, body, layer).named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    with attached(handles):
        forward(body, pad_left([[0, 1, 2, 3]], pad=0).to(device_of(model)), logits=None)
    return seen


def _kinds(model: TransformerBridge, layer: int) -> dict[int, str]:
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


def _joint_maps(model: TransformerBridge, layer: int) -> list[_Joint]:
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
        found.append(_Joint(parameter=module.weight, transposed=transposed, parts=parts))
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
