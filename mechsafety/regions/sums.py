"""What is added up while examples run: the absolute gradients of every weight, and the Gram matrix of every site.

Hooks on the maps' modules see each batch as it passes, take what they need of it, and keep nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechsafety.core.errors import MechsafetyError
from mechsafety.generation.answers import AnswerBatch
from mechsafety.models.finite import not_finite_at
from mechsafety.models.handles import attached
from mechsafety.models.placing import Copies
from mechsafety.regions.experts import Routed
from mechsafety.regions.maps import LinearMap, routed_to
from mechsafety.regions.score_files import Attribution, Positions


@dataclass(kw_only=True, eq=False)
class Sums:
    """Sums over examples: |grad_W L| for every module (a joint one whole), X X^T for every site."""

    maps: Sequence[LinearMap]
    gradients: dict[str, Tensor]
    grams: dict[str, Tensor]
    batches: int = 0
    running: Running | None = None
    fine: list[tuple[Bool[Tensor, ""], str]] = field(default_factory=list)
    """Of what passed in the batch under way: whether it was finite, and what it was."""
    system: str = ""  # for messages
    routed: Routed | None = None

    @classmethod
    def empty(cls, maps: Sequence[LinearMap]) -> Sums:
        gradients, grams = {}, {}
        for name, group in _fused(maps).items():
            gradients[name] = torch.zeros_like(group[0].places[0].parameter, dtype=torch.float32)
        for m in (m for m in maps if m.expert is not None and m.site not in grams):
            grams[m.site] = torch.zeros(m.d_in, m.d_in, device=m.weight().device, dtype=torch.float32)
        for name, module in _modules(maps).items():
            first = module[0]
            device = first.weight().device
            gradients[name] = torch.zeros(
                sum(m.d_out for m in module), first.d_in, device=device, dtype=torch.float32
            )
            if first.site not in grams:
                grams[first.site] = torch.zeros(first.d_in, first.d_in, device=device, dtype=torch.float32)
        return cls(maps=maps, gradients=gradients, grams=grams)

    def begin(self, batch: AnswerBatch, positions: Positions, device: torch.device) -> None:
        """What the hooks need to know of the batch that runs next on ``device``; the batch is on the host."""
        answers = batch.weights > 0
        chosen = answers if positions == "paper" else answers.roll(-1, dims=-1)
        if self.routed is not None:
            self.routed.chosen = chosen.to(device)
        self.fine.clear()
        self.running = Running(
            lengths=batch.mask.sum(-1).tolist(),
            shape=(chosen.shape[0], chosen.shape[1]),
            chosen=Copies(chosen.nonzero()),
            returned=dict.fromkeys(_modules(self.maps), 0),
            read=set(),
        )

    def end(self) -> None:
        """Every map must have run once, on finite numbers, and its gradient have come back."""
        self.settle()
        assert self.running is not None
        for name, times in self.running.returned.items():
            if times != 1:
                raise MechsafetyError(
                    f"{name} {'did not run' if not times else f'ran {times} times'} for a batch, so that its scores "
                    "would not be those of the whole data: models that choose their maps by input cannot be scored"
                )
        self.running = None
        self.batches += 1

    @contextmanager
    def watching(self, system: str) -> Iterator[None]:
        """Hooks on every module of ``system`` while the block runs."""
        self.system = system
        handles = [
            module[0].module.register_forward_hook(self._hook(name, module[0]))
            for name, module in _modules(self.maps).items()
        ]
        self.routed = routed_to(self.maps, self._read)
        with attached(handles), self.routed.watching(), self._expert_gradients():
            yield
        self.routed = None

    def _read(self, site: str, x: Float[Tensor, "token d_in"]) -> None:
        """What an expert reads of the calibration tokens that are routed to it."""
        self.require_finite(x, f"the input of {site.removesuffix('.in')}")
        wide = x.float()
        self.grams[site].addmm_(wide.T, wide)

    @contextmanager
    def _expert_gradients(self) -> Iterator[None]:
        """Experts see some tokens of an example: its gradient is that of their parameters, one example at a time."""
        groups = {group[0].places[0].parameter: name for name, group in _fused(self.maps).items()}
        kept = {p: p.grad for p in groups}

        def add(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.require_finite(parameter.grad, f"the gradient of {groups[parameter]}")  # type: ignore[index]
            self.gradients[groups[parameter]].add_(parameter.grad.abs())  # type: ignore[index]
            parameter.grad = None

        handles: list[Any] = []
        try:
            for parameter in groups:
                parameter.grad = None
                parameter.requires_grad_(True)
                handles.append(parameter.register_post_accumulate_grad_hook(add))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, gradient in kept.items():
                parameter.requires_grad_(False)
                parameter.grad = gradient

    def _hook(self, name: str, linear: LinearMap) -> Any:
        def after(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            assert self.running is not None
            assert self.routed is not None
            if self.routed.busy:
                return
            x = self.running.tokens(name, args[0].detach())
            if linear.site not in self.running.read:
                self.running.read.add(linear.site)
                self.require_finite(x, f"the input of {name}")
                row, token = self.running.chosen.on(x.device).unbind(-1)
                chosen = x[row, token].float()
                self.grams[linear.site].addmm_(chosen.T, chosen)
            if output.requires_grad:
                output.register_hook(lambda g: self._add(name, g.detach(), x))
            else:  # the model chooses by it and passes no gradient on (the indexer of sparse attention)
                self.running.returned[name] += 1

        return after

    def _add(self, name: str, g: Tensor, x: Float[Tensor, "row token d_in"]) -> None:
        """sums += |G^T X| of each example: the absolute value of its own gradient, not of the batch's."""
        assert self.running is not None
        g = self.running.tokens(name, g)
        self.require_finite(g, f"the gradient of {name}")
        self.running.returned[name] += 1
        total = self.gradients[name]
        product = torch.empty_like(total)
        for row, length in enumerate(self.running.lengths):
            torch.mm(g[row, :length].float().T, x[row, :length].float(), out=product)
            total.add_(product.abs_())

    def require_finite(self, x: Tensor, what: str) -> None:
        """Let :meth:`settle` raise unless ``x`` is finite; the host does not wait for it here."""
        if x.numel():
            self.fine.append((torch.isfinite(torch.stack(torch.aminmax(x))).all(), what))

    def settle(self) -> None:
        """Raise :class:`NotFiniteError` for the first thing in the batch that was not finite."""
        by_device: dict[torch.device, list[int]] = {}
        for place, (fine, _) in enumerate(self.fine):
            by_device.setdefault(fine.device, []).append(place)
        broken: list[int] = []
        for places in by_device.values():
            held = torch.stack([self.fine[place][0] for place in places]).tolist()
            broken += [place for place, fine in zip(places, held, strict=True) if not fine]
        if broken:
            raise not_finite_at(self.system, self.fine[min(broken)][1])
        self.fine.clear()

    def finish(self, facts: dict[str, Any]) -> Attribution:
        """|W| times the mean over examples; the sums are used up."""
        tensors: dict[str, Tensor] = {}
        for name, module in _modules(self.maps).items():
            total = self.gradients.pop(name)
            for linear in module:
                own = total if linear.rows is None else total[linear.rows]
                tensors[f"snip/{linear.name}"] = own.mul_(linear.weight().float().abs()).div_(
                    facts["n_examples"]
                )
        for name, group in _fused(self.maps).items():
            total = self.gradients.pop(name)
            for linear in group:
                own = linear.places[0].of(total) * linear.weight().float().abs()
                tensors[f"snip/{linear.name}"] = own.div_(facts["n_examples"]).contiguous()
        tensors |= {f"gram/{site}": gram for site, gram in self.grams.items()}
        return Attribution(**facts, tensors=tensors)


@dataclass(frozen=True, kw_only=True, eq=False)
class Running:
    """The batch under way: real tokens of each row, rows and columns, those of calibration tokens, and what has run."""

    lengths: list[int]
    shape: tuple[int, int]
    chosen: Copies
    returned: dict[str, int]
    read: set[str]

    def tokens(self, name: str, x: Tensor) -> Float[Tensor, "row token d"]:
        """``x`` by row and token; some blocks run their maps on all tokens in one axis."""
        rows, tokens = self.shape
        if x.numel() != rows * tokens * x.shape[-1]:
            raise MechsafetyError(
                f"{name} runs on {list(x.shape)} for {rows} x {tokens} tokens: a map that does not see all tokens in "
                "order (an expert, for example) cannot be scored"
            )
        return x.reshape(rows, tokens, x.shape[-1])


def _modules(maps: Sequence[LinearMap]) -> dict[str, list[LinearMap]]:
    """The maps of each module that runs on all tokens, by the name of its first."""
    names: dict[int, str] = {}
    found: dict[str, list[LinearMap]] = {}
    for linear in maps:
        if linear.expert is None:
            found.setdefault(names.setdefault(id(linear.module), linear.name), []).append(linear)
    return found


def _fused(maps: Sequence[LinearMap]) -> dict[str, list[LinearMap]]:
    """The maps of experts by their parameter, under the name of its first."""
    names: dict[int, str] = {}
    found: dict[str, list[LinearMap]] = {}
    for linear in maps:
        if linear.expert is not None:
            name = names.setdefault(id(linear.places[0].parameter), linear.name)
            found.setdefault(name, []).append(linear)
    return found
