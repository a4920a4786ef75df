"""Residual-stream caches: what every layer holds at named positions of every prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.arguments import whole_numbers
from mechsafety.core.boundary import checked_construction
from mechsafety.core.errors import MechsafetyError, NotFiniteError
from mechsafety.core.progress import bar, with_progress
from mechsafety.core.values import Value, as_array
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.bound_files import FileKind
from mechsafety.models.chat import batches, device_of, named_positions
from mechsafety.models.chat_settings import chat_text
from mechsafety.models.finite import not_finite_at
from mechsafety.models.forward import forward, run_prefix
from mechsafety.models.hooking import observed, plain_twin_at, residual_hooks
from mechsafety.models.loading import body_of, known_fingerprint, model_name
from mechsafety.models.prefixes import common_prefix
from mechsafety.models.projection import VectorLike
from mechsafety.prompts.accepted import PromptsLike, as_prompts
from mechsafety.prompts.columns import label_counts
from mechsafety.prompts.fed import fitting, truncated
from mechsafety.prompts.prompt_set import Prompt

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from mechsafety.directions.direction import Directions
    from mechsafety.directions.projections import Projections

DEFAULT_BATCH = 64


@checked_construction
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ResidualCache(Value):
    """Residual streams [prompt, position, layer, d_model] in float32 on the CPU.

    ``positions`` are offsets from the end of the rendered prompt: -1 is the last prompt token. Layer L is
    the input of block L (``blocks.L.hook_resid_pre``); the last one, L = n_layers, is the output of the
    last block, before the final norm, or with ``final_norm`` what that makes of it. ``chat`` are the settings under
    which the prompts were read, as JSON; empty for the default ones.

    Arguments:
        activations: The streams, in the model's own units.
        ids: Ids of the prompts, one per row.
        labels: Their labels; empty where none is known.
        model: Name of the model.
        fingerprint: Hash of its weights.

    Example:
        >>> projected = cache.project(directions).to_frame()  # [prompt, layer]
        >>> list(projected.index) == list(cache.ids)
        True
    """

    activations: Float[Tensor, "prompt position layer d_model"]
    positions: tuple[int, ...]
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    model: str
    fingerprint: str
    chat: str = ""
    final_norm: bool = False

    def __post_init__(self) -> None:
        n, p = self.activations.shape[:2]
        if n != len(self.ids) or n != len(self.labels) or p != len(self.positions):
            raise ValueError("activations, ids, labels and positions do not match")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """``activations`` for numpy, [prompt, position, layer, d_model]."""
        return as_array(self.activations, dtype, copy)

    @property
    def n_layers(self) -> int:
        """Layers cached: the model's blocks and one more for the last block's output."""
        return self.activations.shape[2]

    def select(self, label: str) -> Float[Tensor, "prompt position layer d_model"]:
        """The activations of the prompts of one ``label``. Raises :class:`MechsafetyError` where there are none."""
        rows = [row for row, value in enumerate(self.labels) if value == label]
        if not rows:
            raise MechsafetyError(f"no {label} prompts in this cache: it holds {sorted(set(self.labels))}")
        return self.activations[rows]

    def at(self, position: int) -> ResidualCache:
        """The cache of one of its positions alone. Raises :class:`MechsafetyError` for a position that it lacks."""
        place = self.row_of(position)
        return replace(self, activations=self.activations[:, place : place + 1], positions=(position,))

    def row_of(self, position: int) -> int:
        """The row of ``position``. Raises :class:`MechsafetyError` where it is not cached."""
        if position not in self.positions:
            raise MechsafetyError(
                f"position {position} is not in this cache: it holds {', '.join(map(str, self.positions))}"
            )
        return self.positions.index(position)

    def project(self, directions: Directions | VectorLike, *, position: int = -1) -> Projections:
        """Projection of every prompt at ``position`` on unit directions, in the activations' own units.

        ``directions`` are those of each layer, or one direction or vector [d_model] for all layers.

        Raises :class:`MechsafetyError` for another width, another number of layers, and a position that either lacks.
        """
        from mechsafety.directions.projections import projected

        return projected(self, directions, position)

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt, position and layer: id, label, position, layer, norm (of the residual stream)."""
        import pandas as pd

        norms = self.activations.norm(dim=-1)
        rows = [
            (prompt, label, position, layer, float(norms[n, p, layer]))
            for n, (prompt, label) in enumerate(zip(self.ids, self.labels, strict=True))
            for p, position in enumerate(self.positions)
            for layer in range(self.n_layers)
        ]
        return pd.DataFrame(rows, columns=pd.Index(("id", "label", "position", "layer", "norm")))

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file that :func:`load_cache` reads; its name must end in .safetensors.

        Returns the path.
        """
        facts = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "activations"}
        return _FILES.write(path, {"activations": self.activations}, facts)

    def describe(self) -> str:
        n, _, layers, width = self.activations.shape
        size = self.activations.numel() * self.activations.element_size() / 1e6
        counts = label_counts(self.labels)
        return (
            f"ResidualCache(of {self.model!r}, {n} prompts: {counts})\n"
            f"positions {', '.join(map(str, self.positions))}; layers 0 to {layers - 1}; {width} dimensions; "
            f"{size:.1f} MB"
        )


_FILES = FileKind(noun="cache", key="mechsafety_cache", holds="cache")


def load_cache(path: str | Path) -> ResidualCache:
    """Read a cache that :meth:`ResidualCache.save` wrote.

    Raises :class:`MechsafetyError` for a file that is missing, damaged, or holds no cache.

    Returns:
        The activations, as they were saved.

    Example:
        >>> cache.save("cache.safetensors")
        PosixPath('cache.safetensors')
        >>> ms.load_cache("cache.safetensors") == cache
        True
    """
    path = _FILES.existing(path)
    with _FILES.opened(path) as stored:
        facts = _FILES.record(path, stored)
        lists = {name: tuple(facts[name]) for name in ("positions", "ids", "labels")}
        plain = {name: facts[name] for name in ("model", "fingerprint", "chat", "final_norm")}
        return ResidualCache(activations=stored.get_tensor("activations"), **lists, **plain)


@with_progress
def residual_stream(
    model: ModelLike,
    prompts: PromptsLike,
    *,
    positions: int | str | Sequence[int] = (-1,),
    batch_size: int = DEFAULT_BATCH,
    truncate_prompts: bool = False,
    final_norm: bool = False,
    progress: bool = True,  # noqa: ARG001 - with_progress reads it
) -> ResidualCache:
    """Cache every layer's residual stream at ``positions`` of each prompt, in its chat template.

    Positions are offsets from the end (-1 is the last prompt token), or a name: ``last``, or ``post_instruction``,
    every token that the template puts behind the request.

    Prompts run in length-sorted, left-padded batches, the tokens they all begin with once; only the named
    positions are kept, so memory is that of the result plus one batch. With ``final_norm`` the last layer is read after
    the model's final norm, as in the last entry of Hugging Face's ``hidden_states``.

    Raises :class:`MechsafetyError` when there are no prompts, when a prompt is shorter than the furthest position or
    longer than the model's window (``truncate_prompts`` cuts its text instead), and for NaN activations (with the
    prompt and the layer).

    Returns:
        Activations [prompt, position, layer, d_model], with what they were made from.

    Example:
        >>> cache = ms.residual_stream(model, prompts.fit, positions=(-2, -1), progress=False)
        >>> cache.activations.shape == (len(prompts.fit), 2, model.cfg.n_layers + 1, model.cfg.d_model)
        True
    """
    model = as_model(model)
    prompts = as_prompts(prompts, empty=True)
    positions = named_positions(
        model, positions if isinstance(positions, str) else whole_numbers(positions, "positions")
    )
    if truncate_prompts:
        prompts, _ = truncated(model, prompts, new_tokens=0)
    out = torch.empty(
        len(prompts), len(positions), model.cfg.n_layers + 1, model.cfg.d_model, dtype=torch.float32
    )

    def store(rows: list[int], x: Float[Tensor, "row position layer d_model"]) -> None:
        out[rows] = x.float()

    _stream(model, prompts, positions, batch_size, store, final_norm=final_norm)
    return ResidualCache(
        activations=out,
        positions=tuple(positions),
        ids=tuple(p.id for p in prompts),
        labels=tuple(p.label for p in prompts),
        model=model_name(model),
        fingerprint=known_fingerprint(model),
        chat=chat_text(model),
        final_norm=final_norm,
    )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ResidualMeans(Value):
    """Class means of the residual stream, summed in float64 while streaming.

    ``means`` is [label, position, layer, d_model] in the order of ``labels``; ``counts`` the prompts of each.
    """

    means: Float[Tensor, "label position layer d_model"]
    counts: tuple[int, ...]
    labels: tuple[str, ...]
    positions: tuple[int, ...]

    def difference(self, a: str = "harmful", b: str = "harmless") -> Float[Tensor, "position layer d_model"]:
        """mean(a) - mean(b): the unnormalised mean difference of :func:`find_directions`."""
        missing = [name for name in (a, b) if name not in self.labels]
        if missing:
            raise MechsafetyError(f"no {missing[0]} prompts among these means: they hold {list(self.labels)}")
        return self.means[self.labels.index(a)] - self.means[self.labels.index(b)]


def residual_means(
    model: ModelLike,
    prompts: PromptsLike,
    *,
    positions: int | Sequence[int] = (-1,),
    batch_size: int = DEFAULT_BATCH,
) -> ResidualMeans:
    """Class means of the residual stream; memory does not depend on the number of prompts."""
    model = as_model(model)
    prompts = as_prompts(prompts, empty=True)
    positions = whole_numbers(positions, "positions")
    labels = tuple(sorted({p.label for p in prompts}))
    sums = torch.zeros(
        len(labels), len(positions), model.cfg.n_layers + 1, model.cfg.d_model, dtype=torch.float64
    )
    kind = torch.tensor([labels.index(p.label) for p in prompts], dtype=torch.long)

    def add(rows: list[int], x: Float[Tensor, "row position layer d_model"]) -> None:
        sums.index_add_(0, kind[rows], x.double())

    _stream(model, prompts, positions, batch_size, add)
    counts = tuple(int((kind == k).sum()) for k in range(len(labels)))
    return ResidualMeans(
        means=sums / torch.tensor(counts, dtype=torch.float64)[:, None, None, None],
        counts=counts,
        labels=labels,
        positions=tuple(positions),
    )


def _stream(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    positions: Sequence[int],
    batch_size: int,
    take: Callable[[list[int], Tensor], None],
    *,
    final_norm: bool = False,
) -> None:
    """Run the prompts and hand ``take`` the named positions of all layers, batch by batch, on the CPU."""
    if not prompts:
        raise MechsafetyError("no prompts to cache")
    if not positions or any(p >= 0 for p in positions):
        raise MechsafetyError(f"positions {list(positions)}: offsets from the end are -1, -2, ...")
    _, sequences = fitting(model, prompts, truncate=False)
    furthest = -min(positions)
    shortest = min(len(s) for s in sequences)
    if shortest < furthest:
        raise MechsafetyError(f"position {-furthest} lies before the shortest prompt ({shortest} tokens)")
    names = residual_hooks(model.cfg.n_layers, final_norm=final_norm)
    twin = plain_twin_at(model, names)
    body = twin if twin is not None else body_of(model)
    shared = common_prefix(body, sequences, device_of(model), leave=furthest)
    before = run_prefix(body, shared, device_of(model))
    seen: dict[int, Tensor] = {}

    def reader(layer: int) -> Callable[[Tensor], None]:
        return lambda x: seen.__setitem__(layer, x[:, list(positions)])

    rests = [s[len(shared) :] for s in sequences]
    with (
        observed(model, [(name, reader(layer)) for layer, name in enumerate(names)], twin=twin),
        bar("residual stream", total=len(sequences), unit="prompt") as progress,
    ):
        for batch in batches(model, rests, batch_size=batch_size):
            forward(body, batch, logits=None, before=before)
            kept = _on_the_cpu(seen)
            if not bool(torch.isfinite(kept).all()):
                raise _not_finite(model_name(model), [prompts[row].id for row in batch.rows], kept)
            take(list(batch.rows), kept)
            progress.update(len(batch.rows))


def _on_the_cpu(seen: dict[int, Tensor]) -> Float[Tensor, "row position layer d_model"]:
    """What was seen of every layer, from each device in one piece: a copy for each layer would wait for each."""
    by_device: dict[torch.device, list[int]] = {}
    for layer in sorted(seen):
        by_device.setdefault(seen[layer].device, []).append(layer)
    parts = [torch.stack([seen[n] for n in layers], dim=2).cpu() for layers in by_device.values()]
    order = [n for layers in by_device.values() for n in layers]
    return torch.cat(parts, dim=2)[:, :, sorted(range(len(order)), key=order.__getitem__)]


def _not_finite(
    system: str, ids: list[str], kept: Float[Tensor, "row position layer d_model"]
) -> NotFiniteError:
    broken = (~torch.isfinite(kept)).any(dim=-1).any(dim=1)
    layer = int(broken.any(dim=0).nonzero()[0])
    bad = int(broken[:, layer].nonzero()[0])
    return not_finite_at(system, f"the residual stream of prompt {ids[bad]!r} at layer {layer}")
