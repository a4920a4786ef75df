"""The maps of a model that write to its residual stream, as views that end in d_model.

A branch of a block writes by one linear map, the last that runs in it, or is a mixture of experts, where every expert
writes. Which of its parameters do is found by trying: a parameter writes where projecting it onto a subspace of the
stream leaves what the branch writes into that subspace as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.values import as_hooks
from mechsafety.models.forward import evaluating
from mechsafety.models.loading import architecture, is_hooked_transformer
from mechsafety.models.projection import orthonormal
from mechsafety.models.sites import branches_of, hook_points, places_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Rows = Float[Tensor, "... d_model"]
_DIMENSIONS = 8
"""Of the subspace that is tried: another parameter than a writing one keeps it by chance as good as never."""
_KEPT = 0.25
"""How much of the subspace a writing parameter may change, as a share of what chance gives: rounding stays below."""
_OUTSIDE = 2e-2
"""How much the branch may write outside of the subspace that all its writing parameters were projected onto."""


_CACHES = ("past_key_values", "past_key_value")


@dataclass(frozen=True, eq=False)
class Call:
    """How a module was called: what it reads of the stream, and all its arguments, that among them."""

    x: Float[Tensor, "*token d_model"]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Writing:
    """What writes at one hook point: the module that gives out what its maps write, and views of these.

    ``rows`` hold what each input of a map writes, and biases.
    """

    hook: str
    module: nn.Module
    rows: list[Rows]


def writings_of(
    model: TransformerBridge, layers: Sequence[int], writers: Sequence[str], probe: Callable[[], object]
) -> list[Writing]:
    """What writes at ``writers`` (sites) of ``layers``; ``probe`` runs the model once.

    Raises :class:`MechsafetyError` where a site is written by nothing that is known.
    """
    sites = [(layer, writer) for layer in layers for writer in ("attn_out", "mlp_out") if writer in writers]
    if is_hooked_transformer(model):
        return [_hooked_writing(model, *site) for site in sites if places_of(model, *site)]
    present = hook_points(model)
    branches = {layer: branches_of(model, layer, present=present) for layer in layers}
    parts = {
        place: branches[site[0]][place][1]
        for site in sites
        for place in places_of(model, *site, present=present)
        if place in branches[site[0]]
    }
    missing = [p for site in sites for p in places_of(model, *site, present=present) if p not in parts]
    if missing:
        raise _no_map(model, missing[0])
    last, calls = _run(parts, probe)
    known: dict[Any, list[tuple[str, int]]] = {}
    return [_writing(model, place, part, last, calls, known) for place, part in parts.items()]


def _writing(
    model: Any,
    place: str,
    part: Any,
    last: dict[str, nn.Module],
    calls: dict[str, Call],
    known: dict[Any, list[tuple[str, int]]],
) -> Writing:
    from transformer_lens.model_bridge.generalized_components import MoEBridge

    experts: Any = part.original_component
    if (isinstance(part, MoEBridge) or hasattr(experts, "experts")) and place in calls:
        rows = expert_rows(model, place, experts, calls[place], known)
        return Writing(hook=place, module=experts, rows=rows)
    named = getattr(getattr(part, "o", getattr(part, "out", None)), "original_component", None)
    module: Any = named if getattr(named, "weight", None) is not None else last.get(place)
    if module is None:  # TransformerLens runs copies of its own: said where nothing is seen to be written
        raise _no_map(model, place)
    weight, bias = module.weight, getattr(module, "bias", None)
    if not weight.is_floating_point():
        raise _no_map(model, place)
    # nn.Linear stores [d_out, d_in]; GPT-2's Conv1D stores [d_in, d_out].
    rows = weight.detach() if type(module).__name__ == "Conv1D" else weight.detach().T
    return Writing(hook=place, module=module, rows=[rows] if bias is None else [rows, bias.detach()])


def _no_map(model: Any, place: str) -> MechsafetyError:
    return MechsafetyError(
        f"block {place.split('.')[1]} of {architecture(model)} has no linear map that writes at {place}: the edit "
        f"cannot be written into its weights; {as_hooks()}"
    )


def _hooked_writing(model: Any, layer: int, writer: str) -> Writing:
    part = model.blocks[layer].attn if writer == "attn_out" else model.blocks[layer].mlp
    weight, bias = ("W_O", "b_O") if writer == "attn_out" else ("W_out", "b_out")
    hook = f"blocks.{layer}.hook_{writer}"
    rows = [getattr(part, name, None) for name in (weight, bias)]
    if not isinstance(rows[0], Tensor) or not rows[0].is_floating_point():
        raise _no_map(model, hook)
    return Writing(hook=hook, module=part, rows=[r.detach() for r in rows if r is not None])


def _run(parts: dict[str, Any], probe: Callable[[], object]) -> tuple[dict[str, nn.Module], dict[str, Call]]:
    """For each part the last linear module that runs in it, and how it is called."""
    last: dict[str, nn.Module] = {}
    calls: dict[str, Call] = {}

    def ran(place: str) -> Callable[..., None]:
        return lambda module, *_: last.__setitem__(place, module)

    def entered(place: str) -> Callable[..., None]:
        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs.get("hidden_states")
            if isinstance(x, Tensor):
                # A cache would grow with every further call.
                calls[place] = Call(x, args, kwargs | {n: None for n in kwargs if n in _CACHES})

        return before

    with ExitStack() as stack:
        for place, part in parts.items():
            whole = part.original_component
            stack.callback(whole.register_forward_pre_hook(entered(place), with_kwargs=True).remove)
            for module in whole.modules():
                if type(module).__name__ in ("Linear", "Conv1D"):
                    stack.callback(module.register_forward_hook(ran(place)).remove)
        probe()
    return last, calls


def expert_rows(
    model: Any,
    place: str,
    experts: nn.Module,
    call: Call,
    known: dict[Any, list[tuple[str, int]]],
) -> list[Rows]:
    """Views of every parameter by which a mixture of experts writes, of experts that no token reaches as well.

    ``call`` is made again with other parameters; experts of attention (JetMoE) need the positions in it too. ``known``
    keeps what was found for mixtures of the same parameters. Raises :class:`MechsafetyError` where the parameters that
    were found are not all that write.
    """
    d_model = call.x.shape[-1]
    groups = _groups(experts)
    structure = tuple((name, tuple(p.shape for p in group)) for name, group in groups.items())
    basis = orthonormal(
        torch.randn(
            min(_DIMENSIONS, d_model // 2),
            d_model,
            generator=torch.Generator().manual_seed(0),
            dtype=torch.float32,
        )
    ).to(call.x.device)
    with torch.no_grad(), evaluating(experts):
        before = _written(experts, call)
        if structure not in known:
            known[structure] = [
                (name, axis)
                for name, group in groups.items()
                for axis in (-1, -2)
                if all(p.ndim >= -axis and p.shape[axis] == d_model for p in group)
                and _writes(experts, call, before, [_view(p, axis) for p in group], basis)
            ]
        rows = [_view(p, axis) for name, axis in known[structure] for p in groups[name]]
        with _onto(rows, basis):
            after = _written(experts, call)
    outside = after - _project_onto(after, basis)
    changed = _project_onto(after - before, basis)
    if not float(max(outside.norm(), changed.norm())) <= _OUTSIDE * float(after.norm()):
        raise MechsafetyError(
            f"the experts of {architecture(model)} write at {place} by more than parameters that end in the stream: "
            f"the edit cannot be written into its weights; {as_hooks()}"
        )
    return rows


def _groups(experts: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters by name, those of experts that are modules of their own together."""
    lists = {name for name, module in experts.named_modules() if isinstance(module, nn.ModuleList)}
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in experts.named_parameters():
        if parameter.is_floating_point():
            parts = name.split(".")
            each = ["*" if ".".join(parts[:n]) in lists else part for n, part in enumerate(parts)]
            found.setdefault(".".join(each), []).append(parameter)
    return found


def _writes(
    experts: nn.Module, call: Call, before: Tensor, rows: list[Rows], basis: Float[Tensor, "k d_model"]
) -> bool:
    """Whether ``rows`` projected onto ``basis`` leave what is written there as it was, and change the rest."""
    with _onto(rows, basis):
        change = _written(experts, call) - before
    size = float(change.norm())
    if not size > 2 * torch.finfo(call.x.dtype).eps * float(before.norm()):
        return False
    by_chance = size * (len(basis) / call.x.shape[-1]) ** 0.5
    return float((change @ basis.T).norm()) < _KEPT * by_chance


def _written(experts: nn.Module, call: Call) -> Float[Tensor, "token d_model"]:
    output: Any = experts(*call.args, **call.kwargs)
    output = output[0] if isinstance(output, tuple) else output
    return output.float().reshape(-1, call.x.shape[-1])


def _project_onto(x: Tensor, basis: Float[Tensor, "k d_model"]) -> Tensor:
    return (x.float() @ basis.T) @ basis


@contextmanager
def _onto(rows: list[Rows], basis: Float[Tensor, "k d_model"]) -> Iterator[None]:
    kept = [view.clone() for view in rows]
    try:
        for view in rows:
            view.copy_(_project_onto(view, basis))
        yield
    finally:
        for view, value in zip(rows, kept, strict=True):
            view.copy_(value)


def _view(parameter: nn.Parameter, axis: int) -> Rows:
    return parameter.detach() if axis == -1 else parameter.detach().transpose(-1, -2)
