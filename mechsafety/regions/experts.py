"""The linear maps of a mixture's experts, and what each reads of the tokens that are routed to it.

Experts that stand in one parameter [expert, ...] have no modules of their own: which products a mixture forms is seen
while it runs, in its plain form (a loop over experts), whatever form it runs in otherwise. A mixture treats every token
by itself, so that running it once more on some tokens shows what its experts read of these alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from mechsafety.core.errors import MechsafetyError
from mechsafety.models.handles import attached

_PRODUCTS = ("linear", "matmul", "__matmul__", "mm", "bmm")
_PROBED = 16
_HALVES = ("map", "reduce")
_IN_HALVES = ("q", "o")
"""The kinds of maps of a mixture in halves."""
Read = Callable[[nn.Parameter, int, bool, Tensor], None]
"""A parameter, the expert's number in it, whether it holds W transposed, and the input x [row, d_in]."""


@dataclass(kw_only=True, eq=False)
class Mixture:
    """One mixture: the module that gets the tokens, and its experts' parameters by name.

    ``fused`` parameters hold all experts, [expert, ...]; the others are lists of one parameter per expert. A mixture
    ``in_halves`` has no pass of its own: its first maps run before the attention, the last one behind it (JetMoE).
    """

    module: nn.Module
    parameters: dict[str, list[nn.Parameter]] = field(default_factory=dict)
    fused: dict[str, bool] = field(default_factory=dict)
    interleaved: bool = False

    @property
    def in_halves(self) -> bool:
        return all(callable(getattr(self.module, half, None)) for half in _HALVES)

    def run(self, x: Float[Tensor, "token d_model"]) -> None:
        """One pass over ``x``; one in halves as if nothing stood between them."""
        module: Any = self.module
        if self.in_halves:
            between, _, topology = module.map(x[None])
            module.reduce(between, topology)
        else:
            module.forward(x[None])

    def experts(self, name: str) -> list[tuple[nn.Parameter, int | None]]:
        """Each expert's parameter of this name, and the place of the expert in it where it holds them all."""
        if not self.fused[name]:
            return [(p, None) for p in self.parameters[name]]
        (parameter,) = self.parameters[name]
        return [(parameter, number) for number in range(len(parameter))]


def mixtures(block: nn.Module) -> list[Mixture]:
    """The mixtures of experts of a block, found from their parameters."""
    found: dict[str, Mixture] = {}
    for path, owner in block.named_modules():
        parent = path.rpartition(".")[0]
        if not parent or isinstance(owner, _ConvNd):
            continue
        leaf = path.rpartition(".")[2]
        own = {f"{leaf}.{n}": [p] for n, p in owner.named_parameters(recurse=False) if p.ndim == 3}
        each = _each(owner) if isinstance(owner, nn.ModuleList) else {}
        if (own or each) and _takes_tokens_alone(block.get_submodule(parent)):
            mixture = found.setdefault(parent, Mixture(module=block.get_submodule(parent)))
            mixture.parameters |= own | each
            mixture.fused |= dict.fromkeys(own, True) | dict.fromkeys(each, False)
            mixture.interleaved |= not getattr(owner, "is_concatenated", True)
    return list(found.values())


def _takes_tokens_alone(module: nn.Module) -> bool:
    """Whether a module's forward needs its input and nothing else: no positions, no mask, no routing of others."""
    needed = [p for p in inspect.signature(module.forward).parameters.values() if p.default is p.empty]
    return len([p for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]) == 1


def _each(experts: nn.ModuleList) -> dict[str, list[nn.Parameter]]:
    """The matrices of experts that are modules of their own, one of each expert under every name."""
    named = [{n: p for n, p in e.named_parameters() if p.ndim == 2} for e in experts]
    if len(named) < 2 or not named[0] or any(set(one) != set(named[0]) for one in named):
        return {}
    return {name: [one[name] for one in named] for name in named[0]}


@dataclass(frozen=True, kw_only=True)
class Role:
    """What the experts do with one of their parameters."""

    name: str
    kind: str
    transposed: bool
    half: int | None = None
    """0 or 1 where the parameter holds two maps (gate, then up)."""


def roles(mixture: Mixture, d_model: int) -> list[Role]:
    """The maps of an expert, in the order in which they run, seen in a pass over made-up tokens."""
    names = {id(p): name for name, parameters in mixture.parameters.items() for p in parameters}
    seen: dict[str, tuple[bool, int, int]] = {}

    def read(parameter: nn.Parameter, _number: int, transposed: bool, x: Tensor) -> None:
        shape = parameter.shape[-2:]
        seen.setdefault(names[id(parameter)], (transposed, int(shape[-1 if transposed else -2]), x.shape[-1]))

    first = next(iter(mixture.parameters.values()))[0]
    x = torch.randn(_PROBED, d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    run_reading(mixture, x.to(first), read)
    if not seen:
        return []
    if mixture.in_halves:
        return [
            Role(name=name, kind=kind, transposed=seen[name][0])
            for name, kind in zip(seen, _IN_HALVES, strict=True)
        ]
    *into, down = seen
    found: list[Role] = []
    for name in into:
        transposed, d_out, _ = seen[name]
        if len(into) == 1 and d_out == 2 * seen[down][2]:
            found += [
                Role(name=name, kind=kind, transposed=transposed, half=half)
                for half, kind in enumerate(("gate", "up"))
            ]
        else:
            found.append(Role(name=name, kind=_kind(name), transposed=transposed))
    return [*found, Role(name=down, kind="down", transposed=seen[down][0])]


def _kind(name: str) -> str:
    return "gate" if "gate" in name or "w1" in name else "up"


def run_reading(mixture: Mixture, x: Float[Tensor, "token d_model"], read: Read) -> None:
    """Run the mixture on ``x`` and give ``read`` what each expert's parameters are multiplied with."""
    parameters = [p for group in mixture.parameters.values() for p in group]
    with torch.no_grad(), _plainly(mixture.module), _Products(parameters, read):
        try:
            mixture.run(x)
        except Exception:  # the code of the model: some need more than the tokens, or have no pass at all
            raise MechsafetyError(
                f"{type(mixture.module).__name__} does not run by itself, so that what its experts read is not known: "
                "scores of experts are not for this model"
            ) from None


@contextmanager
def _plainly(module: nn.Module) -> Iterator[None]:
    """Fused kernels off: each expert's product is formed by itself."""
    configs: dict[int, Any] = {id(m.config): m.config for m in module.modules() if hasattr(m, "config")}
    kept = [(c, c._experts_implementation) for c in configs.values() if hasattr(c, "_experts_implementation")]
    try:
        for config, _ in kept:
            config._experts_implementation = "eager"
        yield
    finally:
        for config, before in kept:
            config._experts_implementation = before


class _Products(TorchFunctionMode):
    """Sees every product with a slice of ``parameters``."""

    def __init__(self, parameters: Sequence[nn.Parameter], read: Read) -> None:
        super().__init__()
        self.parameters, self.read = list(parameters), read

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS and len(args) > 1 and isinstance(args[1], Tensor):
            self._seen(name, args[0].detach(), args[1])
        return func(*args, **(kwargs or {}))

    def _seen(self, name: str, x: Tensor, w: Tensor) -> None:
        for p in self.parameters:
            if w.untyped_storage().data_ptr() != p.untyped_storage().data_ptr() or w.device != p.device:
                continue
            offset = w.storage_offset() - p.storage_offset()
            if not 0 <= offset < p.numel():
                continue
            # W is [d_out, d_in]: nn.functional.linear takes it so, a product from the right takes its transpose.
            stored = w.stride()[-2:] == p.stride()[-2:]
            transposed = stored != (name == "linear")
            if w.ndim == 3:
                for number in range(len(w)):
                    self.read(p, number, transposed, x[number])
            else:
                number = offset // p.stride(0) if p.ndim == 3 else 0
                self.read(p, number, transposed, x.reshape(-1, x.shape[-1]))
            return


class Routed:
    """What experts read of chosen tokens while a model runs: ``add(parameter, expert, x)`` for each product.

    ``busy`` is true while a mixture runs once more for that; hooks on modules within are to see nothing then.
    """

    def __init__(
        self, found: Sequence[Mixture], add: Callable[[nn.Parameter, int, Float[Tensor, "token d_in"]], None]
    ) -> None:
        self.mixtures, self.add = found, add
        self.chosen: Bool[Tensor, "row token"] = torch.zeros(0, 0, dtype=torch.bool)
        self.busy = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = [
            m.module.register_forward_pre_hook(self._before(m), with_kwargs=True)
            for m in self.mixtures
            if not m.in_halves
        ]
        for mixture in self.mixtures:
            handles += self._between(mixture) if mixture.in_halves else []
        with attached(handles):
            yield

    def _between(self, mixture: Mixture) -> list[Any]:
        """Hooks on a mixture in halves, whose last maps read what the attention made of all tokens.

        Its router says which token stands in which row of what the experts read, expert after expert.
        """
        routed: dict[str, Tensor] = {}

        def decided(_module: nn.Module, _args: Any, output: Any) -> None:
            routed["tokens"] = output[1]

        def before(parameter: nn.Parameter) -> Callable[..., None]:
            def read(_module: nn.Module, args: tuple[Any, ...]) -> None:
                x, sizes = args
                chosen = self.chosen.reshape(-1).to(x.device)[routed["tokens"]]
                for number, (rows, mine) in enumerate(zip(x.split(sizes), chosen.split(sizes), strict=True)):
                    if len(found := rows.detach()[mine]):
                        self.add(parameter, number, found)

            return read

        module: Any = mixture.module
        owners = {name: module.get_submodule(name.rpartition(".")[0]) for name in mixture.parameters}
        return [
            module.router.register_forward_hook(decided),
            *(owners[n].register_forward_pre_hook(before(p[0])) for n, p in mixture.parameters.items()),
        ]

    def _before(self, mixture: Mixture) -> Callable[..., None]:
        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.busy:
                return
            x = args[0] if args else next(iter(kwargs.values()))
            tokens = x.detach().reshape(*self.chosen.shape, x.shape[-1])[self.chosen.to(x.device)]
            if not len(tokens):
                return
            self.busy = True
            try:
                run_reading(mixture, tokens, lambda p, number, _, read: self.add(p, number, read))
            finally:
                self.busy = False

        return before
