"""The field's names of linear maps in blocks that TransformerLens has no components for: by module name, and tried.

The map behind attention is W_O of heads only where heads stand apart in what it reads: what one key-value head's values
move are the inputs of the heads that share it, and no others. Where they do not (a norm over all of them, attention
that subtracts heads from each other), the map keeps its module's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mechsafety.models.chat import device_of, pad_left
from mechsafety.models.faithful import made_up_tokens
from mechsafety.models.forward import evaluating, forward
from mechsafety.models.handles import attached

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_MLP = {
    **{"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "fc1": "up", "dense_h_to_4h": "up"},
    **{"down_proj": "down", "w2": "down", "fc2": "down", "dense_4h_to_h": "down"},
}
_QKV = {"q_proj": "q", "k_proj": "k", "v_proj": "v"}
_OUT = ("o_proj", "out_proj", "dense")
_VALUES = ("v_proj", "kv_b_proj")
"""Maps whose rows are key-value heads one after another."""
_NUMBERS = ("num_heads", "num_attention_heads", "n_heads")
_TOKENS = 8
_MOST = 0.9


def read_kinds(model: TransformerBridge, body: Any, blocks: Sequence[nn.Module]) -> list[dict[int, str]]:
    """For each block the kinds of its maps by the identity of their weights; none where TransformerLens names them."""
    found: list[dict[int, str]] = [{} for _ in blocks]
    mixers: dict[int, nn.Module] = {}
    for layer, block in enumerate(blocks):
        part: Any = model.blocks[layer]
        for name, (site, _) in getattr(part, "mechsafety_branches", {}).items():
            branch: nn.Module | None = getattr(
                block, getattr(getattr(part, name, None), "name", None) or "", None
            )
            if branch is None:
                continue
            if site == "mlp_out":
                found[layer] |= _named(branch, _MLP)
            else:
                mixers[layer] = branch
    calls = _calls(model, body, mixers)
    for layer, (args, kwargs) in calls.items():
        with evaluating(mixers[layer]), torch.inference_mode():
            found[layer] |= _of_attention(mixers[layer], args, kwargs, n_heads=int(model.cfg.n_heads))
    return found


def _named(branch: nn.Module, names: dict[str, str]) -> dict[int, str]:
    linear = {path: m for path, m in branch.named_modules() if isinstance(m, nn.Linear)}
    kinds = {id(m.weight): names.get(path.rpartition(".")[2]) for path, m in linear.items()}
    return {weight: kind for weight, kind in kinds.items() if kind is not None}


def _calls(model: Any, body: Any, mixers: dict[int, nn.Module]) -> dict[int, tuple[Any, Any]]:
    """How each token mixer is called in a pass."""
    found: dict[int, tuple[Any, Any]] = {}

    def watch(layer: int) -> Any:
        return lambda _module, args, kwargs: found.__setitem__(layer, (args, kwargs))

    handles = [m.register_forward_pre_hook(watch(n), with_kwargs=True) for n, m in mixers.items()]
    if mixers:
        ids = made_up_tokens(int(model.cfg.d_vocab), _TOKENS)[0].tolist()
        with attached(handles):
            forward(body, pad_left([ids], pad=0).to(device_of(model)), logits=None)
    return found


def _of_attention(attention: Any, args: Any, kwargs: Any, *, n_heads: int) -> dict[int, str]:
    """The kinds of an attention's maps; none where its heads do not stand apart."""
    linear = {name: m for name, m in attention.named_children() if isinstance(m, nn.Linear)}
    out = next((linear[name] for name in _OUT if name in linear), None)
    tried = next((name for name in _VALUES if name in linear), None)
    own_number = next(
        (n for name in _NUMBERS if isinstance(n := getattr(attention, name, None), int)), n_heads
    )
    if out is None or tried is None or out.in_features % n_heads or own_number != n_heads:
        return {}
    d_head = out.in_features // n_heads
    groups, rest = (n_heads, 0) if tried == "kv_b_proj" else divmod(linear[tried].out_features, d_head)
    if (groups, rest) == (1, 0) and "q_proj" in linear:  # every head shares the values
        tried, groups = "q_proj", n_heads
    values = linear[tried]
    if rest or not groups or n_heads % groups or values.out_features % groups:
        return {}
    for group in {0, groups - 1}:
        moved = _moved(attention, args, kwargs, out, values, rows=_part(group, groups, values.out_features))
        own = moved[_part(group, groups, out.in_features)]
        # Rounding may leave an input or two where they were.
        if int(own.sum()) < int(moved.sum()) or float(own.float().mean()) < _MOST:
            return {}
    maps = {kind: linear[name] for name, kind in _QKV.items() if name in linear}
    whole = len(maps) == len(_QKV) and (
        maps["q"].out_features == out.in_features and maps["k"].out_features == maps["v"].out_features
    )
    return {id(out.weight): "o"} | ({id(m.weight): kind for kind, m in maps.items()} if whole else {})


def _part(number: int, of: int, size: int) -> slice:
    return slice(number * size // of, (number + 1) * size // of)


def _moved(
    attention: Any, args: Any, kwargs: Any, out: nn.Linear, values: nn.Linear, *, rows: slice
) -> Tensor:
    """Which inputs of ``out`` are others where ``rows`` of what ``values`` gives out are."""
    seen: list[Tensor] = []

    def disturb(_module: nn.Module, _args: Any, y: Tensor) -> Tensor:
        other = y.clone()
        noise = torch.randn(
            y[..., rows].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32
        )
        other[..., rows] += noise.to(y) * y.abs().mean()
        return other

    reads = out.register_forward_pre_hook(lambda _m, x: seen.append(x[0].detach().flatten(0, -2).clone()))
    with attached([reads]):
        attention(*args, **kwargs)
        with attached([values.register_forward_hook(disturb)]):
            attention(*args, **kwargs)
    return (seen[0] != seen[1]).any(0)
