"""How much memory the scores of a model take, computed from its configuration before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import quiet
from mechsafety.models.hardware import dtype_name, resolve_device, resolve_dtype
from mechsafety.models.specs import load_error, locate, parse_spec
from mechsafety.models.weights import auto_class
from mechsafety.regions.attribution import DEFAULT_BATCH
from mechsafety.regions.experts import mixtures

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_FLOAT32 = 4
DEFAULT_TOKENS = 512
"""Tokens of the longest example, prompt and answer together, that a plan reckons with."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes that :func:`score_weights` holds at once on the model's device.

    ``weights`` are all of the model's, ``scores`` one float32 number for each weight of the linear maps, ``grams``
    one float32 matrix a site; these are exact. ``batch`` is an estimate of what a batch of ``batch_size`` examples
    of ``tokens`` tokens adds: its activations, their gradients and its logits. ``sites_seen`` is False where the
    model would not run without weights: each map then counts a Gram matrix of its own, which is the most it can be.
    """

    model: str
    dtype: str
    n_parameters: int
    n_maps: int
    n_sites: int
    sites_seen: bool
    batch_size: int
    tokens: int
    weights: int
    scores: int
    grams: int
    batch: int

    @property
    def total(self) -> int:
        return self.weights + self.scores + self.grams + self.batch

    def rows(self) -> list[tuple[str, int]]:
        """What takes memory, and how many bytes."""
        most = "" if self.sites_seen else ", at most"
        return [
            (f"weights, {self.n_parameters / 1e6:,.0f} M in {self.dtype}", self.weights),
            (f"scores of {self.n_maps} linear maps, float32", self.scores),
            (f"Gram matrices of {self.n_sites} sites, float32{most}", self.grams),
            (f"a batch of {self.batch_size} x {self.tokens} tokens, about", self.batch),
            ("together", self.total),
        ]

    def describe(self, *, free: int | None = None) -> str:
        """A table in plain text; with ``free`` bytes given, whether they suffice."""
        rows = [(what, f"{size / 1e9:,.2f} GB") for what, size in self.rows()]
        width, end = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = [f"memory for the scores of {self.model}, one set of examples after the other"]
        lines += [f"  {what:<{width}}  {size:>{end}}" for what, size in rows]
        if free is not None:
            verdict = "fits in" if self.total <= free else "does not fit in"
            lines.append(f"  {verdict} the {free / 1e9:,.2f} GB that are free")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(what)}</td><td>{size / 1e9:,.2f} GB</td></tr>" for what, size in self.rows()
        )
        return f"<b>{escape(self.model)}</b><table>{rows}</table>"


def memory_plan(
    spec: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int = DEFAULT_BATCH,
    tokens: int = DEFAULT_TOKENS,
    trust_remote_code: bool = False,
) -> MemoryPlan:
    """The plan for a model by its spec, as :func:`load_model` takes it; its configuration alone is read.

    An adapter is merged into the weights and adds nothing.
    """
    from transformers import AutoConfig

    parsed = parse_spec(spec)
    number = resolve_dtype(dtype, resolve_device(device))
    folder, _ = locate(parsed)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                folder, revision=parsed.revision, trust_remote_code=trust_remote_code
            )
    except Exception as error:
        raise load_error(spec, parsed, error) from error
    return plan_of(
        config,
        name=spec,
        dtype=number,
        batch_size=batch_size,
        tokens=tokens,
        trust_remote_code=trust_remote_code,
    )


def plan_of(
    config: PretrainedConfig,
    *,
    name: str,
    dtype: torch.dtype,
    batch_size: int = DEFAULT_BATCH,
    tokens: int = DEFAULT_TOKENS,
    trust_remote_code: bool = False,
) -> MemoryPlan:
    """The plan for a configuration. Raises :class:`MechsafetyError` where no linear map stands in its blocks."""
    for what, number in (("batch_size", batch_size), ("tokens", tokens)):
        if number < 1:
            raise MechsafetyError(f"{what} is {number}; 1 at least")
    with quiet(), torch.device("meta"):
        # Fused kernels look into masks, which have no contents here; the eager form does not.
        model: Any = auto_class(config).from_config(
            config, dtype=torch.bfloat16, attn_implementation="eager", trust_remote_code=trust_remote_code
        )
    maps = _maps(model)
    if not maps:
        raise MechsafetyError(
            f"no linear module stands in the blocks of {type(model).__name__}: there is no map to score"
        )
    sites, seen = _sites(model, maps)
    n_parameters = sum(p.numel() for p in model.parameters())
    d_ins = [m.weight.numel() // _d_out(m) for m in sites]
    weights = [m.weight.numel() for m in maps]
    experts, expert_weights, expert_grams, widest = _experts(model)
    if experts:
        batch_size = 1
    return MemoryPlan(
        model=name,
        dtype=dtype_name(dtype),
        n_parameters=n_parameters,
        n_maps=len(maps) + 3 * experts,
        n_sites=len(sites) + 2 * experts,
        sites_seen=seen,
        batch_size=batch_size,
        tokens=tokens,
        weights=n_parameters * dtype.itemsize,
        scores=(sum(weights) + expert_weights) * _FLOAT32,
        grams=(sum(d * d for d in d_ins) + expert_grams) * _FLOAT32,
        batch=_batch_bytes(model, maps, d_ins, dtype=dtype, n=batch_size * tokens)
        + max(*weights, widest) * _FLOAT32,
    )


def _experts(model: Any) -> tuple[int, int, int, int]:
    """Of experts that stand in parameters for all: how many, their weights, Gram entries, and the largest parameter."""
    d_model = model.config.get_text_config().hidden_size
    number, weights, grams, widest = 0, 0, 0, 0
    for block in _blocks(model):
        for mixture in mixtures(block):
            fused = [p for name, group in mixture.parameters.items() for p in group if mixture.fused[name]]
            if not fused:
                continue  # of experts that are modules each map is among the linear modules
            smallest = min(fused, key=lambda p: p.numel())
            d_ff = smallest.numel() // len(smallest) // d_model
            number += len(smallest)
            weights += sum(p.numel() for p in fused)
            grams += len(smallest) * (d_model**2 + d_ff**2)
            widest = max(widest, *(p.numel() for p in fused))
    return number, weights, grams, widest


def _batch_bytes(model: Any, maps: list[Any], d_ins: list[int], *, dtype: torch.dtype, n: int) -> int:
    """Inputs and outputs of every map, each kept about twice (norms and activations keep their own), and logits.

    Logits stand in the model's format and, with their gradient, in float32.
    """
    width = sum(d_ins) + sum(_d_out(m) for m in maps)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return n * (2 * width * dtype.itemsize + vocabulary * (2 * dtype.itemsize + 2 * _FLOAT32))


def _d_out(module: Any) -> int:
    return module.weight.shape[1 if isinstance(module, Conv1D) else 0]


def _maps(model: Any) -> list[Any]:
    """The linear modules of the list of blocks."""
    return [m for block in _blocks(model) for m in block.modules() if isinstance(m, nn.Linear | Conv1D)]


def _blocks(model: Any) -> list[nn.Module]:
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return list(module)
    return []


def _sites(model: Any, maps: list[Any]) -> tuple[list[Any], bool]:
    """One map of each input that maps share, and whether a pass without contents found them."""
    inputs: dict[nn.Module, Tensor] = {}

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.setdefault(module, args[0])

    handles = [m.register_forward_pre_hook(before) for m in maps]
    try:
        ids = torch.zeros((1, 4), dtype=torch.long, device="meta")
        with torch.no_grad():
            model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except Exception:  # a forward pass that looks at values, which a model without weights does not have
        return maps, False
    finally:
        for handle in handles:
            handle.remove()
    firsts = {id(x): module for module, x in reversed(inputs.items())}
    return list(firsts.values()), True
