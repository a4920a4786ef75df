"""Whether TransformerLens computes a model as transformers does, found out when it is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mechsafety.core.errors import MechsafetyError, first_lines, way
from mechsafety.models.handles import attached
from mechsafety.models.hardware import dtype_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 32


def made_up_tokens(vocabulary: int, n: int, device: torch.device | str = "cpu") -> Int[Tensor, "1 token"]:
    """``n`` tokens to try a model on: of the middle half of its vocabulary, where few are special, mostly distinct."""
    half = max(vocabulary // 2, 1)
    return torch.tensor([[(7919 * i) % half + half // 2 for i in range(1, n + 1)]], device=device)


def require_faithful(spec: str, hf: PreTrainedModel, twin: PreTrainedModel, *, most: int | None) -> None:
    """Raise where TransformerLens' model computes other numbers than transformers does with the same weights.

    ``hf`` is the module that TransformerLens has wrapped, ``twin`` a plain one over the same parameters, ``most`` the
    tokens that fit. TransformerLens runs plain attention where transformers takes a fused kernel; both are the same up
    to rounding, but not in every model (Falcon with ALiBi counts its distances twice). Half precision rounds much, and
    what a mixture of experts makes of it is no rounding any more: there the first block is compared, at the median
    token, where rounding does 1 % and those distances 5 %.
    """
    vocabulary = cast("Any", twin.get_input_embeddings()).weight.shape[0]
    n = min(_TOKENS, most or _TOKENS)
    ids = made_up_tokens(vocabulary, n, twin.device)
    half = twin.dtype.itemsize < 4
    _require_causal(spec, twin, ids)
    look = _first_block if half else _all_logits
    theirs, ours = (
        _tried("transformers", spec, twin, ids, look),
        _tried("TransformerLens", spec, hf, ids, look),
    )
    apart = max((_apart(ours[name], theirs[name]) for name in theirs if name in ours), default=0.0)
    if apart > (0.03 if half else 1e-3):
        raise MechsafetyError(
            f"TransformerLens computes other numbers for {spec!r} ({type(hf).__name__}) than transformers does, "
            f"{apart:.1%} apart: its analyses would be of another model, so it is not supported"
        )


def _require_causal(spec: str, twin: PreTrainedModel, ids: Int[Tensor, "1 token"]) -> None:
    """Raise where the last half of ``ids`` changes the logits of the first."""
    early = ids.shape[1] // 2
    other = torch.cat([ids[:, :early], ids[:, : ids.shape[1] - early].flip(-1)], dim=1)
    one, two = (_tried("transformers", spec, twin, each, _all_logits)[""][:early] for each in (ids, other))
    if _apart(one, two) > 0.03:
        raise MechsafetyError(
            f"{spec!r} ({type(twin).__name__}) reads what follows a token before it gives the next one: it is no "
            "causal language model (an encoder?), so it is not supported"
        )


Look = Callable[[nn.Module, Tensor], dict[str, Tensor]]


def _tried(library: str, spec: str, model: PreTrainedModel, ids: Tensor, look: Look) -> dict[str, Tensor]:
    """What ``look`` sees in a pass of ``model``."""
    try:
        return look(model, ids)
    except Exception as error:  # whatever the code of an architecture raises
        half = model.dtype.itemsize < 4
        divided = len({p.device for p in model.parameters()}) > 1
        how = "divided among several devices" if divided else f"in {dtype_name(model.dtype)}"
        mend = "; it runs on one" if divided else f"; try {way('--dtype float32')}" if half else ""
        raise MechsafetyError(
            f"{library} cannot run {spec!r} ({type(model).__name__}) {how}: {first_lines(error)}{mend}"
        ) from error


def _apart(one: Tensor, other: Tensor) -> float:
    """The distance relative to the size, at the median token."""
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1).clamp(min=1e-9)).median())


def _all_logits(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        return {"": model(input_ids=ids).logits[0].float()}


def _first_block(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """What the first block and its modules put out for every token, by the module's path in the plain tree."""
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            if isinstance(out, Tensor) and out.is_floating_point() and out.shape[:2] == ids.shape:
                seen[path] = out[0].float().flatten(1)

        return after

    handles = []
    for name, module in model.named_modules():
        path = name.replace("._original_component", "")
        number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
        if number is not None and number[1] == "0":
            handles.append(module.register_forward_hook(keep(path)))
    with attached(handles), torch.inference_mode():
        model(input_ids=ids)
    return seen
