"""How well a linear probe of each attention head separates harmful from harmless prompts, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mechsafety.core.progress import bar
from mechsafety.directions.activations import DEFAULT_BATCH
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.prompts.splits import require_disjoint
from mechsafety.regions.heads import head_outputs, head_scores
from mechsafety.statistics.auroc import auroc_interval

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

HEAD_COLUMNS = ("layer", "head", "auroc", "low", "high", "n")


def probe_heads(
    model: TransformerBridge,
    fit: Sequence[Prompt],
    held_out: Sequence[Prompt],
    *,
    seed: int,
    resamples: int = 1000,
    batch_size: int = DEFAULT_BATCH,
) -> pd.DataFrame:
    """A linear probe a head, fitted on ``fit`` and read on ``held_out``: the baseline of Wei et al. 2024.

    Columns: layer, head, ``auroc`` (harmful above harmless) with its 95 % score interval over prompts, ``n``
    held-out prompts. Every head is one of many measured: an interval holds for it alone. Raises
    :class:`MechsafetyError` when a prompt is in both, and for fewer than 2 prompts of a label to fit.
    """
    import pandas as pd

    require_disjoint(fitted=fit, held_out=held_out)
    read = head_outputs(model, held_out, batch_size=batch_size)
    scores = head_scores(head_outputs(model, fit, batch_size=batch_size), read).numpy()
    harmful = [label == "harmful" for label in read.labels]
    rows = []
    with bar("probes", total=scores.shape[1] * scores.shape[2], unit="head") as progress:
        for place, layer in enumerate(read.layers):
            for head in range(scores.shape[2]):
                found = auroc_interval(scores[:, place, head], harmful, seed=seed, resamples=resamples)
                rows.append((layer, head, found.value, found.low, found.high, found.n))
                progress.update(1)
    return pd.DataFrame(rows, columns=list(HEAD_COLUMNS))
