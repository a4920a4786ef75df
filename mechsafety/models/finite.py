"""Numbers that are none: a model whose logits are NaN or infinite is named with its layer, never measured.

Half precision overflows, some attention kernels divide by nothing where a row is all padding, and weights may be
damaged. Downstream such logits would be a token, an empty answer or a rate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechsafety.core.errors import NotFiniteError, way
from mechsafety.models.handles import attached


def rows_broken(
    logits: Float[Tensor, "row token vocabulary"], real: Bool[Tensor, "row token"] | None = None
) -> bool:
    """Whether logits at any real token make no distribution: their largest is NaN or infinite.

    A token that is ruled out (-inf) is allowed, as some models have them. ``real`` marks the columns that are no
    padding.
    """
    best = logits.amax(-1)
    fine = torch.isfinite(best)
    return not bool((fine if real is None else fine | ~real).all())


def require_finite(
    body: Any,
    logits: Float[Tensor, "row token vocabulary"],
    again: Callable[[], object],
    real: Bool[Tensor, "row token"] | None = None,
) -> None:
    """Raise :class:`NotFiniteError` for broken logits of ``body``; ``again`` repeats the pass that gave them."""
    if rows_broken(logits, real):
        raise not_finite(body, again)


def not_finite(body: nn.Module, again: Callable[[], object]) -> NotFiniteError:
    """The error that names the model and the first of its modules whose output is not finite."""
    name = str(getattr(body, "mechsafety_name", "") or type(body).__name__)
    dtype = str(next(body.parameters()).dtype).removeprefix("torch.")
    return NotFiniteError(
        f"{name}: logits are NaN or infinite in {dtype}, first at {_first_broken(body, again)}: take another number "
        f"format ({way('--dtype float32')}), or check the weights and the edit"
    )


def not_finite_at(system: str, what: str) -> NotFiniteError:
    """The error for a number other than logits: ``what`` names it, and its layer or map."""
    return NotFiniteError(
        f"{system}: {what} is NaN or infinite: the weights overflow in this number format "
        f"(try {way('--dtype float32')}) "
        "or are "
        "damaged"
    )


@contextmanager
def finite_logits(body: Any, *, at_once: bool = True) -> Iterator[Callable[[], None]]:
    """While the block runs, every pass of ``body`` that gives logits is checked at its last token.

    What is yielded raises for the passes since its last call. ``at_once`` raises in the pass itself, for which the host
    waits for the device at every token: drawing from broken logits would fail.
    """
    passes: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []

    def check(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        fine = torch.isfinite(output.logits[:, -1].amax(-1)).all()
        passes.append((fine, args, kwargs | {"past_key_values": None}))
        if at_once:
            settle()

    def settle() -> None:
        fine = torch.stack([each for each, *_ in passes]).tolist() if passes else []
        if not all(fine):
            handle.remove()
            _, args, kwargs = passes[fine.index(False)]
            raise not_finite(body, lambda: body(*args, **kwargs))
        passes.clear()

    handle = body.register_forward_hook(check, with_kwargs=True)
    with attached([handle]):
        yield settle


def _first_broken(body: nn.Module, again: Callable[[], object]) -> str:
    found: list[str] = []

    def check(path: str) -> Callable[..., None]:
        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else (output,)
            if not found and any(_broken(t) for t in tensors):
                found.append(path)

        return after

    with ExitStack() as stack, torch.inference_mode():
        for path, module in body.named_modules():
            if path:
                stack.callback(module.register_forward_hook(check(path)).remove)
        again()
    if not found:
        return "a later token"
    layer = re.search(r"\.(\d+)(?:\.|$)", found[0])
    path = found[0].replace("._original_component", "")
    return f"layer {layer[1]} ({path})" if layer else path


def _broken(value: object) -> bool:
    """NaN or +inf; masked attention scores are -inf by right."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return bool((value.isnan() | (value == float("inf"))).any())
