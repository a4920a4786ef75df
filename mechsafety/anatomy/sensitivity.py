"""How much the first token of the answer hangs on each prompt: the local Lipschitz constant of the model.

Jain et al., NeurIPS 2024, arXiv 2407.10264, section 4.4: the norm of the gradient of the largest logit at the first
output position, with respect to the input embeddings.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import bar
from mechsafety.generation.answers import Encoded, collate
from mechsafety.models.chat import device_of, last_columns, pad_token, plan_batches
from mechsafety.models.finite import not_finite_at
from mechsafety.models.forward import evaluating
from mechsafety.models.loading import model_name
from mechsafety.prompts.fed import fitting
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.regions.maps import running_body
from mechsafety.statistics.resampling import percentiles

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

DEFAULT_BATCH = 16
RESAMPLES = 1000
SENSITIVITY_COLUMNS = ["model", "group", "n", "median", "low", "high"]
NORM_COLUMNS = ["model", "id", "group", "norm"]


def gradient_norms(
    model: TransformerBridge, prompts: Sequence[Prompt], *, batch_size: int = DEFAULT_BATCH
) -> Float[Tensor, " prompt"]:
    """|| d max_v logit_v / d E ||_2 of each prompt: E [token, d_model] are all its embeddings, template included.

    The logits are those of the last prompt token; the unit is logits per unit of embedding. The gradient is taken in
    the model's number format and its norm in float32. No gradient stays behind. Raises :class:`MechsafetyError` for no
    prompts, float16 weights (gradients underflow), and a gradient that is NaN or infinite.
    """
    if not prompts or batch_size < 1:
        raise MechsafetyError(f"{len(prompts)} prompts and batch_size {batch_size}; 1 of each at least")
    if next(model.parameters()).dtype == torch.float16:
        raise MechsafetyError("gradients underflow in float16: load the model in bfloat16 or float32")
    body = running_body(model)
    encoded: list[Encoded] = [(s, []) for s in fitting(model, prompts)[1]]
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        evaluating(body),
        bar("sensitivity", total=len(prompts), unit="prompt") as progress,
    ):
        norms = torch.empty(len(prompts), dtype=torch.float32)
        for rows in plan_batches([len(s) for s, _ in encoded], batch_size=batch_size):
            found = _norms(model, body, [encoded[row] for row in rows])
            if not bool(torch.isfinite(found).all()):
                bad = prompts[rows[int((~torch.isfinite(found)).nonzero()[0])]].id
                raise not_finite_at(model_name(model), f"the gradient at the embeddings of prompt {bad!r}")
            norms[rows] = found
            progress.update(len(rows))
        return norms


def _norms(model: TransformerBridge, body: Any, batch: Sequence[Encoded]) -> Float[Tensor, " row"]:
    # Padded on the right, where no real token looks; rows do not mix, so that one backward pass serves them all.
    padded = collate(batch, pad=pad_token(model)).to(device_of(model))
    embeddings = body.get_input_embeddings()(padded.ids).detach().requires_grad_(True)
    ends = last_columns(padded.mask)
    columns, place = ends.unique(return_inverse=True)
    given: dict[str, Any] = {"inputs_embeds": embeddings, "attention_mask": padded.mask, "use_cache": False}
    # The model's own forward unembeds: some cap or scale their logits there.
    if "logits_to_keep" in inspect.signature(body.forward).parameters:
        logits = body(**given, logits_to_keep=columns).logits
    else:
        logits = body(**given).logits[:, columns]
    largest = logits[torch.arange(len(place), device=place.device), place].float().max(-1).values
    (gradient,) = torch.autograd.grad(largest.sum(), embeddings)
    return gradient.detach().float().flatten(1).norm(dim=-1).cpu()


def norm_table(
    norms: Float[Tensor, " prompt"], prompts: Sequence[Prompt], *, model: str, groups: Mapping[str, str]
) -> pd.DataFrame:
    """The norm of every prompt with its group (by the prompt's id). Columns: :data:`NORM_COLUMNS`."""
    import pandas as pd

    if len(norms) != len(prompts):
        raise MechsafetyError(f"{len(norms)} norms for {len(prompts)} prompts; one for each")
    if missing := [p.id for p in prompts if p.id not in groups]:
        raise MechsafetyError(f"{len(missing)} prompts have no group, {missing[0]!r} for one")
    ids = [p.id for p in prompts]
    columns = {"model": model, "id": ids, "group": [groups[i] for i in ids], "norm": norms.numpy()}
    return pd.DataFrame(columns)[NORM_COLUMNS]


def median_change(
    norms: pd.DataFrame, before: str, after: str, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """The median norm of one model less that of another, with a 95 % bootstrap interval over their common prompts.

    ``norms`` has one column per model and one row per prompt.
    """
    pairs = norms[[before, after]].dropna().to_numpy(dtype=float)
    n = len(pairs)
    if not n:
        return np.nan, np.nan, np.nan
    change = float(np.subtract(*np.median(pairs, axis=0)[::-1]))
    picks = np.random.default_rng(seed).integers(n, size=(resamples, n))
    drawn = np.median(pairs[picks], axis=1)
    return (change, *percentiles(change, [drawn[:, 1] - drawn[:, 0]] if n > 1 else [], 0.95))


def exchange_p(
    norms: pd.DataFrame, before: str, after: str, *, seed: int = 0, resamples: int = RESAMPLES
) -> float:
    """Two-sided p of the change of the median (:func:`median_change`) where each prompt's two norms change places.

    All exchanges of few prompts, else as many random ones, with what was found among them.
    """
    pairs = norms[[before, after]].dropna().to_numpy(dtype=float)
    n = len(pairs)
    if not n:
        return np.nan
    every = 2**n <= resamples
    swaps = (
        (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(bool)
        if every
        else np.random.default_rng(seed).integers(2, size=(resamples, n)).astype(bool)
    )
    sides = [np.median(np.where(swaps, *(pairs[:, s] for s in order)), axis=1) for order in ((1, 0), (0, 1))]
    found = abs(float(np.subtract(*np.median(pairs, axis=0))))
    far = int((np.abs(sides[1] - sides[0]) >= found * (1 - 1e-12)).sum())
    return far / len(swaps) if every else (1 + far) / (1 + len(swaps))


def sensitivity_table(norms: pd.DataFrame, *, seed: int, resamples: int = RESAMPLES) -> pd.DataFrame:
    """The median norm of each model and group, with a 95 % bootstrap interval over prompts (NaN of fewer than two).

    ``norms`` is a :func:`norm_table`, or several. Columns: :data:`SENSITIVITY_COLUMNS`.
    """
    import pandas as pd

    rows: list[dict[str, object]] = []
    for (model, group), part in norms.groupby(["model", "group"], sort=False):
        values = part["norm"].to_numpy(dtype=float)
        n, median = len(values), float(np.median(values))
        drawn: list[np.ndarray] = []
        if n > 1:
            picks = np.random.default_rng(seed).integers(n, size=(resamples, n))
            drawn = [np.median(values[picks], axis=1)]
        low, high = percentiles(median, drawn, 0.95)
        rows.append({"model": model, "group": group, "n": n, "median": median, "low": low, "high": high})
    return pd.DataFrame(rows, columns=SENSITIVITY_COLUMNS)
