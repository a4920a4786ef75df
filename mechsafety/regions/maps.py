"""Every linear map of every block, found by module: its weight as W [d_out, d_in], whatever the storage.

A map is what the field names q, k, v, o, gate, up or down. Where a model keeps several in one matrix (joint
query-key-value or gate-up projections) each is a map of its own, a set of rows of the joint one: ranking and ranks
are per map. Biases, norms, embeddings and the unembedding are no maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mechsafety.core.errors import MechsafetyError
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat import device_of, pad_left
from mechsafety.models.forward import evaluating, forward
from mechsafety.models.handles import attached
from mechsafety.models.hooking import plain_module_path
from mechsafety.models.loading import architecture, body_of, generation_twin, is_hooked_transformer
from mechsafety.models.quantised import require_plain
from mechsafety.regions.experts import Mixture, Routed, mixtures, roles
from mechsafety.regions.map_places import Place, joint_maps, kinds_of, parts_of
from mechsafety.regions.read_kinds import read_kinds

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KINDS = ("q", "k", "v", "o", "gate", "up", "down")
WRITING_KINDS = ("o", "down")
"""The maps whose outputs are added to the residual stream."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LinearMap:
    """One linear map y = W x of one block.

    ``name`` is ``blocks.3.q``; ``site`` names its input after the first map that reads it (``blocks.3.q.in``): maps
    that read the same tensor share it (q, k and v; gate and up). ``module`` is what runs, and ``rows`` which entries
    of its output are this map's (None: all). ``places`` are all parameters that hold W: one, or several where
    TransformerLens keeps a copy of its own. ``expert`` is the number of the expert whose map it is
    (``blocks.3.experts.5.down``); its ``module`` is the whole mixture then.
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
    expert: int | None = None

    def __repr__(self) -> str:
        return f"LinearMap({self.name}, {self.d_out} x {self.d_in})"

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


def linear_maps(model: ModelLike) -> list[LinearMap]:
    """The linear maps of all blocks, in the order in which they run.

    Those of experts follow the others of their block, whether the probe routes a token to them or not. What runs is
    seen in a probe pass, so nothing hangs on a module's name. Raises :class:`MechsafetyError` for a
    ``HookedTransformer``, whose maps are no modules, for quantised weights, and for a model in whose blocks no linear
    module ran.

    Returns:
        The maps, each with its name, layer, kind and size.

    Example:
        >>> maps = ms.regions.linear_maps(model)
        >>> sorted({linear.kind for linear in maps})
        ['down', 'gate', 'k', 'o', 'q', 'up', 'v']
    """
    model = as_model(model, by_name=False)
    body: Any = running_body(model)
    require_plain(body, "regions, heads and anatomy score and change weights")
    found: list[LinearMap] = []
    with torch.inference_mode(False):
        runs = _runs(model, body)
        blocks = [block_module(model, body, layer) for layer in range(model.cfg.n_layers)]
        named = read_kinds(model, body, blocks)
        for layer in range(model.cfg.n_layers):
            joint = joint_maps(model, layer)
            kinds = kinds_of(model, layer) | named[layer]
            taken: dict[str, int] = {}
            sites: dict[int, str] = {}
            for module, path, x in runs[layer]:
                for part in parts_of(module, path, joint, kinds):
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
            for number, mixture in enumerate(mixtures(blocks[layer])):
                found += _expert_maps(
                    mixture, layer, "experts" if not number else f"experts_{number + 1}", model
                )
    if not found:
        raise MechsafetyError(
            f"no linear module runs in the blocks of {architecture(model)}: there is no map to score"
        )
    return found


def _expert_maps(mixture: Mixture, layer: int, name: str, model: TransformerBridge) -> list[LinearMap]:
    """Three maps of each expert in most mixtures: gate, up and down."""
    found: list[LinearMap] = []
    with evaluating(mixture.module):
        parts = roles(mixture, model.cfg.d_model)
    n_experts = min((len(mixture.experts(role.name)) for role in parts), default=0)
    for expert in range(n_experts):
        site: dict[str, str] = {}
        for role in parts:
            parameter, number = mixture.experts(role.name)[expert]
            whole = Place(parameter=parameter, rows=None, transposed=role.transposed, expert=number)
            place = replace(whole, rows=_half(whole, role.half, interleaved=mixture.interleaved))
            own = f"blocks.{layer}.{name}.{expert}.{role.kind}"
            d_out, d_in = place.read().shape
            found.append(
                LinearMap(
                    name=own,
                    layer=layer,
                    kind=role.kind,
                    site=f"{own}.in" if role.kind in WRITING_KINDS else site.setdefault("in", f"{own}.in"),
                    module=mixture.module,
                    rows=place.rows,
                    places=(place,),
                    d_out=d_out,
                    d_in=d_in,
                    expert=expert,
                )
            )
    return found


def routed_to(maps: Sequence[LinearMap], add: Callable[[str, Tensor], None]) -> Routed:
    """What the experts among ``maps`` read of chosen tokens: ``add(site, x)`` with x [token, d_in]."""
    sites = {
        (id(m.places[0].parameter), m.places[0].expert or 0): m.site for m in maps if m.expert is not None
    }
    modules = {id(m.module): m.module for m in maps if m.expert is not None}
    found = [mixture for module in modules.values() for mixture in mixtures(nn.ModuleDict({"one": module}))]

    def read(parameter: nn.Parameter, number: int, x: Tensor) -> None:
        if (id(parameter), number) in sites:
            add(sites[id(parameter), number], x)

    return Routed(found, read)


def _half(whole: Place, half: int | None, *, interleaved: bool) -> Int[Tensor, " d_out"] | None:
    if half is None:
        return None
    rows = torch.arange(whole.read().shape[0], device=whole.parameter.device)
    return rows[half::2] if interleaved else rows.chunk(2)[half]


def unseen_share(model: TransformerBridge, maps: Sequence[LinearMap]) -> float:
    """The share of the blocks' weights with two or more axes that no map covers."""
    body: Any = running_body(model)
    blocks = [block_module(model, body, layer) for layer in range(model.cfg.n_layers)]
    whole = sum(p.numel() for block in blocks for _, p in _matrices(block))
    return 1 - sum(m.d_out * m.d_in for m in maps) / whole


def uncovered(model: TransformerBridge, maps: Sequence[LinearMap]) -> list[str]:
    """Weights of the blocks with two or more axes that no map covers (routers, convolutions)."""
    covered = {id(place.parameter) for m in maps for place in m.places}
    body: Any = running_body(model)
    return [
        f"blocks.{layer}.{name}"
        for layer in range(model.cfg.n_layers)
        for name, parameter in _matrices(block_module(model, body, layer))
        if id(parameter) not in covered
    ]


def _matrices(block: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The weights of a block with two or more axes; biases of experts have two as well."""
    return [(n, p) for n, p in block.named_parameters() if p.ndim >= 2 and not n.endswith("bias")]


def running_body(model: TransformerBridge) -> Any:
    """The module tree to run and to hook: the plain twin where there is one, else the bridge's own."""
    if is_hooked_transformer(model):
        raise MechsafetyError(
            "regions, anatomy and the fine-tuning attack run the modules of Hugging Face, and a HookedTransformer has "
            "none: load the same weights with load_model() or TransformerBridge.boot_transformers()"
        )
    twin = generation_twin(model)
    return twin if twin is not None else body_of(model)


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

    routers: set[int] = set()

    def decides(module: nn.Module, _args: Any, output: Any) -> None:
        if not isinstance(output, Tensor):  # which experts, and for which tokens
            routers.update(map(id, module.modules()))

    def watch(layer: int, path: str) -> Any:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # Some routers are linear modules that give out more than W x.
            if any(module is other for other, *_ in seen[layer]) or not isinstance(output, Tensor):
                return
            x = args[0]
            inputs.append(x)
            number = numbers.setdefault((x.data_ptr(), tuple(x.shape), tuple(x.stride())), len(numbers))
            seen[layer].append((module, path, number))

        return after

    blocks = [block_module(model, body, layer) for layer in range(model.cfg.n_layers)]
    found = [mixture for block in blocks for mixture in mixtures(block)]
    routed = {id(p) for m in found for group in m.parameters.values() for p in group}
    handles = [
        module.register_forward_hook(watch(layer, path))
        for layer, block in enumerate(blocks)
        for path, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in routed
    ]
    handles += [part.register_forward_hook(decides) for m in found for part in m.module.children()]
    with attached(handles):
        forward(body, pad_left([[0, 1, 2, 3]], pad=0).to(device_of(model)), logits=None)
    return [[run for run in runs if id(run[0]) not in routers] for runs in seen]
