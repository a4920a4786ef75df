"""The one place that attaches hooks to a model, passes them their place, and counts what fired."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechsafety.core.errors import MechsafetyError
from mechsafety.models.forward import OWN_HOOKS, trying
from mechsafety.models.loading import architecture, body_of, generation_twin, is_hooked_transformer
from mechsafety.models.one_thread import in_one_thread, require_thread, this_thread
from mechsafety.models.passes import Pass
from mechsafety.models.placing import Copies
from mechsafety.models.sites import hook_points

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Target:
    """A pure map of the activations at one site of one block.

    ``apply(x, constant)`` gets activations [row, token, d_model] and ``constant`` on their device. ``at`` is the hook
    point, where the block has another one for the site than the usual (:mod:`mechsafety.models.sites`).
    """

    layer: int
    site: str
    apply: Callable[[Tensor, Tensor], Tensor]
    constant: Tensor
    at: str = ""

    @property
    def hook(self) -> str:
        return self.at or f"blocks.{self.layer}.hook_{self.site}"


_UNCOUNTED = 4096


@dataclass(eq=False, repr=False)
class Coverage:
    """The receipt: how often each hook fired, and how many token positions it changed."""

    fired: dict[str, int] = field(default_factory=dict)
    past_hooks: tuple[str, ...] = ()
    """Where blocks write past the sites of a partial edit, which therefore leaves some (:mod:`completeness`)."""
    carried: str = ""
    """Where the edit's direction was found on a model with other weights: both models' names."""
    _changed: dict[str, int] = field(default_factory=dict)
    _uncounted: list[tuple[str, Tensor]] = field(default_factory=list)

    def expect(self, hook: str) -> None:
        """Note that ``hook`` must fire."""
        self.fired.setdefault(hook, 0)
        self._changed.setdefault(hook, 0)

    def count(self, hook: str, size: int | Tensor) -> None:
        """``hook`` has changed ``size`` positions; a tensor is read later, so that no pass waits for its device."""
        self.fired[hook] += 1
        if isinstance(size, int):
            self._changed[hook] += size
            return
        self._uncounted.append((hook, size))
        if len(self._uncounted) >= _UNCOUNTED:
            _ = self.changed

    @property
    def changed(self) -> dict[str, int]:
        """How many positions each hook has changed."""
        sizes = {id(size): size for _, size in self._uncounted}
        read = dict(zip(sizes, torch.stack(list(sizes.values())).tolist(), strict=True)) if sizes else {}
        for hook, size in self._uncounted:
            self._changed[hook] += read[id(size)]
        self._uncounted.clear()
        return self._changed

    def to_frame(self) -> pd.DataFrame:
        """One row per hook: hook, fired (passes), positions (changed in all of them)."""
        import pandas as pd

        rows = [(hook, fired, self.changed[hook]) for hook, fired in self.fired.items()]
        return pd.DataFrame(rows, columns=["hook", "fired", "positions"])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Coverage):
            return NotImplemented
        return (self.fired, self.changed, self.past_hooks) == (other.fired, other.changed, other.past_hooks)

    def __repr__(self) -> str:
        found = self.summary()
        carried = f"; {self.carried}" if self.carried else ""
        return (
            f"Coverage({found['hooks']} hooks, fired {found['fired']} times, {found['positions']} positions each"
            f"{carried})"
        )

    def _repr_html_(self) -> str:
        carried = f"<p>{escape(self.carried)}</p>" if self.carried else ""
        return carried + self.to_frame().to_html(index=False, border=0, max_rows=12)

    def require_complete(self) -> None:
        """Raise if any hook never fired: an edit that touched nothing is an error."""
        silent = [hook for hook, count in self.fired.items() if count == 0]
        if len(silent) == len(self.fired):
            raise MechsafetyError(
                "the edit touched nothing: no forward pass of this model ran inside edited()"
            )
        if silent:
            raise MechsafetyError(
                f"the edit missed {len(silent)} of {len(self.fired)} sites: {', '.join(silent[:4])} never ran"
            )

    def summary(self) -> dict[str, Any]:
        """How many hooks there are, how often they fired, positions changed at one at the most, and sites passed by.

        Where blocks differ in their sites, ``sites`` names those of each kind of block.
        """
        past: dict[str, Any] = {"past_hooks": list(self.past_hooks)} if self.past_hooks else {}
        if self.carried:
            past["carried"] = self.carried
        if len(sites := self.sites()) > 1:
            past["sites"] = sites
        return past | {
            "hooks": len(self.fired),
            "fired": sum(self.fired.values()),
            "positions": max(self.changed.values(), default=0),
        }

    def sites(self) -> dict[str, list[int]]:
        """The blocks that have hooks at the same sites, by these sites: ``resid_pre, linear_attn, mlp_out``."""
        blocks: dict[int, list[str]] = {}
        for hook in self.fired:
            _, layer, name = hook.split(".", 2)
            blocks.setdefault(int(layer), []).append(name.removeprefix("hook_").removesuffix(".hook_out"))
        found: dict[str, list[int]] = {}
        for layer, names in sorted(blocks.items()):
            found.setdefault(", ".join(names), []).append(layer)
        return found


class _Hook:
    """One target attached: maps activations where the pass covers them, and counts."""

    def __init__(self, target: Target, running: Pass, coverage: Coverage) -> None:
        self.target = target
        self.running = running
        self.coverage = coverage
        self.constant = Copies(target.constant)
        coverage.expect(target.hook)

    def __call__(self, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        # A mixture of experts may see the tokens of all rows in a line.
        in_rows = x.reshape(self.running.shape[0], -1, x.shape[-1])
        return self._changed(in_rows).reshape(x.shape)

    def _changed(self, x: Float[Tensor, "row token d_model"]) -> Float[Tensor, "row token d_model"]:
        chosen, size = self.running.last(x.shape[1])
        self.coverage.count(self.target.hook, size)
        new = self.target.apply(x, self.constant.on(x.device))
        return new if chosen is None else torch.where(chosen.on(x.device), new, x)


@contextmanager
def attach(
    model: TransformerBridge,
    targets: Sequence[Target],
    *,
    positions: str,
    prompt_length: int | None,
    twin: PreTrainedModel | None,
    coverage: Coverage | None = None,
) -> Iterator[Coverage]:
    """Attach ``targets`` to the bridge, or to its plain ``twin``, for as long as the block runs.

    They act after those that are attached already, and are counted in ``coverage`` where one is given.
    """
    require_hooks(model, [t.hook for t in targets])
    coverage = coverage or Coverage()
    running = Pass(positions, prompt_length, padding=_padding_token(model))
    hooks = [(target.hook, _Hook(target, running, coverage)) for target in targets]
    body: Any = twin if twin is not None else body_of(model)
    with ExitStack() as stack:
        stack.enter_context(in_one_thread(model))
        if is_hooked_transformer(body):
            watched: list[tuple[Any, Any]] = [
                (body.blocks[layer], running.begin_block) for layer in {t.layer for t in targets}
            ]
            watched.append((body.embed, running.embed))
        else:
            # Passes without logits call the base model alone; some heads (OPT's) go by it to the decoder within.
            watched = [(module, running.begin) for module in dict.fromkeys([body, body.base_model])]
        for module, begin in watched:
            stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for owner in dict.fromkeys([model, body, body_of(model)]):
            stack.enter_context(running.marking_answers(owner))
        with hooked(model, hooks, twin=twin):
            yield coverage


def _padding_token(model: Any) -> int | None:
    return getattr(model.tokenizer, "pad_token_id", None)


def require_hooks(model: TransformerBridge, names: Sequence[str]) -> None:
    """Raise unless every name is a hook point of the model: filters that match nothing run silently."""
    present = hook_points(model)
    missing = [name for name in dict.fromkeys(names) if name not in present]
    if missing or not names:
        raise MechsafetyError(
            f"this model has no hook point {', '.join(missing[:4]) or '(none was asked for)'}: "
            f"{architecture(model)} offers no such site"
        )


Replace = Callable[[Tensor], Tensor]
"""What stands at a hook point instead of the activations there: [row, token, d_model] in almost every model."""


@contextmanager
def hooked(
    model: TransformerBridge, hooks: Sequence[tuple[str, Replace]], *, twin: PreTrainedModel | None
) -> Iterator[None]:
    """Put functions on named hook points of the model, or of its plain twin, while the block runs."""
    felt = [(name, _unless_trying(replace)) for name, replace in hooks]
    if twin is None:
        with (
            in_one_thread(model),
            _counted(body_of(model), len(felt)),
            model.hooks(fwd_hooks=[(name, _as_lens_hook(replace)) for name, replace in felt]),
        ):
            yield
        return
    with in_one_thread(model), ExitStack() as stack:
        for name, replace in felt:
            stack.callback(_attach_plain(model, twin, name, replace).remove)
        yield


@contextmanager
def observed(
    model: TransformerBridge,
    readers: Sequence[tuple[str, Callable[[Tensor], None]]],
    *,
    twin: PreTrainedModel | None,
) -> Iterator[None]:
    """Show activations at named hook points to ``readers``, and change nothing."""

    def passing(read: Callable[[Tensor], None]) -> Replace:
        def call(x: Tensor) -> Tensor:
            read(x)
            return x

        return call

    require_hooks(model, [name for name, _ in readers])
    with hooked(model, [(name, passing(read)) for name, read in readers], twin=twin):
        yield


def residual_hooks(n_blocks: int, *, final_norm: bool = False) -> list[str]:
    """Hook points of the residual stream by layer: every block's input, then the last block's output.

    With ``final_norm`` the last one is what the final norm makes of that.
    """
    end = "ln_final.hook_out" if final_norm else residual_end(n_blocks)
    return [*(f"blocks.{layer}.hook_resid_pre" for layer in range(n_blocks)), end]


def residual_end(n_blocks: int) -> str:
    return f"blocks.{n_blocks - 1}.hook_resid_post"


@contextmanager
def _counted(body: Any, n: int) -> Iterator[None]:
    before = body.__dict__.get(OWN_HOOKS, 0)
    body.__dict__[OWN_HOOKS] = before + n
    try:
        yield
    finally:
        body.__dict__[OWN_HOOKS] = before


def _unless_trying(replace: Replace) -> Replace:
    owner = this_thread()

    def call(x: Tensor) -> Tensor:
        require_thread(owner)
        return x if trying() else replace(x)

    return call


def _as_lens_hook(replace: Replace) -> Callable[..., Any]:
    def call(x: Any, hook: Any) -> Any:  # noqa: ARG001 - the name is TransformerLens's
        return _first_replaced(x, replace)

    return call


def plain_module_path(model: TransformerBridge, hook: str) -> tuple[str, str] | None:
    """The Hugging Face module whose ``in`` or ``out`` a hook point sees, or None."""
    path, _, end = _module_names(model).get(hook, "").rpartition(".")
    path = path.replace("._original_component", "")
    if end not in ("hook_in", "hook_out") or not _has_module(model.__dict__.get("_mechsafety_twin"), path):
        return None
    return path, end.removeprefix("hook_")


def _has_module(twin: nn.Module | None, path: str) -> bool:
    """Whether the plain tree has it: some bridges call a module by a name of their own (BLOOM's attention output)."""
    try:
        return twin is None or twin.get_submodule(path) is not None
    except AttributeError:
        return False


def _module_names(model: TransformerBridge) -> dict[str, str]:
    """The module path that each hook point, aliases included, is another name for."""
    # Walked once per model: there are thousands of modules, the bridge builds its hook_dict anew at every
    # look, and every edit asks for dozens.
    if "_mechsafety_module_names" not in model.__dict__:
        names = {id(module): name for name, module in body_of(model).named_modules()}
        paths = {name: names.get(id(point), "") for name, point in model.hook_dict.items()}
        model.__dict__["_mechsafety_module_names"] = paths
    return model.__dict__["_mechsafety_module_names"]


def plain_twin_at(model: TransformerBridge, hooks: Sequence[str] = ()) -> PreTrainedModel | None:
    """The model's plain twin, if it has one and every hook point lies at the input or output of its modules."""
    twin = generation_twin(model)
    if twin is None or any(plain_module_path(model, name) is None for name in hooks):
        return None
    return twin


def _attach_plain(model: TransformerBridge, twin: PreTrainedModel, name: str, hook: Replace) -> Any:
    place = plain_module_path(model, name)
    if place is None:
        raise MechsafetyError(f"hook point {name} has no counterpart in the plain module tree")
    path, side = place
    module = twin.get_submodule(path)
    if side == "out":
        return module.register_forward_hook(lambda _m, _a, output: _first_replaced(output, hook))

    def before(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (hook(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hook(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(before, with_kwargs=True)


def _first_replaced(output: Any, hook: Replace) -> Any:
    # The stream comes first where a block gives more: a tuple in most models, a list in GPT-1.
    if not isinstance(output, tuple | list):
        return hook(output)
    changed = (hook(output[0]), *output[1:])
    return list(changed) if isinstance(output, list) else changed
