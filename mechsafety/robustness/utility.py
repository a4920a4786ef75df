"""What an edit costs: perplexity on benign text, distance from the unedited model, answers to simple questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import bar
from mechsafety.core.values import Value
from mechsafety.edits.interventions import Edit
from mechsafety.edits.sums import EditLike, as_edit
from mechsafety.generation.bodies import body_under
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat import TokenBatch, batches, tokenize_prompts
from mechsafety.models.forward import forward
from mechsafety.robustness.attempts import ratio
from mechsafety.robustness.benign import Choice, Passage
from mechsafety.robustness.choices import accuracy
from mechsafety.statistics.rates import Interval
from mechsafety.statistics.resampling import Estimate

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

PASSAGE_BATCH = 8
PER_PASSAGE = 8
UTILITY_COLUMNS: tuple[str, ...] = (
    *(f"{name}{end}" for name in ("perplexity", "kl", "accuracy") for end in ("", "_low", "_high")),
    "accuracy_n",
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BaseDistributions:
    """Next-token distributions of the unedited model at a few places of each passage, in nats, float32 on the CPU.

    Whole distributions are kept, so that the divergence is exact; at all places they would fill gigabytes.
    ``places[i]`` are the token positions within passage i, ``log_probs[i]`` their rows.
    """

    ids: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]
    log_probs: tuple[Float[Tensor, "_ vocabulary"], ...]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Utility(Value):
    """``perplexity`` and ``kl`` have bootstrap intervals over passages, ``accuracy`` has Wilson's over questions.

    None is what was not measured. ``perplexity.n`` counts predicted tokens, ``kl.n`` token positions.
    """

    perplexity: Estimate | None = None
    kl: Estimate | None = None
    accuracy: Interval | None = None

    def to_frame(self) -> pd.DataFrame:
        """One row with the columns :data:`UTILITY_COLUMNS`."""
        import pandas as pd

        return pd.DataFrame([self.row()])

    def describe(self) -> str:
        shown = {
            name: value for name in ("perplexity", "kl", "accuracy") if (value := self.row()[name]) == value
        }
        return f"Utility({', '.join(f'{name} {value:.4g}' for name, value in shown.items()) or 'nothing measured'})"

    def row(self) -> dict[str, int | float]:
        """The columns :data:`UTILITY_COLUMNS`; NaN for what was not measured."""
        row: dict[str, int | float] = dict.fromkeys(UTILITY_COLUMNS, math.nan)
        for name, found in (("perplexity", self.perplexity), ("kl", self.kl)):
            if found is not None:
                row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        if self.accuracy is not None:
            found = self.accuracy
            row |= {"accuracy": found.rate, "accuracy_low": found.low, "accuracy_high": found.high}
        return row | {"accuracy_n": self.accuracy.n if self.accuracy is not None else 0}


def measure_utility(
    model: ModelLike,
    *,
    passages: Sequence[Passage] = (),
    choices: Sequence[Choice] = (),
    base: BaseDistributions | None = None,
    edit: EditLike | None = None,
    seed: int = 0,
) -> Utility:
    """Measure ``model`` under ``edit`` on what is given.

    Perplexity is exp of the mean negative log-likelihood of all tokens that have one before them, in passages as
    bare text. The divergence is the mean of KL(base || model) in nats over the places of ``base``, which
    :func:`base_distributions` made of the unedited model from the same passages. ``seed`` draws the bootstrap.
    Raises :class:`MechsafetyError` with nothing to measure, and where base and passages differ.

    Arguments:
        passages: Texts for perplexity and divergence, of ms.regions.benign_passages.
        choices: Multiple-choice questions, of ms.regions.benign_choices.

    Returns:
        Accuracy, perplexity and divergence with 95 % intervals; NaN for what was not measured.

    Example:
        >>> passages = ms.regions.benign_passages()[:2]
        >>> base = ms.regions.base_distributions(model, passages)
        >>> utility = ms.regions.measure_utility(model, passages=passages, base=base)
        >>> round(utility.kl.value, 6)  # of the model from itself
        0.0
    """
    model = as_model(model)
    edit = None if edit is None else as_edit(edit, model)
    if not passages and not choices:
        raise MechsafetyError("utility needs passages, choices or both")
    if base is not None and base.ids != tuple(p.id for p in passages):
        raise MechsafetyError(
            f"the base distributions are of {len(base.ids)} passages, and {len(passages)} or others were given: "
            "make them of the same with base_distributions()"
        )
    perplexity = kl = None
    if passages:
        found = _read(model, passages, edit=edit, places=base.places if base is not None else None)
        sizes = [n for _, n, _ in found]
        log = ratio([nll for nll, _, _ in found], sizes, seed=seed)
        perplexity = Estimate(
            value=_exp(log.value), low=_exp(log.low), high=_exp(log.high), n=log.n, clusters=log.clusters
        )
        if base is not None:
            sums = [
                _divergence(before, after)
                for before, (_, _, after) in zip(base.log_probs, found, strict=True)
                if after is not None
            ]
            kl = ratio(sums, [len(places) for places in base.places], seed=seed)
    return Utility(
        perplexity=perplexity, kl=kl, accuracy=accuracy(model, choices, edit=edit) if choices else None
    )


def base_distributions(
    model: ModelLike,
    passages: Sequence[Passage],
    *,
    edit: EditLike | None = None,
    per_passage: int = PER_PASSAGE,
) -> BaseDistributions:
    """The model's next-token distributions at ``per_passage`` places of each passage, evenly spread.

    Raises :class:`MechsafetyError` without passages or places.

    Arguments:
        passages: Texts, of benign_passages.

    Returns:
        What ms.regions.measure_utility compares with.

    Example:
        >>> passages = ms.regions.benign_passages()[:2]
        >>> base = ms.regions.base_distributions(model, passages)
        >>> ms.regions.measure_utility(model, passages=passages, base=base).kl.value < 1e-6
        True
    """
    model = as_model(model)
    edit = None if edit is None else as_edit(edit, model)
    if not passages or per_passage < 1:
        raise MechsafetyError(
            f"{len(passages)} passages and {per_passage} places in each: one of both at least"
        )
    sequences = tokenize_prompts(model, [p.text for p in passages], rendering="text")
    places = tuple(_spread(len(s), per_passage) for s in sequences)
    found = _read(model, passages, edit=edit, places=places)
    return BaseDistributions(
        ids=tuple(p.id for p in passages),
        places=places,
        log_probs=tuple(after for _, _, after in found if after is not None),
    )


_Read = tuple[float, int, Tensor | None]
"""Of a passage: summed negative log-likelihood, tokens predicted, log-probabilities at the places asked for."""


def _read(
    model: TransformerBridge,
    passages: Sequence[Passage],
    *,
    edit: Edit | None,
    places: Sequence[Sequence[int]] | None,
) -> list[_Read]:
    sequences = tokenize_prompts(model, [p.text for p in passages], rendering="text")
    out: dict[int, _Read] = {}
    with (
        torch.inference_mode(),
        body_under(model, edit) as body,
        bar("reading", total=len(passages)) as progress,
    ):
        for batch in batches(model, sequences, batch_size=PASSAGE_BATCH):
            logits = forward(body, batch, logits=batch.ids.shape[1]).logits
            for row, index in enumerate(batch.rows):
                n = len(sequences[index])
                out[index] = _one(logits[row, -n:], batch, row, places[index] if places is not None else None)
            progress.update(len(batch.rows))
    return [out[i] for i in range(len(passages))]


def _one(logits: Any, batch: TokenBatch, row: int, places: Sequence[int] | None) -> _Read:
    n = len(logits)
    scores = logits.float()
    nll = torch.nn.functional.cross_entropy(scores[:-1], batch.ids[row, -n + 1 :], reduction="sum")
    kept = torch.log_softmax(scores[list(places)], dim=-1).cpu() if places is not None else None
    return float(nll), n - 1, kept


def _spread(length: int, count: int) -> tuple[int, ...]:
    """``count`` positions of a text of ``length`` tokens, evenly spread and never the first; all where it is short."""
    count = min(count, length - 1)
    return tuple(1 + (i * (length - 1)) // count for i in range(count))


def _divergence(before: Tensor, after: Tensor) -> float:
    return float((before.exp() * (before - after)).sum())


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
